# SPDX-License-Identifier: Apache-2.0
"""A paste made into a snapshot that says what it lacks.

Three things are taken as given because the kernel itself makes them so: the table local, from the addresses; the three
policy rules of a new namespace, where wg-quick's log tells what it added; `forwarding` of each interface, where
`ip_forward` was pasted. The first is said in a note, the others stand beside what says that they were not listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from types import MappingProxyType

from wicketgate.netpath.paste import rules as rule_lines
from wicketgate.netpath.paste.firewall import firewall_of
from wicketgate.netpath.paste.holes import Holes, untold_rules, untold_table
from wicketgate.netpath.paste.lines import Command, quotable
from wicketgate.netpath.paste.quick_log import QuickLog, read_log
from wicketgate.netpath.paste.routes import route_of
from wicketgate.netpath.paste.sockets import socket_of
from wicketgate.netpath.paste.sort import RouteListing, Sorted, sort
from wicketgate.netpath.paste.tables import TableNames
from wicketgate.netpath.paste.wireguard import devices_of
from wicketgate.netpath.snapshot import (
    RT_TABLE_DEFAULT,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    Address,
    Family,
    Link,
    ListeningSocket,
    NextHop,
    Route,
    Rule,
    Snapshot,
    WireGuardState,
)

_FAMILIES: tuple[Family, ...] = (4, 6)
_ALL = -1  # every table was listed
_HOST, _LINK = 254, 253  # rt_scopes
_KERNEL = 2  # rt_protos
_DEFAULT_RULES: dict[Family, tuple[Rule, ...]] = {
    4: (Rule(4, 0, table=RT_TABLE_LOCAL), Rule(4, 32766, table=RT_TABLE_MAIN), Rule(4, 32767, table=RT_TABLE_DEFAULT)),
    6: (Rule(6, 0, table=RT_TABLE_LOCAL), Rule(6, 32766, table=RT_TABLE_MAIN)),
}


@dataclass(frozen=True, slots=True)
class Pasted:
    """A paste, read.

    Attributes:
        snapshot: what it tells; what it does not is in `unread`.
        found: what was recognized, for a person: "2 interfaces", "5 policy rules".
    """

    snapshot: Snapshot
    found: tuple[str, ...]


def read_paste(text: str, *, now: float) -> Pasted | None:
    """Read the outputs that somebody pasted.

    Args:
        text: everything, in any order, with prompts, fences and sentences between.
        now: seconds since the epoch: when it was pasted, as far as that is known.

    Returns:
        None where nothing in it was recognized.
    """
    reader = _Reader(sort(text), now)
    return reader.pasted()


class _Reader:
    def __init__(self, found: Sorted, now: float) -> None:
        self._sorted = found
        self._now = now
        self._tables = TableNames()
        self._holes = Holes()
        self._log: QuickLog = read_log(found.quick, self._tables)
        self._words: list[str] = []

    def pasted(self) -> Pasted | None:
        for note in self._sorted.notes:
            self._holes.doubt("a part of the paste", note)
        links, addresses = self._interfaces()
        families = {each.family for each in addresses if not each.ip.is_loopback and not each.ip.is_link_local}
        devices = self._devices(links)
        listening = self._listeners()
        rules = self._rules(families)
        routes = self._routes(families, rules, links, addresses)
        sysctls = self._sysctls(links)
        firewall = firewall_of(self._sorted, self._holes, self._words, families)
        if self._log.firewall:
            self._holes.doubt("wg-quick's log", f"what `{quotable(self._log.firewall[0])}` changed is not in it")
        for words in self._sorted.failures:
            self._holes.doubt("wg-quick's log", words)
        for line in self._log.unread:
            self._holes.doubt("wg-quick's log", f"not understood: {quotable(line)}")
        for name, number in self._tables.own.items():
            self._holes.doubt(f"table {quotable(name)}", f"its number is not in the paste; it is called {number} here")
        if self._sorted.quick:
            self._count(len(self._sorted.quick), "line of wg-quick's log", "lines of wg-quick's log")
        if not self._words:
            return None
        snapshot = Snapshot(
            taken_at=self._now,
            links=links,
            addresses=addresses,
            routes=routes,
            rules=rules,
            sysctls=MappingProxyType(sysctls),
            sockets=listening,
            wireguard=devices,
            firewall=firewall,
            unread=tuple(dict.fromkeys(self._holes.unread)),
        )
        return Pasted(snapshot, tuple(self._words))

    def _count(self, number: int, one: str, many: str) -> None:
        if number:
            self._words.append(f"{number} {one if number == 1 else many}")

    # Interfaces

    def _interfaces(self) -> tuple[tuple[Link, ...], tuple[Address, ...]]:
        links, addresses = self._sorted.interfaces.finished()
        self._count(len(links), "interface", "interfaces")
        self._count(len(addresses), "address", "addresses")
        names = {link.name for link in links}
        if not links:
            self._holes.add("links", "ip addr")
        if not addresses:
            self._holes.add("addresses", "ip addr")
        else:
            made = tuple(link for name, link in self._log.links.items() if name not in names)
            links += made
            added = {link.name for link in made}
            addresses += tuple(each for each in self._log.addresses if each.ifname in added)
        return links, addresses

    def _sysctls(self, links: tuple[Link, ...]) -> dict[str, str]:
        values = self._log.sysctls | self._sorted.sysctls
        self._count(len(self._sorted.sysctls), "kernel parameter", "kernel parameters")
        if "net.ipv4.ip_forward" in values:  # the same as conf.all.forwarding, which sets that of each interface
            whole = values["net.ipv4.ip_forward"]
            for name in ("all", *(link.name.replace(".", "/") for link in links)):
                values.setdefault(f"net.ipv4.conf.{name}.forwarding", whole)
        if "net.ipv4.conf.all.rp_filter" not in values:
            self._holes.add("kernel parameters", "sysctl -a -r '^net.ipv[46].(conf|ip_forward)'")
        return values

    # Sockets and WireGuard

    def _listeners(self) -> tuple[ListeningSocket, ...]:
        found: list[ListeningSocket] = []
        for line in self._sorted.sockets:
            try:
                socket = socket_of(line)
            except ValueError:
                self._holes.doubt("sockets", f"not understood: {quotable(line)}")
                continue
            if socket is not None:
                found.append(socket)
        self._count(len(found), "listener", "listeners")
        seen = self._sorted.sockets_of | ({each.protocol for each in found})
        if "tcp" not in seen or "udp" not in seen:
            missing = "sockets" if not {"tcp", "udp"} & seen else f"sockets: {'udp' if 'tcp' in seen else 'tcp'}"
            self._holes.add(missing, "ss -lntu")
        return tuple(dict.fromkeys(found))

    def _devices(self, links: tuple[Link, ...]) -> tuple[WireGuardState, ...]:
        try:
            devices = devices_of(self._sorted.wireguard, self._now)
        except ValueError as error:
            self._holes.doubt("wireguard", f"not understood: {quotable(str(error))}; this prints it: wg show")
            return ()
        self._count(len(devices), "WireGuard device", "WireGuard devices")
        tunnels = [link.name for link in links if link.kind == "wireguard"]
        if not devices and (tunnels or not any(each.program == "wg" for each in self._sorted.commands)):
            self._holes.add("wireguard", "wg show")
        backends = {link.name: link.kind for link in links}
        return tuple(
            replace(each, backend="userspace") if backends.get(each.ifname) == "tun" else each for each in devices
        )

    # Rules

    def _rules(self, families: set[Family]) -> tuple[Rule, ...]:
        found: dict[Family, tuple[Rule, ...]] = {}
        for listing in self._sorted.rules:
            family = self._family_of_rules(listing.command, listing.lines, found)
            if family is None:
                self._holes.doubt(
                    f"the policy rules from line {listing.at} on", "IPv4's or IPv6's? paste ip -6 rule with its command"
                )
                continue
            if family in found:
                self._holes.doubt(f"policy rules, IPv{family}", f"listed twice; those from line {listing.at} on count")
            found[family] = tuple(self._rule(line, family) for line in listing.lines)
        self._count(sum(map(len, found.values())), "policy rule", "policy rules")
        rules: list[Rule] = []
        for family in _FAMILIES:
            if family in found:
                rules += found[family]
                continue
            command = "ip rule" if family == 4 else "ip -6 rule"
            if family in families or not families:
                self._holes.add(f"policy rules, IPv{family}", command)
            made = (*_DEFAULT_RULES[family], *self._log.rules[family])
            rules += [untold_rules(family, command), *sorted(made, key=lambda each: each.priority)]
        return tuple(rules)

    def _family_of_rules(
        self, command: Command | None, lines: list[str], found: dict[Family, tuple[Rule, ...]]
    ) -> Family | None:
        shown = rule_lines.family_of(lines)
        if shown is not None:
            return shown
        if command is not None and command.program == "ip":
            return 6 if command.family == 6 else 4
        return 6 if 4 in found else None  # both look alike; the second of two is IPv6's

    def _rule(self, line: str, family: Family) -> Rule:
        return rule_lines.rule_of(line, family, self._tables)

    # Routes

    def _routes(
        self,
        families: set[Family],
        rules: tuple[Rule, ...],
        links: tuple[Link, ...],
        addresses: tuple[Address, ...],
    ) -> tuple[Route, ...]:
        known: dict[Family, set[int]] = {4: set(), 6: set()}
        routes: list[Route] = []
        for listing in self._sorted.routes:
            made = list(self._listed(listing))
            self._shown(listing, made, known)
            routes += [each for each in made if each not in routes] if len(made) < 100 else made
        if self._sorted.old_routes and not {RT_TABLE_MAIN, _ALL} & known[4]:
            if not self._sorted.old_routes_broken:
                known[4].add(RT_TABLE_MAIN)
            self._holes.doubt(
                "routes of table main, IPv4", "`route -n` leaves out source addresses: paste ip route show table all"
            )
            routes += [route_of(line, [], self._tables, family=4) for line in dict.fromkeys(self._sorted.old_routes)]
        self._count(len(routes), "route", "routes")
        for family in _FAMILIES:
            if _ALL in known[family]:
                continue
            if RT_TABLE_LOCAL not in known[family]:
                routes += _local_routes(family, links, addresses)
                if family in families:
                    self._holes.doubt(
                        f"table local, IPv{family}", "not in the paste; taken as the kernel makes it from the addresses"
                    )
            asked = {RT_TABLE_MAIN} | {
                each.table for each in rules if each.family == family and each.action == "lookup"
            }
            for table in sorted(asked - known[family] - {RT_TABLE_LOCAL, RT_TABLE_DEFAULT, 0}):
                name = {v: k for k, v in self._tables.own.items()}.get(
                    table, "main" if table == RT_TABLE_MAIN else table
                )
                command = f"ip {'-6 ' if family == 6 else ''}route show table {name}"
                if family in families or not families:
                    self._holes.add(f"routes of table {name}, IPv{family}", command)
                routes.append(untold_table(family, table, command))
                routes += [each for each in self._log.routes if (each.family, each.table) == (family, table)]
        return tuple(routes)

    def _listed(self, listing: RouteListing) -> Iterator[Route]:
        command = listing.command
        family = _family(command)
        table = command.after("table", "t", "tab", "ta") if command is not None else ""
        for line, ways in listing.lines:
            try:
                yield route_of(line, ways, self._tables, family=family, table="" if table in ("all", "0") else table)
            except ValueError:
                self._holes.doubt("routes", f"not understood: {quotable(line)}")

    def _shown(self, listing: RouteListing, made: list[Route], known: dict[Family, set[int]]) -> None:
        """Which tables a listing shows in full."""
        command = listing.command
        seen: set[Family] = {each.family for each in made}
        if command is None:
            elsewhere = any(each.table != RT_TABLE_MAIN for each in made)
            for family in seen:
                known[family].add(_ALL if elsewhere else RT_TABLE_MAIN)
            return
        table = command.after("table", "t", "tab", "ta")
        asked: set[Family] = {_family(command)} if command.family or table not in ("all", "0") else seen | {4}
        for family in asked:
            known[family].add(_ALL if table in ("all", "0") else self._tables.number(table or "main"))


def _family(command: Command | None) -> Family:
    return 6 if command is not None and command.family == 6 else 4


def _local_routes(family: Family, links: tuple[Link, ...], addresses: tuple[Address, ...]) -> list[Route]:
    """Table local as the kernel makes it (fib_add_ifaddr, addrconf_add_dev and their kin)."""
    up = {link.name for link in links if link.up}
    routes: list[Route] = []
    for each in addresses:
        if each.family != family or each.ifname not in up:
            continue
        routes += _local4(each) if isinstance(each.interface, IPv4Interface) else _local6(each)
    if family == 6:
        multicast = ip_network("ff00::/8")
        routes += [
            Route(multicast, RT_TABLE_LOCAL, "multicast", (NextHop(link.name),), metric=256, protocol=_KERNEL)
            for link in links
            if link.up and not link.loopback
        ]
    return routes


def _local4(address: Address) -> list[Route]:
    interface = address.interface
    assert isinstance(interface, IPv4Interface)
    hop = (NextHop(address.ifname),)

    def made(kind: str, network: str, scope: int) -> Route:
        return Route(
            ip_network(network), RT_TABLE_LOCAL, kind, hop, interface.ip, scope=scope, protocol=_KERNEL
        )  # fmt: skip

    found = [made("local", str(interface.ip), _HOST)]
    network = interface.network
    if interface.ip.is_loopback and network.prefixlen < 32:
        found.append(made("local", str(network), _HOST))
    if network.prefixlen < 31 and address.peer is None:
        found.append(made("broadcast", str(network.broadcast_address), _LINK))
    return found


def _local6(address: Address) -> list[Route]:
    interface = address.interface
    assert isinstance(interface, IPv6Interface)
    hop = (NextHop(address.ifname),)
    return [Route(ip_network(str(interface.ip)), RT_TABLE_LOCAL, "local", hop, protocol=_KERNEL)]
