# SPDX-License-Identifier: Apache-2.0
"""A packet's way as an SVG: down on the left to where it arrives, and its answer's up on the right.

Every box is a stage; what is in it has full text in the list below the picture, so a box may shorten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.step import CheckStep, Direction, Stage, Step

_WIDTH, _BOX, _HEIGHT, _GAP = 340, 158, 40, 18  # user units; the picture is scaled to the page
_LEFT, _RIGHT = 4, 178
_MOST = 24  # characters of 11 units' monospace in a box
_TOP = 30


@dataclass(frozen=True, slots=True)
class Box:
    """A stage of the way.

    Attributes:
        stage: its name.
        object: the thing that decided there.
        guilty: it is to blame.
    """

    stage: str
    object: str
    guilty: bool = False


def guilty_steps(found: Diagnosis) -> list[Step]:
    """The steps to blame, among those of the packet itself."""
    where = found.cause.where if found.cause is not None else None
    own: list[Step] = [step for step in found.steps if not step.layer]
    named = [step for step in own if where is not None and step.object == where]
    failed = [step for step in own if isinstance(step, CheckStep) and not step.passed]
    return named or [*failed[-1:]]


def boxes(found: Diagnosis, direction: Direction) -> list[Box]:
    """One box for a stage that is met once or several times in a row; the guilty step, else the last one, is in it."""
    guilty = {id(step) for step in guilty_steps(found)}
    made: list[Box] = []
    for step in found.steps:
        if step.layer or step.direction != direction:
            continue
        box = Box(str(step.stage), step.object, id(step) in guilty)
        if made and made[-1].stage == box.stage and step.stage is not Stage.TUNNEL_OUT:
            made[-1] = made[-1] if made[-1].guilty else box
        else:
            made.append(box)
    return made


def way_svg(found: Diagnosis, number: str) -> str:
    """The picture. `number` makes the ids of its title unique in the page."""
    there, back = boxes(found, "forward"), boxes(found, "reply")
    rows = max(len(there), len(back), 1)
    height = _TOP + rows * (_HEIGHT + _GAP) + 12
    name = f"way-{number}"
    title = f"The way of {found.concern.spelled()}"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(_told(there, back))}</desc>',
        f'<text class="lane" x="{_LEFT}" y="16">the way there</text>',
    ]
    parts += _lane(there, _LEFT, [_TOP + at * (_HEIGHT + _GAP) for at in range(len(there))])
    if back:
        parts.append(f'<text class="lane" x="{_RIGHT}" y="16">the way back</text>')
        # From where the way there ended upwards, or down when the answer's way is the longer one.
        bottom = max(len(there), len(back)) - 1
        tops = [_TOP + (bottom - at) * (_HEIGHT + _GAP) for at in range(len(back))]
        parts += _lane(back, _RIGHT, tops)
        if there:
            y = _TOP + (len(there) - 1) * (_HEIGHT + _GAP) + _HEIGHT // 2
            parts.append(_arrow(_LEFT + _BOX, y, _RIGHT, tops[0] + _HEIGHT // 2))
    parts.append("</svg>")
    return "\n".join(parts)


def _lane(lane: Iterable[Box], x: int, tops: list[int]) -> list[str]:
    parts = []
    for at, (box, y) in enumerate(zip(lane, tops, strict=True)):
        kind = "box guilty" if box.guilty else "box"
        parts.append(f'<g class="{kind}"><title>{escape(box.object)}</title>')
        parts.append(f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}" rx="6"/>')
        mark = '<tspan class="mark">&#10007; </tspan>' if box.guilty else ""
        parts.append(f'<text class="stage" x="{x + 8}" y="{y + 16}">{mark}{escape(box.stage)}</text>')
        parts.append(f'<text class="object" x="{x + 8}" y="{y + 31}">{escape(_short(box.object))}</text></g>')
        if at + 1 < len(tops):
            down = tops[at + 1] > y
            start, end = (y + _HEIGHT, tops[at + 1]) if down else (y, tops[at + 1] + _HEIGHT)
            parts.append(_arrow(x + _BOX // 2, start, x + _BOX // 2, end))
    return parts


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    if x1 == x2:
        tip = -5 if y2 > y1 else 5
        head = f"M{x2 - 4} {y2 + tip}L{x2} {y2}L{x2 + 4} {y2 + tip}"
        return f'<path class="arrow" d="M{x1} {y1}L{x2} {y2}{head}"/>'
    middle = (x1 + x2) // 2
    head = f"M{x2 - 5} {y2 - 4}L{x2} {y2}L{x2 - 5} {y2 + 4}"
    return f'<path class="arrow" d="M{x1} {y1}H{middle}V{y2}H{x2}{head}"/>'


def _short(text: str) -> str:
    return text if len(text) <= _MOST else text[: _MOST - 1] + "\u2026"


def _told(there: list[Box], back: list[Box]) -> str:
    def said(lane: list[Box]) -> str:
        return ", ".join(f"{box.stage}{' (to blame)' if box.guilty else ''}" for box in lane)

    return f"There: {said(there)}." + (f" Back: {said(back)}." if back else "")
