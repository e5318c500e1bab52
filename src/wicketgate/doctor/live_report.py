# SPDX-License-Identifier: Apache-2.0
"""The computed way beside the kernel's: as text for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from wicketgate.doctor.live_difference import Compared, Point
from wicketgate.doctor.live_trace import LiveTrace
from wicketgate.doctor.trace_report import headline, step_text, trace_object
from wicketgate.kernel.twin.nft_trace import Traced
from wicketgate.netpath.step import Stage
from wicketgate.netpath.trace import Trace

_MARKS = {True: " =", False: "!!", None: " ?"}
_DULL = ("continue", "")
_BEFORE = (Stage.INGRESS, Stage.TUNNEL_IN, Stage.SOCKET_OUT, Stage.OUTPUT_ROUTING)
# Steps that are no hook's: behind which one they come.
_BEHIND = MappingProxyType(
    {
        Stage.INPUT_ROUTING: "prerouting",
        Stage.SOURCE_CHECK: "prerouting",
        Stage.FORWARDING: "prerouting",
        Stage.REROUTING: "output",
        Stage.SOCKET_IN: "input",
        Stage.NEIGHBOUR: "postrouting",
        Stage.TUNNEL_OUT: "postrouting",
        Stage.EGRESS: "postrouting",
    }
)


def live_object(live: LiveTrace) -> dict[str, Any]:
    """One JSON object: that of the computed trace, and `live` beside it."""
    found = live.difference
    return trace_object(live.found) | {
        "live": {
            "packet": live.observed.ends.spelled() if live.observed.ends is not None else None,
            "same": found is None,
            "works": live.works,
            "first_difference": None if found is None else {"direction": found[0]} | _compared_object(found[1]),
            "forward": [_compared_object(each) for each in live.forward],
            "reply": [_compared_object(each) for each in live.reply],
            "nft": [
                *(_word_object("forward", each) for each in _foreign(live.observed.request)),
                *(_word_object("reply", each) for each in _foreign(live.observed.answer)),
            ],
            "conntrack": [each.spelled() for each in live.observed.tracked],
            "drop_reasons": list(live.observed.reasons) if _lost(live) else [],
            "sender": live.observed.sender or None,
            "untold": list(live.untold),
        }
    }


def _compared_object(each: Compared) -> dict[str, Any]:
    return {
        "point": f"{each.named.kind} {each.named.hook}".rstrip(),
        "same": each.same,
        "computed": _point_object(each.computed),
        "kernel": _point_object(each.kernel),
    }


def _point_object(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {"kind": point.kind, "hook": point.hook or None, **point.facts, "by": point.by or None}


def _word_object(direction: str, word: Traced) -> dict[str, Any]:
    return {
        "direction": direction, "hook": word.hook, "family": word.family, "table": word.table, "chain": word.chain,
        "handle": word.handle or None, "verdict": word.verdict, "text": word.text,
    }  # fmt: skip


def _lost(live: LiveTrace) -> bool:
    ways = (live.forward, live.reply)
    return any(each.kernel is not None and "lost" in each.kernel.kind for way in ways for each in way)


def live_text(live: LiveTrace) -> str:
    """The ways, a point a paragraph: what was computed and what the kernel did between it and the last one."""
    found = live.difference
    apart = found[1] if found is not None else None
    guilty = live.found.cause.where if live.found.cause is not None else ""
    lines = [f"{live.found.concern.spelled()}", "", "the way there"]
    lines += _way_lines(live.forward, live.found.forward, live.observed.request, apart, guilty)
    back = live.found.reply
    if live.reply:
        lines += ["", "the way back", *_way_lines(live.reply, back, live.observed.answer, apart, guilty)]
    if live.observed.tracked:
        lines += ["", "connection tracking", *(f"   {each.spelled()}" for each in live.observed.tracked)]
    if live.observed.sender:
        lines += ["", f"the sending socket: {live.observed.sender}"]
    if live.observed.reasons and _lost(live):
        lines += ["", f"drop reasons: {', '.join(live.observed.reasons)}"]
    if live.untold:
        lines += ["", *(f"not told: {each}" for each in live.untold)]
    return "\n".join([*lines, "", live_headline(live)]) + "\n"


def live_headline(live: LiveTrace) -> str:
    """Whether both agree, and what becomes of the flow."""
    found = live.difference
    if found is None:
        seen = {True: "it works", False: "it is broken", None: "whether it works was not seen to the end"}[live.works]
        if live.works is False and not live.found.broken and live.observed.sender:
            seen = f"what becomes of it is decided elsewhere ({live.observed.sender})"
        return f"The kernel does as computed: {seen}.\n{headline(live.found)}"
    where = "on the way there" if found[0] == "forward" else "on the way back"
    each = found[1]
    ours = each.computed.spelled() if each.computed is not None else "nothing more"
    theirs = each.kernel.spelled() if each.kernel is not None else "nothing more"
    return f"The first difference is {where}:\n   computed  {ours}\n   kernel    {theirs}"


def _way_lines(
    points: Sequence[Compared], trace: Trace | None, words: Sequence[Traced], apart: Compared | None, guilty: str
) -> Iterator[str]:
    steps = [each for each in trace.steps if not each.layer] if trace is not None else []
    said = list(_foreign(words))
    begins = [step for step in steps if step.stage in _BEFORE]
    yield from (f"      computed  {step_text(step, guilty)}" for step in begins)
    steps = [step for step in steps if step not in begins]
    for each in points:
        hook = each.named.hook
        if each.named.kind != "enters":
            here = [step for step in steps if step.stage == hook]
            yield from (f"      computed  {step_text(step, guilty)}" for step in here)
            yield from (f"      kernel       {_word_text(word)}" for word in said if word.hook == hook)
            steps = [step for step in steps if step not in here]
            said = [word for word in said if word.hook != hook]
        mark = _MARKS[each.same]
        first = "   <-- the first difference" if each is apart else ""
        if each.same:
            both = _joined(each)
            yield f"{mark} {both.spelled()}"
        else:
            yield f"{mark} computed: {each.computed.spelled() if each.computed is not None else '-'}"
            yield f"   kernel:   {each.kernel.spelled() if each.kernel is not None else '-'}{first}"
        if each.named.kind == "leaves":
            behind = [step for step in steps if _BEHIND.get(step.stage) == hook]
            yield from (f"      computed  {step_text(step, guilty)}" for step in behind)
            steps = [step for step in steps if step not in behind]
    yield from (f"      computed  {step_text(step, guilty)}" for step in steps)


def _joined(each: Compared) -> Point:
    ours, theirs = each.computed, each.kernel
    if ours is None or theirs is None:
        return each.named
    by = (
        ours.by
        if not theirs.by or ours.by == theirs.by
        else f"{ours.by}; kernel: {theirs.by}"
        if ours.by
        else theirs.by
    )
    return Point(ours.kind, ours.hook, {**ours.facts, **theirs.facts}, by)


def _foreign(words: Sequence[Traced]) -> Iterator[Traced]:
    """What others' rules said; a policy that accepts says nothing."""
    for each in words:
        if not each.ours and (each.handle or each.verdict == "drop"):
            yield each


def _word_text(word: Traced) -> str:
    done = f" -> {word.verdict}" if word.verdict not in _DULL else ""
    return f"{word.hook:<14} {word.family} {word.table} {word.chain}: {word.text}{done}"
