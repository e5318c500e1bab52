# SPDX-License-Identifier: Apache-2.0
"""The verdict: what a load balancer, a kubelet and a person are told. Immutable, and rendered without computing."""

from __future__ import annotations

import json
from dataclasses import dataclass

from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, Evidence, Level, State


@dataclass(frozen=True, slots=True)
class Verdict:
    """All answers of one moment.

    Attributes:
        ready: a new client would be served now.
        serving: ready and not draining: what the load balancer is told.
        live: the agent's loop turns; nothing about the tunnel.
        draining: the agent is about to leave.
        starting: not every check has passed once yet.
        level: what `ready` promises; None before the first round.
        evidence: where the evidence comes from; None before the first round.
        backend: which WireGuard runs: `kernel`, `userspace`, or empty while that is not known.
        causes: codes of what is wrong, in the order of the checks, each once; empty when serving.
        checks: every check, stale and missing ones as UNKNOWN.
        computed_at: monotonic seconds.
        expires_at: monotonic seconds after which the verdict may change by age alone.
    """

    ready: bool
    serving: bool
    live: bool
    draining: bool
    starting: bool
    level: Level | None
    evidence: Evidence | None
    backend: str
    causes: tuple[Cause, ...]
    checks: tuple[CheckResult, ...]
    computed_at: float
    expires_at: float

    @property
    def readiness_causes(self) -> tuple[Cause, ...]:
        """The causes without the drain, which is no fault: what a red /readyz names."""
        return tuple(cause for cause in self.causes if cause is not Cause.AGENT_DRAINING)

    def as_json(self, now: float) -> str:
        """The JSON answer.

        Args:
            now: monotonic seconds, for the ages.
        """
        return json.dumps(
            {
                "ready": self.ready,
                "serving": self.serving,
                "draining": self.draining,
                "starting": self.starting,
                "level": self.level,
                "evidence": self.evidence,
                "backend": self.backend,
                "causes": [str(cause) for cause in self.causes],
                "checks": [
                    {
                        "name": check.name,
                        "state": str(check.state),
                        "cause": None if check.cause is None else str(check.cause),
                        "where": check.where or None,
                        "evidence": check.evidence,
                        "age_seconds": round(max(0.0, now - check.at), 3),
                        "seconds": None if check.seconds is None else round(check.seconds, 6),
                        "detail": dict(check.detail),
                    }
                    for check in self.checks
                ],
            },
            ensure_ascii=False,
        )

    def as_text(self, now: float) -> str:
        """The `?verbose` listing: one line a check, then what is wrong in words.

        Args:
            now: monotonic seconds, for the ages.
        """
        marks = {State.PASS: "+", State.FAIL: "-", State.UNKNOWN: "?"}
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [
            f"[{marks[check.state]}] {check.name:<{width}}  {check.state!s:<7}  {check.evidence}"
            + (f" ({_blame(check)})" if check.cause is not None else "")
            + (f", {check.seconds * 1000:.1f} ms" if check.seconds is not None else "")
            + f", {max(0.0, now - check.at):.1f} s ago"
            for check in self.checks
        ]
        lines += [f"{cause}: {cause.sentence}" for cause in self.causes]
        words = [
            "serving" if self.serving else "draining" if self.draining else "not ready",
            f"level {self.level or 'none yet'}",
            f"evidence {self.evidence or 'none yet'}",
        ]
        if self.backend:
            words.append(f"WireGuard {self.backend}")
        lines.append(", ".join(words))
        return "\n".join(lines) + "\n"


def _blame(check: CheckResult) -> str:
    return f"{check.cause}: {check.where}" if check.where else str(check.cause)
