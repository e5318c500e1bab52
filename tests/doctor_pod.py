# SPDX-License-Identifier: Apache-2.0
"""A made-up pod behind a bridge CNI, healthy or as wg-quick leaves it, for the doctor's tests."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType

from wicketgate.netpath.snapshot import (
    Address,
    Firewall,
    Link,
    ListeningSocket,
    NextHop,
    PeerState,
    Route,
    Rule,
    Snapshot,
    WireGuardState,
)

EMPTY = Firewall('{"nftables": []}', "", "", "", "", "")
SETTINGS = {
    f"net.ipv4.conf.{name}.{key}": "0"
    for name in ("all", "lo", "eth0", "wg0")
    for key in ("rp_filter", "src_valid_mark", "accept_local", "route_localnet", "forwarding")
} | {"net.ipv6.conf.all.forwarding": "0"}
RULES = (
    Rule(4, 0, table=255, protocol=2),
    Rule(4, 32766, table=254, protocol=2),
    Rule(4, 32767, table=253, protocol=2),
)
CAPTURE = Rule(4, 32765, table=51820, fwmark=0xCA6C, fwmask=0xFFFFFFFF, invert=True, protocol=3)
SUPPRESS = Rule(4, 32764, table=254, suppress_prefixlength=0, protocol=3)
CLIENT = PeerState("C" * 43 + "=", (ip_address("198.51.100.7"), 40001), (ip_network("10.8.0.2/32"),))
GREEDY = PeerState("G" * 43 + "=", (ip_address("198.51.100.8"), 40002), (ip_network("0.0.0.0/0"),))


def _local(address: str, device: str) -> Route:
    return Route(
        ip_network(address), table=255, type="local", nexthops=(NextHop(device),), prefsrc=ip_address(address),
        scope=254, protocol=2,
    )  # fmt: skip


HEALTHY = Snapshot(
    taken_at=0.0,
    links=(
        Link(1, "lo", mtu=65536, up=True, lower_up=True, loopback=True),
        Link(2, "eth0", mtu=1500, up=True, lower_up=True),
        Link(3, "wg0", "wireguard", mtu=1420, up=True, lower_up=True, pointopoint=True),
    ),
    addresses=(
        Address("lo", 1, ip_interface("127.0.0.1/8"), scope=254),
        Address("eth0", 2, ip_interface("10.0.0.2/24")),
        Address("wg0", 3, ip_interface("10.8.0.1/24")),
    ),
    routes=(
        _local("127.0.0.1", "lo"),
        _local("10.0.0.2", "eth0"),
        _local("10.8.0.1", "wg0"),
        Route(ip_network("10.0.0.0/24"), nexthops=(NextHop("eth0"),), prefsrc=ip_address("10.0.0.2"), scope=253, protocol=2),
        Route(ip_network("10.8.0.0/24"), nexthops=(NextHop("wg0"),), prefsrc=ip_address("10.8.0.1"), scope=253, protocol=2),
        Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("eth0", ip_address("10.0.0.1")),), protocol=3),
    ),
    rules=RULES,
    sysctls=MappingProxyType(SETTINGS),
    sockets=(
        ListeningSocket("tcp", 4, ip_address("0.0.0.0"), 9000, mark=0),
        ListeningSocket("udp", 4, ip_address("0.0.0.0"), 51820, mark=0),
    ),
    wireguard=(WireGuardState("wg0", "kernel", "A" * 43 + "=", 51820, 0xCA6C, ()),),
    firewall=EMPTY,
)  # fmt: skip


def with_peers(snapshot: Snapshot, *peers: PeerState) -> Snapshot:
    """The pod with these peers."""
    return replace(snapshot, wireguard=(replace(snapshot.wireguard[0], peers=peers),))


def settled(snapshot: Snapshot, **values: int) -> Snapshot:
    """With other IPv4 settings: `eth0_rp_filter=1`."""
    names = {f"net.ipv4.conf.{key.replace('_', '.', 1)}": str(value) for key, value in values.items()}
    return replace(snapshot, sysctls=MappingProxyType({**snapshot.sysctls, **names}))


def wg_quicked(snapshot: Snapshot = HEALTHY, *peers: PeerState) -> Snapshot:
    """As wg-quick leaves it for a peer that claims everything."""
    default = Route(ip_network("0.0.0.0/0"), table=51820, nexthops=(NextHop("wg0"),), scope=253, protocol=3)
    rules = (RULES[0], SUPPRESS, CAPTURE, *RULES[1:])
    return with_peers(replace(snapshot, routes=(*snapshot.routes, default), rules=rules), *(peers or (GREEDY,)))


def filtered(snapshot: Snapshot, chain: str, *rules: list, policy: str = "accept") -> Snapshot:
    """With an nftables table `inet filter` that has one chain at a hook of that name."""
    place = {"family": "inet", "table": "filter"}
    items = [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": "inet", "name": "filter", "handle": 1}},
        {"chain": {**place, "name": chain, "handle": 1, "type": "filter", "hook": chain, "prio": 0, "policy": policy}},
        *({"rule": {**place, "chain": chain, "handle": at + 2, "expr": rule}} for at, rule in enumerate(rules)),
    ]
    return replace(snapshot, firewall=replace(EMPTY, nft_json=json.dumps({"nftables": items}), nft_text=None))
