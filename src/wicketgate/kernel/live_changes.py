# SPDX-License-Identifier: Apache-2.0
"""Changes for those who listen: events at once, and what no event told by comparing a reading with the one before.

Books are kept between two readings of a part: what events told is set off against the difference, and only the rest is
told as found by reading. So nothing is told twice, and nothing that went in silence is left out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from wicketgate.kernel.events import Change, Event
from wicketgate.kernel.live_parts import ROUTES, Part
from wicketgate.kernel.netlink_owner import owner
from wicketgate.kernel.nft_commits import Commit
from wicketgate.kernel.sysctl import part as sysctl_part
from wicketgate.netpath.change import (
    Action,
    Difference,
    StateChange,
    What,
    address_difference,
    lasting,
    link_added,
    link_difference,
    route_key,
    socket_differences,
    sysctl_differences,
    wireguard_differences,
)
from wicketgate.netpath.netfilter.difference import firewall_differences
from wicketgate.netpath.snapshot import Address, Link, Route, Rule
from wicketgate.netpath.spelling import list_rule, spell_address, spell_route

OWN = "this process"
_MOST_SEARCHED = 20_000  # routes among which the one is searched that another took the place of
_KNOWN_FOR = 1.0  # seconds that the process behind a netlink port is remembered; a flood has one

Tables = dict[Part, Counter[Any]]


class Teller:
    """Makes `StateChange`s of events and readings.

    Args:
        publish: takes each.
    """

    def __init__(self, publish: Callable[[StateChange], None]) -> None:
        self._publish = publish
        self._held: Mapping[Part, Any] = {}
        self._links: dict[int, Link] = {}
        self._addresses: dict[tuple[int, object], Address] = {}
        self._told: Tables = {}
        self._first: set[Part] = set(Part)
        self._index: dict[Part, tuple[tuple[Route, ...], dict[object, list[Route]]]] = {}
        self._owners: dict[int, tuple[float, str]] = {}

    def start(self, held: Mapping[Part, Any], stale: Iterable[Part]) -> None:
        """Begin to compare.

        Args:
            held: what was read last, kept up to date by the caller.
            stale: parts that changed since, unheard: their next reading is the first.
        """
        self._held = held
        self._links = {link.index: link for link in held.get(Part.LINKS, ())}
        self._addresses = {(each.ifindex, each.interface): each for each in held.get(Part.ADDRESSES, ())}
        self._told = {}
        self._first = set(stale)

    def forget(self, part: Part) -> None:
        """The next reading of this part is the first: it never stood still."""
        self._first.add(part)

    # Events

    def event(self, event: Event, at: float) -> None:
        """Tell of an event, unless nothing of what we know of the thing is different."""
        match event.value:
            case Link():
                found = self._link(event.value, gone=event.change is Change.REMOVED)
            case Address():
                found = self._address(event.value, gone=event.change is Change.REMOVED)
            case Route():
                found = self._route(event.value, event.change)
            case Rule():
                found = self._rule(event.value, event.change)
            case _:
                return
        if found is not None:
            self._publish(_change(found, at, OWN if event.own else self._owner(event.port), told=True))

    def _owner(self, port: int) -> str:
        now = time.monotonic()
        known = self._owners.get(port)
        if known is None or now > known[0]:
            known = now + _KNOWN_FOR, owner(port)
            if len(self._owners) > 100:
                self._owners.clear()
            self._owners[port] = known
        return known[1]

    def _link(self, link: Link, *, gone: bool) -> Difference | None:
        if gone:
            before = self._links.pop(link.index, None)
            return Difference(What.LINK, Action.REMOVED, f"{link.index}: {link.name}", before or link)
        before = self._links.get(link.index)
        self._links[link.index] = link
        if before is None:
            return Difference(What.LINK, Action.ADDED, link_added(link), link)
        text = link_difference(before, link)
        return Difference(What.LINK, Action.CHANGED, text, link, before) if text else None

    def _address(self, address: Address, *, gone: bool) -> Difference | None:
        key = (address.ifindex, address.interface)
        if gone:
            self._addresses.pop(key, None)
            return Difference(What.ADDRESS, Action.REMOVED, spell_address(address), address)
        before = self._addresses.get(key)
        self._addresses[key] = address
        if before is None:
            return Difference(What.ADDRESS, Action.ADDED, spell_address(address), address)
        text = address_difference(before, address)
        return Difference(What.ADDRESS, Action.CHANGED, text, address, before) if text else None

    def _rule(self, rule: Rule, change: Change) -> Difference:
        self._count(Part.RULES, rule, -1 if change is Change.REMOVED else 1)
        return Difference(What.RULE, Action(change.value), _rule_text(rule), rule)

    def _route(self, found: Route, change: Change) -> Difference:
        route = lasting(found)
        part = Part.ROUTES_4 if route.family == 4 else Part.ROUTES_6
        before = self._replaced(part, route) if change is Change.CHANGED else None
        if before is not None:
            self._count(part, before, -1)
        self._count(part, route, -1 if change is Change.REMOVED else 1)
        return _route_difference(Action(change.value), route, before)

    def _replaced(self, part: Part, route: Route) -> Route | None:
        """The route whose place this one takes, as far as it is known."""
        held = self._held.get(part, ())
        if part in self._first or len(held) > _MOST_SEARCHED:
            return None
        key = route_key(route)
        alike = Counter(map(lasting, self._by_key(part, held).get(key, ())))
        for each, count in self._told.get(part, Counter()).items():
            if route_key(each) == key:
                alike[each] += count
        there = [each for each, count in alike.items() if count > 0]
        return there[0] if len(there) == 1 else None

    def _by_key(self, part: Part, held: tuple[Route, ...]) -> dict[object, list[Route]]:
        kept = self._index.get(part)
        if kept is not None and kept[0] is held:
            return kept[1]
        index: dict[object, list[Route]] = {}
        for route in held:
            index.setdefault(route_key(route), []).append(route)
        self._index[part] = held, index
        return index

    def _count(self, part: Part, thing: Route | Rule, by: int) -> None:
        self._told.setdefault(part, Counter())[thing] += by

    # Readings

    def read(self, part: Part, before: Any, value: Any, commits: Iterable[Commit], at: float, *, whole: bool) -> None:
        """Tell what is different from the reading before and was told by no event.

        Args:
            part: what was read.
            before: the reading before; None when there was none.
            value: what was read now.
            commits: nftables' transactions since then.
            at: now.
            whole: False when it could not be read in full: nothing is told, nor of the next reading.
        """
        told = self._told.pop(part, Counter())
        compare = part not in self._first and before is not None
        (self._first.discard if whole else self._first.add)(part)
        if part is Part.LINKS:
            found = list(self._links_read(value))
        elif part is Part.ADDRESSES:
            found = list(self._addresses_read(value))
        elif not compare or (value is before and not told):
            return
        elif part in ROUTES:
            found = list(_routes_read(before, value, told))
        elif part is Part.RULES:
            found = list(_rules_read(before, value, told))
        elif part is Part.SYSCTLS:
            found = [each for each in sysctl_differences(before, value) if not self._follows(each)]
        elif part is Part.WIREGUARD:
            found = list(wireguard_differences(before, value))
        elif part is Part.SOCKETS:
            found = list(socket_differences(before, value, self._held.get(Part.SYSCTLS, {})))
        elif part is Part.FIREWALL:
            found = list(firewall_differences(before, value))
        else:
            return
        if compare and whole:
            names = ", ".join(dict.fromkeys(each.spelled() for each in commits if each.name))
            for each in found:
                legacy = each.what is What.IPTABLES and "-legacy" in each.text
                self._publish(_change(each, at, "" if legacy else names, told=bool(names) and not legacy))

    def _follows(self, setting: Difference) -> bool:
        """`net.ipv6.conf.eth0.mtu` goes with the link's MTU, which has its own line."""
        name = setting.text.partition(" ")[0]
        mtus = {f"net.ipv6.conf.{sysctl_part(link.name)}.mtu": str(link.mtu) for link in self._links.values()}
        return mtus.get(name) == setting.value

    def _links_read(self, links: tuple[Link, ...]) -> Iterator[Difference]:
        gone = set(self._links) - {link.index for link in links}
        for index in gone:
            found = self._link(self._links[index], gone=True)
            if found is not None:
                yield found
        for link in links:
            found = self._link(link, gone=False)
            if found is not None:
                yield found

    def _addresses_read(self, addresses: tuple[Address, ...]) -> Iterator[Difference]:
        gone = set(self._addresses) - {(each.ifindex, each.interface) for each in addresses}
        for key in gone:
            found = self._address(self._addresses[key], gone=True)
            if found is not None:
                yield found
        for address in addresses:
            found = self._address(address, gone=False)
            if found is not None:
                yield found


