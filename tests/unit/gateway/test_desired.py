# SPDX-License-Identifier: Apache-2.0
"""From a wg-quick file to what the machine should look like: a pure function."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.config import wgquick
from wicketgate.config.settings import Role
from wicketgate.gateway.desired import EXIT_TABLE, MINIMUM_MTU, desire, tunnel_mtu, whole_internet
from wicketgate.gateway.uplinks import LiveUplink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import RT_TABLE_MAIN
from wicketgate.wireguard.keys import PrivateKey

KEY = PrivateKey.generate()
PEERS = [PrivateKey.generate().public() for _ in range(3)]


def config(*allowed: str, interface: str = ""):
    text = f"[Interface]\nPrivateKey = {KEY.expose_base64()}\nListenPort = 51820\nAddress = 10.8.0.1/24, fd00:8::1/64\n{interface}\n"
    for key, networks in zip(PEERS, allowed, strict=False):
        text += f"[Peer]\nPublicKey = {key}\nAllowedIPs = {networks}\n"
    return wgquick.parse(text, path="wg0.conf")


def wanted(*allowed: str, role: Role = Role.SERVER, interface: str = "", **more):
    return desire(config(*allowed, interface=interface), ifname="wg0", role=role, uplinks=(), **more)


def uplink(mtu: int) -> LiveUplink:
    return LiveUplink("eth0", 2, (ip_address("10.0.0.5"),), frozenset({4}), mtu)


def test_a_server_never_routes_a_default_and_says_so():
    """Whatever a peer claims: no default route, no rule, no mark, and a warning that names the peer."""
    desired = wanted("0.0.0.0/0, ::/0, 10.50.0.0/16")
    assert [str(r.dst) for r in desired.routes] == ["10.50.0.0/16"]
    assert desired.rules == ()
    assert desired.device.fwmark == 0
    assert PEERS[0].short in desired.warnings[0]
    assert "server-peer-claims-default" in desired.warnings[0]
    # WireGuard itself is told all the same: the claim is the user's, the route is not.
    assert ip_network("0.0.0.0/0") in desired.device.peers[0].allowed_ips


def test_an_exit_has_wg_quicks_pair_of_rules_in_each_family_that_has_a_default():
    """A default in a table of its own, found by everything without the mark; more specific routes of main come first."""
    desired = wanted("0.0.0.0/0", role=Role.EXIT)
    assert [(str(r.dst), r.table) for r in desired.routes] == [("0.0.0.0/0", EXIT_TABLE)]
    suppress, tunnel = desired.rules
    assert (suppress.table, suppress.suppress_prefixlength) == (RT_TABLE_MAIN, 0)
    assert (tunnel.table, tunnel.invert, tunnel.fwmark) == (EXIT_TABLE, True, EXIT_TABLE)
    assert suppress.priority < tunnel.priority
    assert desired.device.fwmark == EXIT_TABLE
    assert {r.family for r in wanted("0.0.0.0/0, ::/0", role=Role.EXIT).rules} == {4, 6}
    assert wanted("::/0", role=Role.EXIT, interface="FwMark = 0x77").rules[1].fwmark == 0x77


def test_an_exit_without_an_exit_peer_is_said():
    """Role exit and nobody who takes the default."""
    assert "there is no exit" in wanted("10.50.0.0/16", role=Role.EXIT).warnings[0]


def test_table_off_and_a_table_by_number():
    """off: no routes at all. A number: every route there, also those of the connected network; no rules either way."""
    assert wanted("10.50.0.0/16, 0.0.0.0/0", role=Role.EXIT, interface="Table = off").routes == ()
    desired = wanted("10.50.0.0/16, 10.8.0.2/32", interface="Table = 123")
    assert {(str(r.dst), r.table) for r in desired.routes} == {("10.50.0.0/16", 123), ("10.8.0.2/32", 123)}
    assert desired.rules == ()


def test_what_the_tunnels_own_network_covers_needs_no_route():
    """10.8.0.2/32 within 10.8.0.0/24 is reached by the connected route; a probe's address outside gets one."""
    desired = wanted("10.8.0.2/32, fd00:8::2/128", probe_addresses=[ip_address("198.51.100.254")])
    assert [str(r.dst) for r in desired.routes] == ["198.51.100.254/32"]
    assert ip_network("198.51.100.254/32") in desired.clients


def test_the_mtu_follows_the_smallest_uplink():
    """1420 at most, the uplink's less 80, never below IPv6's minimum; a file's own value wins."""
    assert tunnel_mtu(()) == 1420
    assert tunnel_mtu([uplink(9001)]) == 1420
    assert tunnel_mtu([uplink(9001), uplink(1450)]) == 1370
    assert tunnel_mtu([uplink(1300)]) == MINIMUM_MTU
    assert wanted("10.8.0.2/32", interface="MTU = 1337").mtu == 1337


def test_a_resolved_endpoint_reaches_the_device():
    """By public key; a peer that was not resolved has none."""
    where = (ip_address("192.0.2.7"), 51820)
    desired = wanted("10.8.0.2/32", "10.8.0.3/32", endpoints={str(PEERS[1]): where})
    assert [p.endpoint for p in desired.device.peers] == [None, where]


@pytest.mark.parametrize(
    ("claims", "whole"),
    [
        ("0.0.0.0/1, 128.0.0.0/1", {"0.0.0.0/1", "128.0.0.0/1"}),
        ("::/1, 8000::/1, 10.0.0.0/8", {"::/1", "8000::/1"}),
        ("0.0.0.0/2, 64.0.0.0/2, 128.0.0.0/1", {"0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/1"}),
        ("0.0.0.0/0, 128.0.0.0/1, 96.0.0.0/4", {"0.0.0.0/0", "128.0.0.0/1"}),
        ("0.0.0.0/1, 10.0.0.0/8", set()),
        ("10.0.0.0/8", set()),
    ],
)
def test_a_default_that_was_cut_up_is_one(claims, whole):
    """A server does not route its pieces, and an exit keeps them out of table main, where replies are looked up."""
    found = whole_internet(n for p in config(claims).peers for n in p.allowed_ips)
    assert {str(n) for n in found} == whole
    server = wanted(claims)
    assert not found & {r.dst for r in server.routes}
    assert bool(whole) is any("server-peer-claims-default" in w for w in server.warnings)
    leaving = wanted(claims, role=Role.EXIT)
    assert {r.dst for r in leaving.routes if r.table == EXIT_TABLE} == found
    assert bool(leaving.rules) is bool(whole)


networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: str(ip_network((pair[0], pair[1]), strict=False))
)


@given(st.lists(st.lists(networks, min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from(list(Role)))
def test_every_route_is_tagged_unique_and_through_the_tunnel(claims, role):
    """Whatever peers claim: no route twice, all with our protocol, none of a default on a server."""
    desired = wanted(*(", ".join(each) for each in claims), role=role)
    keys = [(r.dst, r.table) for r in desired.routes]
    assert len(set(keys)) == len(keys)
    assert all(r.protocol == ROUTE_PROTOCOL and r.oif == "wg0" for r in desired.routes)
    if role is Role.SERVER:
        assert not any(r.dst.prefixlen == 0 for r in desired.routes)
    assert not any(n.prefixlen == 0 for n in desired.clients)
