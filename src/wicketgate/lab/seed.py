# SPDX-License-Identifier: Apache-2.0
"""The seed: the pod of a real Deployment, before and after, in one CNI shape.

- before: wg-quick brings up a peer with AllowedIPs = 0.0.0.0/0, a TCP echo on 9000 stands beside it, and the load
  balancer checks TCP 9000: red as soon as the tunnel is up;
- after: `wicket sidecar 9000 hello` in place of the echo, with CAP_NET_ADMIN and with no right at all: green;
  `wicket up wg0.conf` in place of wg-quick: green;
- and in the green cases a real WireGuard client dials in through the load balancer, pings the gateway and fetches a
  page through the tunnel.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address
from pathlib import Path

from wicketgate.lab import wgquick
from wicketgate.lab.balancer import TCP_CHECK, Balancer
from wicketgate.lab.client import WireGuardClient, fetch
from wicketgate.lab.nlb.status import TargetStatus
from wicketgate.lab.nlb.target import State
from wicketgate.lab.pod import Container, Rights, program, wicket
from wicketgate.lab.scenario import GREEN, RED, Teller
from wicketgate.lab.shapes import Cni
from wicketgate.lab.topology import INTERNET, VIP, Lab
from wicketgate.wireguard.keys import PrivateKey

ECHO_PORT = 9000  # of the seed's Service
HEALTH_PORT = 8080
CONNECT_TIMEOUT = 1.0  # s; kubelet's default timeoutSeconds
READY_TIMEOUT = 15.0  # s until a started agent must be green; on a busy machine Python alone takes seconds


class Seed:
    """One telling of the story, in one lab."""

    def __init__(self, lab: Lab, teller: Teller) -> None:
        self.lab = lab
        self.teller = teller
        self.balancer = Balancer(lab)
        self.gateway_key = PrivateKey.generate()
        self.client_key = PrivateKey.generate()
        self.address = lab.plan.pod(1).v4.ip

    def tell(self) -> None:
        """All of it."""
        Container.start(self.lab, "internet", "web", program("web", str(INTERNET.ip), "80", "internet")).wait_for(
            "listening"
        )
        try:
            self.before()
            self.sidecar(Rights.NET_ADMIN, "wicket sidecar, CAP_NET_ADMIN alone")
            self.sidecar(Rights.NONE, "wicket sidecar, no right at all")
            self.gateway()
        finally:
            self.balancer.stop()

    def before(self) -> None:
        """The pod as it is: green until the tunnel comes up, red from then on."""
        self.teller.say("pod1: a TCP echo on port 9000; the load balancer checks TCP 9000")
        self._echo()
        self.balancer.start(TCP_CHECK, (1,))
        self.teller.step(
            "tcp echo, no tunnel yet: load balancer",
            GREEN,
            lambda: _verdict(self.balancer.verdict(1, READY_TIMEOUT)),
        )
        self._wg_quick()
        self.teller.step("wg-quick up beside it: load balancer", RED, self._turns_red)
        kubelet = GREEN if self.lab.plan.cni is Cni.BRIDGE else RED
        self.teller.step("wg-quick up beside it: kubelet on the pod's node", kubelet, lambda: self._connect("node1"))
        self.teller.step("wg-quick up beside it: a client elsewhere", RED, lambda: self._connect("client"))

    def sidecar(self, rights: Rights, title: str) -> None:
        """The same pod with `wicket sidecar` in place of the echo: one image changed, the arguments left as they were."""
        self._new_pod()
        self._wg_quick()
        self._page_in_pod()
        command = wicket("sidecar", *(["--level", "port"] if rights is Rights.NONE else []), str(ECHO_PORT), "hello")
        agent = Container.start(self.lab, "pod1", "wicket-sidecar", command, rights=rights)
        self._green(title, agent)
        # With no right the answer must not claim more than a bound port and routes that were read.
        claim = "level tunnel" if rights is Rights.NET_ADMIN else "level port"
        self.teller.step(f"{title}: its answer claims", claim, self._told)
        self._client(title, f"http://{wgquick.TUNNEL4}/", "pod1", page="page in the pod")
        agent.stop()

    def gateway(self) -> None:
        """`wicket up` in place of wg-quick and echo: the client reaches the internet through it as well."""
        title = "wicket up, CAP_NET_ADMIN alone"
        self._new_pod()
        path = self._config()
        agent = Container.start(self.lab, "pod1", "wicket-up", wicket("up", str(path)), rights=Rights.NET_ADMIN)
        self._green(title, agent)
        self._client(title, f"http://{INTERNET.ip}/", str(self.address), page="page on the internet, by NAT")
        agent.stop(15)

    def _new_pod(self) -> None:
        self.balancer.stop()
        self.lab.replace_pod(1)

    def _echo(self) -> Container:
        echo = Container.start(self.lab, "pod1", "tcp-echo", program("echo", str(ECHO_PORT), "hello"))
        echo.wait_for("listening")
        return echo

    def _config(self) -> Path:
        peer = wgquick.Peer("client", self.client_key.public(), wgquick.EVERYWHERE)
        return wgquick.write(self.lab, "pod1", wgquick.render(self.gateway_key, [peer], v6=self.lab.v6))

    def _wg_quick(self) -> None:
        self.teller.say("pod1: wg-quick up wg0, with a peer that claims 0.0.0.0/0 and ::/0")
        wgquick.up(self.lab["pod1"], self._config())

    def _page_in_pod(self) -> None:
        page = Container.start(self.lab, "pod1", "web", program("web", wgquick.TUNNEL4, "80", "pod1"))
        page.wait_for("listening")

    def _turns_red(self) -> tuple[str, str]:
        return _verdict(self.balancer.wait(1, lambda status: status.state is State.UNHEALTHY, 10.0))

    def _connect(self, host: str) -> tuple[str, str]:
        """A TCP connection and one line, as the kubelet or a client of the echo would."""
        try:
            line = self.lab[host].call(lambda: _ask_echo(self.address))
        except OSError as error:
            return RED, f"{host} -> {self.address}:{ECHO_PORT}: {error}"
        return GREEN, f"{host} -> {self.address}:{ECHO_PORT}: {line!r}"

    def _green(self, title: str, agent: Container) -> None:
        self.balancer.start(TCP_CHECK, (1,))

        def look() -> tuple[str, str]:
            observed, evidence = _verdict(self.balancer.verdict(1, READY_TIMEOUT, hope=agent.running))
            if not agent.running():
                evidence += f"; {agent.what} has ended: {agent.last_words()}"
            return observed, evidence

        self.teller.step(f"{title}: load balancer", GREEN, look)

    def _told(self) -> tuple[str, str]:
        """What the agent's answer to the load balancer claims to have proved."""
        page = fetch(self.lab["nlb"], f"http://{self.address}:{HEALTH_PORT}/healthz?verbose")
        found = re.search(r"level (\w+), evidence (\w+)", page.body)
        words = "; ".join(" ".join(line.split()) for line in page.body.strip().splitlines())
        return f"level {found[1]}" if page.ok and found else page.status_line, f"{page.status_line}: {words}"

    def _client(self, title: str, url: str, seen: str, *, page: str) -> None:
        """A real WireGuard client behind the load balancer."""
        client = WireGuardClient(
            self.lab["client"],
            self.gateway_key.public(),
            f"{VIP}:{wgquick.LISTEN_PORT}",
            ["10.8.0.2/32", *(["fd00:8::2/128"] if self.lab.v6 else [])],
            ["10.8.0.0/24", f"{INTERNET.ip}/32", *(["fd00:8::/64"] if self.lab.v6 else [])],
            self.client_key,
        )
        client.up()
        try:
            self.teller.step(f"{title}: a client's handshake", GREEN, lambda: _handshake(client))
            self.teller.step(f"{title}: a client pings the gateway", GREEN, lambda: _ping(client, wgquick.TUNNEL4))
            if self.lab.v6:
                self.teller.step(f"{title}: the same by IPv6", GREEN, lambda: _ping(client, wgquick.TUNNEL6))
            self.teller.step(f"{title}: a client fetches a {page}", GREEN, lambda: _page(client, url, seen))
        finally:
            client.down()


