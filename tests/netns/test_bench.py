# SPDX-License-Identifier: Apache-2.0
"""Every bench runs, prints its table and says of each goal whether it is met; nobody's figures are judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SCRIPTS = sorted(path.name for path in BENCH.glob("[a-z]*.py"))
GLIMPSE = {"door_round_trip.py": ("--rounds", "20"), "health_load.py": ()}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_glimpse(script):
    """Exit code 0 whether or not the goals are met, a table, a verdict on every goal, nothing on stderr."""
    arguments = GLIMPSE.get(script, ("--quick",))
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [sys.executable, str(BENCH / script), *arguments], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) > 4
    verdicts = [line for line in lines if "goal" in line]
    assert verdicts
    assert all("met" in line for line in verdicts)


def test_every_bench_is_on_the_page():
    """docs/benchmarks.md names every script."""
    page = (BENCH.parent / "docs" / "benchmarks.md").read_text()
    assert [script for script in SCRIPTS if f"bench/{script}" not in page] == []


def test_a_bench_that_cannot_measure_says_so():
    """Exit code 3 and a sentence, no traceback, where there is no right to make namespaces."""
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
         sys.executable, "-B", str(BENCH / "start_to_green.py"), "--quick"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("could not measure: ")
    assert "Traceback" not in done.stderr
