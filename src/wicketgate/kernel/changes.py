# SPDX-License-Identifier: Apache-2.0
"""Changes of rules, routes, addresses and interfaces, each able to take itself back.

What is in place already is left alone and never undone: it was somebody else's doing, or an earlier life's. A change
that was cancelled half way counts as made; its undo then finds nothing, or what it has to remove.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.devconf import DevconfKey
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import IPInterface, Route, Rule
from wicketgate.netpath.spelling import route_command, rule_command

# What the kernel says when that which is to be removed has gone already, by hand or with its interface.
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO})
_IP6_RT_PRIO_USER = 1024  # linux/ipv6_route.h: the metric that the kernel makes of none


def _unless_gone(error: KernelRefused) -> None:
    if error.errno not in _GONE:
        raise error


class AddRule:
    """`ip rule add`. A rule that is there already, in all its parts, is as good as added."""

    def __init__(self, netlink: Netlink, rule: Rule) -> None:
        self._netlink = netlink
        self.rule = rule
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return rule_command("add", self.rule)

    async def apply(self) -> None:
        """Add it."""
        if await has_rule(self._netlink, self.rule):
            return
        self._made = True
        await self._netlink.add_rule(self.rule)

    async def undo(self) -> None:
        """Delete it."""
        if self._made:
            await _delete_rule(self._netlink, self.rule)
            self._made = False


class DeleteRule:
    """`ip rule del`. A rule that has gone already is as good as deleted."""

    def __init__(self, netlink: Netlink, rule: Rule) -> None:
        self._netlink = netlink
        self.rule = rule
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return rule_command("del", self.rule)

    async def apply(self) -> None:
        """Delete it."""
        if await has_rule(self._netlink, self.rule):
            self._made = True
            await _delete_rule(self._netlink, self.rule)

    async def undo(self) -> None:
        """Add it again."""
        if self._made and not await has_rule(self._netlink, self.rule):
            await self._netlink.add_rule(self.rule)
        self._made = False


async def has_rule(netlink: Netlink, rule: Rule) -> bool:
    """Whether that very rule is there, tag and all. Compared as commands: `from all` and no source are the same."""
    wanted = rule_command("add", rule)
    return any(rule_command("add", other) == wanted for other in await netlink.rules(rule.family))


async def _delete_rule(netlink: Netlink, rule: Rule) -> None:
    try:
        await netlink.delete_rule(rule)
    except KernelRefused as error:
        _unless_gone(error)


def _key(route: Route) -> tuple[object, ...]:
    metric = route.metric or (_IP6_RT_PRIO_USER if route.family == 6 else 0)
    return (route.dst, route.table, route.tos, metric, route.src)


async def route_at(netlink: Netlink, route: Route) -> Route | None:
    """The route that has this one's place: same prefix, table, tos, metric."""
    found = await netlink.routes(route.family, route.table)
    return next((other for other in found if _key(other) == _key(route)), None)


class AddRoute:
    """`ip route add`. One of ours in its place is replaced (and put back by undo); a stranger's is an error."""

    def __init__(self, netlink: Netlink, route: Route) -> None:
        self._netlink = netlink
        self.route = route
        self._before: Route | None = None
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return route_command("replace" if self.route.protocol == ROUTE_PROTOCOL else "add", self.route)

    async def apply(self) -> None:
        """Add or replace it."""
        self._before = await route_at(self._netlink, self.route)
        if self._before is not None and self._before.protocol != ROUTE_PROTOCOL:
            raise KernelRefused(
                route_command("add", self.route),
                errno.EEXIST,
                f"another's route is in its place and was left alone: {route_command('add', self._before)}",
            )
        if self._before is not None and replace(self._before, metric=self.route.metric) == self.route:
            return
        self._made = True
        await self._netlink.add_route(self.route, replace=self._before is not None)

    async def undo(self) -> None:
        """Put back what was there, or delete it."""
        if not self._made:
            return
        if self._before is not None:
            await self._netlink.add_route(self._before, replace=True)
        else:
            await _delete_route(self._netlink, self.route)
        self._made = False


class AddRoutes:
    """Many at once: the tables are read twice in all, where `AddRoute` reads its table twice for each route.

    (500 routes, one by one, took 27 s of processor time.)
    """

    def __init__(self, netlink: Netlink, routes: Sequence[Route]) -> None:
        self._netlink = netlink
        self.routes = tuple(routes)
        self._singly: list[AddRoute] = []
        self._made: list[Route] = []

    @property
    def spelled(self) -> str:
        """The first iproute2 command, and how many there are."""
        return f"{self.lines[0]} # and {len(self.routes) - 1} more"

    @property
    def lines(self) -> tuple[str, ...]:
        """Every iproute2 command."""
        return tuple(AddRoute(self._netlink, route).spelled for route in self.routes)

    async def apply(self) -> None:
        """Add those that are missing, as they are; one that has another in its place is for `AddRoute`."""
        taken: dict[tuple[object, ...], Route] = {}
        for family, table in {(route.family, route.table) for route in self.routes}:
            taken |= {_key(other): other for other in await self._netlink.routes(family, table)}
        for route in self.routes:
            other = taken.get(_key(route))
            if other is not None and replace(other, metric=route.metric) != route:
                self._singly.append(AddRoute(self._netlink, route))
                await self._singly[-1].apply()
        self._made = [route for route in self.routes if _key(route) not in taken]
        await self._netlink.add_routes(self._made)

    async def undo(self) -> None:
        """Delete what was added."""
        while self._made:
            await _delete_route(self._netlink, self._made.pop())
        while self._singly:
            await self._singly.pop().undo()


