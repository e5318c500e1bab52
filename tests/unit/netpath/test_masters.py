# SPDX-License-Identifier: Apache-2.0
"""Interfaces under others: what passes elsewhere than the model thinks is unknown, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from unit.netpath.test_walk import ETH_DEFAULT, PROBE, SEED_POD
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.lookup import Question
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Address, Link, NextHop, Route, Rule
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import trace

PORT = Link(10, "v1", "veth", up=True, lower_up=True, master=11)
VRF = Link(11, "red", "vrf", up=True, lower_up=True)
L3MDEV = Rule(4, 1000, l3mdev=True)


def with_master(kind: str):
    """The seed's pod with one more veth under a master of this kind, and the rule that a first VRF brings."""
    return replace(
        SEED_POD,
        links=(*SEED_POD.links, PORT, replace(VRF, kind=kind)),
        rules=(SEED_POD.rules[0], L3MDEV, *SEED_POD.rules[1:]),
        routes=(
            Route(ip_network("198.18.0.0/24"), nexthops=(NextHop("v1"),), protocol=3),
            ETH_DEFAULT,
            *SEED_POD.routes,
        ),
    )


def test_a_vrf_beside_the_way_is_nothing_to_it():
    """The rule `l3mdev` takes no packet that touches no VRF: the verdict is the one without it."""
    assert trace(with_master("vrf"), PROBE).verdict is trace(SEED_POD, PROBE).verdict is Verdict.DELIVERED


@pytest.mark.parametrize("name", ["v1", "red"])
def test_what_comes_in_by_a_vrf_is_not_known(name):
    """It passes the hooks twice, and is looked up in the VRF's table: no guess."""
    end = trace(with_master("vrf"), replace(PROBE, iif=name))
    assert (end.verdict, end.object) == (Verdict.UNKNOWN, "v1 master red" if name == "v1" else "red")


@pytest.mark.parametrize("kind", ["bridge", "bond"])
def test_what_comes_in_by_a_port_names_the_interface_to_ask_about(kind):
    """A frame at a port is its master's: the reason says by which interface the packet comes in."""
    end = trace(with_master(kind), replace(PROBE, iif="v1"))
    assert (end.verdict, end.object) == (Verdict.UNKNOWN, "v1 master red")
    assert end.reason == f"a port of {kind} red: ask about packets that come in by red"


def test_what_is_sent_into_a_vrf_is_not_known():
    """By a route of the main table that leaks into it, and from a socket that is bound to it."""
    out = Flow(ip_address("10.0.0.2"), ip_address("198.18.0.5"), "tcp", 40000, 80)
    assert trace(with_master("vrf"), out).verdict is Verdict.UNKNOWN
    assert trace(with_master("veth"), out).verdict is Verdict.FORWARDED
    bound = trace(with_master("vrf"), replace(out, destination=ip_address("203.0.113.9"), device="red"))
    assert (bound.verdict, bound.object) == (Verdict.UNKNOWN, "1000: from all lookup [l3mdev-table]")


def test_the_rule_of_a_bound_sender_asks_the_vrfs_table():
    """Its way is computed; that it goes through the VRF is where the model stops. Another rule by `oif` does not meet a VRF."""
    snapshot = with_master("vrf")
    links = tuple(replace(link, vrf_table=100) if link.name == "red" else link for link in snapshot.links)
    inside = Route(
        ip_network("0.0.0.0/0"), table=100, nexthops=(NextHop("v1"),), prefsrc=ip_address("10.66.0.1"), protocol=3
    )
    by_oif = Rule(4, 900, action="blackhole", oif="red")
    told = replace(
        snapshot, links=links, routes=(*snapshot.routes, inside), rules=(snapshot.rules[0], by_oif, *snapshot.rules[1:])
    )
    for device in ("red", "v1"):
        way = Routing(told).output(Question(ip_address("203.0.113.9"), oif=device))
        assert (way.hops[0].oif, str(way.source), way.rule.l3mdev) == ("v1", "10.66.0.1", True)
    end = trace(told, Flow(ip_address("0.0.0.0"), ip_address("203.0.113.9"), "tcp", 40000, 80, device="red"))
    assert (end.verdict, end.object) == (Verdict.UNKNOWN, "v1 master red")
    assert any("l3mdev" in step.object for step in end.steps)


def test_no_source_address_is_chosen_from_a_vrf():
    """An interface without an address borrows one, but from its own layer 3 domain only (inet_select_addr)."""
    snapshot = with_master("vrf")
    bare = Link(2, "e9", "veth", up=True, lower_up=True)
    addresses = (Address("red", 11, ip_interface("10.66.0.1/24")), Address("e8", 12, ip_interface("10.77.0.1/24")))
    lone = replace(
        snapshot,
        links=(snapshot.links[0], snapshot.links[-1], bare, Link(12, "e8", up=True, lower_up=True)),
        addresses=addresses,
        routes=(Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("e9"),), scope=253, protocol=3),),
        sysctls={**SEED_POD.sysctls, "net.ipv4.conf.e9.route_localnet": "0"},
        rules=(*snapshot.rules[:2], Rule(4, 32766, table=254)),
    )
    way = Routing(lone).output(Question(ip_address("203.0.113.9")))
    assert str(way.source) == "10.77.0.1"
