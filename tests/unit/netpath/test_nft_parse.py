# SPDX-License-Identifier: Apache-2.0
"""The JSON of nft is read as libnftables-json(5) says; what is not understood is kept as unknown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wicketgate.errors import InputError
from wicketgate.netpath.netfilter.nft.model import (
    Binary,
    Constant,
    Mangle,
    MatchStatement,
    Meta,
    Payload,
    Prefix,
    Unknown,
    Verdict,
)
from wicketgate.netpath.netfilter.nft.parse import parse
from wicketgate.netpath.netfilter.nft.spell import rules_of_listing, spell_rule


def listing(*expressions: list[Any], **more: Any) -> str:
    items: list[Any] = [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "x", "handle": 1}},
        {"chain": {"family": "inet", "table": "x", "name": "c", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
    ]  # fmt: skip
    for handle, each in enumerate(expressions, 2):
        items.append({"rule": {"family": "inet", "table": "x", "chain": "c", "handle": handle, "expr": each} | more})
    return json.dumps({"nftables": items})


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def test_a_rule_in_full() -> None:
    """Matches, changes and verdicts in their order."""
    mark = {"meta": {"key": "mark"}}
    text = listing([
        match({"payload": {"protocol": "ip", "field": "saddr"}}, {"prefix": {"addr": "10.0.0.0", "len": 8}}),
        {"mangle": {"key": mark, "value": {"|": [mark, 5]}}},
        {"jump": {"target": "y"}},
    ])  # fmt: skip
    chain = parse(text)["inet", "x"].chains["c"]
    assert (chain.hook, chain.priority, chain.policy) == ("input", 0, "drop")
    assert chain.rules[0].statements == (
        MatchStatement("==", Payload("ip", "saddr"), Prefix("10.0.0.0", 8)),
        Mangle(Meta("mark"), Binary("|", (Meta("mark"), Constant(5)))),
        Verdict("jump", "y"),
    )
    assert spell_rule(chain.rules[0]) == "ip saddr 10.0.0.0/8 meta mark set meta mark | 0x00000005 jump y"


@pytest.mark.parametrize(
    "expression",
    [
        {"xt": {"type": "match", "name": "statistic"}},
        {"brand new": {"what": 1}},
        match({"brand new": 1}, 5),
        {"match": {"op": "~", "left": {"meta": {"key": "mark"}}, "right": 5}},
        {"jump": {}},
        {"dnat": {"addr": "1.2.3.4", "surprise": 1}},
        {"reject": {"type": "a letter"}},
        17,
        None,
        {},
    ],
)
def test_what_is_not_understood_stays(expression: Any) -> None:
    """An expression that nobody has seen does not vanish and does not raise."""
    (rule,) = parse(listing([expression, {"drop": None}]))["inet", "x"].chains["c"].rules
    assert len(rule.statements) == 2
    first = rule.statements[0]
    assert isinstance(first, Unknown) or (isinstance(first, MatchStatement) and isinstance(first.left, Unknown))


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "5", '{"nftables": 5}', listing([])[:-20], '{"nftables": [5]}', '{"nftables": [{"table": {"family": "ip"}}]}',
        '{"nftables": [{"rule": {"family": "ip", "table": "x", "chain": "c", "expr": []}}]}',
        '{"nftables": [{"surprise": {}}]}', "[" * 100000, '{"nftables": [{"table": {"family": 5, "name": "x"}}]}',
    ],
)  # fmt: skip
def test_damaged_listings(text: str) -> None:
    """Something that is no ruleset, or half of one, is refused."""
    with pytest.raises(InputError):
        parse(text)


def test_nothing_is_an_empty_ruleset() -> None:
    """Nft prints nothing, or only its version, where there are no tables."""
    assert parse("") == {}
    assert parse('{"nftables": [{"metainfo": {}}]}') == {}


def test_words_of_the_text_listing() -> None:
    """Rules are found in nft's text by their place, also where a set goes on over several lines."""
    text = (
        'table inet x {\n\tset s {\n\t\telements = { 1,\n\t\t\t     2 }\n\t}\n\n\tchain c {\n\t\ttype filter hook input priority filter; policy drop;\n'
        '\t\ttcp dport { 1, 2,\n\t\t\t    3 } counter packets 5 bytes 60 accept\n\t\tiifname "a { b" drop # handle 7\n\t}\n}\n'
    )  # fmt: skip
    assert rules_of_listing(text) == {("inet", "x", "c"): ("tcp dport { 1, 2, 3 } accept", 'iifname "a { b" drop')}
