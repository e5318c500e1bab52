# SPDX-License-Identifier: Apache-2.0
"""Where a packet goes: rules and tables together, for packets that this host sends and for those that come in.

ip_route_output_key_hash_rcu() and ip_route_input_slow() of net/ipv4/route.c, ip6_route_output_flags() and
ip6_route_input() of net/ipv6/route.c, read from Linux 6.18.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from wicketgate.netpath import rules, source_address
from wicketgate.netpath.fib import NUD_FAILED, Links, Table, tables_of
from wicketgate.netpath.lookup import (
    LOOPBACK,
    Answer,
    Asked,
    Found,
    Question,
    Refused,
    Unsure,
    route_line,
)
from wicketgate.netpath.masters import Masters
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.settings import Settings
from wicketgate.netpath.snapshot import (
    RT_TABLE_DEFAULT,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    Family,
    IPAddress,
    NextHop,
    Route,
    Rule,
    Snapshot,
)

_OF_TABLES = ("links", "routes", "neighbours", "sysctls")  # what the tables look at
BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Way:
    """Where a packet goes on.

    Attributes:
        kind: local (delivered here), unicast, broadcast, multicast.
        hops: next hops that may be taken, with their interface; `lo` alone for one that stays here.
        source: the source address; None when there is none to choose.
        route: the route; None when a bound IPv4 socket takes the destination for a neighbour without any route.
        rule: the policy rule that asked its table; None in a namespace that never had rules of its own.
        trail: the rules that matched on the way.
    """

    kind: str
    hops: tuple[NextHop, ...]
    source: IPAddress | None = None
    route: Route | None = None
    rule: Rule | None = None
    trail: tuple[Asked, ...] = ()


def needs_strict(address: IPAddress) -> bool:
    """rt6_need_strict(): these mean nothing without an interface."""
    return address.is_multicast or address.is_link_local or address.is_loopback


def nowhere6(way: Way) -> Refused | None:
    """An IPv6 route of type unicast by `lo`, such as the prefix of an address there, takes every packet that follows it.

    fib6_is_reject() makes it one, whose error is 0: RTM_GETROUTE shows it like any other.
    """
    route = way.route
    if way.kind != "unicast" or route is None or route.family != 6 or route.dst.is_loopback:
        return None
    if not any(hop.oif == LOOPBACK for hop in way.hops):
        return None
    return Refused("ENETUNREACH", f"{route_line(route)}", rule=way.rule, route=route, trail=way.trail)


class Routing:
    """The routing of one snapshot.

    Args:
        snapshot: the namespace.
        like: of a snapshot that may have the same routes: its tables are taken over then.
    """

    def __init__(self, snapshot: Snapshot, *, like: Routing | None = None) -> None:
        self.snapshot = snapshot
        self.settings = Settings(snapshot.sysctls)
        self._groups = {link.name: link.group for link in snapshot.links}
        self.masters = Masters(snapshot.links)
        self.order = self.masters.domain(LOOPBACK)  # no address of another layer 3 domain is chosen
        self.up = frozenset(link.name for link in snapshot.links if link.up)
        self._failed = frozenset((n.ifname, n.ip) for n in snapshot.neighbours if n.state & NUD_FAILED)
        self._local = frozenset(address.ip for address in snapshot.addresses)
        self._fib_links = links = Links(self._ignores_linkdown, lambda ifname, ip: (ifname, ip) not in self._failed)
        host = self.settings.number("net.ipv6.conf.all.forwarding", 0) == 0
        self._tables: dict[int, dict[int, Table]]
        if like is not None and all(getattr(snapshot, part) is getattr(like.snapshot, part) for part in _OF_TABLES):
            self._tables = like._tables
        else:
            four, six = tables_of(snapshot.routes, links, reachable_first=host)
            self._tables = {4: dict(four), 6: dict(six)}
        self.rules = {
            family: rules.Rules(
                (rule for rule in snapshot.rules if rule.family == family),
                self._in_table,
                self._groups.get,
                vrf=self.masters.vrf,
                vrf_table=self.masters.table,
                object_lengths=lambda: self._object_lengths,
            )
            for family in (4, 6)
        }
        self.default_rules = {
            family: rules.are_defaults(rule for rule in snapshot.rules if rule.family == family) for family in (4, 6)
        }
        self.custom_local_routes = any(
            route.type == "local" and route.family == 4 and route.protocol != 2 for route in snapshot.routes
        )
        self._unread = [
            what for what in ("links", "addresses", "routes", "rules") for u in snapshot.unread if u.what == what
        ]

    @cached_property
    def _object_lengths(self) -> frozenset[int]:
        """Prefix lengths of the IPv6 routes that lead by nexthop objects."""
        return frozenset(r.dst.prefixlen for r in self.snapshot.routes if r.family == 6 and r.nh_id)

    @cached_property
    def _merged(self) -> Table:
        """IPv4's local and main in one trie, of a namespace that never had a rule of its own."""
        both = (RT_TABLE_LOCAL, RT_TABLE_MAIN)
        return Table([r for r in self.snapshot.routes if r.table in both and r.family == 4], self._fib_links)

    def is_own(self, address: IPAddress) -> bool:
        """An address of this host (inet_lookup_ifaddr_rcu)."""
        return address in self._local

    def _ignores_linkdown(self, ifname: str, family: int) -> bool:
        if ifname not in self._groups:
            return False
        return self.settings.either(family, ifname, "ignore_routes_with_linkdown")

    def _in_table(self, table: int, question: Question) -> Answer | None:
        found = self._tables[question.family].get(table)
        return found.lookup(question) if found is not None else None

    def lookup(self, question: Question) -> Answer:
        """Ask the rules (fib_lookup, fib6_rule_lookup)."""
        if self._unread:
            return Unsure(f"{self._unread[0]} could not be read", self._unread[0])
        answer = self.rules[question.family].lookup(question)
        if question.family == 6 or not self.default_rules[4]:
            return answer
        other = self._lookup_merged(question)
        if _outcome(answer) == _outcome(other):
            return answer
        words = (
            "as long as a namespace never had a rule of its own, IPv4 looks for the longest prefix in the tables local "
            "and main together, later in local first; here the two differ, and which it is cannot be seen"
        )
        object_ = route_line(other.route) if isinstance(other, Found | Refused) and other.route else "ip -4 rule"
        return Unsure(words, object_)

    def _lookup_merged(self, question: Question) -> Answer:
        """fib_lookup() while fib_has_custom_rules is false (include/net/ip_fib.h)."""
        answer = self._merged.lookup(question)
        if not isinstance(answer, Found | Unsure):
            answer = self._in_table(RT_TABLE_DEFAULT, question) or answer
        if answer is None or (isinstance(answer, Refused) and answer.errno == "EAGAIN"):
            return Refused("ENETUNREACH")
        return answer

    # Packets that this host sends

    def output(self, question: Question) -> Way | Refused | Unsure:
        """The way of a packet that this host sends; `question.oif` is the interface its socket is bound to."""
        if question.family == 6:
            return self._output6(question)
        return self._output4(question)

    def owns(self, address: IPAddress) -> bool | None:
        """__ip_dev_find(): an address of an interface, or one that the table local holds."""
        if self.is_own(address):
            return True
        question = Question(address)
        answers = [self._in_table(RT_TABLE_LOCAL, question)]
        if self.default_rules[4]:
            answers.append(self._merged.lookup(question))  # see `lookup`: the table local may be the table main too
        if any(isinstance(answer, Unsure) for answer in answers):
            return None
        said = {isinstance(answer, Found) and answer.route.type == "local" for answer in answers}
        return said.pop() if len(said) == 1 else None

    def _output4(self, question: Question) -> Way | Refused | Unsure:
        destination, source, device = question.destination, question.source, question.oif
        if source is not None:
            if source.is_multicast or source == BROADCAST or int(source) >> 24 == 0:
                return Refused("EINVAL", f"source {source}")
            owned = self.owns(source)
            if owned is None:
                return Unsure("whether the source is an address of this host", f"source {source}")
            if not owned:
                return Refused("ENETUNREACH", f"source {source} is no address of this host")
        if destination.is_multicast or destination == BROADCAST or destination.is_unspecified:
            return Unsure("multicast, broadcast and unspecified destinations are not modelled", str(destination))
        if device:
            if device not in self._groups:
                return Refused("ENODEV", f"there is no interface {device}")
            if device not in self.up:
                return Refused("ENETUNREACH", f"{device} is down")
        answer = self.lookup(question)
        if isinstance(answer, Unsure):
            return answer
        if isinstance(answer, Refused):
            if not device or self.masters.vrf(device):
                return answer
            # "Apparently, routing tables are wrong. Assume, that the destination is on link."
            chosen = source or self._select4(device, None, source_address.SCOPE_LINK)
            return self._checked4(question, Way("unicast", (NextHop(device),), chosen, trail=answer.trail))
        route = answer.route
        if route.type == "local":
            hops = (NextHop(self.masters.vrf(device) or LOOPBACK),)
            return Way("local", hops, source or route.prefsrc or destination, route, answer.rule, answer.trail)
        if not device and self.several_defaults(answer):
            return Unsure(
                "several default routes of one metric: what the kernel knows of their gateways decides",
                route_line(route),
            )
        chosen = source or self._source4(route, answer.hops)
        kind = "local" if answer.hops[0].oif == LOOPBACK and len(answer.hops) == 1 else route.type
        return self._checked4(question, Way(kind, answer.hops, chosen, route, answer.rule, answer.trail))

    def several_defaults(self, found: Found) -> bool:
        """See `Table.several_defaults`."""
        table = self._tables[4].get(found.route.table)
        return table is not None and table.several_defaults(found)

    def _source4(self, route: Route, hops: tuple[NextHop, ...]) -> IPAddress | None:
        if route.prefsrc is not None:
            return route.prefsrc
        via = hops[0].via if hops[0].via is not None and hops[0].via.version == 4 else None
        return self._select4(hops[0].oif, via, route.scope)

    def _select4(self, ifname: str, destination: IPAddress | None, scope: int) -> IPAddress | None:
        localnet = self.settings.either(4, ifname, "route_localnet")
        return source_address.select4(
            self.snapshot.addresses, self.masters.domain(ifname), ifname, destination, scope, localnet=localnet
        )

    def _checked4(self, question: Question, way: Way) -> Way | Refused | Unsure:
        """__mkroute_output()."""
        source = way.source
        if source is not None and source.is_loopback:
            names = dict.fromkeys(hop.oif for hop in way.hops)
            shut = [n for n in names if n != LOOPBACK and not self.settings.either(4, n, "route_localnet")]
            words = f"source {source} may not leave by {', '.join(shut)}"
            if len(shut) == len(names):
                return Refused("EINVAL", words, route=way.route, trail=way.trail)
            if shut:
                return Unsure(f"{words}, and a hash decides whether that is the way", f"source {source}")
        if int(question.destination) >> 24 == 0:
            return Refused("EINVAL", f"destination {question.destination}", trail=way.trail)
        return way

    def _output6(self, question: Question) -> Way | Refused | Unsure:
        destination, device = question.destination, question.oif
        if destination.is_multicast or destination.is_unspecified:
            return Unsure("multicast and unspecified destinations are not modelled", str(destination))
        if device and device not in self._groups:
            return Refused("ENODEV", f"there is no interface {device}")
        strict = question.strict or needs_strict(destination) or bool(device and question.source is None)
        answer = self.lookup(replaced(question, prefer=device, strict=strict))
        if isinstance(answer, Refused | Unsure):
            return answer
        route = answer.route
        stays = route.type in ("local", "anycast")
        source = question.source or self._source6(destination, route, answer.hops)
        hops = (NextHop(self.masters.vrf(device) or LOOPBACK),) if stays else answer.hops
        return Way("local" if stays else route.type, hops, source, route, answer.rule, answer.trail)

    def _source6(self, destination: IPAddress, route: Route, hops: tuple[NextHop, ...]) -> IPAddress | None:
        if route.nh_id and self._shares_hops(route):
            # The kernel caches a way per CPU with the nexthop object, and takes the source from the route that was
            # cached: any of those that share the object (rt6_get_pcpu_route).
            return None
        if route.prefsrc is not None:
            return route.prefsrc
        oif = hops[0].oif if hops else LOOPBACK
        order = self.masters.domain(oif)
        temporary = [n for n in order if self.settings.number(f"net.ipv6.conf.{n}.use_tempaddr", 0) >= 2]
        return source_address.select6(self.snapshot.addresses, order, oif, destination, temporary)

    def _shares_hops(self, route: Route) -> bool:
        mine = {(hop.oif, hop.via) for hop in route.nexthops}
        return any(
            other.nh_id and other is not route and mine & {(hop.oif, hop.via) for hop in other.nexthops}
            for other in self.snapshot.routes
            if other.family == 6
        )

    # Packets that come in

    def input6(self, question: Question) -> Way | Refused | Unsure:
        """The way of an IPv6 packet that came in by `question.iif` (ip6_route_input_lookup)."""
        strict = needs_strict(question.destination)
        answer = self.lookup(replaced(question, prefer=question.iif, strict=strict))
        if isinstance(answer, Refused | Unsure):
            return answer
        route = answer.route
        stays = route.type in ("local", "anycast")
        hops = (NextHop(LOOPBACK),) if stays else answer.hops
        return Way("local" if stays else route.type, hops, None, route, answer.rule, answer.trail)


def _outcome(answer: Answer) -> object:
    if isinstance(answer, Found):
        return answer.route, answer.hops
    return answer.errno if isinstance(answer, Refused) else answer.object


def family_of(address: IPAddress) -> Family:
    """4 or 6."""
    return 6 if isinstance(address, IPv6Address) else 4
