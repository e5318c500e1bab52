# SPDX-License-Identifier: Apache-2.0
"""What a place is called by its owner cannot speak to the terminal of who looks at it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor_pod import wg_quicked
from wicketgate.cli.printable import printable
from wicketgate.doctor.drawing import pen_for
from wicketgate.netpath.codec import to_json

TITLE = "\x1b]0;pwned\x07\x1b[2J\u202e"


@given(st.text())
def test_nothing_but_ends_of_lines_moves_the_cursor(text):
    """Whatever comes in, what goes out is printable; what was printable stays."""
    shown = printable(text)
    assert all(each.isprintable() or each == "\n" for each in shown)
    if all(each.isprintable() for each in text):
        assert shown == text


def test_our_own_colours_stay_where_they_were_asked_for():
    """And nobody else's other ones."""
    pen = pen_for("utf-8", colour=True)
    text = f"{pen.red}x{pen.plain} {TITLE}"
    assert printable(text, coloured=True).startswith(f"{pen.red}x{pen.plain} \\x1b]0;")
    assert "\x1b" not in printable(text)


@pytest.mark.parametrize(
    "command", [["doctor", "--twin", "never"], ["trace", "10.0.0.2:9000/tcp", "--from", "203.0.113.9"]]
)
def test_a_hostile_bundle_is_shown_as_text(tmp_path, command):
    """An interface's name in a file from somebody else."""
    snapshot = wg_quicked()
    links = tuple(replace(each, name=f"eth0{TITLE}") if each.name == "eth0" else each for each in snapshot.links)
    text = to_json(replace(snapshot, links=links)).replace('"eth0"', json.dumps(f"eth0{TITLE}"))
    bundle = tmp_path / "evil.json"
    bundle.write_text(text)
    if command[0] == "trace":
        command = [*command, "--iif", f"eth0{TITLE}"]
    done = subprocess.run(
        [sys.executable, "-m", "wicketgate", *command, "--bundle", str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "\\x1b]0;pwned" in done.stdout + done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr), done.stderr
