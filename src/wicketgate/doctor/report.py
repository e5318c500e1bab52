# SPDX-License-Identifier: Apache-2.0
"""What the doctor says: the JSON contract, and the text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from wicketgate.doctor.drawing import Pen, draw
from wicketgate.doctor.examine import Examination, Finding
from wicketgate.doctor.prove import Proved
from wicketgate.doctor.suppose import Supposed
from wicketgate.netpath.concerns import endpoint
from wicketgate.netpath.diagnose import Cause, Diagnosis
from wicketgate.netpath.step import CheckStep, Step

_MOST_FIXES = 3  # shown in the text; the JSON has all


def to_object(examination: Examination) -> dict[str, Any]:
    """One JSON object: works, and the flows."""
    return {"works": examination.works, "flows": [_flow(each) for each in examination.findings]}


def _flow(finding: Finding) -> dict[str, Any]:
    found = finding.diagnosis
    flow = found.concern.flow
    return {
        "flow": {
            "from": endpoint(flow.source, flow.source_port),
            "to": endpoint(flow.destination, flow.destination_port),
            "proto": flow.protocol,
            "iif": flow.iif,
        },
        "works": found.works,
        "forward": str(found.verdicts[0]),
        "reply": str(found.verdicts[1]),
        "cause": None if found.cause is None else _cause(found.cause),
        "path": [_step(each) for each in found.steps],
        "fixes": [_fix(each) for each in finding.fixes],
    } | _more(finding)


def _more(finding: Finding) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if finding.door is not None:
        more["door"] = {"works": finding.door.works, "words": finding.door.words}
    if finding.supposed:
        more["supposing"] = [_supposing(each) for each in finding.supposed]
    return more


def _supposing(supposed: Supposed) -> dict[str, Any]:
    cause = supposed.diagnosis.cause
    return {
        "words": supposed.words,
        "works": supposed.diagnosis.works,
        "cause": None if cause is None else _cause(cause),
        "fixes": [_fix(each) for each in supposed.fixes],
    }


def _cause(cause: Cause) -> dict[str, str]:
    return {
        "code": cause.code,
        "object": cause.object,
        "where": cause.where,
        "explanation": cause.explanation,
    }


def _step(step: Step) -> dict[str, str]:
    carrier = "the packet that carries it: " if step.layer else ""
    return {
        "direction": step.direction,
        "stage": str(step.stage),
        "object": step.object,
        "effect": carrier + step.effect,
    }


def _fix(proved: Proved) -> dict[str, Any]:
    return {
        "id": proved.fix.id,
        "commands": list(proved.fix.commands),
        "undo": list(proved.fix.undo),
        "proved_by": list(proved.proved_by),
        "side_effects": list(proved.side_effects),
    }


def to_text(examination: Examination, pen: Pen | None = None) -> str:
    """For a terminal: the verdict in one line, each broken flow with its way, why, and what mends it.

    Args:
        examination: what was found.
        pen: for the pictures; plain ASCII without.
    """
    pen = pen or Pen()
    lines = [f"{pen.bold}{headline(examination)}{pen.plain}"]
    told: dict[tuple[str, str], str] = {}
    for finding in examination.broken:
        cause = finding.diagnosis.cause
        assert cause is not None
        lines += ["", f"x {finding.diagnosis.concern.spelled()}"]
        key = cause.code, cause.where
        if key in told and finding.fixes and finding.fixes[0].fix.commands and told[key] == finding.fixes[0].fix.id:
            lines.append(f"  {cause.code}, as above: {cause.where}")
            lines += [f"    {command}" for command in finding.fixes[0].fix.commands]
            continue
        told[key] = finding.fixes[0].fix.id if finding.fixes else ""
        lines += _broken(finding, cause, pen)
    for finding in examination.unknown:
        lines += ["", f"? {finding.diagnosis.concern.spelled()}", f"  unknown: {finding.diagnosis.unknown}"]
        if finding.door is not None:
            lines.append(f"  the very packet, sent here: {finding.door.words}")
        for each in finding.supposed:
            lines += _supposed(each, pen)
    working = [each for each in examination.findings if each.diagnosis.works]
    lines += [""] if working else []
    lines += [f"+ {each.diagnosis.concern.spelled()}" for each in working]
    lines += [""] if examination.notes else []
    lines += [f"note: {note}" for note in examination.notes]
    return "\n".join(lines) + "\n"


def headline(examination: Examination) -> str:
    """The verdict in one line."""
    count = len(examination.findings)
    if examination.works:
        return (
            f"All {count} flows work, as far as this place decides."
            if count > 1
            else "The flow works, as far as this place decides."
        )
    parts = []
    if examination.broken:
        causes = dict.fromkeys(each.diagnosis.cause.code for each in examination.broken if each.diagnosis.cause)
        verb = "is" if len(examination.broken) == 1 else "are"
        whole = "The flow" if count == 1 else f"{len(examination.broken)} of {count} flows"
        parts.append(f"{whole} {verb} broken: {', '.join(causes)}")
    if examination.unknown:
        whole = "The flow" if count == 1 else f"{len(examination.unknown)} of {count}"
        parts.append(f"{whole} cannot be told")
    return "; ".join(parts) + "."


def _supposed(supposed: Supposed, pen: Pen) -> Iterator[str]:
    cause = supposed.diagnosis.cause
    yield f"  If {supposed.words}:"
    if cause is None:
        yield "  it works, as far as this place decides."
        return
    yield f"  {cause.code}: {cause.where}"
    yield ""
    yield from _way(supposed.diagnosis, cause, pen)
    yield ""
    yield f"  Why: {cause.explanation}"
    yield from _fixes(supposed.fixes)


def _broken(finding: Finding, cause: Cause, pen: Pen) -> Iterator[str]:
    yield f"  {cause.code}: {cause.where}"
    yield ""
    yield from _way(finding.diagnosis, cause, pen)
    yield ""
    yield f"  Why: {cause.explanation}"
    if finding.door is not None:
        yield f"  The very packet, sent here: {finding.door.words}."
    yield from _fixes(finding.fixes)
    for advice in finding.wrong_advice:
        yield f"  Not a fix: {advice}."


def _way(found: Diagnosis, cause: Cause, pen: Pen) -> Iterator[str]:
    """The picture, then every step; the guilty one is marked in both."""
    picture = [f"  {line}" for line in draw(found, pen)]
    yield from picture
    if picture:
        yield ""
    direction = ""
    guilty = [step for step in found.steps if step.object == cause.where]
    for step in found.steps:
        if step.layer:
            continue
        if step.direction != direction:
            direction = step.direction
            doomed = direction == "reply" and found.reply is None
            yield (
                "  the way there"
                if direction == "forward"
                else "  the way back" + (", if it came to that" if doomed else "")
            )
        failed = isinstance(step, CheckStep) and not step.passed
        mark = ">>" if step in guilty or failed else "  "
        blame = "   <-- this one" if step in guilty else ""
        line = f"{mark} {step.stage:<14} {step.object}: {step.effect}{blame}"
        yield f"  {pen.red}{line}{pen.plain}" if step in guilty else f"  {line}"
    last = found.reply or (found.forward if found.doomed is None else None)
    if last is not None and not last.works:
        yield f"     {last.verdict}: {last.reason}"


def _fixes(fixes: Sequence[Proved]) -> Iterator[str]:
    if not fixes:
        yield "  Fix: none in the catalogue could be proved for this."
        return
    for number, proved in enumerate(fixes[:_MOST_FIXES], 1):
        tried = ", ".join(proved.proved_by)
        yield f"  Fix {number}: {proved.fix.words} (proved in the {tried})"
        for command in proved.fix.commands:
            yield f"    {command}"
        for command in proved.fix.undo:
            yield f"    undo: {command}"
        for effect in proved.side_effects:
            yield f"    but: {effect}"
