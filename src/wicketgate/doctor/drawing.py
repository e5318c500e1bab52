# SPDX-License-Identifier: Apache-2.0
"""A packet's way and its answer's in a few lines of text, the guilty stage marked.

203.0.113.9 ─▶ eth0 ─▶ input-routing ─▶ 0.0.0.0:9000
│
wg0 ◀─ ✗ output-routing ◀────────────────┘
╰ 32765: not from all fwmark 0xca6c lookup 51820
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wicketgate.doctor.page_svg import Box, boxes
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.step import Direction, Stage
from wicketgate.netpath.verdict import Verdict

WIDTH = 100  # columns; a longer way leaves out stages that let it pass
_ENDS = (Stage.INGRESS, Stage.EGRESS)


@dataclass(frozen=True, slots=True)
class Pen:
    """What lines are drawn with.

    Attributes:
        right, left: arrows between two stages.
        down: from the end of the way there to the beginning of the answer's.
        corner: where the answer begins.
        line: what a corner is led to with.
        cross: before the guilty stage.
        hook: before the name of the thing to blame.
        skipped: stages that are left out.
        red, bold, plain: escapes of the terminal, or nothing.
    """

    right: str = " -> "
    left: str = " <- "
    down: str = "|"
    corner: str = "+"
    line: str = "-"
    cross: str = "x "
    hook: str = "`- "
    skipped: str = "..."
    red: str = ""
    bold: str = ""
    plain: str = ""


_LINES = {"right": " \u2500\u25b6 ", "left": " \u25c0\u2500 ", "down": "\u2502", "corner": "\u2518", "line": "\u2500", "cross": "\u2717 ", "hook": "\u2570 ", "skipped": "\u2026"}  # fmt: skip
_COLOURS = {"red": "\x1b[31m", "bold": "\x1b[1m", "plain": "\x1b[0m"}


def pen_for(encoding: str | None, *, colour: bool) -> Pen:
    """The best that this output can show."""
    try:
        "".join(_LINES.values()).encode(encoding or "ascii")
        lines = _LINES
    except (UnicodeEncodeError, LookupError):
        lines = {}
    return Pen(**lines, **(_COLOURS if colour else {}))


@dataclass(frozen=True, slots=True)
class _Node:
    text: str
    guilty: str = ""  # the thing to blame


def draw(found: Diagnosis, pen: Pen) -> Iterator[str]:
    """The lines. None where there is nothing to see but one stage."""
    there = _there(found)
    back = _back(found)
    if len(there) + len(back) < 3:
        return
    top = _fitting(there, pen)
    line, marks = _joined(top, pen, pen.right)
    yield _red(line, marks, pen)
    yield from _blame(marks, pen)
    if not back:
        return
    low, marks = _joined(_fitting([*reversed(back)], pen), pen, pen.left)
    turns = found.forward.verdict is Verdict.DELIVERED and not marks_in(top)
    if not turns:
        yield _red(low, marks, pen)
    else:
        column = max(len(line) - len(top[-1].text) // 2 - 1, len(low) + len(pen.left))
        yield " " * column + pen.down
        arrow = pen.left.rstrip()
        yield _red(low, marks, pen) + arrow + pen.line * (column - len(low) - len(arrow)) + pen.corner
    yield from _blame(marks, pen)


def marks_in(nodes: list[_Node]) -> bool:
    """One of them is to blame."""
    return any(node.guilty for node in nodes)


def _there(found: Diagnosis) -> list[_Node]:
    flow = found.concern.flow
    nodes = [_Node(str(flow.source) if flow.iif is not None else "here"), *_nodes(found, "forward")]
    if found.forward.verdict is Verdict.FORWARDED:
        nodes.append(_Node(str(flow.destination)))
    return nodes


def _back(found: Diagnosis) -> list[_Node]:
    flow = found.concern.flow
    nodes = _nodes(found, "reply")
    if nodes and found.forward.verdict is Verdict.FORWARDED:
        nodes.insert(0, _Node(str(flow.destination)))
    if nodes and found.reply is not None and found.reply.works:
        nodes.append(_Node(str(flow.source) if flow.iif is not None else "here"))
    return nodes


def _nodes(found: Diagnosis, direction: Direction) -> list[_Node]:
    return [_node(box) for box in boxes(found, direction) if box.stage != Stage.SOCKET_OUT or box.guilty]


def _node(box: Box) -> _Node:
    text = box.stage
    if box.stage in _ENDS and " " not in box.object:
        text = box.object
    elif box.stage == Stage.SOCKET_IN:
        text = box.object.split(" ")[-1] if ":" in box.object and len(box.object) < 60 else text
    return _Node(text, box.object if box.guilty else "")


def _fitting(nodes: list[_Node], pen: Pen) -> list[_Node]:
    """The nodes, without some in the middle that are not to blame, so that the line fits."""
    kept = list(nodes)
    while len(_joined(kept, pen, pen.right)[0]) > WIDTH:
        middle = [at for at in range(2, len(kept) - 2) if not kept[at].guilty and kept[at].text != pen.skipped]
        if not middle:
            break
        at = middle[len(middle) // 2]
        kept[at] = _Node(pen.skipped)
        while at > 0 and kept[at - 1].text == pen.skipped:
            del kept[at]
            at -= 1
        while at + 1 < len(kept) and kept[at + 1].text == pen.skipped:
            del kept[at + 1]
    return kept


def _joined(nodes: list[_Node], pen: Pen, arrow: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The line, and where in it the guilty stages stand: from, to, the thing."""
    line, marks = "", []
    for at, node in enumerate(nodes):
        line += arrow if at else ""
        start = len(line)
        line += (pen.cross if node.guilty else "") + node.text
        if node.guilty:
            marks.append((start, len(line), node.guilty))
    return line, marks


def _red(line: str, marks: list[tuple[int, int, str]], pen: Pen) -> str:
    for start, end, _ in reversed(marks):
        line = line[:start] + pen.red + line[start:end] + pen.plain + line[end:]
    return line


def _blame(marks: list[tuple[int, int, str]], pen: Pen) -> Iterator[str]:
    for start, _, thing in marks:
        column = start if start + len(thing) <= WIDTH else max(0, min(start, WIDTH - len(thing)))
        yield f"{' ' * column}{pen.hook}{pen.red}{thing}{pen.plain}"
