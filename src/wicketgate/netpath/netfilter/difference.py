# SPDX-License-Identifier: Apache-2.0
"""What is different between two firewall listings, as commands of nft and iptables.

Packet counters are no difference, nor are elements that time out. Rules are compared as lists: a line for each that
came or went, and one where those that stayed stand in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wicketgate.netpath.change import Action, Difference, What, ordered_difference
from wicketgate.netpath.netfilter.ipsets import settled
from wicketgate.netpath.netfilter.ipt.parse import BUILT_IN
from wicketgate.netpath.snapshot import Firewall

_TABLE = re.compile(r"table (\S+) (\S+) \{")
_BLOCK = re.compile(r"\t(\w[\w ]*?) (\S+) \{")
_COUNTER = re.compile(r"\bcounter packets \d+ bytes \d+ ?")
_MOVING = re.compile(r" expires \w+| (?:packets|bytes) \d+")
_HANDLE = re.compile(r" # handle \d+$")
_QUOTED = re.compile(r'"[^"]*"')
_CHAIN = re.compile(r":(\S+) (\S+)")
_PROGRAMS = ("iptables_nft", "ip6tables_nft", "iptables_legacy", "ip6tables_legacy")
_ELEMENTS = "elements = {"


@dataclass(slots=True)
class _Chain:
    """A list of rules, and what stands above it."""

    head: str = ""
    rules: list[str] = field(default_factory=list)


Chains = dict[tuple[str, ...], _Chain]


def firewall_differences(before: Firewall, after: Firewall) -> Iterator[Difference]:
    """Every difference. A listing that was not read, before or after, gives none."""
    if before.nft_text is not None and after.nft_text is not None:
        theirs = _iptables_tables(before) | _iptables_tables(after)
        yield from _nft(before.nft_text, after.nft_text, theirs)
    for name in _PROGRAMS:
        was, now = getattr(before, name), getattr(after, name)
        if was is not None and now is not None and was != now:
            yield from _iptables(name.replace("_", "-"), was, now)
    if before.ipset is not None and after.ipset is not None and before.ipset != after.ipset:
        yield from _ipsets(before.ipset, after.ipset)


def _ipsets(before: str, after: str) -> Iterator[Difference]:
    was, now = settled(before), settled(after)
    old, new = set(was), set(now)
    gone = {line.split()[1] for line in was if line.startswith("create ")} - {
        line.split()[1] for line in now if line.startswith("create ")
    }
    for line in was:
        verb, name, *rest = line.split()
        if line not in new and name in gone and verb == "create":
            yield Difference(What.IPTABLES, Action.REMOVED, f"ipset destroy {name}")
        elif line not in new and name not in gone and verb == "add":
            yield Difference(What.IPTABLES, Action.REMOVED, f"ipset del {name} {rest[0]}")
    for line in sorted(new - old, key=lambda line: line.startswith("add ")):
        yield Difference(What.IPTABLES, Action.ADDED, f"ipset {line}")


def _iptables_tables(firewall: Firewall) -> set[tuple[str, str]]:
    """Tables of iptables-nft: nft lists them as well, in words that iptables does not have."""
    found = set()
    for family, text in (("ip", firewall.iptables_nft), ("ip6", firewall.ip6tables_nft)):
        found |= {(family, line[1:].strip()) for line in (text or "").splitlines() if line.startswith("*")}
    return {key for key in found if key[1] in BUILT_IN}


def _nft(before: str, after: str, skip: set[tuple[str, str]]) -> Iterator[Difference]:
    was, now = (
        {key: blocks for key, blocks in _nft_tables(text).items() if key not in skip} for text in (before, after)
    )
    for key in was:
        if key not in now:
            yield from _nft_blocks(key, was[key], {}, gone=True)
            yield Difference(What.NFTABLES, Action.REMOVED, f"delete table {' '.join(key)}")
    for key in now:
        if key not in was:
            yield Difference(What.NFTABLES, Action.ADDED, f"add table {' '.join(key)}")
        yield from _nft_blocks(key, was.get(key, {}), now[key], gone=False)


def _nft_blocks(
    table: tuple[str, str],
    before: Mapping[tuple[str, ...], _Chain],
    after: Mapping[tuple[str, ...], _Chain],
    *,
    gone: bool,
) -> Iterator[Difference]:
    for key, chain in before.items():
        if key not in after:
            kind, name = key
            place = f"{' '.join(table)} {name}"
            for rule in chain.rules:
                yield Difference(What.NFTABLES, Action.REMOVED, _nft_line("delete", kind, place, rule))
            if not gone:
                yield Difference(What.NFTABLES, Action.REMOVED, f"delete {kind} {place}")
    for key, chain in after.items():
        kind, name = key
        place = f"{' '.join(table)} {name}"
        old = before.get(key)
        body = f" {{ {chain.head} }}" if chain.head else ""
        if old is None:
            yield Difference(What.NFTABLES, Action.ADDED, f"add {kind} {place}{body}")
        elif old.head != chain.head:
            text = f"{kind} {place}{body} (was {{ {old.head} }})"
            yield Difference(What.NFTABLES, Action.CHANGED, text)
        removed, added, moved = ordered_difference(old.rules if old is not None else [], chain.rules)
        for rule in removed:
            yield Difference(What.NFTABLES, Action.REMOVED, _nft_line("delete", kind, place, rule))
        for rule, first in added:
            verb = "insert" if first and kind == "chain" else "add"
            yield Difference(What.NFTABLES, Action.ADDED, _nft_line(verb, kind, place, rule))
        if moved and kind == "chain":
            yield Difference(What.NFTABLES, Action.CHANGED, f"chain {place}: its rules stand in another order")


def _nft_line(verb: str, kind: str, place: str, line: str) -> str:
    if kind == "chain":
        return f"{verb} rule {place} {line}"
    return f"{verb} element {place} {{ {line} }}"


def _nft_tables(text: str) -> dict[tuple[str, str], Chains]:
    """Each table's chains, sets and the like. A set's elements stand in the place of rules."""
    tables: dict[tuple[str, str], Chains] = {}
    table: Chains = {}
    block: tuple[str, str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if block is not None:
            if line == "\t}":
                table[block] = _block(block[0], lines)
                block, lines = None, []
            else:
                lines.append(line)
            continue
        at_table, at_block = _TABLE.match(line), _BLOCK.match(line)
        if at_table:
            table = tables.setdefault((at_table.group(1), at_table.group(2)), {})
        elif at_block:
            block = (at_block.group(1), at_block.group(2))
        elif line.startswith("\t") and line.strip() not in ("", "}"):
            table["flags", line.strip()] = _Chain()
    return tables


def _block(kind: str, lines: list[str]) -> _Chain:
    head: list[str] = []
    rules: list[str] = []
    for words in _whole_lines(lines):
        if kind == "chain":
            if words.startswith(("type ", "comment ", "policy ")):
                head.append(words)
            else:
                rules.append(_COUNTER.sub("counter ", words).strip())
        elif words.startswith(_ELEMENTS):
            inner = words[len(_ELEMENTS) :].rstrip().removesuffix("}")
            rules += [_MOVING.sub("", each).strip() for each in inner.split(", ") if each.strip()]
        else:
            head.append(_MOVING.sub("", words))
    return _Chain(" ".join(each if each.endswith(";") else f"{each};" for each in head), rules)


def _whole_lines(lines: list[str]) -> list[str]:
    """One string a statement: anonymous sets and elements go on over several lines."""
    found: list[str] = []
    braces = 0
    for line in lines:
        words = _HANDLE.sub("", line.strip())
        if not words:
            continue
        if braces:
            found[-1] += f" {words}"
        else:
            found.append(words)
        plain = _QUOTED.sub("", words)
        braces += plain.count("{") - plain.count("}")
    return found


def _iptables(program: str, before: str, after: str) -> Iterator[Difference]:
    was, now = _saved(before), _saved(after)
    for key, chain in was.items():
        table, name = key
        command = program if table == "filter" else f"{program} -t {table}"
        if key not in now:
            for rule in chain.rules:
                yield Difference(What.IPTABLES, Action.REMOVED, f"{command} -D {name} {rule}")
            if name not in BUILT_IN.get(table, ()):
                yield Difference(What.IPTABLES, Action.REMOVED, f"{command} -X {name}")
            elif chain.head not in ("ACCEPT", "-"):
                yield Difference(What.IPTABLES, Action.CHANGED, f"{command} -P {name} ACCEPT (was {chain.head})")
    # Chains before the rules that jump to them.
    for table, name in (key for key in now if key not in was):
        if name not in BUILT_IN.get(table, ()):
            command = program if table == "filter" else f"{program} -t {table}"
            yield Difference(What.IPTABLES, Action.ADDED, f"{command} -N {name}")
    for key, chain in now.items():
        table, name = key
        command = program if table == "filter" else f"{program} -t {table}"
        old = was.get(key)
        built_in = name in BUILT_IN.get(table, ())
        policy = old.head if old is not None else "ACCEPT"
        if built_in and chain.head != policy:
            yield Difference(What.IPTABLES, Action.CHANGED, f"{command} -P {name} {chain.head} (was {policy})")
        removed, added, moved = ordered_difference(old.rules if old is not None else [], chain.rules)
        for rule in removed:
            yield Difference(What.IPTABLES, Action.REMOVED, f"{command} -D {name} {rule}")
        for rule, first in added:
            yield Difference(What.IPTABLES, Action.ADDED, f"{command} {'-I' if first else '-A'} {name} {rule}")
        if moved:
            yield Difference(What.IPTABLES, Action.CHANGED, f"{command} -S {name}: its rules stand in another order")


def _saved(text: str) -> dict[tuple[str, str], _Chain]:
    chains: dict[tuple[str, str], _Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif (found := _CHAIN.match(line)) is not None:
            chains.setdefault((table, found.group(1)), _Chain()).head = found.group(2)
        else:
            rule = line.partition("] ")[2] if line.startswith("[") else line
            if rule.startswith("-A "):
                name, _, rest = rule.removeprefix("-A ").partition(" ")
                chains.setdefault((table, name), _Chain()).rules.append(rest)
    return chains
