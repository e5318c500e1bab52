# SPDX-License-Identifier: Apache-2.0
"""What the firewalls of a snapshot say of a packet, and what they say when the model does not know."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from wicketgate.netpath.filter import HookResult, HookVerdict
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import SYN, TCP, Connection, Packet
from wicketgate.netpath.snapshot import Firewall, Snapshot, Unread


def save(*rules: str, policy: str = "ACCEPT", chains: tuple[str, ...] = ()) -> str:
    declared = "".join(f":{chain} - [0:0]\n" for chain in chains)
    lines = "".join(f"[0:0] {rule}\n" for rule in rules)
    return f"*filter\n:INPUT {policy} [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{declared}{lines}COMMIT\n"


def ask(iptables: str = "", *, legacy: str | None = "", nft: str | None = "", port: int = 9000) -> HookResult:
    firewall = Firewall(nft_json=nft, nft_text="", iptables_nft=iptables, ip6tables_nft="", iptables_legacy=legacy, ip6tables_legacy="")  # fmt: skip
    unread = (Unread("iptables-legacy-save -c", "not installed"),) if legacy is None else ()
    packet = Packet(ip_address("192.0.2.9"), ip_address("10.0.0.2"), TCP, 40000, port, tcp_flags=SYN, iif="eth0")
    return Ruleset(Snapshot(0, firewall=firewall, unread=unread)).hook("input", packet, Connection.opened_by(packet))


def test_the_rule_is_named_as_the_user_finds_it() -> None:
    """A drop names the line of iptables-save."""
    answer = ask(save("-A INPUT -p tcp -m tcp --dport 9000 -j DROP"))
    assert (answer.verdict, answer.object) == (HookVerdict.DROP, "-A INPUT -p tcp -m tcp --dport 9000 -j DROP")


def test_the_policy_is_named() -> None:
    """A drop by policy names the policy."""
    answer = ask(save(policy="DROP"))
    assert (answer.verdict, answer.object) == (HookVerdict.DROP, "-P INPUT DROP")


def test_a_limit_that_only_logs_costs_no_certainty() -> None:
    """A doubt about a rule without effect is none."""
    answer = ask(save("-A INPUT -m limit --limit 5/min -j LOG", "-A INPUT -p tcp -j ACCEPT", policy="DROP"))
    assert answer.verdict is HookVerdict.ACCEPT


def test_a_limit_that_decides_is_unknown() -> None:
    """Where the limit decides, the reason says that packets are counted, and the rule is named."""
    answer = ask(save("-A INPUT -m limit --limit 5/min -j ACCEPT", policy="DROP"))
    assert answer.verdict is HookVerdict.UNKNOWN
    assert "a limit: counts packets" in answer.reason
    assert answer.object == "-A INPUT -m limit --limit 5/min -j ACCEPT"


def test_two_ways_to_one_end_are_known() -> None:
    """A random choice between two chains that both accept is no doubt."""
    rules = (
        "-A INPUT -m statistic --mode random --probability 0.5 -j A", "-A INPUT -j B", "-A A -j ACCEPT", "-A B -j ACCEPT",
    )  # fmt: skip
    assert ask(save(*rules, policy="DROP", chains=("A", "B"))).verdict is HookVerdict.ACCEPT


def test_an_unknown_match_decides_nothing_it_does_not_reach() -> None:
    """A rule that is not understood matters only for packets that its known matches let through."""
    rules = ("-A INPUT -p udp -m nonsense --x 1 -j DROP",)
    assert ask(save(*rules)).verdict is HookVerdict.ACCEPT
    answer = ask(save("-A INPUT -p tcp -m nonsense --x 1 -j DROP"))
    assert answer.verdict is HookVerdict.UNKNOWN
    assert "nonsense" in answer.reason


def test_chains_that_go_round_end() -> None:
    """The kernel refuses loops; a damaged listing may hold one."""
    answer = ask(save("-A INPUT -j A", "-A A -g B", "-A B -g A", chains=("A", "B")))
    assert answer.verdict is HookVerdict.UNKNOWN
    assert "go round" in answer.reason


@pytest.mark.parametrize("missing", ["legacy", "nft"])
def test_what_was_not_read_is_no_accept(missing: str) -> None:
    """Without one of the listings there is no verdict."""
    answer = ask(save(), legacy=None if missing == "legacy" else "", nft=None if missing == "nft" else "")
    assert answer.verdict is HookVerdict.UNKNOWN
    assert "was not read" in answer.reason


def test_legacy_beside_nft() -> None:
    """A legacy rule drops what iptables-nft lets through."""
    answer = ask(save("-A INPUT -j ACCEPT"), legacy=save("-A INPUT -s 192.0.2.0/24 -j DROP"))
    assert answer.object == "-A INPUT -s 192.0.2.0/24 -j DROP"
