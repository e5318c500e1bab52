# SPDX-License-Identifier: Apache-2.0
"""Which interfaces are uplinks: found by route and address, never by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Address, Family, IPAddress, Link, Route

# linux/if_addr.h
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
_SCOPE_GLOBAL = 0
# Kinds that carry somebody's tunnel. A tun device counts as one: userspace WireGuard is a tun.
_TUNNEL_KINDS = frozenset({"wireguard", "tun", "amneziawg"})


@dataclass(frozen=True, slots=True)
class LiveUplink:
    """An interface that is not a tunnel and has an address a stranger can send to.

    Attributes:
        ifname: the interface.
        ifindex: tells an interface that was made anew from its predecessor.
        addresses: global-scope addresses, IPv4 first.
        default: the families that have a default route through it in table main.
        mtu: bytes.
    """

    ifname: str
    ifindex: int
    addresses: tuple[IPAddress, ...]
    default: frozenset[Family]
    mtu: int = 1500

    def of(self, family: Family) -> tuple[IPAddress, ...]:
        """The addresses of one family."""
        return tuple(ip for ip in self.addresses if ip.version == family)


def is_usable(address: Address) -> bool:
    """Whether a stranger can send to it: global scope, and duplicate address detection has let it through."""
    return address.scope == _SCOPE_GLOBAL and not address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)


def find_uplinks(
    links: Sequence[Link], addresses: Sequence[Address], routes: Sequence[Route], *, tunnel: str
) -> tuple[LiveUplink, ...]:
    """The uplinks, those with a default route first.

    Args:
        links: every interface.
        addresses: every address.
        routes: at least those of table main.
        tunnel: the WireGuard interface; never an uplink, nor is any other tunnel.
    """
    defaults: dict[str, set[Family]] = {}
    for route in routes:
        if route.table == RT_TABLE_MAIN and route.dst.prefixlen == 0 and route.type == "unicast":
            for hop in route.nexthops:
                defaults.setdefault(hop.oif, set()).add(route.family)
    found = []
    for link in links:
        if link.loopback or not link.up or link.name == tunnel or link.kind in _TUNNEL_KINDS:
            continue
        own = sorted(
            {a.ip for a in addresses if a.ifindex == link.index and is_usable(a)}, key=lambda ip: (ip.version, int(ip))
        )
        if own:
            found.append(
                LiveUplink(link.name, link.index, tuple(own), frozenset(defaults.get(link.name, set())), link.mtu)
            )
    return tuple(sorted(found, key=lambda u: (not u.default, u.ifindex)))
