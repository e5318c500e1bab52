# SPDX-License-Identifier: Apache-2.0
"""A ruleset with one more rule is what it would be if all of it were read again."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from netns.random_rulesets import each_loaded, with_wires
from wicketgate.doctor.firewall import insert_rule
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import Host
from wicketgate.netpath.netfilter.nft.amend import inserted
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import SYN, TCP, Connection, Packet
from wicketgate.netpath.snapshot import Snapshot

CORPUS = Path(__file__).parents[1] / "corpus"
ACCEPT = [
    {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 9000}},
    {"accept": None},
]
TRACKED = [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, {"drop": None}]
HOOKS = {
    "prerouting": ("up0", ""), "input": ("up0", ""), "forward": ("up0", "up0"), "output": ("", "up0"), "postrouting": ("", "up0"),
}  # fmt: skip
RULESETS = 12


@pytest.fixture
def stand(new_host):
    """A host with the interfaces that random rules name."""
    return with_wires(new_host("amend"))


def chains_with_rules(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Of nft's own tables."""
    objects = [each["rule"] for each in json.loads(snapshot.firewall.nft_json or "{}")["nftables"] if "rule" in each]
    found = dict.fromkeys((each["family"], each["table"], each["chain"]) for each in objects)
    return [place for place in found if place[0] in ("ip", "ip6", "inet")]


def asked() -> list[tuple[str, Packet]]:
    """Every hook, with a packet of each family to two ports."""
    found = []
    for hook, (iif, oif) in HOOKS.items():
        for source, destination in (("198.51.100.7", "10.0.0.2"), ("2001:db8::7", "fd00::2")):
            for port in (9000, 443):
                ends = ip_address(source), ip_address(destination)
                found.append((hook, Packet(*ends, TCP, 40000, port, tcp_flags=SYN, iif=iif, oif=oif)))
    return found


def same(host: Host) -> int:
    """Each chain of what is loaded gets a rule; amended and read anew decide alike. How many answers were compared."""
    snapshot = host.acall(lambda: take_snapshot(sockets=False))
    first, compared = Ruleset(snapshot), 0
    for hook, packet in asked():
        first.hook(hook, packet, Connection.opened_by(packet))  # what is made now is taken over
    for place in chains_with_rules(snapshot):
        for expressions in (ACCEPT, TRACKED):
            changed = insert_rule(snapshot, *place, expressions)
            amended = first.amended(changed)
            # which tables are dormant older nft says in its text alone
            text = snapshot.firewall.nft_text
            fresh = Ruleset(replace(changed, firewall=replace(changed.firewall, nft_text=text)))
            assert amended is not None, place
            assert [each.table for each in amended._nft] == [each.table for each in fresh._nft]
            assert amended._tracked == fresh._tracked
            for hook, packet in asked():
                mine = amended.hook(hook, packet, Connection.opened_by(packet))
                theirs = fresh.hook(hook, packet, Connection.opened_by(packet))
                assert mine == theirs, (place, hook, packet)
                compared += 1
    return compared


def test_random_rulesets(stand):
    """For random rulesets that the kernel takes, an accept and a rule that has connections tracked, in each chain."""
    compared = sum(same(stand) for _ in each_loaded(stand, RULESETS))
    assert compared > 100 * RULESETS


@pytest.mark.parametrize("name", ["calico.nft", "firewalld.nft", "kube-proxy.nft"])
def test_well_known_rulesets(stand, name):
    """Those that have hundreds of chains and sets."""
    stand.run("nft", "-f", "-", stdin=(CORPUS / name).read_text())
    assert same(stand) > 100


def listing(*objects: dict) -> str:
    """As nft prints it."""
    return json.dumps({"nftables": list(objects)})


def rule(handle: int, word: str, chain: str = "c") -> dict:
    """A rule of one word."""
    return {"rule": {"family": "ip", "table": "t", "chain": chain, "handle": handle, "expr": [{word: None}]}}


FIRST, MORE = rule(4, "accept"), rule(9, "drop")
BEFORE = listing(FIRST)


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,
        "",
        "{}",
        f"{BEFORE} ",
        listing(rule(4, "continue")),
        listing(MORE, MORE, FIRST),
        listing(rule(9, "set"), FIRST),
        listing(rule(9, "drop", "d"), FIRST),
        listing(MORE, rule(4, "continue")),
        listing(FIRST, MORE),
        listing({"rule": []}, FIRST),
        listing(MORE, FIRST).replace(", {", ",  {", 1),
    ],
)
def test_any_other_difference_is_read_anew(after):
    """Two rules, a rule at the end, one that fills a set, one of another chain, damage: no short way."""
    assert inserted(BEFORE, after) is None


def test_one_rule_is_found():
    """The chain, the rule and the one that follows it."""
    found = inserted(BEFORE, listing(MORE, FIRST))
    assert found is not None
    assert (found.table, found.chain, found.before, found.body["handle"]) == (("ip", "t"), "c", 4, 9)
