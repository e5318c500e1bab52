# SPDX-License-Identifier: Apache-2.0
"""One routing table: longest prefix, then what else decides between routes of one prefix.

IPv4 is fib_table_lookup() of net/ipv4/fib_trie.c, IPv6 is fib6_table_lookup() of net/ipv6/route.c. They differ more
than in the length of an address: IPv4 stops at the first route that can be used, IPv6 scores routes of one prefix by
interface and, on a host that does not forward, by what is known of their gateways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from wicketgate.netpath.lookup import TYPE_ERRORS, Answer, Found, Question, Refused, Unsure, route_line, untold
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.snapshot import IPAddress, NextHop, Route
from wicketgate.netpath.spelling import table_name

# linux/rtnetlink.h
RTNH_F_DEAD, RTNH_F_LINKDOWN = 1, 16
LEGACY_TOS_MASK = 0x1C  # INET_DSCP_LEGACY_TOS_MASK, include/net/inet_dscp.h
NUD_FAILED = 0x20  # linux/neighbour.h

_WAYS = frozenset({"unicast", "local", "broadcast", "multicast", "anycast"})


class Links:
    """What a lookup has to know of interfaces and neighbours.

    Args:
        ignores_linkdown: whether routes by that interface are dead while it has no carrier.
        reachable: IPv6: False when the gateway on that interface is known to be dead (NUD_FAILED).
    """

    def __init__(
        self, ignores_linkdown: Callable[[str, int], bool], reachable: Callable[[str, IPAddress], bool]
    ) -> None:
        self.ignores_linkdown = ignores_linkdown
        self.reachable = reachable


class Table:
    """Routes of one table (or, for IPv4 before the first own rule, of two in one trie) and one family."""

    def __init__(self, routes: Iterable[Route], links: Links, *, reachable_first: bool = False) -> None:
        self._links = links
        self._reachable_first = reachable_first  # IPv6 while net.ipv6.conf.all.forwarding is 0
        by_length: dict[int, dict[int, list[Route]]] = {}
        for route in routes:
            network = route.dst
            by_length.setdefault(network.prefixlen, {}).setdefault(int(network.network_address), []).append(route)
        for nodes in by_length.values():
            for node in nodes.values():
                if len(node) > 1:
                    node.sort(key=_order)  # stable: what the kernel listed first stays first
        self._by_length = sorted(by_length.items(), reverse=True)

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def matching(self, destination: IPAddress) -> Iterator[list[Route]]:
        """Routes of each prefix that holds the address, the longest first."""
        number, bits = int(destination), destination.max_prefixlen
        for length, nodes in self._by_length:
            shift = bits - length
            node = nodes.get(number >> shift << shift)
            if node is not None:
                yield node

    def lookup(self, question: Question) -> Answer | None:
        """The route for a question; None when the table has none (or a `throw`: Refused with EAGAIN)."""
        if question.family == 4:
            return self._lookup4(question, self.matching(question.destination))
        return self._lookup6(question, [*self.matching(question.destination)])

    def several_defaults(self, found: Found) -> bool:
        """IPv4's fib_select_default(): several default routes of one metric, where the neighbours' state decides."""
        if found.route.dst.prefixlen or found.route.type != "unicast" or len(found.route.nexthops) > 1:
            return False
        same = [
            other
            for nodes in (nodes for length, nodes in self._by_length if length == 0)
            for node in nodes.values()
            for other in node
            if (other.table, other.metric, other.tos, other.type)
            == (found.route.table, found.route.metric, found.route.tos, "unicast")
        ]
        return len(same) > 1

    # IPv4

    def _lookup4(self, question: Question, nodes: Iterable[list[Route]]) -> Answer | None:
        missed: set[int] = set()
        for node in nodes:
            key = int(node[0].dst.network_address)
            if key in missed:
                continue
            answer = self._in_node4(question, node)
            if answer is not None:
                return answer
            if any(route.nh_id and route.tos in (0, question.tos & LEGACY_TOS_MASK) for route in node):
                # A nexthop object without a usable way ends the search in its leaf (`goto miss`), and prefixes of
                # one network address share a leaf, whatever their length.
                missed.add(key)
        return None

    def _in_node4(self, question: Question, node: list[Route]) -> Answer | None:
        tos = question.tos & LEGACY_TOS_MASK
        for route in node:
            if route.tos and route.tos != tos:
                continue
            if (problem := _problem(route)) is not None:
                return problem
            error = TYPE_ERRORS.get(route.type)
            if error is not None:
                return Refused(error, route_line(route), route=route)
            good = [hop for hop in route.nexthops if self._usable4(hop, question)]
            if good:
                # A bound socket takes the first that fits; the hash is asked only without `oif` (fib_select_path).
                return Found(route, tuple(good[:1] if question.oif else self._hashed4(route, good)))
            if route.nh_id:
                break
        return None

    def _hashed4(self, route: Route, good: list[NextHop]) -> Sequence[NextHop]:
        """What fib_select_multipath() may choose.

        Its shares are made when a link loses its carrier, and not when ignore_routes_with_linkdown changes
        (fib_rebalance): a way that is passed over may still have one.
        """
        if route.nh_id or len(good) == len(route.nexthops):
            return good
        return [*good, *(hop for hop in route.nexthops if hop not in good and hop.flags & RTNH_F_LINKDOWN)]

    def _usable4(self, hop: NextHop, question: Question) -> bool:
        if question.oif and hop.oif != question.oif:
            return False
        return self._alive(hop, 4, ignore_linkstate=question.ignore_linkstate)

    def _alive(self, hop: NextHop, family: int, *, ignore_linkstate: bool) -> bool:
        # The listing shows a way as dead also when it is only linkdown and the interface ignores such routes.
        if hop.flags & RTNH_F_LINKDOWN and self._links.ignores_linkdown(hop.oif, family):
            return ignore_linkstate
        return not hop.flags & RTNH_F_DEAD

    # IPv6

    def _lookup6(self, question: Question, nodes: list[list[Route]]) -> Answer | None:
        # RT6_LOOKUP_F_REACHABLE first, and without it when nothing was found.
        leaves = _leaves(nodes, question.source)
        for reachable in (True, False) if self._reachable_first else (False,):
            for leaf in leaves:
                found = self._select6(leaf, question, reachable=reachable)
                if found is not None:
                    return found
        return None

    def _select6(self, leaf: list[Route], question: Question, *, reachable: bool) -> Answer | None:
        """rt6_select(): the best score among those of the lowest metric, then among all others together."""
        first = leaf[0].metric
        for group in ([r for r in leaf if r.metric == first], [r for r in leaf if r.metric != first]):
            best, chosen = -1, None
            for route in group:
                if route.unknown and len(leaf) > 1:
                    return _problem(route)
                if route.nh_id and route.type == "blackhole":
                    # __find_rr_leaf() ends at a nexthop object that is a blackhole, whatever device was asked for.
                    return self._answer6(route, _hops6(route)[0], question, reachable=reachable)
                for hop in _hops6(route):
                    score = self._score6(hop, question, reachable=reachable)
                    if score > best:
                        best, chosen = score, (route, hop)
            if chosen is not None:
                return self._answer6(chosen[0], chosen[1], question, reachable=reachable)
        return None

    def _score6(self, hop: NextHop, question: Question, *, reachable: bool) -> int:
        """rt6_score_route() with find_match()'s conditions; negative = not this one."""
        if not self._alive(hop, 6, ignore_linkstate=question.ignore_linkstate):
            return -1
        score = 2 if not question.prefer or hop.oif == question.prefer else 0
        if not score and question.strict:
            return -1
        if reachable and hop.via is not None and not self._links.reachable(hop.oif, hop.via):
            return -1
        return score

    def _answer6(self, route: Route, hop: NextHop, question: Question, *, reachable: bool) -> Answer:
        if (problem := _problem(route)) is not None:
            return problem
        error = TYPE_ERRORS.get(route.type)
        if error is not None:
            return Refused(error, route_line(route), route=route)
        if len(route.nexthops) <= 1:
            return Found(route, (hop,))
        if route.nh_id:
            return Found(route, route.nexthops)  # nexthop_path_fib6_result(): a group's hash minds no interface
        # fib6_select_path(): any sibling that the hash names, unless its score is negative.
        ways = [each for each in route.nexthops if self._score6(each, question, reachable=reachable) >= 0]
        return Found(route, tuple(ways) or (hop,))


