# SPDX-License-Identifier: Apache-2.0
"""What the tools print, pasted, is what the kernel said: compared with the snapshot and with `nft -j` of the same moment."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from netns.doctor_pods import listener, wg_quick
from netns.kernel_judge import Judge
from netns.pods import SHAPES, PodNet, sysctl
from netns.random_rulesets import each_loaded, with_wires
from netpath_worlds import worlds
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object
from wicketgate.kernel.namespace import uapi_dir_of
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.lab.host import Host
from wicketgate.netpath.netfilter.nft.model import Conditional, Table
from wicketgate.netpath.netfilter.nft.parse import parse
from wicketgate.netpath.paste.bundle import read_paste
from wicketgate.netpath.paste.nft_text import nft_json
from wicketgate.netpath.snapshot import Snapshot

CORPUS = Path(__file__).parents[1] / "corpus"
RULESETS = int(os.environ.get("WICKETGATE_PASTE_RULESETS", "60"))
WHOLE = (
    "ip -d addr", "ip rule", "ip -6 rule", "ip route show table all", "ss -lntu", "iptables-save", "ip6tables-save",
    "nft list ruleset", "wg show", "sysctl -a -r ^net.ipv[46].(conf|ip_forward|icmp|fwmark|tcp_fwmark)",
)  # fmt: skip


def typed(host: Host, commands, *, crlf: bool = False) -> str:
    """As it stands in a terminal: each command behind a prompt, and what it prints."""
    text = "".join(f"root@pod:/# {each}\n{host.run(*each.split(), check=False).stdout}" for each in commands)
    return text.replace("\n", "\r\n") if crlf else text


# nftables


def same(mine: Table, theirs: Table) -> None:
    """Fails where the two listings of a table differ; what the text hides stands in mine as a doubt before a reject."""
    assert list(mine.chains) == list(theirs.chains)
    for name, chain in theirs.chains.items():
        other = mine.chains[name]
        # nft before 1.0.7 leaves the devices of a chain out of its JSON.
        told = replace(chain, devices=chain.devices or other.devices)
        assert replace(other, rules=(), handle=0) == replace(told, rules=(), handle=0)
        assert len(other.rules) == len(chain.rules)
        for left, right in zip(other.rules, chain.rules, strict=True):
            kept = tuple(s for s in left.statements if not (isinstance(s, Conditional) and s.what == "hidden family"))
            assert (kept, left.comment) == (right.statements, right.comment)
    assert mine.sets == theirs.sets
    assert mine.filled == theirs.filled
    assert mine.dormant or not theirs.dormant  # the flag too is not in older JSON
    mine_order = sorted(mine.chains.values(), key=lambda each: each.handle)
    assert [each.name for each in mine_order] == [
        each.name for each in sorted(theirs.chains.values(), key=lambda each: each.handle)
    ]


def compare(host: Host) -> int:
    """Both listings of what is loaded; how many rules they have."""
    theirs = parse(host.run("nft", "-j", "list", "ruleset").stdout)
    for option in ((), ("-a",)):
        mine = parse(nft_json(host.run("nft", *option, "list", "ruleset").stdout))
        assert list(mine) == list(theirs)
        for key, table in theirs.items():
            same(mine[key], table)
    return sum(len(chain.rules) for table in theirs.values() for chain in table.chains.values())


@pytest.fixture
def stand(new_host):
    """A host with the interfaces that random rules name."""
    return with_wires(new_host("paste"))


def test_random_rulesets_read_from_text_are_those_of_the_json(stand):
    """For random nftables rulesets that the kernel takes: chains, rules and sets are the same, read either way."""
    rules = sum(compare(stand) for _ in each_loaded(stand, RULESETS))
    assert rules > 5 * RULESETS


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.glob("*.nft")))
def test_well_known_rulesets_read_from_text_are_those_of_the_json(stand, name):
    """The corpus, in the same way."""
    stand.run("nft", "-f", "-", stdin=(CORPUS / name).read_text())
    assert compare(stand) > 3


RARE = """
table ip odd {
	comment "a table's own"
	counter passed { }
	quota most { over 25 mbytes }
	limit few { rate 10/second }
	ct helper ftp-standard { type "ftp" protocol tcp; }
	set seen { type ipv4_addr; flags dynamic,timeout; timeout 5m; size 100; }
	set named { typeof ip saddr . tcp dport; elements = { 10.0.0.1 . 80 comment "one", 10.0.0.2 . 81 } }
	map ways { type ipv4_addr : verdict; flags interval; elements = { 10.0.0.0/8 : jump user, 192.168.0.0-192.168.5.255 : drop } }
	chain user {
		comment "called"
		ip protocol vmap { tcp : accept, udp : return }
	}
	chain in {
		type filter hook input priority filter + 7; policy drop;
		iifname "up*" tcp flags syn / fin,syn,rst,ack counter name "passed" accept comment "a; b { c } # d"
		tcp dport { 22, 80-90 } ct state new limit rate 3/minute burst 7 packets log prefix "in: " group 3 accept
		ip saddr @seen update @seen { ip saddr timeout 10m } drop
		ip saddr . tcp dport @named accept
		ip saddr vmap @ways
		ip frag-off & 0x1fff != 0 drop
		tcp option maxseg size 1200-1460 accept
		meta skuid 1000-2000 drop
		quota over 10 kbytes drop
		limit name "few" accept
		ct count over 20 reject with tcp reset
		numgen random mod 10 < 3 drop
		jhash ip saddr . tcp sport mod 4 seed 0xdeadbeef vmap { 0 : accept, 1-3 : drop }
		ct helper "ftp" accept
		socket transparent 1 mark set 0x1
		rt nexthop 10.0.0.1 accept
		ether saddr 02:00:00:00:00:01 accept
		icmp type echo-request icmp code 0 ip length > 100 drop
		ct expiration 1h30m-2h drop
		tcp dport 1024-65535 queue num 3 bypass
	}
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		tcp dport 80 dnat to 10.0.0.2-10.0.0.9:8080-8090 random,persistent
		udp dport 53 redirect to :5353
		dnat to numgen inc mod 2 map { 0 : 10.0.0.3, 1 : 10.0.0.4 }
	}
	chain post {
		type nat hook postrouting priority srcnat + 5;
		oifname { "up0", "wg*" } ip protocol tcp masquerade to :1024-2048 fully-random
		ip saddr 10.0.0.0/24 snat to 192.0.2.1
		snat ip prefix to ip saddr map { 10.1.0.0/16 : 10.2.0.0/16 }
	}
	chain mangled {
		type route hook output priority mangle;
		tcp flags syn tcp option maxseg size set rt mtu
		meta priority set 1:2
		ct mark set meta mark & 0xff00 | 0x1
		ip dscp set af21 meta nftrace set 1
		ct helper set "ftp-standard"
	}
}
table ip6 six {
	chain in {
		type filter hook input priority 0; policy accept;
		ip6 nexthdr icmpv6 icmpv6 type { nd-neighbor-solicit, nd-router-advert } accept
		ip6 saddr fe80::/10 udp dport 546 accept
		exthdr frag exists drop
		ip6 daddr { 2001:db8::1-2001:db8::ff, fd00::/8 } reject with icmpv6 admin-prohibited
	}
	chain pre {
		type nat hook prerouting priority -100;
		tcp dport 80 dnat to [fd00::2]:8080
		ip6 daddr fd00::5 dnat to fd00::6-fd00::7
	}
}
table netdev wire {
	chain in { type filter hook ingress device "up0" priority 5; policy accept; ip saddr 10.9.9.9 drop; }
}
table inet sleeping {
	flags dormant
	chain c {
		type filter hook forward priority security - 3; policy accept;
		reject with icmpx host-unreachable
	}
}
table bridge frames {
	chain f { type filter hook forward priority filter; policy accept; ether type ip drop; }
}
"""


def test_rare_constructs_read_from_text_are_those_of_the_json(stand):
    """One of each thing that random rulesets lack. What one nft prints otherwise than another is not compared here."""
    lines = RARE.split("\n")
    refused = []
    while (answer := stand.run("nft", "-f", "-", stdin="\n".join(lines), check=False)).returncode:
        # A kernel or nft that lacks one of them: it is left out, and counted.
        at = int(answer.stderr.split(":")[1]) - 1
        refused.append(lines[at].strip())
        lines[at] = ""
    print("\n".join(refused))
    assert len(refused) <= 6, refused
    assert compare(stand) > 30


# Rules, routes, and the whole


def pasted_of(text: str) -> Snapshot:
    """The snapshot of a paste that was recognized."""
    read = read_paste(text, now=0.0)
    assert read is not None
    return read.snapshot


def test_random_rules_and_routes_read_from_text_are_the_kernels(new_host):
    """For random configurations: every rule and route that netlink lists is read from ip's listing, and no other."""
    compared = 0

    def inside():
        with Judge(rules=True) as judge:

            @settings(
                max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(worlds)
            def check(world):
                nonlocal compared
                judge.apply(world)
                there = judge.snapshot()
                text = "".join(
                    f"$ {each}\n{subprocess.run(each.split(), capture_output=True, text=True, check=True).stdout}"
                    for each in ("ip addr", "ip rule", "ip -6 rule", "ip route show table all")
                )
                here = pasted_of(text)
                assert nameless(here.rules) == nameless(there.rules)
                assert {plain(each) for each in here.routes} == {plain(each) for each in there.routes}
                assert {(a.ifname, a.interface, a.scope) for a in here.addresses} == {
                    (a.ifname, a.interface, a.scope) for a in there.addresses
                }
                compared += len(here.rules) + len(here.routes)

            check()

    new_host("paste").call(inside)
    assert compared > 500


def nameless(rules):
    """Without who put a rule there: of `kernel` and of nobody iproute2 prints the same, nothing."""
    return [replace(each, protocol=0 if each.protocol == 2 else each.protocol) for each in rules]


def plain(route):
    """Without what iproute2 does not print: ways of nexthop objects come with their flags spelled otherwise."""
    hops = tuple(replace(hop, flags=hop.flags & ~1) for hop in route.nexthops)  # dead: printed where linkdown is too
    return replace(route, nexthops=hops, metrics={})


@pytest.fixture(scope="module", params=SHAPES)
def seed(request, tmp_path_factory):
    """The pod after `wg-quick up` for a peer that claims everything, with listeners in both families."""
    with PodNet.create(request.param, "paste") as net, listener(net), listener(net, "::"):
        wg_quick(net, tmp_path_factory.mktemp("wg"), "0.0.0.0/0 ::/0")
        yield net


@pytest.mark.parametrize("rp", [0, 1])
@pytest.mark.parametrize("crlf", [False, True])
def test_a_whole_paste_gives_the_report_of_the_snapshot(seed, rp, crlf):
    """With the outputs of all tools the doctor says of each flow what it says of the place itself, fixes included.

    But for what the outputs do not hold: a socket's mark, which rules select by.
    """
    for where in ("all", "eth0"):
        sysctl(seed.pod, f"net.ipv4.conf.{where}.rp_filter", str(rp))
    uapi_dir = uapi_dir_of(f"pid:{seed.pod.pid}") or UAPI_DIR
    there = seed.pod.acall(lambda: take_snapshot(uapi_dir=uapi_dir))
    here = pasted_of(typed(seed.pod, WHOLE, crlf=crlf))
    assert nameless(here.rules) == nameless(there.rules)
    assert {plain(each) for each in here.routes} == {plain(each) for each in there.routes}
    wanted = {(s.protocol, s.address, s.port, s.bound_device) for s in there.sockets}
    assert {(s.protocol, s.address, s.port, s.bound_device) for s in here.sockets} == wanted
    assert [(d.ifname, d.public_key, d.listen_port, d.fwmark) for d in here.wireguard] == [
        (d.ifname, d.public_key, d.listen_port, d.fwmark) for d in there.wireguard
    ]
    assert [[p.allowed_ips for p in d.peers] for d in here.wireguard] == [
        [p.allowed_ips for p in d.peers] for d in there.wireguard
    ]
    marked = replace(here, sockets=tuple(replace(each, mark=0) for each in here.sockets))
    mine, theirs = to_object(examine(marked)), to_object(examine(there))
    assert mine == theirs, json.dumps([mine, theirs])[:2000]


def test_the_outputs_people_paste_first_are_enough_for_the_rule(seed):
    """Addresses, rules, routes and listeners: unknown, but supposing no firewall the very rule and a fix are named."""
    text = typed(seed.pod, ("ip addr", "ip rule", "ip route show table all", "ss -lnt"))
    examination = examine(pasted_of(text))
    assert examination.exit_code == 3
    to_port = [f for f in examination.findings if f.diagnosis.concern.flow.destination_port == 9000]
    stranger = next(f for f in to_port if str(f.diagnosis.concern.flow.source) == "203.0.113.9")
    assert stranger.diagnosis.cause is None
    assert len(stranger.supposed) == 1
    assert "there are no firewall rules" in stranger.supposed[0].words
    assert "rp_filter" in stranger.supposed[0].words
    cause = stranger.supposed[0].diagnosis.cause
    assert cause is not None
    assert cause.code == "reply-into-tunnel"
    assert "lookup 51820" in cause.where
    assert stranger.supposed[0].fixes[0].fix.id == "source-rule"
    missing = {each.why.rpartition(": ")[2] for each in examine_unread(text)}
    assert {"nft list ruleset", "iptables-save", "wg show"} <= missing


def examine_unread(text):
    return pasted_of(text).unread
