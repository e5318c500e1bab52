# SPDX-License-Identifier: Apache-2.0
"""One packet's way and its answer's, step by step: as text for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wicketgate.netpath.concerns import endpoint
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.step import CheckStep, Step, UnknownStep, step_line
from wicketgate.netpath.trace import Trace

GOOD, BROKEN, UNKNOWN = 0, 1, 3  # exit codes


def exit_code(found: Diagnosis) -> int:
    """0 it works, 1 it certainly does not, 3 the model cannot tell."""
    return GOOD if found.works else BROKEN if found.broken else UNKNOWN


def trace_object(found: Diagnosis) -> dict[str, Any]:
    """One JSON object: the flow, what becomes of it, and each step of both ways."""
    flow = found.concern.flow
    return {
        "flow": {
            "from": endpoint(flow.source, flow.source_port),
            "to": endpoint(flow.destination, flow.destination_port),
            "proto": flow.protocol,
            "iif": flow.iif,
            "mark": flow.mark,
        },
        "works": found.works,
        "unknown": found.unknown or None,
        "cause": None
        if found.cause is None
        else {
            "code": found.cause.code,
            "object": found.cause.object,
            "where": found.cause.where,
            "explanation": found.cause.explanation,
        },
        "forward": _way_object(found.forward, str(found.verdicts[0])),
        "reply": None if found.reply is None else _way_object(found.reply, str(found.verdicts[1])),
    }


def _way_object(trace: Trace, verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reason": trace.reason,
        "code": trace.code or None,
        "object": trace.object or None,
        "egress": trace.egress or None,
        "via": None if trace.via is None else str(trace.via),
        "packet": trace.packet.spelled(),
        "mark": trace.packet.mark,
        "steps": [step_line(each) for each in trace.steps],
        "branches": [_way_object(each, str(each.verdict)) for each in trace.branches],
    }


def trace_text(found: Diagnosis) -> str:
    """The two ways, a step a line; what decided is marked."""
    guilty = found.cause.where if found.cause is not None else ""
    lines = [found.concern.spelled(), "", "the way there", *_way_lines(found.forward, guilty)]
    back = found.reply or found.doomed
    if back is not None:
        doomed = ", if it came to that" if found.reply is None else ""
        lines += ["", f"the way back{doomed}", *_way_lines(back, guilty)]
    lines += ["", headline(found)]
    return "\n".join(lines) + "\n"


def headline(found: Diagnosis) -> str:
    """What becomes of the flow, in one line."""
    if found.works:
        return f"It works: {found.verdicts[0]}, and the answer is {found.verdicts[1]}, as far as this place decides."
    if found.cause is not None:
        return f"It is broken: {found.cause.code}: {found.cause.where}\n{found.cause.explanation}"
    return f"It cannot be told: {found.unknown}"


def _way_lines(trace: Trace, guilty: str) -> Iterator[str]:
    for step in trace.steps:
        yield step_text(step, guilty)
    for number, branch in enumerate(trace.branches, 1):
        yield f"   branch {number}, where only a hash decides"
        for step in branch.steps[len(trace.steps) :]:
            yield step_text(step, guilty)
        yield f"   = {branch.verdict}: {branch.reason}"
    yield f"   = {trace.verdict}: {trace.reason}"


def step_text(step: Step, guilty: str) -> str:
    """One step as a line: a mark, the stage, the object as its own tool lists it, and the effect."""
    failed = isinstance(step, UnknownStep) or (isinstance(step, CheckStep) and not step.passed)
    mark = ">>" if failed or (guilty and step.object == guilty) else "  "
    inner = "  " * step.layer
    blame = "   <-- this one" if guilty and step.object == guilty else ""
    return f"{mark} {inner}{step.stage:<14} {step.object}: {step.effect}{blame}"
