# SPDX-License-Identifier: Apache-2.0
"""What a paste does not tell, written into a snapshot so that no verdict rests on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network

from wicketgate.netpath.lookup import UNTOLD
from wicketgate.netpath.snapshot import Family, Route, Rule, Unread


@dataclass
class Holes:
    """What is missing, in the order in which it was found."""

    unread: list[Unread] = field(default_factory=list)

    def add(self, what: str, command: str) -> None:
        """`what` is not in the paste; `command` prints it."""
        self.unread.append(Unread(what, f"not in the paste; this prints it: {command}"))

    def doubt(self, what: str, why: str) -> None:
        """Something in the paste that was not taken as it stands."""
        self.unread.append(Unread(what, why))


def untold_rules(family: Family, command: str) -> Rule:
    """Stands before all rules that are known: others may stand there."""
    return Rule(family, 0, unknown=(f"{UNTOLD}policy rules: {command} is not in the paste",))


def untold_table(family: Family, table: int, command: str) -> Route:
    """Stands in a table behind all routes that are known: others may be longer."""
    every = ip_network("0.0.0.0/0" if family == 4 else "::/0")
    return Route(every, table, "unicast", unknown=(f"{UNTOLD}routes of this table: {command} is not in the paste",))


def is_hole(thing: Rule | Route) -> bool:
    """One of the two."""
    return any(each.startswith(UNTOLD) for each in thing.unknown)
