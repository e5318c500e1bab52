# SPDX-License-Identifier: Apache-2.0
"""Links, addresses, routes and rules, read and written: the one typed adapter around pyroute2.

Every keyword is checked before the kernel sees it, and every write is read back: a kernel that is too old for an
attribute ignores it, and then a rule is wider than it was asked to be. Such a write is undone and refused.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, rtnl

from wicketgate.errors import KernelRefused
from wicketgate.kernel import decode
from wicketgate.kernel.connection import Connection
from wicketgate.kernel.devconf import DevconfKey, check_key, read_devconf, write_devconf
from wicketgate.kernel.encode import route_parts, rule_parts
from wicketgate.kernel.lookup import RouteAnswer, RouteQuestion, ask_route, index_of
from wicketgate.kernel.messages import AddressMessage, LinkMessage, NeighbourMessage, RouteMessage, RuleMessage
from wicketgate.netpath import spelling
from wicketgate.netpath.snapshot import (
    Address,
    Family,
    IPAddress,
    IPInterface,
    Link,
    Neighbour,
    Route,
    Rule,
)

RTEXT_FILTER_SKIP_STATS = 8  # linux/rtnetlink.h
# What a kernel without an address family, or without a table, answers to a dump of it: there is nothing there.
_NOTHING_THERE = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT)


class Netlink:
    """A connection to rtnetlink in the calling thread's network namespace: `async with Netlink() as netlink`."""

    def __init__(self) -> None:
        self.connection = Connection()

    async def __aenter__(self) -> Self:
        await self.connection.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    @property
    def ipr(self) -> Any:
        """pyroute2's AsyncIPRoute, for message families without a verb here. Only for `kernel/`."""
        return self.connection.ipr

    @property
    def port(self) -> int:
        """Our netlink port, by which events tell our own changes from others'."""
        return self.connection.port

    # Reading

    async def links(self) -> tuple[Link, ...]:
        """Every interface."""
        found = await self.connection.dump(
            LinkMessage, rtnl.RTM_GETLINK, {}, {"IFLA_EXT_MASK": RTEXT_FILTER_SKIP_STATS}, what="ip link"
        )
        return tuple(decode.link(message) for message in found)

    async def addresses(self) -> tuple[Address, ...]:
        """Every address of both families."""
        names = await self._names()
        found = await self.connection.dump(AddressMessage, rtnl.RTM_GETADDR, {}, what="ip address")
        return tuple(
            decode.address(message, names)
            for message in found
            if message["family"] in (socket.AF_INET, socket.AF_INET6)
        )

    async def neighbours(self) -> tuple[Neighbour, ...]:
        """Every neighbour entry that has an IP address."""
        names = await self._names()
        found = await self.connection.dump(NeighbourMessage, rtnl.RTM_GETNEIGH, {}, what="ip neigh")
        return tuple(entry for entry in (decode.neighbour(message, names) for message in found) if entry is not None)

    async def routes(self, family: Family | None = None, table: int | None = None) -> tuple[Route, ...]:
        """Routes of every table, or of one.

        Args:
            family: 4, 6 or both.
            table: the kernel sends only this one, where it is new enough (4.20).
        """
        names = await self._names()
        routes: list[Route] = []
        for version in _families(family):
            number = decode.family_number(version)
            try:
                found = await self.connection.dump(
                    RouteMessage,
                    rtnl.RTM_GETROUTE,
                    {"family": number, "table": table if table is not None and table < 256 else 0},
                    {"RTA_TABLE": table} if table else {},
                    witness_groups=(rtnl.RTNLGRP_IPV6_ROUTE,) if version == 6 else (),
                    what=f"ip -{version} route show table {spelling.table_name(table) if table else 'all'}",
                )
            except KernelRefused as refused:
                if refused.errno in _NOTHING_THERE or (table and refused.errno == errno.ENOENT):
                    continue
                raise
            for message in found:
                # A kernel without the family answers with another's routes; cached routes are no configuration.
                if message["family"] == number and not message["flags"] & decode.RTM_F_CLONED:
                    route = decode.route(message, names)
                    if not table or route.table == table:
                        routes.append(route)
        return tuple(routes)

    async def rules(self, family: Family | None = None) -> tuple[Rule, ...]:
        """Policy rules in the order in which the kernel asks them, IPv4 first."""
        rules: list[Rule] = []
        for version in _families(family):
            number = decode.family_number(version)
            try:
                found = await self.connection.dump(
                    RuleMessage,
                    rtnl.RTM_GETRULE,
                    {"family": number},
                    witness_groups=(rtnl.RTNLGRP_IPV4_RULE if version == 4 else rtnl.RTNLGRP_IPV6_RULE,),
                    what=f"ip -{version} rule",
                )
            except KernelRefused as refused:
                if refused.errno in _NOTHING_THERE:
                    continue
                raise
            rules.extend(decode.rule(message) for message in found if message["family"] == number)
        return tuple(rules)

    async def get_route(
        self,
        dst: IPAddress,
        *,
        src: IPAddress | None = None,
        iif: str | None = None,
        oif: str | None = None,
        mark: int = 0,
        uid: int | None = None,
        ipproto: int = 0,
        sport: int = 0,
        dport: int = 0,
    ) -> RouteAnswer:
        """Ask the kernel where a packet would go, without sending one.

        Args:
            dst: destination.
            src: source address.
            iif: the packet comes in here; without it, it is sent by this host.
            oif: the sending socket is bound to this interface.
            mark: fwmark.
            uid: user of the sending socket; without it, ours.
            ipproto: IP protocol number, 0 = not said.
            sport: source port, 0 = not said.
            dport: destination port, 0 = not said.

        Raises:
            KernelRefused: ENETUNREACH no route; EHOSTUNREACH, EACCES, EINVAL a route that rejects; EXDEV a martian
                source or rp_filter; ENODEV no such interface.
        """
        return await ask_route(
            self.connection,
            dst,
            RouteQuestion(src=src, iif=iif, oif=oif, mark=mark, uid=uid, ipproto=ipproto, sport=sport, dport=dport),
        )

    # Rules

    async def add_rule(self, rule: Rule) -> None:
        """Add a rule and find it again exactly as asked.

        Raises:
            KernelRefused: EEXIST when that very rule is there; otherwise the kernel's reason, or EOPNOTSUPP when
                what it made of the rule is not what was asked (it is taken out again).
        """
        what = spelling.rule_command("add", rule)
        fields, attributes = rule_parts(rule)
        before = await self.rules(rule.family)
        if any(_same_rule(rule, other) for other in before):
            raise KernelRefused(what, errno.EEXIST, "that rule exists")
        # Without NLM_F_EXCL: the kernel's own comparison takes what is not said for equal, and would refuse
        # `from all lookup main` beside `from 10.0.0.2 lookup main`. Ours, above, compares everything.
        await self.connection.request(RuleMessage, rtnl.RTM_NEWRULE, fields, attributes, flags=NLM_F_CREATE, what=what)
        after = await self.rules(rule.family)
        if any(_same_rule(rule, other) for other in after):
            return
        for stray in _added(before, after):
            await self._delete_exactly(stray, spelling.rule_command("del", stray))
        made = "; ".join(spelling.list_rule(stray) for stray in _added(before, after)) or "nothing"
        raise KernelRefused(what, errno.EOPNOTSUPP, f"the kernel made something else of it ({made}), which was undone")

    async def delete_rule(self, rule: Rule) -> None:
        """Delete exactly this rule.

        Raises:
            KernelRefused: ENOENT when there is no such rule; otherwise the kernel's reason.
        """
        what = spelling.rule_command("del", rule)
        if not any(_same_rule(rule, other) for other in await self.rules(rule.family)):
            raise KernelRefused(what, errno.ENOENT, "no such rule")
        await self._delete_exactly(rule, what)

    async def _delete_exactly(self, rule: Rule, what: str) -> None:
        # The kernel takes the first rule of that priority which agrees in all that is said; prefixes of length 0, the
        # not-flag and the like count as not said. When it took another one, that one is put back: it then stands
        # behind ours, so the next attempt meets the next candidate.
        for _ in range(16):
            before = await self.rules(rule.family)
            fields, attributes = rule_parts(rule)
            await self.connection.request(RuleMessage, rtnl.RTM_DELRULE, fields, attributes, what=what)
            after = await self.rules(rule.family)
            gone = _added(after, before)
            wrong = [lost for lost in gone if lost.priority == rule.priority and not _same_rule(rule, lost)]
            if any(_same_rule(rule, lost) for lost in gone):
                return
            for lost in wrong:
                lost_fields, lost_attributes = rule_parts(lost)
                await self.connection.request(
                    RuleMessage,
                    rtnl.RTM_NEWRULE,
                    lost_fields,
                    lost_attributes,
                    flags=NLM_F_CREATE,
                    what=spelling.rule_command("add", lost),
                )
            if not wrong:
                return
        raise KernelRefused(what, errno.EBUSY, "the kernel keeps taking another rule of the same priority")

    # Routes

    async def add_route(self, route: Route, replace: bool = False) -> None:
        """Add a route, or put it in the place of one with the same key (prefix, table, tos, metric).

        Raises:
            KernelRefused: EEXIST, or the kernel's reason; EOPNOTSUPP when what it made of the route is not what was
                asked (it is taken out again, and what it replaced is put back).
        """
        verb = "replace" if replace else "add"
        what = spelling.route_command(verb, route)
        fields, attributes = route_parts(route, lambda name: self._index(name, what))
        before = await self.routes(route.family, route.table) if replace else ()
        flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
        await self.connection.request(RouteMessage, rtnl.RTM_NEWROUTE, fields, attributes, flags=flags, what=what)
        after = await self.routes(route.family, route.table)
        if any(_same_route(route, other) for other in after):
            return
        made = [other for other in after if other.dst == route.dst and other not in before]
        for stray in made:
            await self.delete_route(stray)
        for lost in before:
            if lost not in after and lost.dst == route.dst:
                fields, attributes = route_parts(lost, lambda name: self._index(name, what))
                await self.connection.request(
                    RouteMessage, rtnl.RTM_NEWROUTE, fields, attributes, flags=NLM_F_CREATE, what=what
                )
        words = "; ".join(spelling.spell_route(stray) for stray in made) or "nothing"
        raise KernelRefused(what, errno.EOPNOTSUPP, f"the kernel made something else of it ({words}), which was undone")

    async def add_routes(self, routes: Sequence[Route]) -> None:
        """Add many routes, none of which has its place taken, and read each table once instead of after each route.

        Raises:
            KernelRefused: EEXIST, or the kernel's reason, and those before it are there; EOPNOTSUPP when what it made
                of one is not what was asked (that one is taken out again).
        """
        for route in routes:
            what = spelling.route_command("add", route)
            fields, attributes = route_parts(route, lambda name, what=what: self._index(name, what))  # type: ignore[misc]
            flags = NLM_F_CREATE | NLM_F_EXCL
            await self.connection.request(RouteMessage, rtnl.RTM_NEWROUTE, fields, attributes, flags=flags, what=what)
        for family, table in sorted({(route.family, route.table) for route in routes}):
            found: dict[object, list[Route]] = {}
            for other in await self.routes(family, table):
                found.setdefault(other.dst, []).append(other)
            for route in routes:
                there = found.get(route.dst, [])
                if (route.family, route.table) == (family, table) and not any(_same_route(route, o) for o in there):
                    for stray in (o for o in there if o.protocol == route.protocol):
                        await self.delete_route(stray)
                    what = spelling.route_command("add", route)
                    raise KernelRefused(what, errno.EOPNOTSUPP, "the kernel made something else of it")

    async def delete_route(self, route: Route) -> None:
        """Delete a route.

        Raises:
            KernelRefused: ESRCH when there is no such route; otherwise the kernel's reason.
        """
        what = spelling.route_command("del", route)
        fields, attributes = route_parts(route, lambda name: self._index(name, what))
        await self.connection.request(RouteMessage, rtnl.RTM_DELROUTE, fields, attributes, what=what)

    # Addresses

    async def add_address(self, ifname: str, interface: IPInterface) -> None:
        """Add an address. IPv6 addresses are usable at once (no duplicate address detection).

        Raises:
            KernelRefused: EEXIST, or the kernel's reason.
        """
        what = f"ip address add {interface} dev {ifname}"
        fields, attributes = self._address_parts(ifname, interface, what)
        if interface.version == 6:
            attributes["IFA_FLAGS"] = 0x02  # IFA_F_NODAD: a tunnel has no neighbour that could own it
        await self.connection.request(
            AddressMessage, rtnl.RTM_NEWADDR, fields, attributes, flags=NLM_F_CREATE | NLM_F_EXCL, what=what
        )
        if not any(a.ifname == ifname and a.interface == interface for a in await self.addresses()):
            raise KernelRefused(what, errno.EOPNOTSUPP, "the kernel said yes, yet the address is not there")

    async def delete_address(self, ifname: str, interface: IPInterface) -> None:
        """Delete an address.

        Raises:
            KernelRefused: EADDRNOTAVAIL when it is not there.
        """
        what = f"ip address del {interface} dev {ifname}"
        fields, attributes = self._address_parts(ifname, interface, what)
        await self.connection.request(AddressMessage, rtnl.RTM_DELADDR, fields, attributes, what=what)

    def _address_parts(self, ifname: str, interface: IPInterface, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
        fields = {
            "family": decode.family_number(interface.version),
            "prefixlen": interface.network.prefixlen,
            "index": self._index(ifname, what),
        }
        return fields, {"IFA_LOCAL": str(interface.ip), "IFA_ADDRESS": str(interface.ip)}

    # Links

    async def add_link(self, name: str, kind: str, *, peer: str = "") -> None:
        """Make an interface.

        Args:
            name: its name.
            kind: `wireguard`, `veth`, `bridge` ...
            peer: the other end's name, for veth.

        Raises:
            KernelRefused: EOPNOTSUPP (95) when the kernel has no such kind; EEXIST when the name is taken.
        """
        what = f"ip link add {name} type {kind}" + (f" peer name {peer}" if peer else "")
        info: list[list[Any]] = [["IFLA_INFO_KIND", kind]]
        if peer:
            info.append(["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", {"attrs": [["IFLA_IFNAME", peer]]}]]}])
        await self.connection.request(
            LinkMessage,
            rtnl.RTM_NEWLINK,
            {},
            {"IFLA_IFNAME": name, "IFLA_LINKINFO": {"attrs": info}},
            flags=NLM_F_CREATE | NLM_F_EXCL,
            what=what,
        )
        made = next((link for link in await self.links() if link.name == name), None)
        if made is None or made.kind != kind:
            raise KernelRefused(what, errno.EOPNOTSUPP, "the kernel said yes, yet the interface is not there")

    async def delete_link(self, name: str) -> None:
        """Remove an interface.

        Raises:
            KernelRefused: ENODEV when there is none.
        """
        what = f"ip link del {name}"
        await self.connection.request(LinkMessage, rtnl.RTM_DELLINK, {"index": self._index(name, what)}, {}, what=what)

    async def set_link(
        self, name: str, *, up: bool | None = None, mtu: int | None = None, alias: str | None = None
    ) -> None:
        """Change an interface; None leaves a value as it is.

        Raises:
            KernelRefused: ENODEV, EINVAL (an MTU that the device does not take) ...
        """
        words = ["ip", "link", "set", name]
        words += [] if up is None else ["up" if up else "down"]
        words += [] if mtu is None else ["mtu", str(mtu)]
        words += [] if alias is None else ["alias", f"{alias!r}"]
        what = " ".join(words)
        index = self._index(name, what)
        fields: dict[str, Any] = {"index": index}
        if up is not None:
            fields |= {"flags": decode.IFF_UP if up else 0, "change": decode.IFF_UP}
        await self.connection.request(
            LinkMessage, rtnl.RTM_NEWLINK, fields, {"IFLA_MTU": mtu, "IFLA_IFALIAS": alias}, what=what
        )
        link = next((link for link in await self.links() if link.index == index), None)
        if (
            link is None
            or (up is not None and link.up != up)
            or (mtu is not None and link.mtu != mtu)
            or (alias is not None and link.alias != alias)
        ):
            raise KernelRefused(what, errno.EOPNOTSUPP, f"the kernel said yes, yet the interface is now {link}")

    # Per-interface IPv4 configuration

    async def get_devconf(self, ifname: str) -> dict[str, int]:
        """`forwarding`, `rp_filter`, `src_valid_mark` ... of an interface, as sysctl(8) names them.

        Raises:
            KernelRefused: ENODEV.
        """
        return await read_devconf(self.connection, self._index(ifname, f"ip -d link show {ifname}"), ifname)

    async def set_devconf(self, ifname: str, key: DevconfKey, value: int) -> None:
        """Set one of them, also where /proc/sys is read-only. `all` and `default` cannot be reached this way.

        Raises:
            KernelRefused: ENODEV, EPERM ...
            ValueError: a key that cannot be set this way.
        """
        check_key(key)
        index = self._index(ifname, f"sysctl -w net.ipv4.conf.{ifname}.{key}={value}")
        await write_devconf(self.connection, index, ifname, key, value)

    # Names

    async def _names(self) -> decode.NameOf:
        known = {link.index: link.name for link in await self.links()}
        return lambda index: known.get(index) or f"if{index}"  # as iproute2 spells an interface that has gone

    @staticmethod
    def _index(name: str, what: str) -> int:
        return index_of(name, what)