def _change(found: Difference, at: float, who: str, *, told: bool) -> StateChange:
    return StateChange(at, found.what, found.action, found.text, found.value, found.before, who, told)


def _rule_text(rule: Rule) -> str:
    return list_rule(rule).replace("\t", " ")


def _route_difference(action: Action, route: Route, before: Route | None) -> Difference:
    text = spell_route(route)
    if before is not None and before != route:
        text += f" (was {spell_route(before)})"
    return Difference(What.ROUTE, action, text, route, before)


def _unheard(before: Iterable[Any], after: Iterable[Any], told: Counter[Any]) -> tuple[list[Any], list[Any]]:
    """What went and what came, without what was told. What went and came back with one word went unheard as well."""
    was, now = Counter(before), Counter(after)
    gone, come = [], []
    for thing in was.keys() | now.keys() | told.keys():
        count = now[thing] - was[thing] - told[thing]
        # One way of an IPv6 multipath route is told as removed, and was never a route of its own.
        if count > 0 and thing in now:
            come += [thing] * count
        elif count < 0:
            gone += [thing] * -count
    return gone, come


def _rules_read(before: Iterable[Rule], after: Iterable[Rule], told: Counter[Any]) -> Iterator[Difference]:
    gone, come = _unheard(before, after, told)
    for rule in gone:
        yield Difference(What.RULE, Action.REMOVED, _rule_text(rule), rule)
    for rule in come:
        yield Difference(What.RULE, Action.ADDED, _rule_text(rule), rule)


def _routes_read(before: Iterable[Route], after: Iterable[Route], told: Counter[Any]) -> Iterator[Difference]:
    gone, come = _unheard(map(lasting, before), map(lasting, after), told)
    told_added: dict[object, set[Route]] = {}
    for route, count in told.items():
        if count > 0:
            told_added.setdefault(route_key(route), set()).add(route)
    lost: dict[object, list[Route]] = {}
    for route in gone:
        lost.setdefault(route_key(route), []).append(route)
    for route in come:
        places = lost.get(route_key(route))
        old = places.pop() if places else None
        yield _route_difference(Action.ADDED if old is None else Action.CHANGED, route, old)
    for key, routes in lost.items():
        for route in routes:
            if not any(_grown_from(route, other) for other in told_added.get(key, ())):
                yield _route_difference(Action.REMOVED, route, None)


def _grown_from(route: Route, other: Route) -> bool:
    """An IPv6 route that got one more way is told as a new route, and the old one not as removed."""
    return route.family == 6 and route != other and set(route.nexthops) <= set(other.nexthops)
