# SPDX-License-Identifier: Apache-2.0
"""Help is broken by the terminal's width: no paragraph, and no example, at another place."""

from __future__ import annotations

import itertools

import pytest

from wicketgate.cli.app import COMMANDS, run
from wicketgate.cli.help_text import reflowed

DOC = """First line.

    One paragraph
    of two lines.

    For example:

      wicket x | \\
        wicket y

    Args:
        one: what it is,
            and what not.
        two: short.

    Returns:
        A number.
    """


def test_paragraphs_and_entries_become_one_line_each():
    """Examples stay as they are; sections keep their form."""
    assert reflowed(DOC).splitlines() == [
        "First line.", "", "One paragraph of two lines.", "", "For example:", "", "  wicket x | \\", "    wicket y", "",
        "Args:", "    one: what it is, and what not.", "    two: short.", "", "Returns:", "    A number.",
    ]  # fmt: skip


def test_it_changes_no_word():
    """And is the same when done twice."""
    assert reflowed(DOC).split() == DOC.split()
    assert reflowed(reflowed(DOC)) == reflowed(DOC)


@pytest.mark.parametrize(
    "command", [(each.name,) for each in COMMANDS if each.name != "lab"] + [("lab", "run"), ("lab", "up")]
)
def test_every_commands_help_fills_eighty_columns(command, capsys, monkeypatch):
    """No line is wider, no example is broken, and no line of prose ends early for no reason."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*command, "--help"]) == 0
    prose = capsys.readouterr().out.partition("╭")[0]
    lines = prose.splitlines()
    assert max(map(len, lines)) <= 80
    for line, following in itertools.pairwise(lines):
        if line.startswith("  ") and following:
            assert following.startswith("  "), f"an example is broken: {line}"
        elif line and following and not line.startswith(" "):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > 79, f"ends early: {line}"
