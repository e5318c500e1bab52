# SPDX-License-Identifier: Apache-2.0
"""Claim: a fault is red in less than two probe intervals; what the kernel tells by an event is repaired within 100 ms.

Somebody else changes the pod's network beside a running agent. Two bystanders watch: for repairs the kernel's own
notifications, from the moment the fault is told to the moment that what was lost is told again; for red a client
outside, which asks /healthz without a pause. A device's own settings send no event: that the listen port was moved is
found by a probe, which puts it back.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from _bench import CannotMeasure, conditions, goal, poll, run, table
from _pod import POD, PORT, Pod, status

INTERVAL = 1.0  # seconds between probes
REPAIR_GOAL, RED_GOAL = 0.1, 2.0  # seconds; intervals
ROUNDS, RED_ROUNDS = 7, 3
DROP = f"INPUT -i eth0 -p udp --dport {PORT} -j DROP"


@dataclass(frozen=True)
class Fault:
    """Something that somebody does, and how its end is told."""

    name: str
    command: str
    lost: str  # what the kernel's notification of the fault looks like
    back: str


REPAIRS = (
    Fault(
        "pin rule deleted",
        f"ip rule del from {POD}",
        rf"Deleted.*from {POD} lookup main",
        rf"\d+:.*from {POD} lookup main",
    ),
    Fault(
        "nft table flushed",
        "nft flush ruleset",
        r"delete table inet wicketgate-wg0",
        r"add rule inet wicketgate-wg0 postrouting .*masquerade",
    ),
    Fault(
        "address flushed", "ip addr flush dev wg0 scope global", r"Deleted.*inet 10\.8\.0\.1", r"wg0\s+inet 10\.8\.0\.1"
    ),
    Fault("link set down", "ip link set wg0 down", r"wg0: <(?!.*[<,]UP).*", r"wg0: <.*[<,]UP[,>]"),
)


@dataclass
class Bystander:
    """Notifications as they come in: moment and line."""

    heard: list[tuple[float, str]] = field(default_factory=list)

    def first(self, pattern: str, since: float) -> float | None:
        """The moment of the first line after another one."""
        return next((at for at, line in list(self.heard) if at > since and re.search(pattern, line)), None)


@contextmanager
def listening(pod: Pod) -> Iterator[Bystander]:
    """`ip monitor` and `nft monitor` in the pod."""
    ears = Bystander()
    with contextlib.ExitStack() as stack:
        for command in (("ip", "-o", "monitor", "link", "address", "rule"), ("nft", "monitor")):
            process = pod.pod.popen(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

            def listen(process: subprocess.Popen[str] = process) -> None:
                assert process.stdout is not None
                for line in process.stdout:
                    ears.heard.append((time.monotonic(), line))

            thread = threading.Thread(target=listen, name=f"{command[0]} monitor")
            thread.start()
            stack.callback(thread.join)
            stack.callback(process.wait)
            stack.callback(process.kill)
        time.sleep(0.3)  # until they listen
        yield ears


def repaired(pod: Pod, ears: Bystander, fault: Fault) -> float:
    """Seconds from the notification of the fault to that of its repair."""
    began = time.monotonic()
    pod.pod.run(*fault.command.split())
    lost = poll(lambda: ears.first(fault.lost, began), f"{fault.name}: told") or began
    back = poll(lambda: ears.first(fault.back, lost), f"{fault.name}: repaired") or lost
    return back - lost


def red(pod: Pod, number: int) -> float:
    """Seconds from a dropping rule to the first answer that is not 200, as a client outside gets it."""
    time.sleep(INTERVAL * number / RED_ROUNDS)  # at another point of the interval each time
    pod.pod.run("iptables", "-I", *DROP.split())
    began = time.monotonic()
    took = pod.await_code(503) - began
    pod.pod.run("iptables", "-D", *DROP.split())
    pod.await_code(200)
    return took


def port_moved(pod: Pod, number: int) -> tuple[float, bool]:
    """Seconds from the move to the first of: red, or moved back; and which of them."""
    time.sleep(INTERVAL * number / RED_ROUNDS)
    pod.pod.run("wg", "set", "wg0", "listen-port", "4444")
    began = time.monotonic()
    codes: list[int] = []

    def over() -> bool:
        if (code := status()) not in {0, 200}:
            codes.append(code)
        return bool(codes) or pod.pod.run("wg", "show", "wg0", "listen-port").stdout.strip() == str(PORT)

    pod.client.call(lambda: poll(over, "the port: red, or back"))
    took = time.monotonic() - began
    pod.await_code(200)
    return took, not codes


def measure(quick: bool) -> None:
    seconds: dict[str, list[float]] = {}
    with Pod() as pod:
        pod.start("up", str(pod.conf()), "--drain", "0", "--probe-interval", str(INTERVAL))
        pod.await_code(200)
        with listening(pod) as ears:
            for _ in range(1 if quick else ROUNDS):
                for fault in REPAIRS:
                    seconds.setdefault(fault.name, []).append(repaired(pod, ears, fault))
                    time.sleep(0.3)  # one fault at a time
                    pod.await_code(200)
        moved = [port_moved(pod, number) for number in range(1 if quick else RED_ROUNDS)]
        reds = [red(pod, number) for number in range(1 if quick else RED_ROUNDS)]
        if any(number < 0 for number in reds):
            raise CannotMeasure("red before the fault: somebody else uses this pod")
    print(f"probes every {INTERVAL:g} s, dual stack; {conditions()}\n")
    rows = [
        (
            name,
            "repaired, told by an event",
            len(each),
            f"{statistics.median(each) * 1e3:.0f}",
            f"{max(each) * 1e3:.0f}",
            "",
        )
        for name, each in seconds.items()
    ]
    found = [took for took, _ in moved]
    for name, end, each in (
        ("listen port moved", "repaired by a probe" if all(back for _, back in moved) else "red", found),
        ("UDP dropped in INPUT -i eth0", "red", reds),
    ):
        median, most = statistics.median(each), max(each)
        rows.append((name, end, len(each), f"{median * 1e3:.0f}", f"{most * 1e3:.0f}", f"{most / INTERVAL:.2f}"))
    table(("fault", "what ends it", "rounds", "median ms", "max ms", "max, intervals"), rows)
    print()
    worst = max(statistics.median(each) for each in seconds.values())
    goal(f"median repair of what events tell < {REPAIR_GOAL * 1e3:g} ms ({worst * 1e3:.0f} ms)", worst < REPAIR_GOAL)
    worst = max(found + reds) / INTERVAL
    goal(f"every red, or repair by a probe, < {RED_GOAL:g} probe intervals ({worst:.2f})", worst < RED_GOAL)


if __name__ == "__main__":
    run(measure, __doc__)
