# SPDX-License-Identifier: Apache-2.0
"""From what is there to what should be: the steps of a plan, each with its way back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from wicketgate.errors import KernelRefused
from wicketgate.gateway.desired import Desired
from wicketgate.gateway.live import Live
from wicketgate.gateway.pins import is_pin
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import LINK_ALIAS, ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import Address, IPInterface, Link, Route, Rule
from wicketgate.netpath.spelling import route_command, rule_command

_THERE_ALREADY = frozenset({17})  # EEXIST
_GONE_ALREADY = frozenset({2, 3, 19, 99})  # ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL
_SCOPE_LINK = 253


async def _nothing() -> None:
    return


@dataclass(slots=True)
class Step:
    """One change and its way back (`kernel.plan.Change`).

    Attributes:
        spelled: as a person would type it.
        kind: for counting repairs: rule, route, address, link, nft, device, sysctl.
        removes: what it takes away may be gone already.
    """

    spelled: str
    kind: str
    do: Callable[[], Awaitable[None]]
    back: Callable[[], Awaitable[None]] = _nothing
    done: bool = False
    removes: bool = False

    async def apply(self) -> None:
        """Make it so; what is so already is not undone later."""
        try:
            await self.do()
        except KernelRefused as error:
            if error.errno not in (_GONE_ALREADY if self.removes else _THERE_ALREADY):
                raise
            return
        self.done = True

    async def undo(self) -> None:
        """Take it back."""
        if not self.done:
            return
        self.done = False
        try:
            await self.back()
        except KernelRefused as error:
            if error.errno not in _GONE_ALREADY:
                raise


def tunnel_steps(desired: Desired, live: Live, netlink: Netlink, *, stale: Collection[Rule] = ()) -> list[Step]:
    """What is missing of the tunnel's link settings, addresses, routes and role exit's rules, and what is too much.

    Only what carries our tag is deleted; of the tunnel's addresses, the interface being ours, all that are not wanted.

    Args:
        desired: what should be.
        live: what is.
        netlink: for the steps.
        stale: rules that may be deleted when they are not wanted: a rule does not tell whose tunnel it serves, and
            another agent may look after its own. Pins are not looked at.
    """
    link = live.link(desired.ifname)
    steps = _link_steps(desired, link, netlink)
    steps += _address_steps(desired, live, netlink)
    if link is None or not link.up:
        steps.append(_up(desired.ifname, netlink))
    steps += _route_steps(desired, live, netlink)
    steps += _rule_steps(desired, live, netlink, stale)
    return steps


def _link_steps(desired: Desired, link: Link | None, netlink: Netlink) -> list[Step]:
    name = desired.ifname
    steps = []
    if link is None or link.alias != LINK_ALIAS:
        steps.append(
            Step(f"ip link set {name} alias {LINK_ALIAS}", "link", lambda: netlink.set_link(name, alias=LINK_ALIAS))
        )
    if link is None or link.mtu != desired.mtu:
        steps.append(
            Step(f"ip link set {name} mtu {desired.mtu}", "link", lambda: netlink.set_link(name, mtu=desired.mtu))
        )
    return steps


def _up(name: str, netlink: Netlink) -> Step:
    return Step(f"ip link set {name} up", "link", lambda: netlink.set_link(name, up=True))


def _address_steps(desired: Desired, live: Live, netlink: Netlink) -> list[Step]:
    name = desired.ifname
    have = {a.interface: a for a in live.addresses if a.ifname == name}
    steps = []
    for interface in desired.addresses:
        if interface not in have:
            steps.append(_add_address(name, interface, netlink))
    for interface, address in have.items():
        if interface not in desired.addresses and not _kernels_own(address):
            steps.append(_delete_address(name, interface, netlink))
    return steps


def _kernels_own(address: Address) -> bool:
    """The link-local address that the kernel gives every interface."""
    return address.interface.version == 6 and address.scope == _SCOPE_LINK


def _add_address(name: str, interface: IPInterface, netlink: Netlink) -> Step:
    return Step(
        f"ip -{interface.version} address add {interface} dev {name}",
        "address",
        lambda: netlink.add_address(name, interface),
        lambda: netlink.delete_address(name, interface),
    )


def _delete_address(name: str, interface: IPInterface, netlink: Netlink) -> Step:
    return Step(
        f"ip -{interface.version} address del {interface} dev {name}",
        "address",
        lambda: netlink.delete_address(name, interface),
        lambda: netlink.add_address(name, interface),
        removes=True,
    )


def _same_way(a: Route, b: Route) -> bool:
    return (a.dst, a.table, a.oif) == (b.dst, b.table, b.oif)


def _route_steps(desired: Desired, live: Live, netlink: Netlink) -> list[Step]:
    steps = []
    for route in desired.routes:
        if not any(_same_way(route, r) for r in live.routes):
            steps.append(_add_route(route, netlink))
    for route in live.routes:
        ours = route.protocol == ROUTE_PROTOCOL and route.oif == desired.ifname
        if ours and not any(_same_way(route, r) for r in desired.routes):
            steps.append(_delete_route(route, netlink))
    return steps


def _add_route(route: Route, netlink: Netlink) -> Step:
    return Step(
        route_command("add", route), "route", lambda: netlink.add_route(route), lambda: netlink.delete_route(route)
    )


def _delete_route(route: Route, netlink: Netlink) -> Step:
    return Step(
        route_command("del", route),
        "route",
        lambda: netlink.delete_route(route),
        lambda: netlink.add_route(route),
        removes=True,
    )


def _rule_steps(desired: Desired, live: Live, netlink: Netlink, stale: Collection[Rule]) -> list[Step]:
    ours = [r for r in live.rules if r.protocol == ROUTE_PROTOCOL and not is_pin(r) and r.dst is None]
    steps = [rule_step("add", rule, netlink) for rule in desired.rules if rule not in ours]
    steps += [rule_step("del", rule, netlink) for rule in ours if rule in stale and rule not in desired.rules]
    return steps


def rule_step(verb: str, rule: Rule, netlink: Netlink) -> Step:
    """Add or delete a policy rule."""
    ways = (lambda: netlink.add_rule(rule)), (lambda: netlink.delete_rule(rule))
    do, back = ways if verb == "add" else ways[::-1]
    return Step(rule_command(verb, rule), "rule", do, back, removes=verb == "del")


def names(steps: Sequence[Step]) -> list[str]:
    """The kinds of the steps, for counting."""
    return [s.kind for s in steps]
