# SPDX-License-Identifier: Apache-2.0
"""A gateway leaves: health turns red first, it goes on serving, then it is gone, and nobody who left in time noticed.

Two gateways with the same keys stand behind the load balancer, as two replicas do. The one that serves the client is
taken away as Kubernetes does it: its target is deregistered and it gets SIGTERM at the same moment. The client's flow
stays where it is until the deregistration delay ends; dialled anew, from another port, it is a new flow and lands on
the gateway that remains. A counted ping every 20 ms runs through all of it.
"""

from __future__ import annotations

import signal
import time
from functools import partial

from wicketgate.errors import StateError, WicketError
from wicketgate.lab import stream, wgquick
from wicketgate.lab.balancer import HTTP_CHECK, Balancer
from wicketgate.lab.client import Page, WireGuardClient, fetch
from wicketgate.lab.nlb.target import State
from wicketgate.lab.pod import Container, Rights, program, wicket
from wicketgate.lab.scenario import GREEN, RED, Teller
from wicketgate.lab.topology import VIP, Lab
from wicketgate.wireguard.keys import PrivateKey

DRAIN = 6  # s the leaving gateway goes on serving; long enough for a busy machine, short enough to watch
RED_WITHIN = 1.0  # s from SIGTERM to the first 503; a balancer that asks every second must not meet a stale 200
PING_EVERY = 0.02  # s
CLIENT = "10.8.0.2"
READY_TIMEOUT = 20.0  # s; two agents start at once


