# SPDX-License-Identifier: Apache-2.0
"""Claim: from the start of `wicket up` to the first 200 that an outside client gets takes less than 1.5 s.

In turns with `wg-quick up` of the same file, which proves nothing, and with a Python that only loads what the agent
needs. Wall time on a busy machine says little: the processor seconds beside it do not wait for others.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field

from _bench import conditions, cpu, goal, run, table
from _pod import Pod

GOAL = 1.5  # seconds
ROUNDS = 5


@dataclass
class Row:
    """Seconds of every round."""

    wall: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)


def waited_for() -> float:
    """CPU seconds of all children that this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wg_quick(pod: Pod, row: Row) -> None:
    before, started = waited_for(), time.monotonic()
    pod.pod.run("wg-quick", "up", str(pod.conf()))
    row.wall.append(time.monotonic() - started)
    row.worked.append(waited_for() - before)
    pod.pod.run("wg-quick", "down", str(pod.conf()))


def imports(row: Row) -> None:
    before, started = waited_for(), time.monotonic()
    code = "import cyclopts, wicketgate.cli.app, wicketgate.cli.up"
    os.waitpid(os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", code), 0)
    row.wall.append(time.monotonic() - started)
    row.worked.append(waited_for() - before)


def wicket(pod: Pod, told: Row, green: Row) -> None:
    started = time.monotonic()
    pod.start("up", str(pod.conf()), "--drain", "0")
    assert pod.agent is not None
    told.wall.append(time.monotonic() - started)
    told.worked.append(cpu(pod.agent.pid))
    green.wall.append(pod.await_code(200) - started)
    green.worked.append(cpu(pod.agent.pid))
    pod.stop()


def measure(quick: bool) -> None:
    rows = {name: Row() for name in ("wg-quick up", "Python and imports", "wicket up: listens", "wicket up: first 200")}
    quick_, imports_, told, green = rows.values()
    with Pod() as pod:
        wicket(pod, Row(), Row())  # byte code and disk caches
        for _ in range(1 if quick else ROUNDS):
            wg_quick(pod, quick_)
            imports(imports_)
            wicket(pod, told, green)
    print(f"{len(green.wall)} rounds in turn, userspace WireGuard, dual stack; {conditions()}\n")
    base = statistics.median(quick_.wall)
    table(
        ("", "median s", "max s", "CPU s", "/ wg-quick"),
        [
            (
                name,
                f"{statistics.median(row.wall):.2f}",
                f"{max(row.wall):.2f}",
                f"{statistics.median(row.worked):.2f}",
                f"{statistics.median(row.wall) / base:.1f}",
            )
            for name, row in rows.items()
        ],
    )
    print()
    median = statistics.median(green.wall)
    goal(f"start to the first 200 < {GOAL:g} s ({median:.2f} s)", median < GOAL)


if __name__ == "__main__":
    run(measure, __doc__)
