# SPDX-License-Identifier: Apache-2.0
"""The parts of which a live snapshot is made, and what makes each of them stale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from wicketgate.kernel.events import Kind


class Part(StrEnum):
    """What is read at one go."""

    LINKS = "links"
    ADDRESSES = "addresses"
    ROUTES_4 = "IPv4 routes"
    ROUTES_6 = "IPv6 routes"
    RULES = "rules"
    NEIGHBOURS = "neighbours"
    SYSCTLS = "sysctls"
    WIREGUARD = "wireguard"
    SOCKETS = "sockets"
    FIREWALL = "firewall"


ROUTES = frozenset({Part.ROUTES_4, Part.ROUTES_6})
# No event tells all that may happen to them.
# Of links: netdev_state_change() says nothing of one that is down (its alias, its group). Of addresses: an IPv6 one is
# there, and tentative, a second before its event.
ALWAYS = frozenset({Part.LINKS, Part.ADDRESSES, Part.NEIGHBOURS, Part.SYSCTLS, Part.WIREGUARD, Part.SOCKETS})
# What is looked at in intervals for those who listen
LOOKED_AT = ALWAYS - {Part.NEIGHBOURS} | {Part.FIREWALL}
# Routes go without a word with their link, address or nexthop object.
BY_KIND = {
    Kind.LINK: frozenset({Part.LINKS}) | ROUTES,
    Kind.ADDRESS: frozenset({Part.ADDRESSES}) | ROUTES,
    Kind.RULE: frozenset({Part.RULES}),
    Kind.NEXTHOP: ROUTES,
    Kind.SETTING: frozenset({Part.SYSCTLS}),
}
_AF_INET6 = 10


def stale_by(kind: Kind, family: int) -> frozenset[Part]:
    """The parts that an event of this kind and address family makes stale."""
    if kind is Kind.ROUTE:
        return frozenset({Part.ROUTES_6 if family == _AF_INET6 else Part.ROUTES_4})
    return BY_KIND.get(kind, frozenset())


def silent_by(kind: Kind) -> frozenset[Part]:
    """The parts in which something may change with such an event and is not told by one of its own."""
    if kind is Kind.LINK:
        return ROUTES | {Part.LINKS, Part.SYSCTLS}
    if kind is Kind.ADDRESS:
        return ROUTES
    return BY_KIND[kind] if kind in (Kind.NEXTHOP, Kind.SETTING) else frozenset()


@dataclass(frozen=True, slots=True)
class Generation:
    """Numbers that grow when something did change: whoever keeps what was made of a snapshot keeps it by them.

    Attributes:
        routing: links, addresses, routes, rules, settings, failed neighbours, WireGuard devices.
        firewall: any listing, beside its counters.
        sockets: the listening sockets.
    """

    routing: int = 0
    firewall: int = 0
    sockets: int = 0

    def after(self, part: Part) -> Generation:
        """The generation after a change in this part."""
        if part is Part.FIREWALL:
            return replace(self, firewall=self.firewall + 1)
        if part is Part.SOCKETS:
            return replace(self, sockets=self.sockets + 1)
        return replace(self, routing=self.routing + 1)
