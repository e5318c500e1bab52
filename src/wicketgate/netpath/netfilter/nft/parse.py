# SPDX-License-Identifier: Apache-2.0
"""The JSON of `nft -j list ruleset` (libnftables-json(5)).

Strict: what is not understood becomes an `Unknown` where it stands. Nothing is dropped in silence, and no content of
a rule raises; only a text that is no ruleset at all does. The whole document and the frame of each object are looked
at here; what a rule or an element says is read when a packet first comes to it (`model.Unread`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from wicketgate.errors import InputError
from wicketgate.netpath.netfilter.nft.expression import data_of, expression, shown
from wicketgate.netpath.netfilter.nft.model import Chain, Element, Rule, Set, Statement, Table, Unknown, Unread
from wicketgate.netpath.netfilter.nft.statement import statement

TableKey = tuple[str, str]  # family, name
_QUIET = frozenset({
    "metainfo", "counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "secmark", "synproxy",
    "flowtable", "tunnel",
})  # fmt: skip


def parse(text: str, *, source: str = "nft -j list ruleset", skip: Iterable[TableKey] = ()) -> dict[TableKey, Table]:
    """Read a listing.

    Args:
        text: what nft printed; empty is an empty ruleset.
        source: who printed it, for errors.
        skip: tables whose rules are not wanted: those of iptables-nft, which nft cannot show.

    Returns:
        Tables by family and name, in the order of the listing.

    Raises:
        InputError: it is not the JSON of a ruleset, or it was cut off.
    """
    if not text.strip():
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: no JSON, or cut off ({str(error)[:120]}); take the listing again") from error
    items = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise InputError(f'{source}: no list under "nftables"; expected what `nft -j list ruleset` prints')
    reader = _Reader(source, frozenset(skip))
    for item in items:
        reader.read(item)
    return reader.tables()


def rule_of(body: dict[str, Any]) -> Rule:
    """A rule, from an object with a list `expr`."""
    comment = body.get("comment", "")
    return Rule(
        body.get("handle", 0),
        _statements(body["expr"]),
        comment if isinstance(comment, str) else shown(comment),
    )


def _statements(parts: list[Any]) -> tuple[Statement, ...]:
    try:
        return tuple(map(statement, parts))
    except RecursionError:
        return (Unknown("statement", "nested too deeply for a rule"),)


def _key_of(value: Any) -> Element:
    try:
        return Element(expression(value))
    except RecursionError:
        return Element(Unknown("element", "nested too deeply"))


def _pair_of(value: list[Any]) -> Element:
    try:
        return Element(expression(value[0]), data_of(value[1]))
    except RecursionError:
        return Element(Unknown("element", "nested too deeply"))


class _Reader:
    def __init__(self, source: str, skip: frozenset[TableKey]) -> None:
        self._source = source
        self._skip = skip
        self._tables: dict[TableKey, Table] = {}
        self._rules: dict[tuple[TableKey, str], list[Any]] = {}
        self._readers: dict[str, Callable[[dict[str, Any]], None]] = {
            "table": self._table, "chain": self._chain, "rule": self._rule, "set": self._set, "map": self._map,
            "element": self._element,
        }  # fmt: skip

    def read(self, item: Any) -> None:
        if not isinstance(item, dict) or len(item) != 1:
            raise self._error(item, "an object of one kind")
        ((kind, body),) = item.items()
        if kind in _QUIET:
            return
        if kind not in self._readers or not isinstance(body, dict):
            raise self._error(item, "table, chain, rule, set, map or another object of a ruleset")
        self._readers[kind](body)

    def tables(self) -> dict[TableKey, Table]:
        for (key, chain), rules in self._rules.items():
            chains = self._tables[key].chains
            chains[chain] = replace(chains[chain], rules=Unread(rules, rule_of))
        return {key: table for key, table in self._tables.items() if key not in self._skip}

    def _error(self, item: Any, expected: str) -> InputError:
        return InputError(f"{self._source}: read {shown(item)[:120]}; expected {expected}")

    def _word(self, body: dict[str, Any], name: str) -> str:
        value = body.get(name)
        if not isinstance(value, str) or not value:
            raise self._error(body, f'a string "{name}"')
        return value

    def _number(self, body: dict[str, Any], name: str, default: int = 0) -> int:
        value = body.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(body, f'a number "{name}"')
        return value

    def _owner(self, body: dict[str, Any]) -> Table:
        key = (self._word(body, "family"), self._word(body, "table"))
        if key not in self._tables:
            raise self._error(body, f"a table {key[0]} {key[1]} before what is in it")
        return self._tables[key]

    def _table(self, body: dict[str, Any]) -> None:
        key = (self._word(body, "family"), self._word(body, "name"))
        if key in self._tables:
            raise self._error(body, f"the table {key[0]} {key[1]} once")
        flags = body.get("flags") or []
        self._tables[key] = Table(
            *key, self._number(body, "handle"), "dormant" in flags if isinstance(flags, (list, str)) else False
        )

    def _chain(self, body: dict[str, Any]) -> None:
        table = self._owner(body)
        devices = body.get("dev") or ()
        name = self._word(body, "name")
        table.chains[name] = Chain(
            name,
            self._number(body, "handle"),
            self._word(body, "type") if "type" in body else "",
            self._word(body, "hook") if "hook" in body else "",
            self._number(body, "prio"),
            self._word(body, "policy") if "policy" in body else "accept",
            (devices,) if isinstance(devices, str) else tuple(str(each) for each in devices),
        )

    def _rule(self, body: dict[str, Any]) -> None:
        table, chain = self._owner(body), self._word(body, "chain")
        if chain not in table.chains:
            raise self._error(body, f"a chain {chain} before its rules")
        if (table.family, table.name) in self._skip:
            return
        parts = body.get("expr")
        if not isinstance(parts, list):
            raise self._error(body, 'a list "expr"')
        self._number(body, "handle")
        for part in parts:
            if isinstance(part, dict) and ("set" in part or "map" in part):
                self._note_filled(table, part)
        self._rules.setdefault(((table.family, table.name), chain), []).append(body)

    @staticmethod
    def _note_filled(table: Table, part: dict[str, Any]) -> None:
        for kind in ("set", "map"):
            update = part.get(kind)
            # with statements of its own it is a condition, and doubted where it stands
            if len(part) == 1 and isinstance(update, dict) and not update.get("stmt"):
                name = str(update.get(kind, ""))
                if name.startswith("@"):
                    table.filled.add(name[1:])

    def _set(self, body: dict[str, Any]) -> None:
        table, name = self._owner(body), self._word(body, "name")
        flags = body.get("flags") or ()
        keys = self._elements(body.get("elem", []), body)
        table.sets[name] = Set(name, Unread(keys, _key_of), dynamic="timeout" in flags or "dynamic" in flags)

    def _map(self, body: dict[str, Any]) -> None:
        table, name = self._owner(body), self._word(body, "name")
        pairs = self._elements(body.get("elem", []), body)
        flags = body.get("flags") or ()
        table.sets[name] = Set(
            name,
            Unread([self._pair(pair) for pair in pairs], _pair_of),
            is_map=True,
            dynamic="timeout" in flags or "dynamic" in flags,
        )

    def _element(self, body: dict[str, Any]) -> None:
        """Elements listed apart from their set (nft 1.0.8 and later do it for large ones)."""
        table, name = self._owner(body), self._word(body, "name")
        held = table.sets.get(name)
        if held is None:
            raise self._error(body, f"a set {name} before its elements")
        more = self._elements(body.get("elem", []), body)
        elements = [_pair_of(self._pair(each)) if held.is_map else _key_of(each) for each in more]
        table.sets[name] = replace(held, elements=(*held.elements, *elements))

    def _elements(self, value: Any, body: dict[str, Any]) -> list[Any]:
        if not isinstance(value, list):
            raise self._error(body, 'a list "elem"')
        return value

    def _pair(self, value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise self._error(value, "a key and its data")
        return value
