# SPDX-License-Identifier: Apache-2.0
"""Stories that the lab tells: steps, each with what was expected, what was observed, and the evidence.

The JSON of `wicket lab run SCENARIO --json`:

    {"scenario": str, "ok": bool,
     "steps": [{"name": str, "cni": str, "expected": str, "observed": str, "ok": bool, "evidence": str}]}
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from wicketgate.errors import WicketError
from wicketgate.lab.shapes import Cni
from wicketgate.lab.topology import Lab, Plan

GREEN = "green"
RED = "red"
SHOWN = 200  # characters of a step's evidence that the progress shows; the JSON has all of it


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at.

    Attributes:
        name: what was looked at, in words.
        cni: in which shape.
        expected: what should be seen, in one or two words.
        observed: what was seen, in the same words.
        evidence: where that was seen: a state and its reason, a status line, a round trip.
    """

    name: str
    cni: str
    expected: str
    observed: str
    evidence: str

    @property
    def ok(self) -> bool:
        """What was seen is what should be."""
        return self.expected == self.observed

    def to_dict(self) -> dict[str, str | bool]:
        """As the JSON has it."""
        return {
            "name": self.name,
            "cni": self.cni,
            "expected": self.expected,
            "observed": self.observed,
            "ok": self.ok,
            "evidence": self.evidence,
        }


@dataclass(slots=True)
class Report:
    """What a scenario found."""

    scenario: str
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """There were steps, and every one is as expected."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def to_json(self) -> str:
        """The contract above."""
        value = {"scenario": self.scenario, "ok": self.ok, "steps": [step.to_dict() for step in self.steps]}
        return json.dumps(value, indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """For people: a row a step, a column a shape."""
        cnis = list(dict.fromkeys(step.cni for step in self.steps))
        table = Table(title=f"scenario {self.scenario}", title_justify="left")
        table.add_column("step")
        for cni in cnis:
            table.add_column(cni)
        cells = {(step.name, step.cni): step for step in self.steps}
        subject = ""
        for name in dict.fromkeys(step.name for step in self.steps):
            if subject and subject != name.partition(":")[0]:
                table.add_section()
            subject = name.partition(":")[0]
            table.add_row(escape(name), *(_cell(cells.get((name, cni))) for cni in cnis))
        return table


def _cell(step: Step | None) -> str:
    if step is None:
        return ""
    if step.ok:
        return f"[green]✓[/] {coloured(step.observed)}"
    return f"[red]✗[/] {coloured(step.observed)}, not {coloured(step.expected)}"


def coloured(word: str) -> str:
    """Red and green as they are called; anything else as it is."""
    return f"[{word}]{word}[/]" if word in {GREEN, RED} else escape(word)


class Teller:
    """Tells a scenario while it happens, and keeps its steps.

    Attributes:
        report: what was found until now.
    """

    def __init__(self, scenario: str, console: Console) -> None:
        self.report = Report(scenario)
        self.cni = ""
        self._console = console

    def chapter(self, cni: Cni, title: str) -> None:
        """A heading; the steps that follow are in this shape."""
        self.cni = cni.value
        self._console.print(f"\n[bold]{escape(title)}[/]", highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Something that was done and is no step."""
        self._console.print(f"  [dim]{escape(line)}[/]", highlight=False, soft_wrap=True)

    def step(self, name: str, expected: str, look: Callable[[], tuple[str, str]]) -> Step:
        """Look at something.

        Args:
            name: what.
            expected: what should be seen.
            look: gives what was seen and the evidence. When it raises a WicketError, nothing was seen: the step fails
                with its sentence as evidence, and the story goes on.
        """
        began = time.monotonic()
        with self._working(name):
            try:
                observed, evidence = look()
            except WicketError as error:
                observed, evidence = "nothing", str(error)
        step = Step(name, self.cni, expected, observed, evidence)
        self.report.steps.append(step)
        mark = "[green]✓[/]" if step.ok else "[red]✗[/]"
        word = coloured(observed) if step.ok else f"{coloured(observed)} (expected {coloured(expected)})"
        seconds = time.monotonic() - began
        self._console.print(f"  {mark} {escape(name)}: {word} [dim]{seconds:.1f} s[/]", highlight=False, soft_wrap=True)
        shown = evidence if len(evidence) <= SHOWN else f"{evidence[:SHOWN]}…"
        self._console.print(f"      [dim]{escape(shown)}[/]", highlight=False, soft_wrap=True)
        return step

    @contextmanager
    def _working(self, name: str) -> Iterator[None]:
        if self._console.is_terminal:
            with self._console.status(f"{escape(name)} ..."):
                yield
        else:
            yield


def run_name(scenario: str) -> str:
    """The name of a lab that a run makes for itself."""
    return f"{scenario}-{os.getpid()}"


def tell(
    scenario: str, story: Callable[[Lab, Teller], None], cnis: Sequence[Cni], console: Console, *, gateways: int = 1
) -> Report:
    """Tell a story once in each shape, each in a fresh lab that is gone afterwards.

    Raises:
        StateError: the lab could not be made.
    """
    teller = Teller(scenario, console)
    for cni in cnis:
        teller.chapter(cni, f"{scenario}, {cni} shape")
        with Lab.up(Plan(run_name(scenario), cni, gateways), progress=teller.say) as lab:
            story(lab, teller)
    return teller.report
