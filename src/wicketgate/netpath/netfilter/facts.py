# SPDX-License-Identifier: Apache-2.0
"""What rules ask of the namespace: interfaces, the type of an address, the address of an interface, the way back."""

from __future__ import annotations

import re
from functools import cached_property
from ipaddress import IPv4Address

from wicketgate.netpath import source_address
from wicketgate.netpath.lookup import Answer, Question, Refused, Unsure
from wicketgate.netpath.netfilter.ipsets import IpSet, parse_ipsets
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, Address, Family, IPAddress, Link, Route, Snapshot

_IFA_F_SECONDARY = 0x01  # linux/if_addr.h
_IFA_F_UNUSABLE6 = 0x08 | 0x40  # dadfailed, tentative
_SET_TARGET = re.compile(r" -j SET .*?--(?:add|del)-set (\S+)")
_REFUSED6 = {"EINVAL": "blackhole", "EACCES": "prohibit"}  # __nft_fib6_eval_type


class Facts:
    """A snapshot, indexed for the questions of rules. Immutable once made.

    Args:
        snapshot: of the namespace.
        routing: of the same snapshot, where it is made already.
    """

    def __init__(self, snapshot: Snapshot, routing: Routing | None = None) -> None:
        self.snapshot = snapshot
        unread = {each.what for each in snapshot.unread}
        self._routes_known = "routes" not in unread
        self._types: dict[tuple[IPAddress, str], str | None] = {}
        if routing is not None:
            self.__dict__["routing"] = routing

    @cached_property
    def routing(self) -> Routing:
        """The routing of the snapshot."""
        return Routing(self.snapshot)

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
    def _local4(self) -> tuple[Route, ...]:
        """IPv4 routes of the local table, longest prefix first."""
        found = [route for route in self.snapshot.routes if route.table == RT_TABLE_LOCAL and route.family == 4]
        return tuple(sorted(found, key=lambda route: -route.dst.prefixlen))

    def address_type(self, address: IPAddress, device: str = "") -> str | None:
        """What kind of address it is for this host, as `fib daddr type` and `addrtype` ask.

        IPv4: inet_dev_addr_type, which looks in the local table alone. IPv6: a lookup by all rules.

        Args:
            address: to be judged.
            device: only what is on this interface counts; empty for any.

        Returns:
            local, broadcast, multicast, anycast, unicast, unreachable ...; None where it is not known.
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
        for route in self._local4:
            if address in route.dst:
                if route.unknown:
                    return None
                return route.type if not device or device == route.oif else "unicast"
        return "unicast"

    def _type6(self, address: IPAddress, device: str) -> str | None:
        if address.is_multicast:
            return "multicast"
        if device and any(each.ip == address and each.ifname == device for each in self.snapshot.addresses):
            return "local"
        answer = self.way(Question(address, prefer=device, protocol=0))
        if isinstance(answer, Unsure):
            return None
        if isinstance(answer, Refused):
            return _REFUSED6.get(answer.errno, "unreachable") if answer.route else "unreachable"
        if answer.route.type == "anycast" or (answer.route.type == "local" and not device):
            return answer.route.type
        return "unicast"

    def way(self, question: Question) -> Answer:
        """Ask the rules and tables (fib_lookup, ip6_route_lookup)."""
        return self.routing.lookup(question)

    @cached_property
    def ipsets(self) -> dict[str, IpSet]:
        """By name; those of the snapshot, which has all of them where a rule asks for one."""
        return parse_ipsets(self.snapshot.firewall.ipset or "")

    @cached_property
    def changed_ipsets(self) -> frozenset[str]:
        """Those that rules put something in, or take it out of: a packet may do so on its own way."""
        firewall = self.snapshot.firewall
        texts = (
            firewall.iptables_nft, firewall.ip6tables_nft, firewall.iptables_legacy, firewall.ip6tables_legacy,
        )  # fmt: skip
        return frozenset(found for text in texts if text for found in _SET_TARGET.findall(text))

    def addresses(self, ifname: str, family: Family) -> tuple[Address, ...]:
        """The usable addresses of an interface: primary ones of IPv4, past duplicate detection of IPv6."""
        unwanted = _IFA_F_SECONDARY if family == 4 else _IFA_F_UNUSABLE6
        return tuple(
            each
            for each in self.snapshot.addresses
            if each.ifname == ifname and each.family == family and not each.flags & unwanted
        )

    def masquerade_sources(self, ifname: str, packet_destination: IPAddress) -> tuple[IPAddress, ...]:
        """The addresses that masquerading may choose: one where the choice is plain, none where there is none.

        nf_nat_masquerade_ipv4 asks inet_select_addr for the next hop's subnet, nf_nat_masquerade_ipv6
        ipv6_dev_get_saddr for the destination. The next hop is not handed to the hook: every one that a route by this
        interface could give is asked for.
        """
        addresses, order = self.snapshot.addresses, self.routing.order
        if packet_destination.version == 6:
            chosen6 = source_address.select6(addresses, order, ifname, packet_destination, ())
            return () if chosen6 is None else (chosen6,)
        hops = {packet_destination} | {
            hop.via
            for route in self.snapshot.routes
            if route.family == 4 and packet_destination in route.dst
            for hop in route.nexthops
            if hop.via is not None and hop.oif == ifname
        }
        chosen: dict[IPAddress, None] = {}
        for hop in sorted(hops, key=str):
            address = source_address.select4(addresses, order, ifname, hop, 0)
            if address is not None:
                chosen[address] = None
        return tuple(chosen)
