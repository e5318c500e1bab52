# SPDX-License-Identifier: Apache-2.0
"""Changes to a snapshot, as the commands of a fix would make them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from wicketgate.netpath.snapshot import Link, ListeningSocket, Route, Rule, Snapshot, WireGuardState

Apply = Callable[[Snapshot], Snapshot]


@dataclass(frozen=True, slots=True)
class Fix:
    """Something that may mend a flow.

    Attributes:
        id: stable and kebab-case.
        words: what it is, for a person.
        commands: to paste; none for an advice that no command carries out.
        undo: takes it back.
        apply: the snapshot as it would look afterwards.
    """

    id: str
    words: str
    commands: tuple[str, ...]
    undo: tuple[str, ...]
    apply: Apply

    def then(self, other: Fix) -> Fix:
        """Both, one after the other."""
        first, second = self.apply, other.apply
        return Fix(
            f"{self.id}+{other.id}",
            f"{self.words}; and {other.words}",
            self.commands + other.commands,
            other.undo + self.undo,
            lambda snapshot: second(first(snapshot)),
        )


def add_rule(rule: Rule) -> Apply:
    """`ip rule add`."""

    def apply(snapshot: Snapshot) -> Snapshot:
        # The kernel puts a rule behind those of its priority.
        rules = sorted((*snapshot.rules, replace(rule, protocol=3)), key=lambda each: each.priority)
        return replace(snapshot, rules=tuple(rules))

    return apply


def remove_rules(rules: Sequence[Rule]) -> Apply:
    """`ip rule del`."""
    return lambda snapshot: replace(snapshot, rules=tuple(each for each in snapshot.rules if each not in rules))


def add_route(route: Route) -> Apply:
    """`ip route add`."""
    return lambda snapshot: replace(snapshot, routes=(*snapshot.routes, route))


def remove_route(route: Route) -> Apply:
    """`ip route del`."""
    return lambda snapshot: replace(snapshot, routes=tuple(each for each in snapshot.routes if each != route))


def set_sysctls(values: dict[str, str]) -> Apply:
    """`sysctl -w`."""
    return lambda snapshot: replace(snapshot, sysctls=MappingProxyType({**snapshot.sysctls, **values}))


def change_socket(before: ListeningSocket, after: ListeningSocket) -> Apply:
    """The program listens otherwise."""
    return lambda snapshot: replace(
        snapshot, sockets=tuple(after if each == before else each for each in snapshot.sockets)
    )


def change_device(before: WireGuardState, after: WireGuardState) -> Apply:
    """`wg set`."""
    return lambda snapshot: replace(
        snapshot, wireguard=tuple(after if each == before else each for each in snapshot.wireguard)
    )


def change_link(before: Link, after: Link) -> Apply:
    """`ip link set`."""
    return lambda snapshot: replace(snapshot, links=tuple(after if each == before else each for each in snapshot.links))
