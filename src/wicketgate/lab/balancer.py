# SPDX-License-Identifier: Apache-2.0
"""The lab's load balancer: the stand-in of `lab/nlb`, told about this lab's addresses and asked without an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from wicketgate.errors import StateError
from wicketgate.lab.nlb.client import NlbControl, launch
from wicketgate.lab.nlb.settings import Checker, CheckSettings, Listener, NlbSettings, Target
from wicketgate.lab.nlb.status import NlbStatus, TargetStatus
from wicketgate.lab.nlb.target import State
from wicketgate.lab.topology import CHECKERS, VIP, Lab
from wicketgate.lab.wgquick import LISTEN_PORT

ZONES = ("a", "b")  # one checker in each
TCP_CHECK = CheckSettings(protocol="tcp", port=9000, interval=0.5, timeout=0.8)  # as the seed's Service asks for
HTTP_CHECK = CheckSettings(protocol="http", port=8080, path="/healthz", matcher="200", interval=0.5, timeout=0.8)
_POLL = 0.05  # s


def settings(lab: Lab, check: CheckSettings, pods: tuple[int, ...]) -> NlbSettings:
    """One UDP listener, the given pods behind it, a checker in each zone."""
    return NlbSettings(
        name="nlb",
        addresses=(VIP,),
        listeners=(Listener("udp", LISTEN_PORT),),
        checkers=tuple(Checker(address, zone) for address, zone in zip(CHECKERS, ZONES, strict=True)),
        check=check,
        targets=tuple(target(lab, pod) for pod in pods),
    )


def target(lab: Lab, pod: int) -> Target:
    """A pod as a target; it stands in the zone of its node."""
    return Target(lab.plan.pod(pod).v4.ip, LISTEN_PORT, ZONES[(pod - 1) % len(ZONES)])


class Balancer:
    """The load balancer process of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.socket = socket_of(lab)
        self._control = NlbControl(self.socket)
        self._process: subprocess.Popen[str] | None = None

    def start(self, check: CheckSettings, pods: tuple[int, ...]) -> None:
        """Start it anew: every target is `initial` again.

        Raises:
            StateError: it did not start, with its own words.
        """
        self.stop()
        log = self.lab.directory() / "nlb.log"
        self._process = launch(self.lab["nlb"], settings(self.lab, check, pods), self.socket, log=log)
        self.lab.remember("nlb", "load balancer", self._process.pid, log)

    def stop(self) -> None:
        """End it; its table and its flows go."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self.lab.forget_ended()

    def status(self) -> NlbStatus:
        """Targets, states, reasons and flows.

        Raises:
            StateError: it does not answer.
        """
        return asyncio.run(self._control.status())

    def deregister(self, pod: int) -> None:
        """Let a target drain, as Kubernetes does when its pod is deleted."""
        asyncio.run(self._control.deregister(target(self.lab, pod)))

    def target(self, pod: int) -> TargetStatus:
        """What it thinks of a pod."""
        return self.status().target(self.lab.plan.pod(pod).v4.ip)

    def wait(self, pod: int, wanted: Callable[[TargetStatus], bool], timeout: float) -> TargetStatus:
        """Wait until it thinks something of a pod; the last status, also when that did not come to be in time."""
        deadline = time.monotonic() + timeout
        while True:
            now = self.target(pod)
            if wanted(now) or time.monotonic() > deadline:
                return now
            time.sleep(_POLL)

    def verdict(self, pod: int, timeout: float, *, hope: Callable[[], bool] = lambda: True) -> TargetStatus:
        """Wait until a new target is healthy; the last status, also when it did not come to that.

        Args:
            pod: which.
            timeout: seconds.
            hope: while this is true an unhealthy target may still become healthy: what is checked is starting.
        """
        return self.wait(
            pod,
            lambda status: status.state is State.HEALTHY or (status.state is State.UNHEALTHY and not hope()),
            timeout,
        )


def socket_of(lab: Lab) -> Path:
    """Where the load balancer of a lab takes commands."""
    return lab.directory() / "nlb.sock"


def status_of(lab: Lab) -> NlbStatus | None:
    """The status of a lab's load balancer; None when it has none, or none that answers."""
    path = socket_of(lab)
    if not path.exists():
        return None
    try:
        return asyncio.run(NlbControl(path).status())
    except StateError:
        return None
