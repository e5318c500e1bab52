# SPDX-License-Identifier: Apache-2.0
"""Uplinks are found by route and address, never by name."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from wicketgate.gateway.uplinks import IFA_F_DADFAILED, IFA_F_TENTATIVE, find_uplinks
from wicketgate.netpath.snapshot import Address, Link, NextHop, Route

LO = Link(1, "lo", up=True, loopback=True)
ETH = Link(2, "eth0", kind="veth", up=True, mtu=9001)
NET = Link(5, "net1", kind="macvlan", up=True)
WG = Link(7, "wg0", kind="tun", up=True)


def address(link: Link, text: str, **more) -> Address:
    return Address(link.name, link.index, ip_interface(text), **more)


def default(link: Link, family: int = 4, **more) -> Route:
    return Route(ip_network("0.0.0.0/0" if family == 4 else "::/0"), nexthops=(NextHop(oif=link.name),), **more)


def names(found) -> list[str]:
    return [u.ifname for u in found]


def test_the_one_with_the_default_route_comes_first():
    """Whatever its index or name; its families with a default are told, its addresses IPv4 first."""
    links = (LO, ETH, NET, WG)
    addresses = [address(ETH, "10.1.0.5/24"), address(NET, "fd00::5/64"), address(NET, "10.0.0.5/32")]
    found = find_uplinks(links, addresses, [default(NET), default(NET, 6)], tunnel="wg0")
    assert names(found) == ["net1", "eth0"]
    assert found[0].default == {4, 6}
    assert found[0].addresses == (ip_address("10.0.0.5"), ip_address("fd00::5"))
    assert found[1].mtu == 9001


def test_tunnels_loopback_and_what_is_down_are_no_uplinks():
    """Not the tunnel itself, not another tunnel, not lo, not an interface that is down or has no address."""
    other = Link(9, "tun0", kind="tun", up=True)
    down = Link(10, "eth1", kind="veth")
    bare = Link(11, "eth2", kind="veth", up=True)
    everything = (LO, ETH, WG, other, down, bare)
    addresses = [address(x, f"10.{x.index}.0.1/24") for x in everything if x is not bare]
    assert names(find_uplinks(everything, addresses, [default(WG)], tunnel="wg0")) == ["eth0"]


@pytest.mark.parametrize("more", [{"scope": 253}, {"flags": IFA_F_TENTATIVE}, {"flags": IFA_F_DADFAILED}])
def test_an_address_that_strangers_cannot_reach_does_not_count(more):
    """Link-local scope, or duplicate address detection that is not through."""
    found = find_uplinks([ETH], [address(ETH, "10.0.0.5/24"), address(ETH, "fd00::1/64", **more)], [], tunnel="wg0")
    assert found[0].addresses == (ip_address("10.0.0.5"),)


def test_only_usable_defaults_of_table_main_count():
    """A blackhole default, or one in another table, leads nobody home; one hop of several does."""
    addresses = [address(ETH, "10.0.0.5/24"), address(NET, "10.1.0.5/24")]
    elsewhere = [default(ETH, table=51820), default(ETH, type="blackhole")]
    assert all(not u.default for u in find_uplinks([ETH, NET], addresses, elsewhere, tunnel="wg0"))
    both = Route(ip_network("0.0.0.0/0"), nexthops=(NextHop(oif="eth0"), NextHop(oif="net1")))
    assert all(u.default == {4} for u in find_uplinks([ETH, NET], addresses, [both], tunnel="wg0"))
