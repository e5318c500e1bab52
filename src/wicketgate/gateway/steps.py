# SPDX-License-Identifier: Apache-2.0
"""From what is there to what should be, as changes that can take themselves back (`kernel.changes`)."""

from __future__ import annotations

from collections.abc import Collection

from wicketgate.gateway.desired import Desired
from wicketgate.gateway.live import Live
from wicketgate.gateway.pins import is_pin
from wicketgate.kernel.changes import (
    AddAddress,
    AddRoute,
    AddRoutes,
    AddRule,
    DeleteAddress,
    DeleteRoute,
    DeleteRule,
    SetLink,
)
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import LINK_ALIAS, ROUTE_PROTOCOL
from wicketgate.kernel.plan import Change
from wicketgate.netpath.snapshot import Address, Link, Route, Rule

_SCOPE_LINK = 253
_FEW_ROUTES = 10
# As repairs are counted and told.
_KINDS = {
    AddRule: "rule",
    DeleteRule: "rule",
    AddRoute: "route",
    AddRoutes: "route",
    DeleteRoute: "route",
    AddAddress: "address",
    DeleteAddress: "address",
    SetLink: "link",
}


def kind_of(change: Change) -> str:
    """What a change is about: rule, route, address, link, or device."""
    return next((kind for made, kind in _KINDS.items() if isinstance(change, made)), "device")


def tunnel_steps(desired: Desired, live: Live, netlink: Netlink, *, stale: Collection[Rule] = ()) -> list[Change]:
    """What is missing of the tunnel's link settings, addresses, routes and role exit's rules, and what is too much.

    Only what carries our tag is deleted; of the tunnel's addresses, the interface being ours, all that are not wanted.

    Args:
        desired: what should be.
        live: what is.
        netlink: for the steps.
        stale: rules that may be deleted when they are not wanted: a rule does not tell whose tunnel it serves, and
            another agent may look after its own. Pins are not looked at.
    """
    name = desired.ifname
    link = live.link(name)
    steps = _link_steps(desired, link, netlink)
    steps += _address_steps(desired, live, netlink)
    if link is None or not link.up:
        steps.append(SetLink(netlink, name, up=True))
    steps += route_steps(name, desired.routes, live, netlink)
    steps += _rule_steps(desired, live, netlink, stale)
    return steps


def _link_steps(desired: Desired, link: Link | None, netlink: Netlink) -> list[Change]:
    steps: list[Change] = []
    if link is None or link.alias != LINK_ALIAS:
        steps.append(SetLink(netlink, desired.ifname, alias=LINK_ALIAS))
    if link is None or link.mtu != desired.mtu:
        steps.append(SetLink(netlink, desired.ifname, mtu=desired.mtu))
    return steps


def _address_steps(desired: Desired, live: Live, netlink: Netlink) -> list[Change]:
    name = desired.ifname
    have = {a.interface: a for a in live.addresses if a.ifname == name}
    steps: list[Change] = [AddAddress(netlink, name, i) for i in desired.addresses if i not in have]
    steps += [
        DeleteAddress(netlink, name, interface)
        for interface, address in have.items()
        if interface not in desired.addresses and not _kernels_own(address)
    ]
    return steps


def _kernels_own(address: Address) -> bool:
    """The link-local address that the kernel gives every interface."""
    return address.interface.version == 6 and address.scope == _SCOPE_LINK


def _way(route: Route) -> tuple[object, ...]:
    return (route.dst, route.table, route.oif)


def route_steps(ifname: str, wanted: Collection[Route], live: Live, netlink: Netlink) -> list[Change]:
    """The routes through a tunnel: those that are missing, and those with our tag that are no longer wanted."""
    have, want = {_way(r) for r in live.routes}, {_way(r) for r in wanted}
    missing = [r for r in wanted if _way(r) not in have]
    # A few are done and taken back one by one; for hundreds of peers that would be a quadratic number of readings.
    steps: list[Change] = (
        [AddRoutes(netlink, missing)] if len(missing) > _FEW_ROUTES else [AddRoute(netlink, r) for r in missing]
    )
    steps += [
        DeleteRoute(netlink, r)
        for r in live.routes
        if r.protocol == ROUTE_PROTOCOL and r.oif == ifname and _way(r) not in want
    ]
    return steps


def _rule_steps(desired: Desired, live: Live, netlink: Netlink, stale: Collection[Rule]) -> list[Change]:
    ours = [r for r in live.rules if r.protocol == ROUTE_PROTOCOL and not is_pin(r) and r.dst is None]
    steps: list[Change] = [AddRule(netlink, r) for r in desired.rules if r not in ours]
    steps += [DeleteRule(netlink, r) for r in ours if r in stale and r not in desired.rules]
    return steps
