# SPDX-License-Identifier: Apache-2.0
"""The doctor's report as one HTML page: no script, nothing from elsewhere, readable on a phone and in the dark.

All that comes from the place is hostile text: a comment in a rule may be `<script>`. Every word is escaped, and the
page's own policy (Content-Security-Policy) would refuse what slipped through.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from wicketgate.doctor.examine import Examination, Finding
from wicketgate.doctor.page_svg import guilty_steps, way_svg
from wicketgate.doctor.prove import Proved
from wicketgate.doctor.report import headline
from wicketgate.doctor.suppose import Supposed
from wicketgate.errors import InputError
from wicketgate.netpath.diagnose import Cause, Diagnosis

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #525c66; --paper: #ffffff; --card: #f4f6f8; --line: #c3ccd5;
  --bad: #b3161d; --good: #1a6b34; --odd: #7a5200; --badpaper: #fdecec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #a9b4bf; --paper: #14181c; --card: #1e242a;
  --line: #44505b; --bad: #ff9a94; --good: #7ed79b; --odd: #ecc46f; --badpaper: #3a1f20; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header, main, footer { max-width: 46rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0; }
h2 { font-size: 1.1rem; line-height: 1.35; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
code, pre, .object { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .87em; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; margin: .3rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-left: 6px solid var(--line); border-radius: 8px;
  padding: 1rem; margin: 0 0 1rem; }
section.broken { border-left-color: var(--bad); } section.works { border-left-color: var(--good); }
section.unknown { border-left-color: var(--odd); }
.broken > h2 .word { color: var(--bad); } .works > h2 .word { color: var(--good); } .unknown > h2 .word { color: var(--odd); }
.soft { color: var(--soft); } .blame { border: 2px solid var(--bad); background: var(--badpaper); }
svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: .5rem auto; }
svg .box rect { fill: var(--paper); stroke: var(--line); } svg .guilty rect { fill: var(--badpaper); stroke: var(--bad); stroke-width: 3; }
svg text { fill: var(--ink); font: 11px ui-monospace, "DejaVu Sans Mono", monospace; } svg .stage { font-weight: bold; }
svg .lane, svg .object { fill: var(--soft); } svg .object { font-size: 10px; } svg .guilty .object { fill: var(--ink); }
svg .mark { fill: var(--bad); } svg .arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; }
details { margin: .5rem 0; } summary { cursor: pointer; } ol { padding-left: 1.6rem; } li { margin: .2rem 0; }
li.blamed { font-weight: bold; } li.blamed::marker { content: "\\2717  "; color: var(--bad); }
@media print { section { break-inside: avoid; } details > * { display: block; } }
"""


