# SPDX-License-Identifier: Apache-2.0
"""scripts/readme-transcript: it lets times differ, and nothing else."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "readme-transcript"
REAL = ["", "one: green 0.1 s", "two: red 12.0 s", "  at 1795470971, after 19 ms", "three", "four", ""]


@pytest.fixture(scope="module")
def script():
    loader = SourceFileLoader("readme_transcript", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "shown",
    [
        ["one: green 9 s", "two: red 1.5 s", "  at 1700000000, after 2 ms", "three", "four"],
        ["[...]", "three", "[...]"],
        ["one: green 0.1 s", "[...]", "four"],
        ["[...]", "two: red 12.0 s", "[...]", "four"],
    ],
)
def test_what_was_printed_is_recognised(script, shown):
    """Whole, or with whole lines left out where that is marked; times may differ."""
    assert script.differences(shown, REAL) == []


@pytest.mark.parametrize(
    "shown",
    [
        ["one: red 0.1 s", "[...]"],
        ["one: green 0.1 s", "three", "[...]"],
        ["two: red 12.0 s", "[...]"],
        ["[...]", "three"],
        ["[...]", "four", "[...]", "three", "[...]"],
        ["[...]", "five", "[...]"],
    ],
)
def test_what_was_not_printed_is_told(script, shown):
    """A changed word, a gap without a mark, another beginning, another end, another order, an invented line."""
    assert script.differences(shown, REAL)


def test_the_readme_has_a_transcript(script):
    """It shows the tunnel's red and the cure's green, and begins with the command that the script runs."""
    shown = script.transcript((SCRIPT.parents[1] / "README.md").read_text())
    text = "\n".join(shown)
    assert "wg-quick up beside it: load balancer: red" in text
    assert "wicket sidecar, CAP_NET_ADMIN alone: load balancer: green" in text
    assert "wicket up, CAP_NET_ADMIN alone: load balancer: green" in text