class DeleteRoute:
    """`ip route del`. A route that has gone already is as good as deleted."""

    def __init__(self, netlink: Netlink, route: Route) -> None:
        self._netlink = netlink
        self.route = route
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return route_command("del", self.route)

    async def apply(self) -> None:
        """Delete it."""
        self._made = await route_at(self._netlink, self.route) is not None
        if self._made:
            await _delete_route(self._netlink, self.route)

    async def undo(self) -> None:
        """Add it again."""
        if self._made and await route_at(self._netlink, self.route) is None:
            await self._netlink.add_route(self.route)
        self._made = False


async def _delete_route(netlink: Netlink, route: Route) -> None:
    try:
        await netlink.delete_route(route)
    except KernelRefused as error:
        _unless_gone(error)


class AddAddress:
    """`ip address add`. An address that is there already is as good as added."""

    def __init__(self, netlink: Netlink, ifname: str, interface: IPInterface) -> None:
        self._netlink = netlink
        self.ifname, self.interface = ifname, interface
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return f"ip -{self.interface.version} address add {self.interface} dev {self.ifname}"

    async def apply(self) -> None:
        """Add it."""
        if await self._there():
            return
        self._made = True
        await self._netlink.add_address(self.ifname, self.interface)

    async def _there(self) -> bool:
        found = await self._netlink.addresses()
        return any(each.ifname == self.ifname and each.interface == self.interface for each in found)

    async def undo(self) -> None:
        """Delete it."""
        if self._made:
            try:
                await self._netlink.delete_address(self.ifname, self.interface)
            except KernelRefused as error:
                _unless_gone(error)
            self._made = False


class DeleteAddress:
    """`ip address del`. An address that has gone already is as good as deleted."""

    def __init__(self, netlink: Netlink, ifname: str, interface: IPInterface) -> None:
        self._inverse = AddAddress(netlink, ifname, interface)
        self._netlink = netlink
        self.ifname, self.interface = ifname, interface
        self._made = False

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        return f"ip -{self.interface.version} address del {self.interface} dev {self.ifname}"

    async def apply(self) -> None:
        """Delete it."""
        try:
            await self._netlink.delete_address(self.ifname, self.interface)
            self._made = True
        except KernelRefused as error:
            _unless_gone(error)

    async def undo(self) -> None:
        """Add it again."""
        if self._made:
            await self._inverse.apply()
            self._made = False


class SetLink:
    """`ip link set`. Undo restores exactly the values that were changed."""

    def __init__(
        self,
        netlink: Netlink,
        ifname: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        alias: str | None = None,
    ) -> None:
        self._netlink = netlink
        self.ifname = ifname
        self._up, self._mtu, self._alias = up, mtu, alias
        self._before: tuple[bool | None, int | None, str | None] | None = None

    @property
    def spelled(self) -> str:
        """The iproute2 command."""
        words = ["ip", "link", "set", "dev", self.ifname]
        words += [] if self._mtu is None else ["mtu", str(self._mtu)]
        words += [] if self._alias is None else ["alias", self._alias or "''"]
        words += [] if self._up is None else ["up" if self._up else "down"]
        return " ".join(words)

    async def apply(self) -> None:
        """Set what differs."""
        link = next((link for link in await self._netlink.links() if link.name == self.ifname), None)
        if link is None:
            raise StateError(f"{self.spelled}: there is no interface {self.ifname}")
        up = self._up if self._up is not None and self._up != link.up else None
        mtu = self._mtu if self._mtu is not None and self._mtu != link.mtu else None
        alias = self._alias if self._alias is not None and self._alias != link.alias else None
        if up is None and mtu is None and alias is None:
            return
        self._before = (
            None if up is None else link.up,
            None if mtu is None else link.mtu,
            None if alias is None else link.alias,
        )
        await self._netlink.set_link(self.ifname, up=up, mtu=mtu, alias=alias)

    async def undo(self) -> None:
        """Set the old values; an interface that has gone has nothing to restore."""
        if self._before is None:
            return
        up, mtu, alias = self._before
        try:
            await self._netlink.set_link(self.ifname, up=up, mtu=mtu, alias=alias)
        except KernelRefused as error:
            _unless_gone(error)
        self._before = None


class SetDevconf:
    """`sysctl -w net.ipv4.conf.IFNAME.KEY=VALUE`, by netlink: it works where /proc/sys is read-only."""

    def __init__(self, netlink: Netlink, ifname: str, key: DevconfKey, value: int) -> None:
        self._netlink = netlink
        self.ifname, self.key, self.value = ifname, key, value
        self._before: int | None = None

    @property
    def spelled(self) -> str:
        """The sysctl(8) command; it wants a dot in an interface's name as a slash."""
        return f"sysctl -w net.ipv4.conf.{self.ifname.replace('.', '/')}.{self.key}={self.value}"

    async def apply(self) -> None:
        """Set it, when it is not so already; the adapter reads it back."""
        before = (await self._netlink.get_devconf(self.ifname))[self.key]
        if before != self.value:
            self._before = before
            await self._netlink.set_devconf(self.ifname, self.key, self.value)

    async def undo(self) -> None:
        """Set the old value; an interface that has gone has nothing to restore."""
        if self._before is not None:
            try:
                await self._netlink.set_devconf(self.ifname, self.key, self._before)
            except KernelRefused as error:
                _unless_gone(error)
            self._before = None
