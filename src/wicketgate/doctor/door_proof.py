# SPDX-License-Identifier: Apache-2.0
"""The third proof: the very packet, sent in the place itself as a stranger sends it, after a fix and before it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wicketgate.doctor.examine import Examination, Finding
from wicketgate.doctor.live_difference import NEVER
from wicketgate.doctor.live_trace import LiveTrace, watch_live
from wicketgate.errors import InputError, StateError
from wicketgate.kernel.live_watch import LiveWatch
from wicketgate.netpath.diagnose import Diagnosis


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of it.

    Attributes:
        works: it and its answer got through, or not; None when that was not seen.
        words: how it ended, or why nothing was seen, in a clause.
        live: all of it, where it was sent.
    """

    works: bool | None
    words: str
    live: LiveTrace | None = None


@dataclass(slots=True)
class DoorProof:
    """Asks the kernel of the namespace that this process is in.

    Attributes:
        lacking: why it cannot; set once it was found out, and then nothing more is tried.
    """

    lacking: str = field(default="")

    def ask(self, found: Diagnosis) -> Passage:
        """Send a flow's first packet; nothing of it, nor of its answer, leaves this host."""
        flow = found.concern.flow
        if flow.iif is None:
            return Passage(None, "this host sends it itself, so no stranger's packet is like it")
        if flow.iif == "lo":
            return Passage(None, "it comes over lo, where no stranger comes in")
        if self.lacking:
            return Passage(None, self.lacking)
        try:
            with LiveWatch() as watch:
                live = watch_live(watch, found.concern, lambda _: found)
        except (StateError, InputError) as error:
            self.lacking = str(error)
            return Passage(None, self.lacking)
        return Passage(live.works, ended(live), live)

    def review(self, examination: Examination) -> Examination:
        """The findings with what the door says of each."""
        findings = tuple(replace(each, door=self.ask(each.diagnosis)) for each in examination.findings)
        notes = examination.notes
        for each in findings:
            if each.door is not None and contradicted(each):
                notes += (f"the door and the model disagree on {each.diagnosis.concern.spelled()}: {each.door.words}",)
        if self.lacking:
            notes += (f"no packet was sent: {self.lacking}",)
        return Examination(findings, notes)


def contradicted(finding: Finding) -> bool:
    """Whether the packet fared otherwise than was computed."""
    found, works = finding.diagnosis, finding.door.works if finding.door is not None else None
    return (works is True and found.broken) or (works is False and found.works)


def ended(live: LiveTrace) -> str:
    """How the packet, or its answer, ended: in a clause."""
    way, name = (live.reply, "its answer") if live.reply and live.observed.answer else (live.forward, "the packet")
    last = next((each.kernel for each in reversed(way) if each.kernel is not None), None)
    if live.works:
        return "the packet and its answer get through"
    if last is None or (last.kind == NEVER and way is live.forward):
        return "the packet is not seen to come in: tc or XDP takes it, or the interface"
    if live.reply and not live.observed.answer and live.works is False:
        return "the packet arrives, and no answer is sent"
    if live.works is None and live.reply and live.observed.answer:
        return "the packet fares as computed; whether anybody out there can answer it is not seen"
    if live.works is None:
        return f"{name} {last.kind} {last.hook}, and no answer was seen"
    return f"{name} {last.spelled()}"
