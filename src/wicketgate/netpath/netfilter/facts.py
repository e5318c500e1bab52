# SPDX-License-Identifier: Apache-2.0
"""What rules ask of the namespace: interfaces, the type of an address, the address of an interface, the way back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from wicketgate.netpath.packet import Packet
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, RT_TABLE_MAIN, Address, Family, IPAddress, Link, Route, Snapshot

IFA_F_SECONDARY = 0x01  # linux/if_addr.h
_IFA_F_UNUSABLE6 = 0x08 | 0x40  # dadfailed, tentative
RT_SCOPE_LINK = 253

# Who would a packet to `destination` leave by? The name of the interface; "" when the lookup finds nothing;
# None when it is not known. Arguments: a packet (as flowi), and the interface it is bound to, or "".
RouteQuestion = Callable[[Packet, str], "str | None"]


class Facts:
    """A snapshot, indexed for the questions of rules. Immutable once made."""

    def __init__(self, snapshot: Snapshot, route: RouteQuestion | None = None) -> None:
        self.snapshot = snapshot
        self.route = route
        unread = {each.what for each in snapshot.unread}
        self._routes_known = "routes" not in unread
        self._addresses_known = "addresses" not in unread

    @cached_property
    def _links(self) -> dict[str, Link]:
        return {link.name: link for link in self.snapshot.links}

    def link(self, name: str) -> Link | None:
        """The interface of that name."""
        return self._links.get(name)

    def index(self, name: str) -> int | None:
        """Its ifindex; 0 for no interface; None where there is none of that name."""
        if not name:
            return 0
        link = self._links.get(name)
        return link.index if link else None

    @cached_property
    def _local(self) -> dict[Family, list[Route]]:
        """Routes of the local table, longest prefix first."""
        found: dict[Family, list[Route]] = {4: [], 6: []}
        for route in self.snapshot.routes:
            if route.table == RT_TABLE_LOCAL:
                found[route.family].append(route)
        for routes in found.values():
            routes.sort(key=lambda route: (-route.dst.prefixlen, route.metric))
        return found

    @cached_property
    def _types(self) -> dict[tuple[IPAddress, str], str | None]:
        return {}

    def address_type(self, address: IPAddress, device: str = "") -> str | None:
        """What kind of address it is for this host, as `fib daddr type` and `addrtype` ask.

        IPv4: inet_dev_addr_type, which looks in the local table alone. IPv6: a lookup in all tables, of which the
        local one is what the model answers; unicast is told from unreachable only where the tables are plain.

        Args:
            address: to be judged.
            device: only what is on this interface counts; empty for any.

        Returns:
            local, broadcast, multicast, anycast, unicast, unreachable; None where it is not known.
        """
        key = (address, device)
        if key not in self._types:
            self._types[key] = self._type4(address, device) if address.version == 4 else self._type6(address, device)
        return self._types[key]

    def _type4(self, address: IPAddress, device: str) -> str | None:
        if int(address) >> 24 == 0 or address == IPv4Address("255.255.255.255"):
            return "broadcast"  # ipv4_is_zeronet, ipv4_is_lbcast
        if address.is_multicast:
            return "multicast"
        if not self._routes_known:
            return None
        for route in self._local[4]:
            if address in route.dst:
                if route.unknown:
                    return None
                return route.type if not device or device == route.oif else "unicast"
        return "unicast"

    def _type6(self, address: IPAddress, device: str) -> str | None:
        if address.is_multicast:
            return "multicast"
        if not (self._routes_known and self._addresses_known):
            return None
        if device:
            if any(each.ip == address and each.ifname == device for each in self.snapshot.addresses):
                return "local"
        else:
            for route in self._local[6]:
                if address in route.dst:
                    return None if route.unknown else route.type
        matching = [route for route in self.snapshot.routes if route.family == 6 and address in route.dst]
        if any(route.type != "unicast" and route.table != RT_TABLE_LOCAL for route in matching):
            return None
        ways = [route for route in matching if route.table != RT_TABLE_LOCAL]
        if not ways:
            return "unreachable"
        # Policy rules may keep the packet from a table that has a way.
        plain = all(rule.src is None and not rule.fwmask and not rule.invert for rule in self.snapshot.rules)
        return "unicast" if plain or any(route.table == RT_TABLE_MAIN for route in ways) else None

    def addresses(self, ifname: str, family: Family) -> tuple[Address, ...]:
        """The usable addresses of an interface: primary ones of IPv4, past duplicate detection of IPv6."""
        unwanted = IFA_F_SECONDARY if family == 4 else _IFA_F_UNUSABLE6
        return tuple(
            each
            for each in self.snapshot.addresses
            if each.ifname == ifname and each.family == family and not each.flags & unwanted
        )

    def masquerade_sources(self, ifname: str, destination: IPAddress) -> tuple[IPAddress, ...]:
        """The addresses that masquerading may choose; one where the choice is plain, none where there is none.

        IPv4, inet_select_addr: the first primary address whose subnet holds the next hop, else the first. IPv6,
        ipv6_dev_get_saddr: by RFC 6724, of which scope and common prefix decide here.
        """
        family: Family = 4 if destination.version == 4 else 6
        usable = self.addresses(ifname, family)
        if family == 6:
            return _source6([each.ip for each in usable], destination)
        usable = tuple(each for each in usable if each.scope < RT_SCOPE_LINK)
        if len(usable) < 2:
            return tuple(each.ip for each in usable)
        hops = {destination} | {
            hop.via
            for route in self.snapshot.routes
            if route.family == 4 and destination in route.dst
            for hop in route.nexthops
            if hop.via is not None and hop.oif == ifname
        }
        chosen: dict[IPAddress, None] = {}
        for hop in hops:
            within = [each.ip for each in usable if hop in each.interface.network]
            chosen[within[0] if within else usable[0].ip] = None
        return tuple(chosen)


def _source6(candidates: list[IPAddress], destination: IPAddress) -> tuple[IPAddress, ...]:
    scope = _scope6(destination)
    ranked: dict[tuple[bool, int], list[IPAddress]] = {}
    for address in candidates:
        mine = _scope6(address)
        # Rule 2: the smallest scope that is not smaller than the destination's.
        ranked.setdefault((mine < scope, mine if mine >= scope else -mine), []).append(address)
    if not ranked:
        return ()
    best = ranked[min(ranked)]
    common = max(_common_bits(address, destination) for address in best)
    return tuple(address for address in best if _common_bits(address, destination) == common)


def _scope6(address: IPAddress) -> int:
    """RFC 4291 scope; unique local addresses are global."""
    assert isinstance(address, IPv6Address)
    if address.is_multicast:
        return (int(address) >> 112) & 0xF
    return 2 if address.is_link_local or address.is_loopback else 14


def _common_bits(one: IPAddress, other: IPAddress) -> int:
    return 128 - (int(one) ^ int(other)).bit_length()
