# SPDX-License-Identifier: Apache-2.0
"""The life of a target: a pure state machine fed with the outcomes of probes.

States and reasons are those of DescribeTargetHealth. The rules:

- The first success of any checker brings an `initial` target in service, whatever the threshold (NLB guide,
  load-balancer-target-groups).
- Every checker counts for itself. A target is taken out when most checkers saw `unhealthy_threshold` consecutive
  failures, and comes back when most saw `healthy_threshold` consecutive successes. AWS says only that its checkers
  "use a consensus mechanism"; a majority is this stand-in's choice.
- Every change of state starts the counts anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from wicketgate.netpath.snapshot import IPAddress


class State(StrEnum):
    """Of botocore elbv2 TargetHealthStateEnum, without those an NLB of ip targets cannot show."""

    INITIAL = "initial"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    UNUSED = "unused"


class Reason(StrEnum):
    """Of botocore elbv2 TargetHealthReasonEnum. A real NLB may say FailedHealthChecks for all three failures."""

    INITIAL_HEALTH_CHECKING = "Elb.InitialHealthChecking"
    FAILED_HEALTH_CHECKS = "Target.FailedHealthChecks"
    TIMEOUT = "Target.Timeout"
    RESPONSE_CODE_MISMATCH = "Target.ResponseCodeMismatch"
    DEREGISTRATION_IN_PROGRESS = "Target.DeregistrationInProgress"
    NOT_IN_USE = "Target.NotInUse"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe found.

    Attributes:
        failure: None when it passed.
        description: what happened, in words.
        seconds: how long it took.
    """

    failure: Reason | None
    description: str
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the target answered as it should."""
        return self.failure is None


@dataclass(slots=True)
class _Run:
    """One checker's consecutive outcomes."""

    passes: int = 0
    failures: int = 0


class TargetHealth:
    """The state of one target.

    Attributes:
        state: see State.
        reason: why; None when healthy.
        description: the same for people.
        probes: how many outcomes were observed since registration.
    """

    def __init__(
        self, checkers: Iterable[IPAddress], *, healthy_threshold: int, unhealthy_threshold: int, used: bool = True
    ) -> None:
        """A target just registered.

        Args:
            checkers: who will probe it.
            healthy_threshold: see CheckSettings.
            unhealthy_threshold: see CheckSettings.
            used: its zone is enabled; otherwise it stays `unused`.
        """
        self._runs = {checker: _Run() for checker in checkers}
        self._healthy_threshold = healthy_threshold
        self._unhealthy_threshold = unhealthy_threshold
        self.probes = 0
        self.state = State.INITIAL if used else State.UNUSED
        self.reason: Reason | None = Reason.INITIAL_HEALTH_CHECKING if used else Reason.NOT_IN_USE
        self.description = (
            "Initial health checks in progress"
            if used
            else "Target is in an Availability Zone that is not enabled for the load balancer"
        )

    def observe(self, checker: IPAddress, probe: Probe) -> bool:
        """Count one outcome; a target that is draining or unused does not listen.

        Returns:
            whether the state changed (a change of reason alone is none).
        """
        if self.state in {State.DRAINING, State.UNUSED}:
            return False
        self.probes += 1
        run = self._runs[checker]
        if probe.passed:
            run.passes, run.failures = run.passes + 1, 0
        else:
            run.passes, run.failures = 0, run.failures + 1
            if self.state is State.UNHEALTHY:
                self.reason, self.description = probe.failure, probe.description
        if self.state is State.INITIAL and probe.passed:
            return self._become_healthy()
        if self.state is State.UNHEALTHY and self._most(
            run.passes >= self._healthy_threshold for run in self._runs.values()
        ):
            return self._become_healthy()
        if self.state is not State.UNHEALTHY and self._most(
            run.failures >= self._unhealthy_threshold for run in self._runs.values()
        ):
            self._enter(State.UNHEALTHY, probe.failure, probe.description)
            return True
        return False

    def deregister(self) -> bool:
        """Start to drain.

        Returns:
            whether it may keep its flows until the delay ends: only a healthy target may.
        """
        keeps = self.state is State.HEALTHY
        self._enter(State.DRAINING, Reason.DEREGISTRATION_IN_PROGRESS, "Target deregistration is in progress")
        return keeps

    def _become_healthy(self) -> bool:
        self._enter(State.HEALTHY, None, "")
        return True

    def _enter(self, state: State, reason: Reason | None, description: str) -> None:
        self.state, self.reason, self.description = state, reason, description
        for run in self._runs.values():
            run.passes = run.failures = 0

    def _most(self, votes: Iterable[bool]) -> bool:
        return sum(votes) * 2 > len(self._runs)


def fails_open(states: Iterable[State]) -> bool:
    """Whether every target is served because none is good.

    So it is when no target is healthy and at least one was found unhealthy. While all are still `initial` nobody has
    been judged, and no traffic flows before the first success.
    """
    seen = set(states)
    return State.UNHEALTHY in seen and State.HEALTHY not in seen


def is_serving(state: State, *, fail_open: bool) -> bool:
    """Whether a target gets new flows."""
    return state is State.HEALTHY or (fail_open and state in {State.UNHEALTHY, State.INITIAL})
