# SPDX-License-Identifier: Apache-2.0
"""iptables rules as values, as iptables-save spells them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Option:
    """`! --dport 80`: its name without dashes, its arguments, whether it is negated."""

    name: str
    args: tuple[str, ...] = ()
    negated: bool = False

    def spelled(self) -> str:
        """As it stands in the rule."""
        dashes = "-" if len(self.name) == 1 else "--"
        return " ".join((*(("!",) if self.negated else ()), dashes + self.name, *self.args))


@dataclass(frozen=True, slots=True)
class Match:
    """`-m NAME OPTIONS`. The built-in ones (-s, -d, -i, -o, -p, -f) are of the module `ip`."""

    module: str
    options: tuple[Option, ...] = ()

    def spelled(self) -> str:
        """As it stands in the rule."""
        head = () if self.module == "ip" else ("-m", self.module)
        return " ".join((*head, *(option.spelled() for option in self.options)))


@dataclass(frozen=True, slots=True)
class Target:
    """`-j NAME OPTIONS` or `-g NAME`. No name: the rule only counts."""

    name: str = ""
    options: tuple[Option, ...] = ()
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A piece of a rule that could not be read."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        text: as iptables-save prints it, without counters: `-A INPUT -p tcp -m tcp --dport 9000 -j DROP`.
        matches: all must hold.
        target: what to do then.
        packets: how often it was used.
        unknown: what could not be read of it; whether it matches, and what it does, is then not known.
    """

    text: str
    matches: tuple[Match, ...] = ()
    target: Target = field(default_factory=Target)
    packets: int = 0
    unknown: tuple[Unknown, ...] = ()