def _families(family: Family | None) -> tuple[Family, ...]:
    return (4, 6) if family is None else (family,)


def _added(before: tuple[Rule, ...], after: tuple[Rule, ...]) -> list[Rule]:
    left = list(before)
    new = []
    for rule in after:
        if rule in left:
            left.remove(rule)
        else:
            new.append(rule)
    return new


def _same_rule(asked: Rule, found: Rule) -> bool:
    def plain(rule: Rule) -> Rule:
        return replace(
            rule,
            src=rule.src if rule.src is not None and rule.src.prefixlen else None,
            dst=rule.dst if rule.dst is not None and rule.dst.prefixlen else None,
        )

    return plain(asked) == plain(found)


def _same_route(asked: Route, found: Route) -> bool:
    """The kernel's additions forgiven: an IPv6 metric and protocol, `lo` for an IPv6 route that rejects, flags about the link."""
    if asked.nh_id:
        hops = found.nh_id == asked.nh_id
    elif not asked.nexthops:
        hops = not found.nexthops or (found.family == 6 and found.type != "unicast")
    else:
        hops = [(h.oif, h.via, h.weight, h.flags & decode.RTNH_F_ONLINK) for h in asked.nexthops] == [
            (h.oif, h.via, h.weight, h.flags & decode.RTNH_F_ONLINK) for h in found.nexthops
        ]
    return (
        hops
        and asked.dst == found.dst
        and asked.table == found.table
        and asked.type == found.type
        and asked.tos == found.tos
        and asked.src == found.src
        and asked.prefsrc == found.prefsrc
        and (asked.protocol == found.protocol or (asked.family == 6 and not asked.protocol))
        and (asked.metric == found.metric or (asked.family == 6 and not asked.metric))
        and (asked.scope == found.scope or asked.family == 6)
        and dict(asked.metrics) == dict(found.metrics)
    )


__all__ = ["Netlink", "RouteAnswer"]
