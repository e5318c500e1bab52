# SPDX-License-Identifier: Apache-2.0
"""The listing of iptables-save is read as it is meant; what is not understood is kept as unknown."""

from __future__ import annotations

import shlex
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wicketgate.errors import InputError
from wicketgate.netpath.filter import HookResult
from wicketgate.netpath.netfilter.ipt import evaluate
from wicketgate.netpath.netfilter.ipt.evaluate import TableEvaluator
from wicketgate.netpath.netfilter.ipt.model import Match, Option, Target
from wicketgate.netpath.netfilter.ipt.parse import parse, parse_rule, words
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import SYN, TCP, Connection, Packet
from wicketgate.netpath.snapshot import Firewall, Snapshot

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


WORDS = st.lists(
    st.sampled_from(
        ["-A", "X", '"', '"a b"', '""', "a", " ", "\t", "\\", "'", '"c', 'd"', "-j", "é", "\x0b", '"-d 10.0.0.1/32 "']
    )
)


@given(WORDS, st.sampled_from([" ", "", "  "]))
def test_quotes_are_read_as_a_shell_does(parts: list[str], between: str) -> None:
    """The quick way with quotes gives the words that shlex gives, for whatever order of quotes and blanks."""
    text = between.join(parts)
    assume('"' in text or "\\" in text or "'" in text)
    try:
        expected: list[str] | None = shlex.split(text)
    except ValueError:
        expected = None
    if expected is None:
        with pytest.raises(ValueError, match=r"quot|escape"):
            words(text)
    else:
        assert words(text) == expected


RULES = st.lists(
    st.builds(
        "-A X {}{}{}-j {}".format,
        st.sampled_from(["", "-s 192.0.2.9/32 ", "! -s 192.0.2.9/32 ", "-s 192.0.2.0/24 "]),
        st.sampled_from(
            ["", "-d 10.0.0.1/32 ", "! -d 10.0.0.1/32 ", "-d 10.0.0.2/32 ", "-d 10.0.0.0/24 ", "-d 10.0.0.1/31 ", "-d 10.0.0.300/32 "]
        ),
        st.sampled_from(["", "-p tcp ", '-m comment --comment "x -d 10.0.0.9/32 y" ', "-m limit --limit 5/sec ", "-m odd "]),
        st.sampled_from(["A", "B", "LOG", "RETURN", "DROP", "MARK --set-xmark 0x1/0x1"]),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=200)
@given(RULES, st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.9", "172.16.0.1"]))
def test_looking_rules_up_by_destination_changes_nothing(rules: list[str], destination: str) -> None:
    """A chain that is looked up by destination gives the same verdict and the same steps as one walked rule by rule."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n:X - [0:0]\n:A - [0:0]\n:B - [0:0]\n-A INPUT -j X\n"
    text += "\n".join([*rules, "-A A -p udp -j DROP", "-A B -j ACCEPT", "COMMIT"]) + "\n"
    packet = Packet(ip_address("192.0.2.9"), ip_address(destination), TCP, 40000, 80, tcp_flags=SYN, iif="eth0")

    def judged() -> HookResult:
        firewall = Firewall(
            nft_json="", nft_text="", iptables_nft=text, ip6tables_nft="", iptables_legacy="", ip6tables_legacy=""
        )
        return Ruleset(Snapshot(0, firewall=firewall)).hook("input", packet, Connection.opened_by(packet))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "LONG_CHAIN", 0)
        quick = judged()
        patch.setattr(evaluate, "LONG_CHAIN", 1000)
        plain = judged()
    assert quick == plain
