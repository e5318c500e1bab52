# SPDX-License-Identifier: Apache-2.0
"""Checks and opinions put together: the door decides where there is one, the model where there is none."""

from __future__ import annotations

import pytest

from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.flow_model import Opinion
from wicketgate.health.reasons import NOT_SEEN, disagreements, judged, with_rules

RULE = "-A INPUT -p udp -j DROP"
DROPS = Opinion(False, "input-drop", RULE, "A rule drops it.")
UNKNOWN = Opinion(False, words="iptables-legacy-save -c: was not read")
LIMITED = Opinion(False, words="-m limit: a limit: counts packets", limited=True)


def failed(name, cause=Cause.HANDSHAKE_SILENT):
    return CheckResult(name, State.FAIL, "silence", cause)


def routed(name):
    return CheckResult(name, State.PASS, f"leaves by eth0; {NOT_SEEN}")


def test_a_silence_gets_the_models_code_and_rule():
    """Where the door had only a silence to tell of; checks of the other family, and green ones, stay."""
    results = [failed("handshake-ipv4"), failed("handshake-ipv6"), CheckResult("balancer-ipv4", State.PASS, "200")]
    first, *others = with_rules(results, {"handshake": DROPS, "balancer": DROPS}, 4)
    assert (first.state, first.cause, first.where) == (State.FAIL, Cause.INPUT_DROP, RULE)
    assert first.evidence == "silence; A rule drops it."
    assert others == results[1:]


def test_what_the_doors_counters_told_keeps_its_code():
    """The door decides; what the model says stands beside it."""
    (result,) = with_rules([failed("handshake-ipv4", Cause.RP_FILTER)], {"handshake": DROPS}, 4)
    assert (result.cause, result.where, result.detail["model"]) == (Cause.RP_FILTER, RULE, "input-drop")


def test_a_disagreement_is_shown_and_stays_red():
    """The model sees nothing in the way: both are told, red it is."""
    results, opinions = [failed("handshake-ipv4"), failed("handshake-ipv6")], {"handshake": Opinion(True)}
    assert disagreements(results, opinions, 4) == ["handshake-ipv4"]
    first, _ = with_rules(results, opinions, 4)
    assert (first.state, first.cause, first.detail["model"]) == (State.FAIL, Cause.HANDSHAKE_SILENT, "works")
    assert "the model sees nothing in its way" in first.evidence
    assert disagreements(results, {"handshake": UNKNOWN}, 4) == []


@pytest.mark.parametrize(("said", "red"), [(DROPS, "arrival"), (Opinion(False, "output-drop", "r", "w"), "reply")])
def test_without_a_door_a_firewall_is_red(said, red):
    """The packet's way there or its answer's, by the code."""
    checks = [routed("arrival-ipv4"), routed("reply-ipv4"), routed("balancer-ipv4")]
    states = {c.name: c for c in judged(checks, {"handshake": said, "balancer": Opinion(True)}, 4)}
    assert [n for n, c in states.items() if c.state is State.FAIL] == [f"{red}-ipv4"]
    assert states[f"{red}-ipv4"].where == said.where
    assert NOT_SEEN not in states["balancer-ipv4"].evidence


def test_unknown_is_not_healthy_but_a_limit_is_no_fault():
    """Without a door what cannot be read makes it unknown; a limit that no client meets is said, and green."""
    check = routed("balancer-ipv4")
    (unknown,) = judged([check], {"balancer": UNKNOWN}, 4)
    assert (unknown.state, unknown.cause) == (State.UNKNOWN, Cause.STATE_UNREADABLE)
    assert "iptables-legacy-save" in unknown.evidence
    (limited,) = judged([check], {"balancer": LIMITED}, 4)
    assert limited.state is State.PASS
    assert "a limit stands in the way" in limited.evidence


def test_a_model_without_a_right_says_nothing():
    """No opinions: the kernel's answers stand, and that firewalls are not seen."""
    checks = [routed("arrival-ipv4"), failed("reply-ipv4", Cause.REPLY_INTO_TUNNEL)]
    assert judged(checks, {}, 4) == checks
