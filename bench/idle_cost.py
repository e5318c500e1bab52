# SPDX-License-Identifier: Apache-2.0
"""Claim: an agent that watches an idle gateway takes less than 1 % of a core and less than 60 MB.

The door is open and probes once a second, in both families and in IPv4 alone; both agents run side by side in pods of
their own. wireguard-go, which answers the probes, is a row of its own. One more agent probes ten times a second: the
difference is what a probe costs, and what is left is the cost of being there.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from _bench import conditions, cpu, goal, poll, rss, run, table
from _pod import Pod, status

CPU_GOAL, RSS_GOAL = 1.0, 60.0  # % of a core, MB
SECONDS = 30.0


@dataclass
class Row:
    """One agent."""

    name: str
    pod: Pod
    interval: float  # seconds

    def pids(self) -> list[int]:
        """The agent and its userspace WireGuard."""
        assert self.pod.agent is not None
        return [self.pod.agent.pid, *self.pod.wireguard_go()]

    def worked(self) -> list[float]:
        """CPU seconds of both."""
        agent, *device = (cpu(pid) for pid in self.pids())
        return [agent, sum(device)]


def measure(quick: bool) -> None:
    with ExitStack() as stack:
        rows = [
            Row("IPv4 and IPv6, 1 Hz", stack.enter_context(Pod("bridge")), 1.0),
            Row("IPv4 alone, 1 Hz", stack.enter_context(Pod("bridge", ipv6=False)), 1.0),
            Row("IPv4 and IPv6, 10 Hz", stack.enter_context(Pod("bridge")), 0.1),
        ]
        for row in rows:
            row.pod.start("up", str(row.pod.conf()), "--drain", "0", "--probe-interval", str(row.interval))
            row.pod.await_code(200)
        time.sleep(1 if quick else 3)  # what the start itself costs is over
        before, began = [row.worked() for row in rows], time.monotonic()
        time.sleep(3 if quick else SECONDS)
        after, seconds = [row.worked() for row in rows], time.monotonic() - began
        for row in rows:
            row.pod.client.call(lambda: poll(lambda: status() == 200, "still green"))
        shares = [
            [100 * (b - a) / seconds for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)
        ]
        memory = [[rss(pid) for pid in row.pids()] for row in rows]
    print(f"{seconds:.0f} s; {conditions()}\n")
    table(
        ("", "agent, % of a core", "agent, MB", "wireguard-go, % of a core", "wireguard-go, MB"),
        [
            (row.name, f"{share[0]:.2f}", f"{mb[0]:.1f}", f"{share[1]:.2f}", f"{sum(mb[1:]):.1f}")
            for row, share, mb in zip(rows, shares, memory, strict=True)
        ],
    )
    probe = (shares[2][0] - shares[0][0]) / (1 / rows[2].interval - 1 / rows[0].interval)
    print(
        f"\na probe in both families: {10 * probe:.2f} ms of processor time; everything else: {shares[0][0] - probe:.2f} %"
    )
    for row, share, mb in zip(rows[:2], shares, memory, strict=False):
        goal(f"{row.name}: < {CPU_GOAL:g} % of a core ({share[0]:.2f} %)", share[0] < CPU_GOAL)
        goal(f"{row.name}: < {RSS_GOAL:g} MB ({mb[0]:.1f} MB)", mb[0] < RSS_GOAL)


if __name__ == "__main__":
    run(measure, __doc__)
