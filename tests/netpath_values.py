# SPDX-License-Identifier: Apache-2.0
"""Random values of `netpath.snapshot`, for property tests of several rooms."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType

from hypothesis import strategies as st

from wicketgate.netpath.snapshot import (
    Address,
    Firewall,
    Link,
    ListeningSocket,
    Neighbour,
    NextHop,
    PeerState,
    Route,
    Rule,
    Snapshot,
    Unread,
    WireGuardState,
)

u8 = st.integers(0, 0xFF)
u32 = st.integers(0, 0xFFFFFFFF)
text = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)

ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)
addresses = ipv4 | ipv6


def networks(version: int, *, shortest: int = 0) -> st.SearchStrategy[IPv4Network | IPv6Network]:
    """Networks of a family, from prefix length `shortest` on."""
    if version == 4:
        return st.tuples(ipv4, st.integers(shortest, 32)).map(lambda p: IPv4Network(p, strict=False))
    return st.tuples(ipv6, st.integers(shortest, 128)).map(lambda p: IPv6Network(p, strict=False))


any_network = networks(4) | networks(6)
interfaces = st.tuples(ipv4, st.integers(0, 32)).map(IPv4Interface) | st.tuples(ipv6, st.integers(0, 128)).map(
    IPv6Interface
)
pairs = st.tuples(u32, u32)
mappings = st.dictionaries(text, text, max_size=3).map(MappingProxyType)
names = st.lists(text, max_size=2).map(tuple)


def tuples_of(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Short tuples."""
    return st.lists(strategy, max_size=3).map(tuple)


hops = st.builds(NextHop, oif=text, via=st.none() | addresses, weight=u8, flags=u8)
routes = st.builds(
    Route,
    dst=any_network,
    table=u32,
    type=text,
    nexthops=tuples_of(hops),
    prefsrc=st.none() | addresses,
    metric=u32,
    scope=u8,
    protocol=u8,
    tos=u8,
    src=st.none() | any_network,
    nh_id=u32,
    metrics=mappings,
    unknown=names,
)
rules = st.builds(
    Rule,
    family=st.sampled_from((4, 6)),
    priority=u32,
    action=text,
    table=u32,
    src=st.none() | any_network,
    dst=st.none() | any_network,
    iif=text,
    oif=text,
    fwmark=u32,
    fwmask=u32,
    tos=u8,
    ipproto=u8,
    sport=st.none() | pairs,
    dport=st.none() | pairs,
    uid_range=st.none() | pairs,
    invert=st.booleans(),
    suppress_prefixlength=st.none() | u32,
    suppress_ifgroup=st.none() | u32,
    goto=u32,
    l3mdev=st.booleans(),
    protocol=u8,
    unknown=names,
)
snapshots = st.builds(
    Snapshot,
    taken_at=finite,
    kernel_release=text,
    links=tuples_of(
        st.builds(
            Link,
            index=u32,
            name=text,
            kind=text,
            mtu=u32,
            up=st.booleans(),
            lower_up=st.booleans(),
            loopback=st.booleans(),
            pointopoint=st.booleans(),
            master=u32,
            mac=text,
            alias=text,
            group=u32,
        )
    ),
    addresses=tuples_of(
        st.builds(
            Address,
            ifname=text,
            ifindex=u32,
            interface=interfaces,
            scope=u8,
            flags=u32,
            peer=st.none() | addresses,
            protocol=u8,
        )
    ),
    routes=tuples_of(routes),
    rules=tuples_of(rules),
    neighbours=tuples_of(st.builds(Neighbour, ifname=text, ip=addresses, mac=text, state=u32)),
    sysctls=mappings,
    sockets=tuples_of(
        st.builds(
            ListeningSocket,
            protocol=st.sampled_from(("tcp", "udp")),
            family=st.sampled_from((4, 6)),
            address=addresses,
            port=u32,
            bound_device=text,
            v6only=st.none() | st.booleans(),
            uid=u32,
            inode=u32,
            mark=st.none() | u32,
        )
    ),
    wireguard=tuples_of(
        st.builds(
            WireGuardState,
            ifname=text,
            backend=st.sampled_from(("kernel", "userspace")),
            public_key=text,
            listen_port=u32,
            fwmark=u32,
            peers=tuples_of(
                st.builds(
                    PeerState,
                    public_key=text,
                    endpoint=st.none() | st.tuples(addresses, u32),
                    allowed_ips=tuples_of(any_network),
                    latest_handshake=finite,
                    rx_bytes=st.integers(0, 2**64 - 1),
                    tx_bytes=u32,
                    persistent_keepalive=u32,
                    has_preshared_key=st.booleans(),
                )
            ),
        )
    ),
    firewall=st.builds(Firewall, **{f.name: st.none() | text for f in dataclasses.fields(Firewall)}),
    unread=tuples_of(st.builds(Unread, what=text, why=text)),
    changed_while_read=st.booleans(),
)

_ports = st.tuples(st.integers(1, 65534), st.integers(1, 65534)).map(lambda p: (min(p), max(p)))


any_table = st.integers(1, 0xFFFFFFFF)


@st.composite
def kernel_rules(draw: st.DrawFn, *, priority: int, table: st.SearchStrategy[int] = any_table) -> Rule:
    """Rules that a kernel takes as they are, in a namespace that has `lo`."""
    family = draw(st.sampled_from((4, 6)))
    action = draw(st.sampled_from(("lookup", "lookup", "lookup", "blackhole", "unreachable", "prohibit", "nop")))
    lookup = action == "lookup"
    mask = draw(st.just(0) | st.just(0xFFFFFFFF) | st.integers(1, 0xFFFFFFFF))
    return Rule(
        family=family,
        priority=priority,
        action=action,
        table=draw(table) if lookup else 0,
        src=draw(st.none() | networks(family, shortest=1)),
        dst=draw(st.none() | networks(family, shortest=1)),
        iif=draw(st.sampled_from(("", "", "lo"))),
        oif=draw(st.sampled_from(("", "", "lo"))),
        fwmark=draw(u32) if mask else 0,
        fwmask=mask,
        ipproto=draw(st.sampled_from((0, 1, 6, 17, 47, 58, 132, 253))),
        sport=draw(st.none() | _ports),
        dport=draw(st.none() | _ports),
        uid_range=draw(
            st.none() | st.tuples(u32, u32).map(lambda p: (min(p), max(p))).filter(lambda p: p[1] < 2**32 - 1)
        ),
        invert=draw(st.booleans()),
        suppress_prefixlength=draw(st.none() | st.integers(0, 32)) if lookup else None,
        suppress_ifgroup=draw(st.none() | st.sampled_from((0, 5, 70000))) if lookup else None,
        protocol=draw(st.sampled_from((0, 3, 4, 87, 186))),
    )
