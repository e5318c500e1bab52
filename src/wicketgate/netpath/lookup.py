# SPDX-License-Identifier: Apache-2.0
"""A question to the routing tables, and the three kinds of answer: a way, a refusal, or "the model does not know"."""

from __future__ import annotations

from dataclasses import dataclass

from wicketgate.netpath.snapshot import Family, IPAddress, NextHop, Route, Rule
from wicketgate.netpath.spelling import spell_route, spell_rule

UNTOLD = "untold "  # in `unknown` of a rule or route that stands for those that a snapshot does not hold

LOOPBACK = "lo"  # net->loopback_dev; every namespace has it under this name

# What a type of route answers instead of a way (fib_props in net/ipv4/fib_semantics.c, fib6_prop in net/ipv6/route.c)
TYPE_ERRORS = {
    "blackhole": "EINVAL",
    "unreachable": "EHOSTUNREACH",
    "prohibit": "EACCES",
    "throw": "EAGAIN",
}
# fib4_rule_action and __fib6_rule_action
ACTION_ERRORS = {"unreachable": "ENETUNREACH", "prohibit": "EACCES", "blackhole": "EINVAL"}


@dataclass(frozen=True, slots=True)
class Question:
    """What the rules and tables look at (struct flowi4, struct flowi6).

    Attributes:
        destination: looked up.
        source: None while the kernel has not chosen one.
        iif: the interface a packet came in by; `lo` for one that this host sends.
        oif: the interface the sender is bound to; for IPv6 input the one it came in by is in `prefer`.
        mark: fwmark.
        uid: None where it is not known; 0 for packets that no socket sent.
        protocol: IP protocol number, 0 = not told.
        source_port: 0 = not told.
        destination_port: 0 = not told.
        tos: the TOS or traffic class byte.
        prefer: IPv6's `oif` argument of ip6_pol_route: routes by it score higher.
        strict: IPv6's RT6_LOOKUP_F_IFACE: only routes by `prefer` count.
        ignore_linkstate: FIB_LOOKUP_IGNORE_LINKSTATE.
    """

    destination: IPAddress
    source: IPAddress | None = None
    iif: str = LOOPBACK
    oif: str = ""
    mark: int = 0
    uid: int | None = 0
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    tos: int = 0
    prefer: str = ""
    strict: bool = False
    ignore_linkstate: bool = False

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.destination.version == 4 else 6


@dataclass(frozen=True, slots=True)
class Asked:
    """A rule whose selector matched, and what came of it."""

    rule: Rule
    outcome: str


@dataclass(frozen=True, slots=True)
class Found:
    """A route, and the next hops that may be taken: several where only a hash decides."""

    route: Route
    hops: tuple[NextHop, ...]
    rule: Rule | None = None
    trail: tuple[Asked, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """No way, with the kernel's errno."""

    errno: str  # ENETUNREACH EHOSTUNREACH EACCES EINVAL ENODEV; EAGAIN within a table: ask the next rule
    object: str = ""  # the route or rule that says so; empty when nothing matched at all
    route: Route | None = None
    rule: Rule | None = None
    trail: tuple[Asked, ...] = ()


@dataclass(frozen=True, slots=True)
class Unsure:
    """The model does not know."""

    reason: str
    object: str
    trail: tuple[Asked, ...] = ()


Answer = Found | Refused | Unsure


def rule_line(rule: Rule) -> str:
    """`32765: not from all fwmark 0xca6c lookup 51820`, as `ip rule` lists it, with a blank for its tab."""
    return f"{rule.priority}: {spell_rule(rule)}"


def route_line(route: Route) -> str:
    """The route as `ip route show table N` prints it."""
    return spell_route(route)


def untold(unknown: tuple[str, ...]) -> Unsure | None:
    """What a rule or route says that stands for others, which are not told."""
    for each in unknown:
        if each.startswith(UNTOLD):
            what, _, why = each[len(UNTOLD) :].partition(": ")
            return Unsure(why, what)
    return None
