# SPDX-License-Identifier: Apache-2.0
"""Steps of a scenario, and the JSON that programs read."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from wicketgate.errors import InputError, StateError
from wicketgate.lab import scenarios
from wicketgate.lab.scenario import Report, Step, Teller
from wicketgate.lab.shapes import Cni


def teller():
    told = io.StringIO()
    result = Teller("story", Console(file=told, width=100))
    result.chapter(Cni.VPC, "story, vpc shape")
    return result, told


def test_the_json_is_the_contract():
    """scenario, ok, and of each step exactly name, cni, expected, observed, ok, evidence."""
    report = Report("seed", [Step("a", "vpc", "red", "red", "timed out"), Step("b", "vpc", "green", "red", "—")])
    assert json.loads(report.to_json()) == {
        "scenario": "seed",
        "ok": False,
        "steps": [
            {"name": "a", "cni": "vpc", "expected": "red", "observed": "red", "ok": True, "evidence": "timed out"},
            {"name": "b", "cni": "vpc", "expected": "green", "observed": "red", "ok": False, "evidence": "—"},
        ],
    }


def test_a_scenario_without_steps_is_not_ok():
    """Nothing looked at is nothing proved."""
    assert not Report("seed").ok


def test_an_expected_red_that_is_seen_is_a_success():
    """Ok means that what was seen is what should be, not that it was green."""
    assert Report("seed", [Step("a", "vpc", "red", "red", "")]).ok


def test_a_step_that_cannot_be_observed_fails_with_the_reason_and_the_story_goes_on():
    """A WicketError is evidence, not the end."""
    story, told = teller()

    def look():
        raise StateError("wg is not installed")

    assert not story.step("a handshake", "green", look).ok
    assert story.step("a ping", "green", lambda: ("green", "3 of 3 [ok]")).ok
    assert [step.cni for step in story.report.steps] == ["vpc", "vpc"]
    assert story.report.steps[0].evidence == "wg is not installed"
    assert "✗ a handshake: nothing (expected green)" in told.getvalue()
    assert "✓ a ping: green" in told.getvalue()
    assert "3 of 3 [ok]" in told.getvalue()  # what was observed is never read as markup


def test_the_table_has_a_row_a_step_and_a_column_a_shape():
    """A step that went wrong shows what was expected."""
    steps = [Step("s: a", "bridge", "green", "green", ""), Step("s: a", "vpc", "red", "green", "")]
    told = io.StringIO()
    Console(file=told, width=100).print(Report("seed", steps).table())
    row = next(line for line in told.getvalue().splitlines() if "s: a" in line)
    assert "✓ green" in row
    assert "✗ green, not red" in row


def test_an_unknown_scenario_is_bad_input_that_lists_the_known_ones():
    """`wicket lab run nosuch`."""
    with pytest.raises(InputError, match="'nosuch'; there are: seed, drain, reload"):
        scenarios.find("nosuch")
