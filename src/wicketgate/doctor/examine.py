# SPDX-License-Identifier: Apache-2.0
"""The whole examination of one snapshot: flows, diagnoses, proved fixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from wicketgate.doctor.advice import wrong_here
from wicketgate.doctor.prove import Proved, Prover
from wicketgate.doctor.strain import strains
from wicketgate.doctor.suppose import Supposed, is_told, suppose
from wicketgate.errors import InputError, StateError
from wicketgate.netpath.concerns import Concern, Found, find, with_senders_endpoints
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.snapshot import Snapshot

# Without these no way can be computed at all; what lacks besides makes single flows unknown.
_NEEDED = ("links", "addresses", "routes", "rules")

GOOD, BROKEN, UNREADABLE = 0, 1, 3  # exit codes


class Passage(Protocol):
    """What the door says of a flow; see `door_proof.Passage`."""

    @property
    def works(self) -> bool | None:
        """It got through, or not; None when that was not seen."""
        ...

    @property
    def words(self) -> str:
        """How it ended."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """A flow with all that is known of it.

    Attributes:
        diagnosis: of the model, or of the judge where the model does not know.
        fixes: best first.
        wrong_advice: what people will have tried, in sentences.
        door: what became of the very packet, where it was sent.
        supposed: of a flow that cannot be told: what would hold if what was not read is as it mostly is.
    """

    diagnosis: Diagnosis
    fixes: tuple[Proved, ...] = ()
    wrong_advice: tuple[str, ...] = ()
    door: Passage | None = None
    supposed: tuple[Supposed, ...] = ()


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        findings: one for each flow.
        notes: what could not be examined, and what no rule decides, in sentences.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Every flow works, and there is one. Unknown does not work."""
        return bool(self.findings) and all(each.diagnosis.works for each in self.findings)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Those that certainly do not work."""
        return tuple(each for each in self.findings if each.diagnosis.broken)

    @property
    def unknown(self) -> tuple[Finding, ...]:
        """Those that the model cannot tell."""
        return tuple(each for each in self.findings if not each.diagnosis.works and not each.diagnosis.broken)

    @property
    def exit_code(self) -> int:
        """0 all work; 1 one is broken; 3 none is known to be broken, and one cannot be told."""
        return BROKEN if self.broken else GOOD if self.works else UNREADABLE


class Judge(Protocol):
    """Looks again at what the model found, by other means."""

    def review(self, snapshot: Snapshot, findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
        """The findings as this judge sees them, and notes in sentences."""
        ...


def complete(snapshot: Snapshot) -> Snapshot:
    """The snapshot, when it has what every verdict rests on.

    Raises:
        StateError: links, addresses, routes or rules were not read.
    """
    lacking = [f"{each.what}: {each.why}" for each in snapshot.unread if each.what in _NEEDED]
    if lacking:
        raise StateError(f"no way can be computed, because this could not be read: {'; '.join(lacking)}")
    return snapshot


def examine(snapshot: Snapshot, asked: Sequence[Concern] = (), judge: Judge | None = None) -> Examination:
    """Examine these flows, or without any those that matter here.

    Args:
        snapshot: the place.
        asked: the flows.
        judge: has the last word on what is broken or unknown; without one it is the model's alone.

    Raises:
        StateError: what every verdict rests on was not read.
        InputError: no flow was asked for and none was found, or a listing is damaged.
    """
    found = find(complete(snapshot))
    if asked:
        found = Found(tuple(asked), tuple(each for each in (*found.concerns, *found.others) if each not in asked))
    if not found.concerns:
        raise InputError(
            "no flow that matters was found: no TCP listener on an uplink and no WireGuard device; name one with --to ADDRESS:PORT/tcp"
        )
    snapshot = with_senders_endpoints(snapshot, found.concerns)
    prover = Prover(snapshot, found.concerns, found.others)
    findings = tuple(
        Finding(each, prover.fixes(each), wrong_here(prover.walkers, snapshot, each)) if each.broken else Finding(each)
        for each in prover.diagnoses
    )
    notes = [*found.notes, *strains(snapshot, prover.walkers.of(snapshot).routing)]
    if snapshot.changed_while_read:
        notes.append("the state changed while it was read; run it again to be sure")
    notes += [f"not read: {each.what}: {each.why}" for each in snapshot.unread]
    if judge is not None and is_told(snapshot):
        findings, more = judge.review(snapshot, findings)
        notes += more
    unknown = [each.diagnosis for each in findings if not each.diagnosis.works and not each.diagnosis.broken]
    supposed = suppose(snapshot, found.concerns, found.others, unknown)
    findings = tuple(replace(each, supposed=supposed.get(each.diagnosis.concern, ())) for each in findings)
    return Examination(findings, tuple(notes))
