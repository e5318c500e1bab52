# SPDX-License-Identifier: Apache-2.0
"""Says in the log when health turns, and why: often all that is left of a pod that was taken out of service."""

from __future__ import annotations

from collections.abc import Callable

from wicketgate.health.board import Board
from wicketgate.health.check import State
from wicketgate.health.verdict import Verdict
from wicketgate.logs import get_logger

_log = get_logger("health")


def narrate(board: Board) -> Callable[[], None]:
    """Log every change of the verdict: green, or red with its causes and the first evidence.

    Returns:
        a function that ends it.
    """
    told: list[tuple[bool, tuple[str, ...]]] = []

    def tell(verdict: Verdict) -> None:
        if not verdict.checks:
            return
        # Without the drain, which is no turn of health: the agent says that itself.
        now = (verdict.ready, tuple(sorted(verdict.readiness_causes)))
        if told and told[-1] == now:
            return
        told[:] = [now]
        if verdict.ready:
            _log.info("green: a client would be served", level=verdict.level, evidence=verdict.evidence)
            return
        red = [c for c in verdict.checks if c.state is not State.PASS]
        _log.warning(
            "red: a client would not be served, or nothing proves it",
            causes=" ".join(verdict.readiness_causes),
            why="; ".join(f"{c.name}: {c.evidence}" for c in red[:2]),
        )

    return board.on_verdict(tell)
