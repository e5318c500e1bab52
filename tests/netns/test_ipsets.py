# SPDX-License-Identifier: Apache-2.0
"""ipsets: read from the kernel as the program prints them, kept current, watched, rebuilt in a twin, named by the doctor."""

from __future__ import annotations

import re
from random import Random

import pytest

from netns.doctor_pods import connects, doctor, flow_to, listener, paste
from netns.filter_rules import Maker
from netns.pods import PodNet
from netns.watchers import Watch
from wicketgate.kernel.ipsets import ipsets
from wicketgate.kernel.live_snapshot import LiveSnapshot
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.netfilter.ipsets import asks_for_sets, parse_ipsets, settled
from wicketgate.netpath.paste.bundle import read_paste

# What the kernel tells and no match asks
UNASKED = re.compile(r" (?:hashsize|bucketsize|initval) \S+| comment \"[^\"]*\"| packets \d+ bytes \d+")
RULE = "-A INPUT -m set ! --match-set friends src -j DROP"


def elements(text: str) -> dict[str, tuple[object, ...]]:
    """Every set with all that decides; two spellings of one listing give the same."""
    return {
        name: (each.kind, each.family, each.mask, each.mark_mask, each.nets, sorted(each.members), each.unknown)
        for name, each in parse_ipsets(text).items()
    }


def test_the_kernels_sets_are_those_that_the_program_lists(new_host):
    """Of every type that the rules' generator knows, and of a few it does not; nothing of them is unknown."""
    host = new_host("sets")
    more = (
        'create timed hash:ip family inet timeout 600 counters comment\nadd timed 192.0.2.1 timeout 300 comment "a -m set"\n'
        "create wild hash:net,iface family inet\nadd wild 192.0.2.0/24,eth wildcard\nadd wild 192.0.2.0/24,physdev:br0\n"
    )
    for number in range(20):
        host.run("ipset", "flush")
        host.run("ipset", "destroy")
        host.run("ipset", "restore", stdin=Maker(Random(number)).ipset() + more)
        ours, theirs = host.call(ipsets), host.run("ipset", "save").stdout
        assert elements(ours) == elements(theirs)
        assert not [each.unknown for each in parse_ipsets(ours).values() if each.unknown]
        wanted = {line for line in settled(UNASKED.sub("", theirs)) if line.startswith("add ") and ":echo" not in line}
        assert wanted <= {*settled(ours)}
        host.run("ipset", "flush")
        host.run("ipset", "destroy")
        host.run("ipset", "restore", stdin=ours)  # what a twin is made of
        assert settled(host.call(ipsets)) == settled(ours)


def test_many_elements_come_whole(new_host):
    """More than one message of the kernel's holds."""
    host = new_host("sets")
    text = "create big hash:ip family inet\n" + "".join(f"add big 10.0.{n >> 8}.{n & 255}\n" for n in range(20000))
    host.run("ipset", "restore", stdin=text)
    assert host.call(ipsets).count("\nadd big ") == 20000


def test_sets_are_read_only_where_a_rule_asks(new_host):
    """A place without such a rule gives no listing, and nothing is unread for it."""
    host = new_host("sets")
    host.run("ipset", "create", "friends", "hash:net")
    assert host.acall(take_snapshot).firewall.ipset is None
    host.run("iptables-legacy", *RULE.split())
    snapshot = host.acall(take_snapshot)
    assert (snapshot.firewall.ipset or "").startswith("create friends hash:net family inet")
    assert not [each for each in snapshot.unread if "ipset" in each.what]


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_a_live_snapshot_has_what_was_added_a_moment_ago(new_host, tool):
    """No event tells of an element, and no snapshot is without it."""
    host = new_host("sets")
    host.run("ipset", "create", "friends", "hash:net", "timeout", "1000")
    host.run(tool, *RULE.split())

    async def look():
        async with LiveSnapshot() as live:
            before = await live.current()
            same = await live.current()
            host.run("ipset", "add", "friends", "192.0.2.0/24")
            after = await live.current()
            return before, same, after

    before, same, after = host.acall(look)
    assert same.firewall is before.firewall
    assert "add friends" not in before.firewall.ipset
    assert "add friends 192.0.2.0/24" in after.firewall.ipset


@pytest.fixture
def pod():
    with PodNet.create("bridge", "ipset-pod") as net, listener(net):
        yield net


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_a_set_that_shuts_the_client_out_is_named_and_passed(pod, tool):
    """The rule as iptables-save has it; the fix, proved in a twin that has the set, lets the client in."""
    pod.pod.run("ipset", "restore", stdin="create friends hash:net family inet\nadd friends 192.0.2.0/24\n")
    pod.pod.run(tool, *RULE.split())
    assert not connects(pod, timeout=0.3)
    code, report = doctor(pod)
    flow = flow_to(report)
    assert (code, flow["cause"]["code"], flow["cause"]["where"]) == (1, "input-drop", RULE)
    assert flow["fixes"][0]["proved_by"] == ["model", "twin"]
    paste(pod, flow["fixes"][0]["commands"])
    assert connects(pod)
    paste(pod, flow["fixes"][0]["undo"])
    assert not connects(pod, timeout=0.3)
    pod.pod.run("ipset", "add", "friends", "0.0.0.0/1")
    pod.pod.run("ipset", "add", "friends", "128.0.0.0/1")
    assert connects(pod)
    assert flow_to(doctor(pod)[1])["works"]


def test_watch_tells_of_elements(new_host):
    """Each as a command of ipset."""
    host = new_host("sets")
    host.run("ipset", "create", "friends", "hash:net")
    host.run("iptables-legacy", *RULE.split())
    with Watch("--netns", f"pid:{host.pid}", "--no-flows", "--interval", "0.1") as watch:
        watch.line(lambda text: "watching" in text)
        host.run("ipset", "add", "friends", "192.0.2.0/24")
        watch.line(lambda text: "+ iptables  ipset add friends 192.0.2.0/24" in text)
        host.run("ipset", "del", "friends", "192.0.2.0/24")
        watch.line(lambda text: "- iptables  ipset del friends 192.0.2.0/24" in text)


def test_a_paste_has_its_sets_and_misses_them(new_host):
    """`ipset save` in a paste is read; without it the paste says which command prints it."""
    host = new_host("sets")
    host.run("ipset", "restore", stdin="create friends hash:net family inet\nadd friends 192.0.2.0/24\n")
    host.run("iptables-legacy", *RULE.split())
    rules = host.run("iptables-legacy-save").stdout
    assert asks_for_sets(rules)
    both = f"$ iptables-legacy-save\n{rules}\n$ ipset save\n{host.run('ipset', 'save').stdout}"
    whole = read_paste(both, now=0.0).snapshot
    assert elements(whole.firewall.ipset) == elements(host.call(ipsets))
    less = read_paste(f"$ iptables-legacy-save\n{rules}", now=0.0).snapshot
    assert "ipset save" in {each.what for each in less.unread}