def _order(route: Route) -> tuple[int, int, int]:
    if route.family == 6:
        return (0, 0, route.metric)
    # fib_find_alias(): in a merged trie the higher table first, then the higher tos, then the lower metric.
    return (-route.table, -route.tos, route.metric)


def _hops6(route: Route) -> tuple[NextHop, ...]:
    return route.nexthops or (NextHop("lo"),)  # routes that reject belong to lo


def _leaves(nodes: list[list[Route]], source: IPAddress | None) -> list[list[Route]]:
    """The lists of routes in the order in which they are asked (fib6_node_lookup_1, fib6_backtrack).

    A destination with source-specific routes of which none fits the source is passed over at first, with its plain
    routes too: those count only on the way back from a longer prefix. `::/0` alone is never passed over.
    """
    if all(route.src is None for node in nodes for route in node):
        return nodes
    leaves: list[list[Route]] = []
    for node in nodes:
        fitting: dict[int, list[Route]] = {}
        for route in node:
            if route.src is not None and source is not None and source in route.src:
                fitting.setdefault(route.src.prefixlen, []).append(route)
        plain = [route for route in node if route.src is None]
        shadowed = not leaves and not fitting and len(plain) < len(node) and node[0].dst.prefixlen
        if not shadowed:
            leaves += [fitting[length] for length in sorted(fitting, reverse=True)]
            leaves += [plain] if plain else []
    return leaves


def _problem(route: Route) -> Unsure | None:
    if route.unknown:
        missing = untold(route.unknown)
        if missing is not None:
            return replaced(missing, object=f"table {table_name(route.table)}")
        return Unsure(f"the route carries {', '.join(route.unknown)}, which the model does not know", route_line(route))
    if route.type not in _WAYS and route.type not in TYPE_ERRORS:
        return Unsure(f"routes of type {route.type} are not known to the model", route_line(route))
    if route.type == "unicast" and not route.nexthops:
        words = f"nexthop object {route.nh_id} was not told" if route.nh_id else "the route names no way"
        return Unsure(words, route_line(route))
    return None


def longest_prefix_naively(routes: Iterable[Route], destination: IPAddress) -> int | None:
    """The length of the longest prefix that holds the address, found by looking at every route: the test's reference."""
    lengths = [route.dst.prefixlen for route in routes if destination in route.dst]
    return max(lengths, default=None)


def tables_of(
    routes: Iterable[Route], links: Links, *, reachable_first: bool
) -> tuple[Mapping[int, Table], Mapping[int, Table]]:
    """Every table of IPv4, and of IPv6."""
    sorted_out: tuple[dict[int, list[Route]], dict[int, list[Route]]] = ({}, {})
    for route in routes:
        sorted_out[route.family == 6].setdefault(route.table, []).append(route)
    four = {number: Table(found, links) for number, found in sorted_out[0].items()}
    six = {number: Table(found, links, reachable_first=reachable_first) for number, found in sorted_out[1].items()}
    return four, six
