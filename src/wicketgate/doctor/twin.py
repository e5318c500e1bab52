# SPDX-License-Identifier: Apache-2.0
"""The judge that sends real packets: in a twin, a throw-away namespace rebuilt from the snapshot.

A fix that works there too is proved by `twin`; one that does not is not shown. What the model cannot tell the twin
decides. No word rests on a twin that differs from the snapshot, or that shows the broken flow otherwise than the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from wicketgate.doctor.examine import Finding
from wicketgate.doctor.prove import Proved
from wicketgate.doctor.twin_work import Work
from wicketgate.errors import StateError
from wicketgate.kernel.twin.room import Tell, in_a_room
from wicketgate.netpath.concerns import endpoint
from wicketgate.netpath.diagnose import Cause, Diagnosis
from wicketgate.netpath.settings import in_name
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.step import FilterStep, PacketStep, Stage, Step
from wicketgate.netpath.verdict import Verdict

SECONDS = 15.0  # for all of a twin's work: on a quiet machine it takes one
_ALONE = "fixes are proved in the model alone"
Rooms = Callable[[Callable[[Tell], None]], Iterator[dict[str, Any]]]


class TwinJudge:
    """Reviews findings in a twin.

    Args:
        seconds: for all of it.
    """

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds

    def review(self, snapshot: Snapshot, findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
        """As the twin sees them, and what it could not do. Works of every flow need no twin."""
        if all(each.diagnosis.works for each in findings):
            return findings, ()
        told: list[dict[str, Any]] = []
        notes: list[str] = []
        try:
            told.extend(in_a_room(lambda tell: Work(snapshot, findings, tell).do(), seconds=self._seconds))
        except StateError as error:
            notes.append(
                f"no twin was built, or it was not done: {error}; what it had not proved is proved in the model alone"
            )
        return self._merged(snapshot, findings, told, notes)

    def _merged(
        self, snapshot: Snapshot, findings: tuple[Finding, ...], told: Sequence[dict[str, Any]], notes: list[str]
    ) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
        words: list[list[dict[str, Any]]] = [[] for _ in findings]
        for each in told:
            if "lacking" in each:
                notes.append(f"the twin cannot be rebuilt: {'; '.join(each['lacking'])}; {_ALONE}")
            else:
                words[each["flow"]].append(each)
        merged = tuple(
            _with(snapshot, findings, finding, said, notes) for finding, said in zip(findings, words, strict=True)
        )
        release = os.uname().release
        if told and snapshot.kernel_release and _series(snapshot.kernel_release) != _series(release):
            notes.append(f"the twin ran on this machine's kernel {release}, the place on {snapshot.kernel_release}")
        return merged, tuple(dict.fromkeys(notes))


def _series(release: str) -> list[str]:
    return release.split(".")[:2]


def _with(
    snapshot: Snapshot, findings: Sequence[Finding], finding: Finding, said: Sequence[dict[str, Any]], notes: list[str]
) -> Finding:
    name = finding.diagnosis.concern.spelled()
    fixes: dict[int, dict[str, Any]] = {}
    for each in said:
        if "fix" in each:
            fixes[each["fix"]] = each
        elif "contradiction" in each:
            notes.append(
                f"the twin does not reproduce this, so it proves nothing here: {name}: {each['contradiction']}"
            )
        elif "unplayed" in each:
            notes.append(f"not played in the twin: {name}: {each['unplayed']}")
        elif "mixed" in each:
            unknown = f"{finding.diagnosis.unknown}; {each['mixed']}"
            finding = replace(finding, diagnosis=replace(finding.diagnosis, unknown=unknown))
        elif "decided" in each:
            notes.append(
                f"the model cannot tell ({finding.diagnosis.unknown}); the twin decided, {each['tries']} tries alike: {name}"
            )
            finding = replace(finding, diagnosis=_decided(snapshot, finding.diagnosis, each))
    if fixes:
        shown = [_judged(findings, finding, proved, fixes.get(at), notes) for at, proved in enumerate(finding.fixes)]
        kept = [each for each in shown if each is not None]
        finding = replace(finding, fixes=tuple(sorted(kept, key=lambda each: len(each.side_effects))))
    return finding


def _judged(
    findings: Sequence[Finding], finding: Finding, proved: Proved, said: dict[str, Any] | None, notes: list[str]
) -> Proved | None:
    if said is None:
        return proved
    what = f"{proved.fix.id} for {finding.diagnosis.concern.spelled()}"
    if "unplayed" in said:
        notes.append(f"not tried in the twin: {what}: {said['unplayed']}")
        return proved
    if not said["proved"]:
        notes.append(f"not shown, because the twin contradicts the model: {what}: {said['why']}")
        return None
    effects = list(proved.side_effects)
    for at in said["harm"]:
        spelled = findings[at].diagnosis.concern.spelled()
        if not any(effect.startswith(f"breaks {spelled}") for effect in effects):
            effects.append(f"breaks {spelled} (seen in the twin)")
    if said["left"]:
        effects.append(f"its undo does not take back everything (seen in the twin): {said['left']}")
    return replace(proved, proved_by=(*proved.proved_by, "twin"), side_effects=tuple(effects))


def _decided(snapshot: Snapshot, found: Diagnosis, said: dict[str, Any]) -> Diagnosis:
    outcome = said["decided"]
    verdicts = Verdict(outcome["forward"]), Verdict(outcome["reply"])
    steps = tuple(_steps(found, said))
    forward = replace(found.forward, verdict=verdicts[0], reason=outcome["reason"], steps=steps)
    return replace(
        found,
        forward=forward,
        reply=None,
        works=outcome["works"],
        verdicts=verdicts,
        unknown="",
        cause=None if outcome["works"] else _cause(snapshot, found, said, steps),
    )


def _steps(found: Diagnosis, said: dict[str, Any]) -> Iterator[Step]:
    flow, outcome = found.concern.flow, said["decided"]
    ends = f"{flow.protocol} {endpoint(flow.source, flow.source_port)} -> {endpoint(flow.destination, flow.destination_port)}"
    if flow.iif:
        yield PacketStep(
            stage=Stage.INGRESS, object=flow.iif, effect=f"{ends} comes in (sent in the twin)", ifname=flow.iif
        )
    else:
        yield PacketStep(stage=Stage.SOCKET_OUT, object="a socket", effect=f"sends {ends} (in the twin)")
    yield from _traced(said, "forward")
    if outcome["egress"]:
        words = f"{outcome['source']} -> {outcome['destination']} is seen to leave by {outcome['egress']}"
        yield PacketStep(stage=Stage.EGRESS, object=outcome["egress"], effect=words, ifname=outcome["egress"])
    yield from _traced(said, "reply")
    if outcome["reply_egress"]:
        words = f"the answer is seen to leave by {outcome['reply_egress']}"
        ifname = outcome["reply_egress"]
        yield PacketStep(stage=Stage.EGRESS, object=ifname, effect=words, ifname=ifname, direction="reply")


def _traced(said: dict[str, Any], direction: str) -> Iterator[Step]:
    for each in said["steps"]:
        if each["direction"] == direction and each["hook"] in set(Stage):
            yield FilterStep(
                stage=Stage(each["hook"]),
                object=each["text"],
                effect=f"{each['verdict']} (the kernel's own trace)",
                direction="reply" if direction == "reply" else "forward",
                family=each["family"],
                table=each["table"],
                chain=each["chain"],
                handle=each["handle"],
                verdict=each["verdict"],
            )


def _cause(snapshot: Snapshot, found: Diagnosis, said: dict[str, Any], steps: Sequence[Step]) -> Cause:
    outcome, flow = said["decided"], found.concern.flow
    drops = [each for each in steps if isinstance(each, FilterStep) and each.verdict == "drop"]
    words = f"{outcome['reason'][:1].upper()}{outcome['reason'][1:]}: sent in a twin of this place, and seen there."
    code = outcome["code"]
    if drops and code.endswith("-drop"):
        return Cause(code, "firewall rule", drops[-1].object, words)
    if code == "rp-filter" and flow.iif:
        names = [f"net.ipv4.conf.{each}.rp_filter" for each in ("all", in_name(flow.iif))]
        name = max(names, key=lambda each: snapshot.sysctls.get(each, "0"))
        return Cause(code, "setting", f"{name} = {snapshot.sysctls.get(name, '?')}", words)
    if said["way"]:
        return Cause(code, "route", said["way"], words)
    return Cause(code, "state", outcome["reason"], words)
