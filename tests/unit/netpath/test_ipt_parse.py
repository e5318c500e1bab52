# SPDX-License-Identifier: Apache-2.0
"""The listing of iptables-save is read as it is meant; what is not understood is kept as unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from wicketgate.errors import InputError
from wicketgate.netpath.netfilter.ipt.evaluate import TableEvaluator
from wicketgate.netpath.netfilter.ipt.model import Match, Option, Target
from wicketgate.netpath.netfilter.ipt.parse import parse, parse_rule

CORPUS = Path(__file__).parents[2] / "corpus"


def test_a_rule_in_full() -> None:
    """Matches, negation, arguments and target are told apart."""
    rule = parse_rule(
        '-A INPUT ! -s 10.0.0.0/8 -p tcp -m tcp ! --dport 80:90 -m comment --comment "a -j \\"b\\"" -j DROP'
    )
    assert rule.matches == (
        Match("ip", (Option("s", ("10.0.0.0/8",), negated=True), Option("p", ("tcp",)))),
        Match("tcp", (Option("dport", ("80:90",), negated=True),)),
        Match("comment", (Option("comment", ('a -j "b"',)),)),
    )
    assert rule.target == Target("DROP")
    assert not rule.unknown


def test_goto_and_target_options() -> None:
    """Options behind -j are the target's; -g is a jump without a way back."""
    assert parse_rule("-A X -g Y").target == Target("Y", goto=True)
    rule = parse_rule("-A X -j LOG --log-prefix -j --log-level 7")
    assert rule.target == Target("LOG", (Option("log-prefix", ("-j",)), Option("log-level", ("7",))))


@pytest.mark.parametrize(
    "rule",
    ["-A X -m nonsense --what 5 -j DROP", "-A X stray -j DROP", "-A X -s", '-A X -m comment --comment "open', "-A X !"],
)
def test_what_is_not_understood_stays(rule: str) -> None:
    """A foreign match, a stray word, a missing argument: the rule is there, and says that it is not understood."""
    (table,) = parse(f"*filter\n:X - [0:0]\n{rule}\nCOMMIT\n").values()
    assert list(TableEvaluator(table, 4, "iptables").unknowns())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n", "no COMMIT"),
        ("-A INPUT -j DROP\nCOMMIT\n", r"\*TABLE"),
        ("*filter\n-A INPUT -j DROP\nCOMMIT\n", "does not declare"),
        ("*filter\n:INPUT MAYBE [0:0]\nCOMMIT\n", ":CHAIN POLICY"),
        ("*filter\n:INPUT ACCEPT [0:0]\nhello\nCOMMIT\n", "-A CHAIN"),
        ("*filter\n:X - [0:0]\n:X - [0:0]\nCOMMIT\n", "twice"),
    ],
)
def test_damaged_listings(text: str, says: str) -> None:
    """A listing that was cut off or is none is refused, with the line."""
    with pytest.raises(InputError, match=says):
        parse(text)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.iptables")), ids=lambda path: path.stem)
def test_the_corpus_is_understood(path: Path) -> None:
    """Rules of well-known software hold nothing unknown; what an ipset holds is a doubt, not a gap."""
    tables = parse(path.read_text())
    assert tables
    for table in tables.values():
        assert list(TableEvaluator(table, 4, "iptables").unknowns()) == []
