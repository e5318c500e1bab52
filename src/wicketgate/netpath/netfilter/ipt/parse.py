# SPDX-License-Identifier: Apache-2.0
"""The text of `iptables-save -c` (iptables-save(8)), from either iptables, for either family.

Tables and chains are laid out at once; the rules of a chain are read when a packet first comes to it: a node with
2,000 services has some 10,000 chains, of which a packet sees twenty.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from wicketgate.errors import InputError
from wicketgate.netpath.netfilter.ipt.model import Match, Option, Rule, Target, Unknown

BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
_CHAIN = re.compile(r":(\S+) (ACCEPT|DROP|QUEUE|RETURN|-)(?: \[\d+:\d+\])?$")
_RULE = re.compile(r"(?:\[(\d+):\d+\] )?(-A (\S+|\"[^\"]*\")(?: .*)?)$")
# As iptables-save prints it: behind the source, before all else. Nothing before it is quoted.
_ONE_DESTINATION = re.compile(r"-A [^\s\"'\\]+ (?:(?:! )?-s [^\s\"'\\]+ )?-d ([0-9.]+/32|[0-9a-f:.]+/128) ")
_TABLE_LINE = re.compile(r"^\*(.+)$", re.MULTILINE)
# iptables-nft-save prints it before the table
_MIXED = re.compile(r"^# Table `(.+)' contains incompatible base-chains", re.MULTILINE)
_SHORT = {
    "-s": "s", "--source": "s", "-d": "d", "--destination": "d", "-i": "i", "--in-interface": "i", "-o": "o",
    "--out-interface": "o", "-p": "p", "--protocol": "p", "--proto": "p",
}  # fmt: skip
# Options whose arguments may look like options, or that take a known number of them.
_ARITY = {
    "comment": 1, "log-prefix": 1, "nflog-prefix": 1, "ulog-prefix": 1, "string": 1, "hex-string": 1, "bytecode": 1,
    "u32": 1, "tcp-flags": 2, "syn": 0, "match-set": 2, "invert": 0, "loose": 0, "validmark": 0, "accept-local": 0,
    "random": 0, "random-fully": 0, "persistent": 0, "notrack": 0, "limit-iface-in": 0, "limit-iface-out": 0,
    "socket-exists": 0, "clamp-mss-to-pmtu": 0, "transparent": 0, "nowildcard": 0, "restore-skmark": 0, "set": 0,
    "rcheck": 0, "update": 0, "remove": 0, "rsource": 0, "rdest": 0, "physdev-is-in": 0, "physdev-is-out": 0,
    "physdev-is-bridged": 0,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class _Lines:
    """The rules of a chain, not yet read."""

    lines: list[tuple[str, str]] = field(default_factory=list)  # packets, text


class Chain:
    """A chain: built-in ones have a policy, the user's have none.

    Attributes:
        table: the name of its table.
        name: its own.
        policy: ACCEPT or DROP for a built-in chain, "" for another.
    """

    def __init__(self, table: str, name: str, policy: str) -> None:
        self.table = table
        self.name = name
        self.policy = policy
        self._unread = _Lines()

    def __len__(self) -> int:
        return len(self._unread.lines)

    def _add(self, packets: str, text: str) -> None:
        self._unread.lines.append((packets, text))

    def rules(self) -> Iterator[Rule]:
        """Its rules in order. They are read anew each time: whoever runs them keeps what he makes of them."""
        return map(self.rule, range(len(self)))

    def rule(self, at: int) -> Rule:
        """One of its rules, read anew each time."""
        packets, text = self._unread.lines[at]
        return parse_rule(text, int(packets or 0))

    def destination(self, at: int) -> str | None:
        """The one address that a rule is for, when its text says so in the usual place; None also when it is not sure."""
        found = _ONE_DESTINATION.match(self._unread.lines[at][1])
        return found.group(1) if found is not None else None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its chains by name."""

    name: str
    chains: dict[str, Chain] = field(default_factory=dict)


def parse(text: str, *, source: str = "iptables-save") -> dict[str, Table]:
    """Read a listing.

    Args:
        text: what `iptables-save`, with or without `-c`, printed.
        source: who printed it, for errors.

    Returns:
        Tables by name.

    Raises:
        InputError: it is no listing, or it was cut off.
    """
    tables: dict[str, Table] = {}
    table: Table | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip("\r ")
        if not line or line[0] == "#":
            continue
        if table is None:
            if line[0] != "*" or not line[1:].strip():
                raise _error(source, number, line, "a line `*TABLE`")
            table = tables.setdefault(line[1:].strip(), Table(line[1:].strip()))
        elif line == "COMMIT":
            table = None
        elif line[0] == ":":
            _add_chain(table, line, source, number)
        else:
            _add_rule(table, line, source, number)
    if table is not None:
        raise InputError(f"{source}: table {table.name} has no COMMIT: the listing was cut off; take it again")
    return tables


def table_names(text: str) -> tuple[str, ...]:
    """The tables that a listing prints."""
    return tuple(each.strip() for each in _TABLE_LINE.findall(text))


def mixed_tables(text: str) -> frozenset[str]:
    """Tables with base chains that nft made, which iptables-nft-save says it cannot print."""
    return frozenset(_MIXED.findall(text))


