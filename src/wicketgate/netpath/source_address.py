# SPDX-License-Identifier: Apache-2.0
"""Which source address the kernel gives a packet whose sender chose none."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network

from wicketgate.netpath.snapshot import Address, IPAddress

# linux/if_addr.h
IFA_F_SECONDARY = IFA_F_TEMPORARY = 0x01
IFA_F_OPTIMISTIC, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x04, 0x08, 0x20, 0x40
# linux/rtnetlink.h
SCOPE_LINK, SCOPE_HOST = 253, 254

_LINK_LOCAL, _SITE_LOCAL, _GLOBAL = 2, 5, 14  # include/net/ipv6.h, IPV6_ADDR_SCOPE_*
# RFC 6724 section 2.1 as net/ipv6/addrlabel.c has it; `ip addrlabel` may change it, which a snapshot does not tell
_LABELS = [
    (ip_network(prefix), label)
    for prefix, label in (
        ("::1/128", 0), ("::ffff:0:0/96", 4), ("::/96", 3), ("2001::/32", 6), ("2001:10::/28", 7),
        ("3ffe::/16", 12), ("2002::/16", 2), ("fec0::/10", 11), ("fc00::/7", 5), ("::/0", 1),
    )
]  # fmt: skip
_ORCHID = IPv6Network("2001:10::/28")


def select4(
    addresses: Sequence[Address],
    order: Sequence[str],
    ifname: str,
    destination: IPAddress | None,
    scope: int,
    *,
    localnet: bool = False,
) -> IPAddress | None:
    """inet_select_addr(): the first primary address of the interface whose network holds `destination`, else its first.

    Args:
        addresses: all of the namespace, in the kernel's order.
        order: names of the interfaces, in the kernel's order.
        ifname: the interface the packet leaves by.
        destination: the gateway, or the receiver; None for any.
        scope: no address of a narrower scope is taken.
        localnet: the interface has route_localnet: addresses of scope host count as of scope link.
    """
    first = None
    for address in addresses:
        if address.ifname != ifname or address.family != 4 or address.flags & IFA_F_SECONDARY:
            continue
        if min(address.scope, SCOPE_LINK if localnet else SCOPE_HOST) > scope:
            continue
        network = ip_network(f"{address.peer or address.ip}/{address.interface.network.prefixlen}", strict=False)
        if destination is None or destination in network:
            return address.ip
        first = first or address.ip
    if first is not None:
        return first
    for name in order:
        for address in addresses:
            primary = address.ifname == name and address.family == 4 and not address.flags & IFA_F_SECONDARY
            if primary and address.scope != SCOPE_LINK and address.scope <= scope:
                return address.ip
    return None


def select6(
    addresses: Sequence[Address], order: Sequence[str], ifname: str, destination: IPAddress, temporary: Sequence[str]
) -> IPAddress | None:
    """ipv6_dev_get_saddr(): RFC 6724 section 5 with the kernel's ways of breaking a tie.

    Args:
        addresses: all of the namespace.
        order: names of the interfaces, in the kernel's order.
        ifname: the interface the packet leaves by.
        destination: the receiver.
        temporary: interfaces that prefer temporary addresses (use_tempaddr >= 2).
    """
    assert isinstance(destination, IPv6Address)
    wanted = _scope(destination)
    only_here = destination.is_multicast or wanted <= _LINK_LOCAL
    best, chosen = None, None
    names = [ifname] if only_here else [ifname, *(name for name in order if name != ifname)]
    for name in names:
        for address in addresses:
            ip = address.ip
            if address.ifname != name or not isinstance(ip, IPv6Address) or ip.is_multicast or ip.is_unspecified:
                continue
            if address.flags & IFA_F_DADFAILED:
                continue
            if address.flags & IFA_F_TENTATIVE and not address.flags & IFA_F_OPTIMISTIC:
                continue
            scope = _scope(ip)
            score = (
                ip == destination,
                -scope if scope >= wanted else scope - 128,
                not address.flags & (IFA_F_DEPRECATED | IFA_F_OPTIMISTIC),
                name == ifname,
                _label(ip) == _label(destination),
                bool(address.flags & IFA_F_TEMPORARY) == (name in temporary),
                (ip in _ORCHID) == (destination in _ORCHID),
                min(_common(ip, destination), address.interface.network.prefixlen),
            )
            if best is None or score > best:
                best, chosen = score, ip
    return chosen


def _scope(address: IPv6Address) -> int:
    if address.is_multicast:
        return (int(address) >> 112) & 0xF
    if address.is_link_local or address == ip_address("::1"):
        return _LINK_LOCAL
    return _SITE_LOCAL if address.is_site_local else _GLOBAL


def _label(address: IPv6Address) -> int:
    return next(label for network, label in _LABELS if address in network)


def _common(one: IPv6Address, other: IPv6Address) -> int:
    return 128 - (int(one) ^ int(other)).bit_length()