def to_html(examination: Examination, *, taken_at: float) -> str:
    """The whole page.

    Args:
        examination: what was found.
        taken_at: seconds since the epoch at which the place was read.
    """
    when = datetime.fromtimestamp(taken_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    title = headline(examination)
    ordered = (*examination.broken, *examination.unknown, *(f for f in examination.findings if f.diagnosis.works))
    body = "\n".join(_section(finding, number) for number, finding in enumerate(ordered, 1))
    notes = "".join(f"<li>{escape(note)}</li>" for note in examination.notes)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>wicket doctor: {escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="soft">wicket doctor, the place as it was at {when}</p></header>\n'
        f"<main>\n{body}\n</main>\n<footer>"
        + (f"<h2>Notes</h2>\n<ul>{notes}</ul>" if notes else "")
        + "</footer>\n</body>\n</html>\n"
    )


def _section(finding: Finding, number: int) -> str:
    found = finding.diagnosis
    kind = "broken" if found.broken else "works" if found.works else "unknown"
    word = {"broken": "\u2717 broken", "works": "\u2713 works", "unknown": "? cannot be told"}[kind]
    parts = [f'<section class="{kind}" aria-labelledby="flow-{number}">']
    parts.append(f'<h2 id="flow-{number}"><span class="word">{word}</span>: {escape(found.concern.spelled())}</h2>')
    if found.cause is not None:
        parts += _blamed(found.cause)
    elif not found.works:
        parts.append(f"<p>Unknown: {escape(found.unknown)}</p>")
    if finding.door is not None:
        parts.append(f"<p>The very packet, sent here: {escape(finding.door.words)}</p>")
    if found.steps:
        way = way_svg(found, f"{number}") + _steps(found)
        parts.append(way if not found.works else f"<details><summary>Its way</summary>{way}</details>")
    if found.broken:
        parts += _fixes(finding.fixes)
        if finding.wrong_advice:
            items = "".join(f"<li>{escape(advice)}.</li>" for advice in finding.wrong_advice)
            parts.append(f"<h3>Not a fix</h3><ul>{items}</ul>")
    for at, supposed in enumerate(finding.supposed):
        parts += _supposed(supposed, f"{number}-{at}")
    parts.append("</section>")
    return "\n".join(parts)


def _blamed(cause: Cause) -> Iterator[str]:
    yield f"<p><strong>{escape(cause.code)}</strong>, by this {escape(cause.object)}:</p>"
    yield f'<pre class="blame">{escape(cause.where)}</pre>'
    yield f"<p>{escape(cause.explanation)}</p>"


def _supposed(supposed: Supposed, name: str) -> Iterator[str]:
    """What would hold if what was not read were as it mostly is."""
    found = supposed.diagnosis
    yield f"<h3>If {escape(supposed.words)}</h3>"
    if found.cause is None:
        yield "<p>Then it works, as far as this place decides.</p>"
        return
    yield from _blamed(found.cause)
    yield way_svg(found, f"{name}-supposed") + _steps(found)
    yield from _fixes(supposed.fixes)


def _steps(found: Diagnosis) -> str:
    blamed = {id(step) for step in guilty_steps(found)}
    items = []
    for step in found.steps:
        words = f"{step.stage}, {'back' if step.direction == 'reply' else 'there'}"
        words += ", the packet that carries it" if step.layer else ""
        kind = ' class="blamed"' if id(step) in blamed else ""
        items.append(
            f'<li{kind}><span class="soft">{escape(words)}:</span> <code>{escape(step.object)}</code>: {escape(step.effect)}</li>'
        )
    return f"<details><summary>Every step</summary><ol>{''.join(items)}</ol></details>"


def _fixes(fixes: Sequence[Proved]) -> Iterator[str]:
    if not fixes:
        yield "<p>Fix: none in the catalogue could be proved for this.</p>"
    for number, proved in enumerate(fixes, 1):
        tried = ", ".join(proved.proved_by)
        yield f"<h3>Fix {number}: {escape(proved.fix.words)}</h3>"
        yield f'<p class="soft">Proved in the {escape(tried)}.</p>'
        if proved.fix.commands:
            yield f'<pre class="commands">{escape(chr(10).join(proved.fix.commands))}</pre>'
        if proved.fix.undo:
            undo = escape("\n".join(proved.fix.undo))
            yield f"<details><summary>How to undo it</summary><pre>{undo}</pre></details>"
        for effect in proved.side_effects:
            yield f"<p>But: {escape(effect)}.</p>"


class PageFile:
    """Where the page goes: a file of mode 0600 that appears whole or not at all.

    Raises:
        InputError: nothing can be written there; told before any work is done.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        directory = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            raise InputError(f"--html {path}: that is a directory; expected a file's name, or `-`")
        try:
            handle, self._temporary = tempfile.mkstemp(prefix=".wicket-", dir=directory)  # mkstemp makes it 0600
        except OSError as error:
            raise InputError(f"--html {path}: nothing can be written in {directory}: {error.strerror}") from error
        self._file = os.fdopen(handle, "w", encoding="utf-8")

    def write(self, text: str) -> None:
        """Put it in place.

        Raises:
            InputError: the disk did not take it.
        """
        try:
            with self._file:
                self._file.write(text)
            os.replace(self._temporary, self._path)
        except OSError as error:
            self.discard()
            raise InputError(f"--html {self._path}: {error.strerror}") from error

    def discard(self) -> None:
        """Leave nothing behind; what was written stays."""
        self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
