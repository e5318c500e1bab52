# SPDX-License-Identifier: Apache-2.0
"""Claim: `wicket watch` has its line within 100 ms of the change.

Rules and nftables rules are added one after the other in a namespace, and each is waited for in the output of `wicket
watch`, of `ip monitor` (rules) and of `nft monitor` (nftables), which run side by side. Time counts from just before the
start of `ip`, `nft` ... until the line has been read from the pipe. A rule's line comes from the event itself; nftables'
is the difference of two listings, and six programs are run for it. Legacy iptables sends no event: it is heard by its lock.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import quantiles
from typing import Any

from _bench import PATIENCE, CannotMeasure, conditions, cpu, goal, rss, run, table
from wicketgate.lab.host import Host

GOAL = 0.1  # seconds
CPU_GOAL, RSS_GOAL = 1.0, 60.0  # % of a core, MB; idle
ROUNDS = 200


class Reader:
    """What programs print, and when it was read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._rest: dict[str, bytes] = {}

    def add(self, name: str, process: subprocess.Popen[Any]) -> None:
        """Read this one's output too."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._rest[name] = b""
        self._selector.register(process.stdout, selectors.EVENT_READ, name)

    def until(self, wanted: dict[str, str], patience: float = PATIENCE) -> dict[str, float]:
        """The moment at which each had printed its words."""
        found: dict[str, float] = {}
        end = time.monotonic() + patience
        while len(found) < len(wanted):
            if time.monotonic() > end:
                raise CannotMeasure(f"{', '.join(wanted.keys() - found.keys())}: no line within {patience:g} s")
            for key, _ in self._selector.select(0.1):
                data = os.read(key.fd, 1 << 16)
                now = time.monotonic()
                if not data:
                    raise CannotMeasure(f"{key.data} has ended")
                name = key.data
                self._rest[name] = (self._rest[name] + data)[-100_000:]
                if name in wanted and name not in found and wanted[name].encode() in self._rest[name]:
                    found[name] = now
        return found


def percentiles(times: list[float]) -> tuple[float, float]:
    """p50 and p99, in ms."""
    cuts = quantiles(times, n=100)
    return 1000 * cuts[49], 1000 * cuts[98]


Change = tuple[list[str], str]  # a command, and the words of its line


def _rule(number: int) -> Change:
    return ["ip", "rule", "add", "pref", str(10_000 + number), "lookup", "7"], f"{10_000 + number}:"


def _nft_rule(number: int) -> Change:
    port = 10_000 + number
    return ["nft", "add", "rule", "inet", "bench", "c", "tcp", "dport", str(port), "drop"], f"tcp dport {port} drop"


def _legacy_rule(number: int) -> Change:
    port = str(10_000 + number)
    return ["iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP"], f"--dport {port} -j"


def _setting(number: int) -> Change:
    ports = f"10000 {20_000 + number}"
    return ["sysctl", "-qw", f"net.ipv4.ip_local_port_range={ports}"], f"port_range = {ports} "


def _words(change: Change, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    command, words = change
    return command, dict.fromkeys(names, words)


def _await(names: Sequence[str], change: Callable[[int], object]) -> None:
    """Programs that have just been started hear nothing yet: make changes until all do."""
    for number in range(-1, -60, -1):
        try:
            change(number)
        except CannotMeasure:
            continue
        return
    raise CannotMeasure(f"{' and '.join(names)} do not listen")


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    process.wait()


def measure(quick: bool) -> None:
    """Run it."""
    rounds = 20 if quick else ROUNDS
    results: list[tuple[str, list[float]]] = []
    with ExitStack() as stack:
        host = stack.enter_context(Host.create(f"bench-watch-{os.getpid()}"))
        host.run("nft", "-f", "-", stdin="table inet bench {\n chain c { }\n}\n")
        reader = Reader()

        def start(name: str, *command: str) -> subprocess.Popen[Any]:
            process = host.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stack.callback(_end, process)
            reader.add(name, process)
            return process

        watch = start("wicket watch", sys.executable, "-m", "wicketgate", "watch", "--no-flows")
        reader.until({"wicket watch": "watching"})
        start("ip monitor", "stdbuf", "-oL", "ip", "monitor", "rule")
        start("nft monitor", "nft", "monitor")

        def change_once(argv: list[str], words: dict[str, str], patience: float = PATIENCE) -> dict[str, float]:
            began = time.monotonic()
            process = host.popen(*argv, stderr=subprocess.DEVNULL)
            found = reader.until(words, patience)
            process.wait()
            return {name: at - began for name, at in found.items()}

        def series(what: str, names: Sequence[str], change: Callable[[int], tuple[list[str], str]]) -> None:
            _await(names, lambda number: change_once(*_words(change(number), names), 0.5))
            times: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds):
                for name, took in change_once(*_words(change(number), names)).items():
                    times[name].append(took)
            results.extend((f"{what}: {name}", each) for name, each in times.items())

        series("rule", ("wicket watch", "ip monitor"), _rule)
        series("nftables", ("wicket watch", "nft monitor"), _nft_rule)
        series("legacy iptables", ("wicket watch",), _legacy_rule)
        series("setting", ("wicket watch",), _setting)
        time.sleep(1)
        before, began = cpu(watch.pid), time.monotonic()
        time.sleep(2 if quick else 20)
        share = 100 * (cpu(watch.pid) - before) / (time.monotonic() - began)
        memory = rss(watch.pid)
    print(f"{rounds} changes each; {conditions()}\n")
    shown = [(name, *percentiles(times)) for name, times in results]
    beside = {name.partition(":")[0]: p50 for name, p50, _ in shown if "wicket" not in name}
    table(
        ("change: program", "p50, ms", "p99, ms", "p50 to the other's"),
        [
            (
                name,
                f"{p50:.1f}",
                f"{p99:.1f}",
                f"{p50 / beside[what]:.2f}" if (what := name.partition(":")[0]) in beside else "",
            )
            for name, p50, p99 in shown
        ],
    )
    print(f"\nidle: {share:.2f} % of a core, {memory:.1f} MB")
    for name, _, p99 in shown:
        if "wicket" in name:
            goal(f"{name}: p99 < {1000 * GOAL:g} ms ({p99:.1f} ms)", p99 < 1000 * GOAL)
    goal(f"idle: < {CPU_GOAL:g} % of a core ({share:.2f} %)", share < CPU_GOAL)
    goal(f"idle: < {RSS_GOAL:g} MB ({memory:.1f} MB)", memory < RSS_GOAL)


if __name__ == "__main__":
    run(measure, __doc__)
