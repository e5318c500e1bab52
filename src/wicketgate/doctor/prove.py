# SPDX-License-Identifier: Apache-2.0
"""Fixes that were tried: on a changed snapshot the flow works, and every other flow is walked before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wicketgate.doctor.change import Fix
from wicketgate.doctor.firewall import Walkers
from wicketgate.doctor.fixes import candidates
from wicketgate.netpath.concerns import Concern, own_traffic
from wicketgate.netpath.diagnose import Diagnosis, diagnose
from wicketgate.netpath.snapshot import Snapshot

_DEEPEST = 3  # fixes that are needed together: forwarding, a rule, masquerade


@dataclass(frozen=True, slots=True)
class Proved:
    """A fix with which the flow works.

    Attributes:
        fix: what to do.
        proved_by: where it was tried.
        side_effects: flows that it breaks, or that become unknown with it, in sentences.
        mends: how many flows that were broken work with it.
        after: the flow with it, as the model sees it.
    """

    fix: Fix
    proved_by: tuple[str, ...]
    side_effects: tuple[str, ...]
    mends: int
    after: Diagnosis | None = None


class Prover:
    """One snapshot, its flows, and the fixes that were tried on it.

    Args:
        snapshot: as it is.
        concerns: the flows that are examined.
        others: flows that no fix should break.
    """

    def __init__(self, snapshot: Snapshot, concerns: Sequence[Concern], others: Sequence[Concern] = ()) -> None:
        self._snapshot = snapshot
        self._concerns = (*concerns, *others, *own_traffic(snapshot))
        self.walkers = Walkers(snapshot)
        self._before = self._walk(snapshot)
        self._tried: dict[tuple[str, tuple[str, ...], str], tuple[Snapshot, dict[Concern, Diagnosis]]] = {}
        self.diagnoses = tuple(self._before[concern] for concern in concerns)

    def fixes(self, diagnosis: Diagnosis) -> tuple[Proved, ...]:
        """What mends this flow, best first: without side effects, then as the catalogue has it."""
        found: list[Proved] = []
        self._search(diagnosis.concern, self._snapshot, diagnosis, None, found)
        return tuple(sorted(found, key=lambda each: len(each.side_effects)))

    def _search(
        self, concern: Concern, snapshot: Snapshot, diagnosis: Diagnosis, so_far: Fix | None, found: list[Proved]
    ) -> None:
        depth = len(so_far.id.split("+")) if so_far else 0
        for candidate in candidates(snapshot, diagnosis):
            fix = so_far.then(candidate) if so_far else candidate
            changed, after = self._try(fix)
            reached = after[concern]
            if reached.works:
                found.append(replace(self._judged(fix, after), after=reached))
            elif depth + 1 < _DEEPEST and reached.cause is not None and reached.cause != diagnosis.cause:
                self._search(concern, changed, reached, fix, found)

    def _try(self, fix: Fix) -> tuple[Snapshot, dict[Concern, Diagnosis]]:
        key = (fix.id, fix.commands, fix.words)
        if key not in self._tried:
            changed = fix.apply(self._snapshot)
            self._tried[key] = changed, self._walk(changed)
        return self._tried[key]

    def _walk(self, snapshot: Snapshot) -> dict[Concern, Diagnosis]:
        walker = self.walkers.of(snapshot)
        return {concern: diagnose(walker, concern) for concern in self._concerns}

    def _judged(self, fix: Fix, after: dict[Concern, Diagnosis]) -> Proved:
        effects, mends = [], 0
        for concern, before in self._before.items():
            now = after[concern]
            mends += now.works and not before.works
            if before.works and not now.works:
                why = now.cause.code if now.cause else f"unknown: {now.unknown}"
                effects.append(f"breaks {concern.spelled()} ({why})")
            elif before.works and before.forward.egress != now.forward.egress:
                effects.append(f"{concern.spelled()} leaves by {now.forward.egress} instead of {before.forward.egress}")
        return Proved(fix, ("model",), tuple(effects), mends)
