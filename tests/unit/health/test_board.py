# SPDX-License-Identifier: Apache-2.0
"""From checks to a verdict."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wicketgate.clock import FakeClock
from wicketgate.health.board import Board
from wicketgate.health.cause import SENTENCES, Cause
from wicketgate.health.check import CheckResult, State

INTERVAL = 1.0


def passed(name: str, at: float) -> CheckResult:
    return CheckResult(name, State.PASS, "echo", at=at, seconds=0.001)


def failed(name: str, at: float, cause: Cause = Cause.HANDSHAKE_SILENT) -> CheckResult:
    return CheckResult(name, State.FAIL, "no answer within 1 s", cause, at=at)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def board(clock: FakeClock) -> Board:
    return Board(clock, INTERVAL)


class TestReady:
    def test_nothing_is_ready_before_the_first_round(self, board: Board):
        """An agent that has proved nothing is red and says that it is starting."""
        verdict = board.verdict()
        assert not verdict.ready
        assert not verdict.serving
        assert verdict.starting
        assert verdict.causes == (Cause.AGENT_STARTING,)

    def test_an_empty_round_is_not_a_success(self, board: Board):
        """A round without any check proves nothing."""
        assert not board.publish([], "tunnel", "door").ready
        assert board.verdict().starting

    def test_a_part_of_the_checks_is_not_a_success(self, board: Board):
        """As long as one check has not passed, the agent is starting and not ready."""
        verdict = board.publish([passed("handshake", board.now()), failed("tunnel", board.now())], "tunnel", "door")
        assert not verdict.ready
        assert verdict.causes == (Cause.HANDSHAKE_SILENT, Cause.AGENT_STARTING)

    def test_a_full_success_is_ready_at_once(self, board: Board):
        """The first full success is enough, and a later fault is no start any more."""
        assert board.publish([passed("handshake", board.now())], "handshake", "door", backend="kernel").serving
        assert board.verdict().causes == ()
        verdict = board.publish([failed("handshake", board.now())], "handshake", "door")
        assert verdict.causes == (Cause.HANDSHAKE_SILENT,)
        assert not verdict.starting
        assert verdict.backend == "kernel"

    def test_unknown_is_red(self, board: Board):
        """A check that could not run is no success; without a cause of its own it is state-unreadable."""
        verdict = board.publish([CheckResult("route", State.UNKNOWN, "no right", at=board.now())], "port", "port")
        assert not verdict.ready
        assert Cause.STATE_UNREADABLE in verdict.causes

    def test_a_failure_names_its_cause(self):
        """A red without a cause cannot be built, nor a green with one."""
        with pytest.raises(ValueError, match="names its cause"):
            CheckResult("a", State.FAIL, "x")
        with pytest.raises(ValueError, match="no cause"):
            CheckResult("a", State.PASS, "x", Cause.RP_FILTER)

    def test_two_checks_of_one_name_are_refused(self, board: Board):
        """Names identify checks: one of two could hide the other."""
        with pytest.raises(ValueError, match="same name in one round: a;"):
            board.publish([passed("a", board.now()), failed("a", board.now())], "tunnel", "door")


class TestStale:
    def test_evidence_older_than_three_intervals_is_red(self, board: Board, clock: FakeClock):
        """At three intervals it still counts, a moment later it is state-unreadable."""
        board.publish([passed("tunnel", board.now())], "tunnel", "door")
        clock.advance(3 * INTERVAL)
        assert board.verdict().ready
        clock.advance(0.001)
        verdict = board.verdict()
        assert not verdict.ready
        assert verdict.causes == (Cause.STATE_UNREADABLE,)
        assert verdict.checks[0].state is State.UNKNOWN
        assert "echo" in verdict.checks[0].evidence

    def test_one_stale_check_is_enough(self, board: Board, clock: FakeClock):
        """Fresh checks do not cover for an old one."""
        board.publish([passed("old", board.now() - 2.5), passed("new", board.now())], "tunnel", "door")
        assert board.verdict().ready
        clock.advance(0.6)
        assert [check.state for check in board.verdict().checks] == [State.UNKNOWN, State.PASS]
        assert not board.verdict().ready

    @pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, 1_700_000_000.0, 1_000.001])
    def test_a_time_of_another_clock_is_red(self, board: Board, clock: FakeClock, at: float):
        """Evidence whose age cannot be told is no evidence, also later."""
        assert not board.publish([passed("tunnel", at)], "tunnel", "door").ready
        clock.advance(0.5)
        assert not board.verdict().ready

    @pytest.mark.parametrize("wall", [0.0, 1.0e12, 1_700_000_000.0 - 86_400])
    def test_the_wall_clock_changes_nothing(self, board: Board, clock: FakeClock, wall: float):
        """Setting the wall clock, back or forth, neither ages nor rejuvenates evidence."""
        board.publish([passed("tunnel", board.now())], "tunnel", "door")
        clock.set_wall(wall)
        assert board.verdict().ready
        clock.advance(3.5)
        clock.set_wall(wall)
        assert not board.verdict().ready

    def test_old_evidence_published_again_stays_old(self, board: Board, clock: FakeClock):
        """What counts is when it was seen, not when it was told."""
        seen = board.now()
        clock.advance(4)
        assert not board.publish([passed("tunnel", seen)], "tunnel", "door").ready


class TestShrink:
    def test_a_check_that_disappears_is_missed(self, board: Board):
        """A round that lacks a check of the round before is red, and says which."""
        board.publish([passed("handshake", board.now()), passed("tunnel", board.now())], "tunnel", "door")
        verdict = board.publish([passed("handshake", board.now())], "tunnel", "door")
        assert not verdict.ready
        missing = next(check for check in verdict.checks if check.name == "tunnel")
        assert missing.state is State.UNKNOWN
        assert "no longer run" in missing.evidence
        assert board.publish(
            [passed("handshake", board.now()), passed("tunnel", board.now())], "tunnel", "door"
        ).ready, "and green again when it is back"

    def test_a_check_is_retired_on_purpose(self, board: Board):
        """An uplink that went away takes its check with it; the last check cannot be retired into a green."""
        board.publish([passed("eth0", board.now()), failed("eth1", board.now())], "tunnel", "door")
        board.retire("eth1")
        assert board.verdict().ready
        board.retire("eth0")
        assert not board.verdict().ready
        assert board.verdict().causes == (Cause.STATE_UNREADABLE,)

    def test_what_could_only_not_be_read_is_not_missed(self, board: Board, clock: FakeClock):
        """A round that could not run at all says so in a check of its own; it is gone when rounds run again."""
        board.publish([passed("tunnel", board.now())], "tunnel", "model")
        board.publish([CheckResult("state", State.UNKNOWN, "no right", at=board.now())], "tunnel", "model")
        verdict = board.verdict()
        assert not verdict.ready
        assert [check.name for check in verdict.checks] == ["tunnel", "state"]
        assert board.publish([passed("tunnel", board.now())], "tunnel", "model").ready

    def test_a_failing_check_does_not_vanish_into_a_green(self, board: Board):
        """Leaving out what fails mends nothing."""
        board.publish([passed("a", board.now()), failed("b", board.now())], "tunnel", "door")
        assert not board.publish([passed("a", board.now())], "tunnel", "door").ready

    def test_another_scope_has_checks_of_its_own_and_each_is_remembered(self, board: Board):
        """An uplink that loses IPv6 is another thing to prove; when it is back, so is what is expected of it."""
        both = [passed("ipv4", board.now()), passed("ipv6", board.now())]
        board.publish(both, "tunnel", "door", scope="4,6")
        assert board.publish(both[:1], "tunnel", "door", scope="4").ready
        assert not board.publish(both[:1], "tunnel", "door", scope="4,6").ready
        for number in range(1000):
            board.publish(both[:1], "tunnel", "door", scope=str(number))
        assert len(board._seen) <= 16

    def test_another_level_or_evidence_has_checks_of_its_own(self, board: Board):
        """The door falling back to the model is another set of checks, and the verdict says which it is."""
        board.publish([passed("door-v4", board.now())], "tunnel", "door")
        verdict = board.publish([passed("handshake-lo", board.now())], "tunnel", "model")
        assert verdict.ready
        assert verdict.evidence == "model"


class TestDrain:
    def test_draining_stops_serving_and_leaves_ready_true(self, board: Board):
        """The balancer hears no, kubelet hears the truth."""
        board.publish([passed("tunnel", board.now())], "tunnel", "door")
        board.begin_drain()
        verdict = board.verdict()
        assert verdict.ready
        assert not verdict.serving
        assert verdict.draining
        assert verdict.causes == (Cause.AGENT_DRAINING,)
        assert verdict.readiness_causes == ()

    def test_ready_goes_on_telling_the_truth_while_draining(self, board: Board):
        """A fault during the drain shows."""
        board.begin_drain()
        assert not board.publish([failed("tunnel", board.now())], "tunnel", "door").ready
        verdict = board.publish([passed("tunnel", board.now())], "tunnel", "door")
        assert verdict.ready
        assert not verdict.serving, "there is no way back"


class TestLive:
    def test_the_tunnel_does_not_matter(self, board: Board, clock: FakeClock):
        """A dead tunnel is no reason to restart the agent."""
        for _ in range(100):
            clock.advance(1)
            board.publish([failed("tunnel", board.now())], "tunnel", "door")
            assert board.live
            assert board.verdict().live

    def test_a_prober_that_stands_still_is_not_live_and_lives_again(self, board: Board, clock: FakeClock):
        """Without a heartbeat the agent is dead after half a minute; a new beat says so at once."""
        clock.advance(30)
        assert board.live
        clock.advance(0.1)
        assert not board.live
        assert not board.verdict().live
        board.beat()
        assert board.live
        assert board.verdict().live


class TestCache:
    def test_a_thousand_questions_compute_nothing(self, board: Board, clock: FakeClock):
        """A verdict is computed once a publication, and once more when it goes stale."""
        board.publish([passed("tunnel", board.now())], "tunnel", "door")
        before = board.computations
        for _ in range(1000):
            clock.advance(0.0029)
            assert board.verdict().ready
        assert board.computations == before
        clock.advance(1)
        for _ in range(1000):
            assert not board.verdict().ready
        assert board.computations == before + 1

    def test_listeners_hear_changes_of_serving_once(self, board: Board, clock: FakeClock):
        """At once on subscription, then only when it changes; a broken listener does not silence the others."""
        heard: list[bool] = []
        board.on_change(lambda verdict: heard.append(verdict.serving))

        def broken(_verdict):
            if heard:
                raise RuntimeError("no")

        heard.clear()
        board.on_change(broken)
        forget = board.on_change(lambda verdict: heard.append(verdict.serving))
        heard.clear()
        for _ in range(3):
            board.publish([passed("tunnel", board.now())], "tunnel", "door")
        assert heard == [True, True], "two listeners, one change"
        clock.advance(4)
        board.verdict()
        assert heard == [True, True, False, False]
        forget()
        board.publish([passed("tunnel", board.now())], "tunnel", "door")
        assert heard == [True, True, False, False, True]
        board.begin_drain()
        assert heard[-1] is False

    @given(at=st.floats(1.0, 1.0e9), interval=st.floats(0.01, 60.0))
    def test_a_verdict_never_outlives_its_evidence(self, at: float, interval: float):
        """Whatever the rounding: at the first moment after `expires_at` the verdict is red."""
        clock = FakeClock(monotonic=at)
        board = Board(clock, interval)
        verdict = board.publish([passed("tunnel", at)], "tunnel", "door")
        assert verdict.ready
        assert verdict.expires_at <= at + 3 * interval
        clock._monotonic = math.nextafter(at + 3 * interval, math.inf)
        assert not board.verdict().ready


@dataclass
class Model:
    """What the board should know, said naively."""

    level: tuple[str, str] = ("", "")
    results: dict[str, tuple[State, float]] = field(default_factory=dict)
    expected: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    draining: bool = False

    def ready(self, now: float) -> bool:
        wanted = self.expected.get(self.level, set()) | set(self.results)
        return bool(wanted) and all(
            name in self.results and self.results[name][0] is State.PASS and now <= self.results[name][1] + 3 * INTERVAL
            for name in wanted
        )


class Boards(RuleBasedStateMachine):
    """Any order of publications, pauses, drains and clock jumps gives the verdict of the naive model."""

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.board = Board(self.clock, INTERVAL)
        self.model = Model()
        self.heard: list[bool] = []
        self.board.on_change(lambda verdict: self.heard.append(verdict.serving))

    @rule(
        states=st.dictionaries(st.sampled_from("abc"), st.sampled_from(list(State))),
        lag=st.floats(0, 4),
        kind=st.sampled_from([("tunnel", "door"), ("tunnel", "model"), ("egress", "door")]),
    )
    def publish(self, states: dict[str, State], lag: float, kind: tuple) -> None:
        at = self.board.now() - lag
        self.board.publish(
            [
                CheckResult(name, state, "seen", Cause.TUNNEL_SILENT if state is State.FAIL else None, at=at)
                for name, state in states.items()
            ],
            *kind,
        )
        self.model.level = kind
        self.model.results = {name: (state, at) for name, state in states.items()}
        known = {name for name, state in states.items() if state is not State.UNKNOWN}
        self.model.expected.setdefault(kind, set()).update(known)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(wall=st.floats(0, 1e10))
    def set_wall_clock(self, wall: float) -> None:
        self.clock.set_wall(wall)

    @rule()
    def drain(self) -> None:
        self.board.begin_drain()
        self.model.draining = True

    @rule(name=st.sampled_from("abc"))
    def retire(self, name: str) -> None:
        self.board.retire(name)
        for expected in self.model.expected.values():
            expected.discard(name)
        self.model.results.pop(name, None)

    @invariant()
    def same_as_the_model(self) -> None:
        verdict = self.board.verdict()
        ready = self.model.ready(self.board.now())
        assert verdict.ready is ready
        assert verdict.serving is (ready and not self.model.draining)
        assert bool(verdict.causes) is not verdict.serving, "a red names a cause, a green none"
        assert ready or verdict.readiness_causes
        assert self.heard[-1] is verdict.serving
        assert all(one is not two for one, two in zip(self.heard, self.heard[1:], strict=False))
        assert json.loads(verdict.as_json(self.board.now()))["ready"] is ready
        assert verdict.as_text(self.board.now()).endswith("\n")


TestBoards = Boards.TestCase


def test_every_cause_has_a_sentence_and_a_kebab_case_code():
    """Codes are what alerts are written against; each has one sentence for a person."""
    assert set(SENTENCES) == set(Cause)
    for cause in Cause:
        assert cause.value == cause.name.lower().replace("_", "-")
        assert cause.sentence.endswith(".")
        assert "\n" not in cause.sentence
