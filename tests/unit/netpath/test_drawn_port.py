# SPDX-License-Identifier: Apache-2.0
"""A port that source NAT draws by chance: rules that ask it are in doubt, as far as its range leaves one."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface

import pytest

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import UDP, Connection, Packet
from wicketgate.netpath.snapshot import Address, Firewall, Link, Snapshot

INSIDE, OUTSIDE, OURS = ip_address("10.8.0.5"), ip_address("203.0.113.9"), ip_address("10.0.0.2")
LINKS = (Link(1, "eth0", up=True, lower_up=True), Link(2, "wg0", up=True, lower_up=True))


def place(*, nat: str = "-A POSTROUTING -o eth0 -j MASQUERADE --random-fully", raw: str = "", nft: str = "") -> Ruleset:
    """A gateway with these rules."""
    text = (
        f"*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{raw}\nCOMMIT\n".replace("\n\n", "\n")
        + f"*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{nat}\nCOMMIT\n"
    )
    firewall = Firewall(
        nft_json=nft, nft_text="", iptables_nft="", ip6tables_nft="", iptables_legacy=text, ip6tables_legacy=""
    )
    return Ruleset(
        Snapshot(0, links=LINKS, addresses=(Address("eth0", 1, ip_interface("10.0.0.2/24")),), firewall=firewall)
    )


def behind(*expressions: object) -> str:
    """A chain of nftables that sees the packet after NAT."""
    chain = {
        "family": "ip",
        "table": "late",
        "name": "c",
        "handle": 1,
        "type": "filter",
        "hook": "postrouting",
        "prio": 200,
        "policy": "accept",
    }
    rule = {"family": "ip", "table": "late", "chain": "c", "handle": 2, "expr": list(expressions)}
    return json.dumps(
        {"nftables": [{"table": {"family": "ip", "name": "late", "handle": 1}}, {"chain": chain}, {"rule": rule}]}
    )


def port_is(field: str, value: object) -> dict[str, object]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": field}}, "right": value}}


def sent(rules: Ruleset, port: int = 40000):
    """The client's datagram, on its way out."""
    packet = Packet(INSIDE, OUTSIDE, UDP, port, 53, iif="wg0", oif="eth0")
    return rules.hook("postrouting", packet, Connection.opened_by(packet))


def answered(rules: Ruleset, port: int = 40000):
    """The answer to it, as it comes in."""
    first = sent(rules, port)
    answer = Packet(OUTSIDE, OURS, UDP, 53, first.packet.source_port, iif="eth0")
    return rules.hook("prerouting", answer, first.connection.replying())


@pytest.mark.parametrize(("port", "ports"), [(40000, (1024, 65535)), (1023, (600, 1023)), (500, (1, 511))])
def test_the_range_is_that_of_the_ports_class(port, ports):
    """nf_nat_l4proto_unique_tuple; the step says so."""
    out = sent(place(), port)
    assert (out.verdict, out.connection.drawn) == (HookVerdict.ACCEPT, ports)
    assert f"the port one of {ports[0]}-{ports[1]}" in out.steps[-1].effect


@pytest.mark.parametrize(
    ("nat", "ports"),
    [
        ("-A POSTROUTING -o eth0 -j MASQUERADE", None),
        ("-A POSTROUTING -o eth0 -p udp -j MASQUERADE --to-ports 1000-2000", (1000, 2000)),
        ("-A POSTROUTING -o eth0 -p udp -j SNAT --to-source 10.0.0.2:1000-50000", None),  # the port is in it already
        ("-A POSTROUTING -o eth0 -p udp -j SNAT --to-source 10.0.0.2:1000-50000 --random", (1000, 50000)),
        ("-A POSTROUTING -o eth0 -p udp -j SNAT --to-source 10.0.0.2:77 --random", None),
    ],
)
def test_a_rules_own_range(nat, ports):
    """One port is no draw, and one that is within the range stays."""
    assert sent(place(nat=nat)).connection.drawn == ports


def test_a_rule_behind_it_that_asks_the_port_is_in_doubt():
    """The source port of the translated packet, in a chain behind the translation; the destination's is known."""
    assert sent(place(nft=behind(port_is("sport", 40000), {"drop": None}))).verdict is HookVerdict.UNKNOWN
    assert sent(place(nft=behind(port_is("dport", 53), {"drop": None}))).verdict is HookVerdict.DROP
    assert sent(place(nft=behind(port_is("dport", 54), {"drop": None}))).verdict is HookVerdict.ACCEPT


@pytest.mark.parametrize(
    ("match", "verdict"),
    [
        ("-p udp -m udp --dport 40000", HookVerdict.UNKNOWN),  # the one that it was is no better than any other
        ("-p udp -m udp --dport 30000:50000", HookVerdict.UNKNOWN),
        ("-p udp -m udp ! --dport 30000:50000", HookVerdict.UNKNOWN),
        ("-p udp -m udp --dport 1:1023", HookVerdict.ACCEPT),
        ("-p udp -m udp --dport 1:65535", HookVerdict.DROP),
        ("-p udp -m multiport --dports 53,67,123", HookVerdict.ACCEPT),
        ("-p udp -m multiport --dports 53,4789", HookVerdict.UNKNOWN),
        ("-p udp -m multiport --ports 53,4789", HookVerdict.DROP),  # the source port is 53
        ("-p udp -m udp --sport 53", HookVerdict.DROP),
    ],
)
def test_the_answers_port_before_it_is_turned_back(match, verdict):
    """Iptables' table raw sees the drawn one: by its range it is known or not."""
    assert answered(place(raw=f"-A PREROUTING {match} -j DROP")).verdict is verdict


def test_behind_it_all_is_known_again():
    """The answer has the client's port when NAT has turned it back."""
    back = answered(place())
    assert (back.verdict, back.packet.destination, back.packet.destination_port) == (HookVerdict.ACCEPT, INSIDE, 40000)