def story(lab: Lab, teller: Teller) -> None:
    """The scenario, as the runner wants it."""
    Seed(lab, teller).tell()


def _ask_echo(address: IPv4Address) -> str:
    with socket.create_connection((str(address), ECHO_PORT), timeout=CONNECT_TIMEOUT) as connection:
        connection.sendall(b"world\n")
        return connection.recv(100).decode(errors="replace").strip()


def _verdict(status: TargetStatus) -> tuple[str, str]:
    """Red or green, and the load balancer's own words."""
    observed = GREEN if status.state is State.HEALTHY else RED
    reason = f" ({status.reason})" if status.reason else ""
    # The first success is enough for a new target: another checker's newest probe may be an older failure.
    probes = [one.description for one in status.last if one.passed is (observed == GREEN)]
    words = status.description or next(iter(probes), "no probe has ended yet")
    return observed, f"target {status.address}: {status.state}{reason}: {words}"


def _handshake(client: WireGuardClient) -> tuple[str, str]:
    seconds = client.handshake(wgquick.TUNNEL4)
    return GREEN, f"latest handshake with {client.endpoint}: {client.latest_handshake()}, after {seconds * 1000:.0f} ms"


def _ping(client: WireGuardClient, address: str) -> tuple[str, str]:
    pings = client.ping(address)
    return GREEN if pings.received == pings.sent else RED, f"{address}: {pings}"


def _page(client: WireGuardClient, url: str, seen: str) -> tuple[str, str]:
    page = client.fetch(url)
    return GREEN if page.ok and seen in page.body else RED, f"{url}: {page}"
