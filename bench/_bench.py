# SPDX-License-Identifier: Apache-2.0
"""What the benches share: a pod behind a node, agents in it, what processes cost, and one table.

A bench prints one table and says of each goal `met` or `NOT met`; it ends with exit code 0 whether or not it is met,
and with 3 and a sentence when it could not measure. All traffic stays in namespaces of its own, which end with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from wicketgate.errors import WicketError

TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 30.0  # seconds until a bench gives up: this machine may be busy, but not for ever
T = TypeVar("T")


class CannotMeasure(Exception):  # noqa: N818 - a sentence, not a fault
    """The sentence that the user reads."""


def run(measure: Callable[[bool], None], about: str | None) -> None:
    """Run a bench to its end.

    Args:
        measure: takes `quick` (a glimpse, no figures to quote) and prints the table.
        about: the bench's docstring, for --help.
    """
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a glimpse of a few seconds; no figures to quote")
    quick = options.parse_args().quick
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was put up is taken down
    try:
        measure(quick)
    except KeyboardInterrupt:
        sys.exit(130)
    except (CannotMeasure, WicketError, OSError, subprocess.SubprocessError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        sys.exit(3)


def conditions() -> str:
    """`2 CPUs, Linux 6.1.0, load 0.42`: what a figure needs beside it."""
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="ascii").strip()
    return f"{os.cpu_count()} CPUs, Linux {release}, load average {os.getloadavg()[0]:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns: the first to the left, numbers to the right."""
    cells = [[each if isinstance(each, str) else f"{each:g}" for each in row] for row in [list(head), *rows]]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(head))]
    for row in cells:
        first, *others = row
        print(
            (
                first.ljust(widths[0]) + "".join(f"  {c.rjust(w)}" for c, w in zip(others, widths[1:], strict=False))
            ).rstrip()
        )


def goal(sentence: str, met: bool) -> None:
    """One line: what was promised, and whether it was kept."""
    print(f"goal {sentence}: {'met' if met else 'NOT met'}")


# -- what processes cost


def cpu(pid: int) -> float:
    """CPU seconds of a process, children it has waited for included (proc_pid_stat(5), fields 14 to 17)."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(int(each) for each in words[11:15]) / TICKS


def rss(pid: int) -> float:
    """MB resident: VmRSS, so code that other programs share counts as well."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise CannotMeasure(f"process {pid} is gone")


def poll(ask: Callable[[], T], what: str, *, patience: float = PATIENCE, rest: float = 0.005) -> T:
    """Ask until the answer is true.

    Raises:
        CannotMeasure: it never was.
    """
    end = time.monotonic() + patience
    while not (answer := ask()):
        if time.monotonic() > end:
            raise CannotMeasure(f"{what}: not within {patience:g} s")
        time.sleep(rest)
    return answer