def _add_chain(table: Table, line: str, source: str, number: int) -> None:
    found = _CHAIN.match(line)
    if found is None:
        raise _error(source, number, line, "`:CHAIN POLICY [packets:bytes]`")
    name, policy = found.groups()
    if name in table.chains:
        raise InputError(f"{source}:{number}: chain {name} of table {table.name} is declared twice")
    table.chains[name] = Chain(table.name, name, "" if policy == "-" else policy)


def _add_rule(table: Table, line: str, source: str, number: int) -> None:
    found = _RULE.match(line)
    if found is None:
        raise _error(source, number, line, "`-A CHAIN ...`")
    packets, text, name = found.groups()
    chain = table.chains.get(name.strip('"'))
    if chain is None:
        raise InputError(f"{source}:{number}: rule for chain {name[:60]}, which table {table.name} does not declare")
    chain._add(packets or "0", text)


def _error(source: str, number: int, line: str, allowed: str) -> InputError:
    return InputError(f"{source}:{number}: read {line[:80]!r}; expected {allowed}")


def parse_rule(text: str, packets: int = 0) -> Rule:
    """Read one rule, `-A CHAIN ...`. What cannot be read becomes `Rule.unknown`."""
    try:
        found = words(text)
    except ValueError as error:
        return Rule(text, packets=packets, unknown=(Unknown(f"quoting: {error}", text),))
    return _Reader(text, packets, found).rule()


def words(text: str) -> list[str]:
    """As shlex.split, which takes 50 times as long as str.split."""
    if "\\" in text or "'" in text:
        return shlex.split(text)
    if '"' not in text:
        return text.split()
    parts = text.split('"')
    plain, quoted = parts[::2], parts[1::2]
    whole = len(plain) == len(quoted) + 1 and text.isprintable() and text.isascii()
    # Quotes that stand alone, each between blanks: `--comment "a b" -j DROP`.
    if not whole or not all(
        before.endswith(" ") and (not after or after.startswith(" ")) for before, after in pairwise(plain)
    ):
        return shlex.split(text)
    found = plain[0].split()
    for between, word in zip(plain[1:], quoted, strict=True):
        found.append(word)
        found += between.split()
    return found


class _Reader:
    """The words of a rule, taken from left to right."""

    def __init__(self, text: str, packets: int, words: list[str]) -> None:
        self.text = text
        self.packets = packets
        self.words = words
        self.at = 2  # behind -A CHAIN
        self.base: list[Option] = []
        self.matches: list[tuple[str, list[Option]]] = []
        self.target: str = ""
        self.goto = False
        self.target_options: list[Option] = []
        self.unknown: list[Unknown] = []

    def rule(self) -> Rule:
        negated = False
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word == "!":
                negated = True
                continue
            self._word(word, negated)
            negated = False
        if negated:
            self.unknown.append(Unknown("a `!` before nothing", self.text))
        base = (Match("ip", tuple(self.base)),) if self.base else ()
        return Rule(
            self.text,
            (*base, *(Match(name, tuple(options)) for name, options in self.matches)),
            Target(self.target, tuple(self.target_options), self.goto),
            self.packets,
            tuple(self.unknown),
        )

    def _word(self, word: str, negated: bool) -> None:
        if word in _SHORT and not (self.target and word.startswith("--")):
            self.base.append(Option(_SHORT[word], tuple(self._take(1, word)), negated))
        elif word in ("-f", "--fragment"):
            self.base.append(Option("f", (), negated))
        elif word in ("-m", "--match"):
            self.matches.extend((name, []) for name in self._take(1, word))
        elif word in ("-j", "--jump", "-g", "--goto"):
            if self.target:
                self.unknown.append(Unknown("a second target", self.text))
            self.target = "".join(self._take(1, word))
            self.goto = word in ("-g", "--goto")
        elif word in ("-4", "-6", "--ipv4", "--ipv6"):
            pass
        elif word in ("-c", "--set-counters"):
            self._take(2, word)
        elif word.startswith("--") and len(word) > 2:
            self._option(word[2:], negated)
        else:
            self.unknown.append(Unknown("a word that is no option", word[:80]))

    def _option(self, name: str, negated: bool) -> None:
        count = _ARITY.get(name)
        if name == "set" and self.matches and self.matches[-1][0] == "set":
            count = 2  # the old name of --match-set
        args = self._take(count, f"--{name}") if count is not None else list(self._until_option())
        option = Option(name, tuple(args), negated)
        if self.target:
            self.target_options.append(option)
        elif self.matches:
            self.matches[-1][1].append(option)
        else:
            self.unknown.append(Unknown("an option without its -m", f"--{name}"))

    def _take(self, count: int, word: str) -> list[str]:
        taken = self.words[self.at : self.at + count]
        self.at += count
        if len(taken) < count:
            self.unknown.append(Unknown(f"{word} lacks an argument", self.text))
        return taken

    def _until_option(self) -> Iterator[str]:
        while self.at < len(self.words):
            word = self.words[self.at]
            if word == "!" or (word.startswith("-") and not word[1:2].isdigit()):
                return
            self.at += 1
            yield word
