# SPDX-License-Identifier: Apache-2.0
"""Claim: our rules and the open door cost forwarded traffic less than 2 %.

A client behind the tunnel sends as fast as it can to a host beyond the pod's node: through a pod that `wicket up` runs
(its table with address translation and MSS clamp, source rules, the door probing once a second), and through a pod with
nothing but wireguard-go and one masquerade rule. The two take turns, first one and then the other in front; what counts
is the median of the ratios of neighbours, and many short turns tell more than a few long ones. Processor time of
wireguard-go for a gigabyte is printed beside it, as what the ratio would be if nothing else counted: it does not wait
for others. On a busy machine single ratios differ by a factor of two; the middle half of them is printed too.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from _bench import CannotMeasure, conditions, cpu, goal, poll, run, table
from _pod import PORT, Pod, batch

GOAL = 0.98
ROUNDS, SECONDS = 24, 0.35
FAR, FAR_PORT = "10.99.0.1", 7000  # beyond the pod's node
CHUNK, DATAGRAM = 128 * 1024, 1380  # bytes; with 28 of headers a datagram fits the tunnel's MTU of 1420


@dataclass
class Side:
    """One of the two pods, and what came through it."""

    name: str
    pod: Pod
    rates: dict[str, list[float]] = field(default_factory=dict)  # bytes a second
    costs: dict[str, list[float]] = field(default_factory=dict)  # CPU seconds a gigabyte

    def worked(self) -> float:
        """CPU seconds of the pod's wireguard-go."""
        return sum(cpu(pid) for pid in self.pod.wireguard_go())


class Ratio:
    """Ratios of neighbours."""

    def __init__(self, pairs: list[tuple[float, float]]) -> None:
        ratios = [ours / bare for ours, bare in pairs]
        self.median = statistics.median(ratios)
        self.low, _, self.high = statistics.quantiles(ratios, n=4)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.2f}-{self.high:.2f})"


def ours(pod: Pod) -> None:
    pod.start("up", str(pod.conf()), "--drain", "0", "--level", "egress")
    pod.await_code(200)


def bare(pod: Pod) -> None:
    pod.device(pod.pod, "wg0")
    pod.pod.run(
        "wg", "set", "wg0", "listen-port", str(PORT), "private-key", "/dev/stdin", "peer",
        str(pod.client_key.public()), "allowed-ips", "10.8.0.2/32", stdin=pod.key.expose_base64(),
    )  # fmt: skip
    batch(pod.pod, "addr add 10.8.0.1/24 dev wg0", "link set wg0 mtu 1420 up")
    pod.pod.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    pod.pod.run(
        "nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; };"
        " add rule ip nat out ip saddr 10.8.0.0/24 oifname eth0 masquerade",
    )  # fmt: skip


class Stream:
    """Bytes from the client to the far host, as fast as they go."""

    def __init__(self, pod: Pod, protocol: str) -> None:
        self.taken = 0
        self._over = threading.Event()
        kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        far = pod.node.call(lambda: socket.socket(socket.AF_INET, kind))
        near = pod.client.call(lambda: socket.socket(socket.AF_INET, kind))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        far.bind((FAR, FAR_PORT))
        near.settimeout(5)
        if protocol == "TCP":
            far.listen(1)
            near.connect((FAR, FAR_PORT))
            listener, (far, _) = far, far.accept()
            listener.close()
        else:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            near.connect((FAR, FAR_PORT))
        far.settimeout(0.5)
        self._near, self._far = near, far
        self._threads = [
            threading.Thread(target=self._send, args=(CHUNK if protocol == "TCP" else DATAGRAM,), name="send"),
            threading.Thread(target=self._take, name="take"),
        ]

    def _send(self, size: int) -> None:
        data = bytes(size)
        while not self._over.is_set():
            try:
                self._near.send(data)
            except OSError:
                return

    def _take(self) -> None:
        room = bytearray(CHUNK)
        while not self._over.is_set():
            try:
                self.taken += self._far.recv_into(room)
            except TimeoutError:
                continue
            except OSError:
                return

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()


def pump(side: Side, protocol: str, seconds: float) -> None:
    """One turn."""
    with Stream(side.pod, protocol) as stream:
        time.sleep(0.2)  # the congestion window opens
        before, worked, began = stream.taken, side.worked(), time.monotonic()
        time.sleep(seconds)
        came, worked, took = stream.taken - before, side.worked() - worked, time.monotonic() - began
    if not came:
        raise CannotMeasure(f"{side.name}: nothing came through over {protocol}")
    side.rates.setdefault(protocol, []).append(came / took)
    side.costs.setdefault(protocol, []).append(worked / came * 1e9)


def measure(quick: bool) -> None:
    with ExitStack() as stack:
        sides = [Side(name, stack.enter_context(Pod(ipv6=False))) for name in ("wicket up", "bare wireguard-go")]
        for side, build in zip(sides, (ours, bare), strict=True):
            side.pod.node.run("ip", "addr", "add", f"{FAR}/32", "dev", "lo")
            build(side.pod)
            side.pod.client_up("10.8.0.0/24,10.99.0.0/24")
            client = side.pod.client
            poll(
                lambda client=client: client.run("ping", "-c1", "-W1", FAR, check=False).returncode == 0,  # type: ignore[misc]
                f"{side.name}: the far host answers the client",
            )
        for protocol in ("TCP", "UDP"):
            for number in range(2 if quick else ROUNDS):
                for side in sides if number % 2 else reversed(sides):
                    pump(side, protocol, 0.3 if quick else SECONDS)
        assert sides[0].pod.code() == 200, "the agent was red under load"
    print(f"{'2' if quick else ROUNDS} turns each, MTU 1420; {conditions()}\n")
    first, second = sides
    rates = {p: Ratio(list(zip(first.rates[p], second.rates[p], strict=True))) for p in first.rates}
    costs = {p: Ratio(list(zip(second.costs[p], first.costs[p], strict=True))) for p in first.costs}
    rows = []
    for protocol, ratio in rates.items():
        for side in sides:
            came = side.rates[protocol]
            rows.append((
                f"{protocol}, {side.name}",
                f"{statistics.median(came) * 8 / 1e6:.0f}",
                f"{min(came) * 8 / 1e6:.0f}-{max(came) * 8 / 1e6:.0f}",
                f"{statistics.median(side.costs[protocol]):.2f}",
                str(ratio) if side is first else "",
                str(costs[protocol]) if side is first else "",
            ))  # fmt: skip
    table(("", "median Mbit/s", "range", "CPU s a GB", "ratio", "ratio by CPU"), rows)
    print()
    for protocol, ratio in rates.items():
        said = f"{ratio.median:.3f}; by processor time {costs[protocol].median:.3f}"
        goal(f"{protocol} through our rules and the door >= {GOAL:g} of bare ({said})", ratio.median >= GOAL)


if __name__ == "__main__":
    run(measure, __doc__)
