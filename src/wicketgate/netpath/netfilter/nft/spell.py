# SPDX-License-Identifier: Apache-2.0
"""The words of a rule as `nft list ruleset` prints them.

They are taken from that listing where there is one: the nth rule of a chain stands in the nth place of both listings.
Without it a rule is spelled from its JSON, close to nft's way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from wicketgate.netpath.netfilter.nft.model import (
    Binary,
    Concat,
    Conditional,
    Constant,
    Ct,
    Effectless,
    Element,
    Expression,
    Fib,
    Flags,
    Mangle,
    MapLookup,
    MatchStatement,
    Meta,
    Nat,
    Notrack,
    Other,
    Payload,
    Pick,
    Prefix,
    Range,
    RawPayload,
    Reject,
    Rule,
    SetLiteral,
    SetReference,
    Statement,
    Unknown,
    Unpredictable,
    Verdict,
    VerdictMap,
)

ChainKey = tuple[str, str, str]  # family, table, chain
_TABLE = re.compile(r"table (\S+) (\S+) \{")
_BLOCK = re.compile(r"\t(\w[\w ]*?) (\S+) \{")
_COUNTER = re.compile(r"\bcounter packets \d+ bytes \d+ ?")
_DEVICES = re.compile(r"^\s*type \w+ hook (?:ingress|egress) device(?: (\S+)|s = \{([^}]*)\}) ")
_HANDLE = re.compile(r" # handle \d+$")
_BARE_META = frozenset({"iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup"})


class ListedRules(Mapping[ChainKey, tuple[str, ...]]):
    """The rules of each chain as `nft list ruleset` prints them, without counters; put together when asked for."""

    def __init__(self, lines_of: Mapping[ChainKey, list[str]]) -> None:
        self._lines_of = lines_of
        self._found: dict[ChainKey, tuple[str, ...]] = {}

    def __getitem__(self, key: ChainKey) -> tuple[str, ...]:
        if key not in self._found:
            self._found[key] = tuple(_joined(self._lines_of[key]))
        return self._found[key]

    def devices(self, key: ChainKey) -> tuple[str, ...]:
        """The interfaces of a chain at ingress or egress: nft before 1.0.7 leaves them out of its JSON."""
        for line in self._lines_of.get(key, ()):
            found = _DEVICES.search(line)
            if found:
                return tuple(word.strip(' "') for word in (found[1] or found[2]).split(","))
        return ()

    def __iter__(self) -> Iterator[ChainKey]:
        return iter(self._lines_of)

    def __len__(self) -> int:
        return len(self._lines_of)


def rules_of_listing(text: str) -> ListedRules:
    """The rules of each chain as `nft list ruleset` prints them, without counters."""
    lines_of: dict[ChainKey, list[str]] = {}
    family = table = ""
    chain: list[str] | None = None
    for line in text.split("\n"):
        if chain is not None:
            if line == "\t}":
                chain = None
            else:
                chain.append(line)
        elif "{" in line:
            at_table, at_block = _TABLE.match(line), _BLOCK.match(line)
            if at_table:
                family, table = at_table.groups()
            elif at_block and at_block.group(1) == "chain":
                chain = lines_of.setdefault((family, table, at_block.group(2)), [])
    return ListedRules(lines_of)


def dormant_tables(text: str) -> frozenset[tuple[str, str]]:
    """Family and name of the tables whose chains are not hooked: nft before 1.0.7 leaves the flag out of its JSON."""
    found: set[tuple[str, str]] = set()
    if "\tflags dormant" in text:
        table = ("", "")
        for line in text.split("\n"):
            opened = _TABLE.match(line)
            if opened:
                table = opened[1], opened[2]
            elif line.startswith("\tflags dormant"):
                found.add(table)
    return frozenset(found)


def _joined(lines: list[str]) -> list[str]:
    """One string a rule: sets go on over several lines; the line with `type` and `policy` is no rule."""
    rules: list[str] = []
    open_braces = 0
    for line in lines:
        words = _HANDLE.sub("", line.strip())
        if open_braces:
            rules[-1] += f" {words}"
        elif not words or words.startswith(("type ", "comment ", "policy ")):
            continue
        else:
            rules.append(words)
        quoted = re.sub(r'"[^"]*"', "", words)
        open_braces += quoted.count("{") - quoted.count("}")
    return [_COUNTER.sub("", rule).strip() for rule in rules]


def spell_rule(rule: Rule) -> str:
    """From its JSON."""
    words = [each for each in map(_statement, rule.statements) if each]
    if rule.comment:
        words.append(f'comment "{rule.comment}"')
    return " ".join(words) or "counter"


def _statement(statement: Statement) -> str:
    match statement:
        case MatchStatement(op, left, right):
            sign = "" if op in ("==", "in") else f"{op} "
            return f"{_expression(left)} {sign}{_expression(right, left)}"
        case Verdict(kind, target):
            return f"{kind} {target}".strip()
        case Mangle(key, value):
            return f"{_expression(key)} set {_expression(value, key)}"
        case VerdictMap(key, data):
            return f"{_expression(key)} vmap {_expression(data, key)}"
        case Reject(kind, code):
            if kind == "tcp reset":
                return "reject with tcp reset"
            return "reject" if (kind, code) == ("icmpx", "port-unreachable") else f"reject with {kind} {code}"
        case Nat():
            return _nat(statement)
        case Notrack():
            return "notrack"
        case Effectless(what):
            return "" if what == "counter" else what
        case Conditional(what) | Unpredictable(what):
            return what
        case Unknown(what, text):
            return f"({what}: {text[:80]})"


def _nat(statement: Nat) -> str:
    words = [statement.kind, statement.family]
    if statement.address is not None or statement.port is not None:
        address = _expression(statement.address) if statement.address is not None else ""
        if statement.port is not None:
            address = f"[{address}]" if ":" in address else address
            address += f":{_expression(statement.port)}"
        words += ["prefix" if statement.prefix else "", "to", address]
    return " ".join(word for word in (*words, ",".join(statement.flags)) if word)


def _expression(expression: Expression | Verdict | None, beside: Expression | None = None) -> str:
    match expression:
        case Constant(value):
            return _constant(value, beside)
        case Prefix(address, length):
            return f"{address}/{length}"
        case Range(low, high):
            return f"{_expression(low, beside)}-{_expression(high, beside)}"
        case Payload(protocol, name):
            return f"{protocol} {name}"
        case RawPayload(base, offset, length):
            return f"@{base},{offset},{length}"
        case Meta(key):
            return key if key in _BARE_META else f"meta {key}"
        case Ct(key, direction):
            return f"ct {direction} {key}" if direction else f"ct {key}"
        case Fib(result, flags):
            return f"fib {' . '.join(flags)} {result}"
        case Pick(kind, modulus, offset):
            return f"{kind} mod {modulus}" + (f" offset {offset}" if offset else "")
        case Binary(operator, operands):
            return f" {operator} ".join(_expression(each, operands[0]) for each in operands)
        case Concat(parts):
            return " . ".join(_expression(part, beside) for part in parts)
        case SetLiteral(elements):
            return "{ " + ", ".join(_element(each, beside) for each in elements) + " }"
        case SetReference(name):
            return f"@{name}"
        case Flags(values):
            return ",".join(_expression(each) for each in values)
        case MapLookup(key, data):
            return f"{_expression(key)} map {_expression(data, key)}"
        case Verdict(kind, target):
            return f"{kind} {target}".strip()
        case Other(_, text) | Unknown(_, text):
            return text
        case None:
            return ""


def _element(element: Element, beside: Expression | None) -> str:
    key = _expression(element.key, beside)
    return key if element.data is None else f"{key} : {_expression(element.data)}"


def _constant(value: int | str, beside: Expression | None) -> str:
    key = beside.key if isinstance(beside, (Meta, Ct)) else ""
    if isinstance(value, int) and key == "mark":
        return f"{value:#010x}"
    return f'"{value}"' if isinstance(value, str) and key in ("iifname", "oifname", "iif", "oif") else str(value)
