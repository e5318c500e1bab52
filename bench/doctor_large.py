# SPDX-License-Identifier: Apache-2.0
"""Claim: `wicket doctor` on a node with 2,000 services takes less than 2 seconds and 300 MB.

20,000 rules as kube-proxy writes them in iptables mode (by iptables-nft and by iptables-legacy) and in nftables mode,
once as they are and once with a rule that closes the health port, so that fixes are tried; and a node with 100,000
routes. Time from the start of the process to its end, Python's imports included, and the largest resident set of it or
of a program that it runs. Beside each the time of `iptables-save | wc -l` (of `nft list ruleset | wc -l` and
`ip route show table all | wc -l` where the rules are none of iptables): it prints what was read, and judges nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import _node
from _bench import CannotMeasure, conditions, goal, run, table
from _pod import WICKET
from wicketgate.lab.host import Host

_SECONDS, _MEGABYTES = 2.0, 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace to be looked at.

    Attributes:
        name: in the table.
        load: the program that loads it, and what it is handed.
        beside: the shell's command to compare with.
        broken: exit code 1 is expected.
        goal: 20,000 rules; the routes have none.
    """

    name: str
    load: tuple[tuple[str, ...], str]
    beside: str
    broken: bool = False
    goal: bool = True


def places(services: int, routes: int) -> list[Place]:
    """What is measured."""
    found = []
    for drops in (False, True):
        more = ", health port closed" if drops else ""
        found += [
            Place(f"iptables-nft{more}", (("iptables-nft-restore",), _node.iptables(services, drops=drops)),
                  "iptables-nft-save | wc -l", drops),
            Place(f"iptables-legacy{more}", (("iptables-legacy-restore",), _node.iptables(services, drops=drops)),
                  "iptables-legacy-save | wc -l", drops),
            Place(f"nftables{more}", (("nft", "-f", "-"), _node.nftables(services, drops=drops)),
                  "nft list ruleset | wc -l", drops),
        ]  # fmt: skip
    batch = (("ip", "-batch", "-"), _node.routes(routes))
    return [*found, Place(f"{routes} routes", batch, "ip route show table all | wc -l", goal=False)]


def measure(quick: bool) -> None:
    """Each place in turn, and the table."""
    services, routes, rounds = (100, 2000, 2) if quick else (2000, 100_000, 3)
    print(f"{conditions()}; {services} services; median of {rounds}")
    rows: list[list[object]] = []
    worst_time = worst_size = 0.0
    for place in places(services, routes):
        times, sizes, rules = _measured(place, rounds)
        doctor, snapshot, bundle, beside = times
        rows.append([place.name, rules, *(round(each, 2) for each in (doctor, snapshot, bundle, beside)),
                     round(doctor / beside, 1), *(round(each) for each in sizes)])  # fmt: skip
        if place.goal:
            worst_time, worst_size = max(worst_time, doctor), max(worst_size, *sizes)
    head = [
        "",
        "lines",
        "doctor s",
        "snapshot s",
        "bundle s",
        "save | wc s",
        "ratio",
        "doctor MB",
        "snapshot MB",
        "bundle MB",
    ]
    table(head, rows)
    goal(f"doctor on {services} services < {_SECONDS:g} s, worst {worst_time:.2f}", worst_time < _SECONDS)
    goal(f"all of it < {_MEGABYTES:g} MB, worst {worst_size:.0f}", worst_size < _MEGABYTES)


def _measured(place: Place, rounds: int) -> tuple[list[float], list[float], int]:
    with Host.create(f"bench-large-{os.getpid()}") as host, tempfile.TemporaryDirectory() as folder:
        _node.wire_up(host)
        program, text = place.load
        host.run(*program, stdin=text, timeout=120)
        bundle = Path(folder) / "bundle.json"
        works = [int(place.broken)]
        runs: list[tuple[list[str], Path | None, list[int]]] = [
            ([WICKET, "doctor", "--netns", f"pid:{host.pid}", "--json"], None, works),
            ([WICKET, "snapshot", "--netns", f"pid:{host.pid}"], bundle, [0]),
            ([WICKET, "doctor", "--bundle", str(bundle), "--json"], None, works),
        ]
        times: list[list[float]] = [[], [], [], []]
        sizes = [0.0, 0.0, 0.0]
        lines = 0
        with _node.listener(host):
            for _ in range(rounds):
                for at, (argv, output, codes) in enumerate(runs):
                    seconds, megabytes = _process(argv, output, codes)
                    times[at].append(seconds)
                    sizes[at] = max(sizes[at], megabytes)
                seconds, lines = _timed(lambda: int(host.run("sh", "-c", place.beside, timeout=60).stdout))
                times[3].append(seconds)
        json.loads(bundle.read_text())
        return [statistics.median(each) for each in times], sizes, lines


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    answer = work()
    return time.perf_counter() - started, answer


def _process(argv: Sequence[str], output: Path | None, codes: Sequence[int]) -> tuple[float, float]:
    """Seconds, and MB of the largest of the process and those that it ran."""
    with tempfile.TemporaryFile() as said, open(output or os.devnull, "wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in codes:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()[-300:]
            raise CannotMeasure(f"{' '.join(argv[1:3])} ended with {process.returncode}: {words}")
    return seconds, used.ru_maxrss / 1024


if __name__ == "__main__":
    run(measure, __doc__)