class Drain:
    """One telling of the story, in one lab."""

    def __init__(self, lab: Lab, teller: Teller) -> None:
        self.lab = lab
        self.teller = teller
        self.balancer = Balancer(lab)
        self.key = PrivateKey.generate()
        self.client_key = PrivateKey.generate()
        self.agents: dict[int, Container] = {}
        self.before: dict[int, str] = {}
        self.leaving = 0

    def tell(self) -> None:
        """All of it."""
        for pod in (1, 2):
            self._gateway(pod)
        self.balancer.start(HTTP_CHECK, (1, 2))
        for pod in (1, 2):
            self.teller.step(f"before: gateway in pod{pod}", GREEN, partial(self._healthy, pod))
        first = self._client("wg0", metric=10)
        first.up()
        self.teller.step("before: the client's handshake", GREEN, lambda: self._dial(first))
        pings = Container.start(
            self.lab, "client", "pings", program("stream", CLIENT, wgquick.TUNNEL4, str(PING_EVERY))
        )
        pings.wait_for("started")
        self.leaving = self._serving(first)
        self.teller.say(
            f"pod{self.leaving} serves the client; it is deregistered and gets SIGTERM, as when its pod is deleted"
        )
        self.balancer.deregister(self.leaving)
        agent = self.agents[self.leaving]
        began = time.monotonic()
        agent.signal(signal.SIGTERM)
        self.teller.step("leaving: /healthz", RED, lambda: self._red(began))
        self.teller.step("leaving: still serves the client", GREEN, lambda: self._still(first))
        second = self._client("wg1", metric=5)
        self.teller.step("leaving: the client dials anew", "the other gateway", lambda: self._anew(second))
        self.teller.step("leaving: afterwards the gateway is", "gone", lambda: self._gone(agent, began))
        pings.signal(signal.SIGTERM)
        self.teller.step("pings lost from beginning to end", "0", lambda: self._count(pings))

    def _gateway(self, pod: int) -> None:
        name = f"pod{pod}"
        self.before[pod] = self._traces(name)
        peer = wgquick.Peer("client", self.client_key.public(), (f"{CLIENT}/32",))
        path = wgquick.write(self.lab, name, wgquick.render(self.key, [peer], v6=self.lab.v6))
        self.agents[pod] = Container.start(
            self.lab, name, "wicket-up", wicket("up", str(path), "--drain", str(DRAIN)), rights=Rights.NET_ADMIN
        )

    def _client(self, ifname: str, *, metric: int) -> WireGuardClient:
        return WireGuardClient(
            self.lab["client"],
            self.key.public(),
            f"{VIP}:{wgquick.LISTEN_PORT}",
            [f"{CLIENT}/32"],
            ["10.8.0.0/24"],
            self.client_key,
            ifname=ifname,
            metric=metric,
        )

    def _healthy(self, pod: int) -> tuple[str, str]:
        agent = self.agents[pod]
        status = self.balancer.verdict(pod, READY_TIMEOUT, hope=agent.running)
        ended = "" if agent.running() else f"; {agent.what} has ended: {agent.last_words()}"
        return (
            GREEN if status.state is State.HEALTHY else RED
        ), f"target {status.address}: {status.state}: {status.description}{ended}"

    def _dial(self, client: WireGuardClient) -> tuple[str, str]:
        seconds = client.handshake(wgquick.TUNNEL4)
        return GREEN, f"with pod{self._serving(client)} by way of {client.endpoint}, after {seconds * 1000:.0f} ms"

    def _serving(self, client: WireGuardClient) -> int:
        """The pod that a client's flow goes to, as the load balancer sees it."""
        port = client.listen_port()
        pods = {str(self.lab.plan.pod(pod).v4.ip): pod for pod in (1, 2)}
        for flow in self.balancer.status().flows:
            if flow.client_port == port and str(flow.target) in pods:
                return pods[str(flow.target)]
        raise StateError(f"the load balancer has no flow from the client's port {port}")

    def _health(self) -> Page:
        return fetch(self.lab["nlb"], f"http://{self.lab.plan.pod(self.leaving).v4.ip}:{HTTP_CHECK.port}/healthz", 1.0)

    def _red(self, began: float) -> tuple[str, str]:
        while True:
            page = self._health()
            after = time.monotonic() - began
            if "503" in page.status_line:
                return RED, f"{after * 1000:.0f} ms after SIGTERM: {page}"
            if after > RED_WITHIN:
                return GREEN if page.ok else "no answer", f"{after * 1000:.0f} ms after SIGTERM: {page}"

    def _still(self, client: WireGuardClient) -> tuple[str, str]:
        pings = client.ping(wgquick.TUNNEL4, count=5)
        health = self._health()
        pod = self._serving(client)
        ok = pings.received == pings.sent and pod == self.leaving and "503" in health.status_line
        return (GREEN if ok else RED), f"{pings} by pod{pod}, while its health says {health.status_line}"

    def _anew(self, client: WireGuardClient) -> tuple[str, str]:
        # A new device has a new source port: a new flow. It has no traffic before it has a handshake, and the old one
        # keeps the traffic until then: the routes move in one step, by their metric.
        client.up(routes=False)
        seconds = client.dial()
        pod = self._serving(client)
        client.take_routes(client.metric)
        words = f"pod{pod} answered after {seconds * 1000:.0f} ms; the client's traffic goes there now"
        return ("the leaving gateway" if pod == self.leaving else "the other gateway"), words

    def _gone(self, agent: Container, began: float) -> tuple[str, str]:
        code = agent.wait(DRAIN + 10)
        seconds = time.monotonic() - began
        left = self._traces(f"pod{self.leaving}")
        words = f"exit code {code}, {seconds:.1f} s after SIGTERM (--drain {DRAIN})"
        if left != self.before[self.leaving]:
            return "not clean", f"{words}; left behind: {_difference(self.before[self.leaving], left)}"
        if code != 0 or seconds < DRAIN:
            return "gone badly", f"{words}: {agent.last_words()}"
        return "gone", f"{words}, and its pod is as it was before it came"

    def _traces(self, host: str) -> str:
        """Links, addresses, rules, routes and firewall of a host, for comparison."""
        return self.lab[host].run(
            "sh", "-c",
            "ip -o link | sed 's/^[0-9]*: //; s/ state .*//'; for f in 4 6; do ip -$f -o addr | sed 's/^[0-9]*: //; s/valid_lft.*//';"
            " ip -$f rule; ip -$f route show table all; done; nft list ruleset; tc qdisc show dev eth0",
        ).stdout  # fmt: skip

    def _count(self, pings: Container) -> tuple[str, str]:
        pings.wait()
        try:
            count = stream.read(pings.output())
        except ValueError as error:
            raise WicketError(f"the pings were not counted: {error}") from None
        words = str(count) + (f"; lost: {count.lost[:10]}" if count.lost else "")
        return str(count.sent - count.received), words


def _difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    changes = [f"+{line.strip()}" for line in new if line not in old] + [
        f"-{line.strip()}" for line in old if line not in new
    ]
    return "; ".join(changes[:8])


def story(lab: Lab, teller: Teller) -> None:
    """The scenario, as the runner wants it."""
    drain = Drain(lab, teller)
    try:
        drain.tell()
    finally:
        drain.balancer.stop()
