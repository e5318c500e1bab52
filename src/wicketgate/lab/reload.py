# SPDX-License-Identifier: Apache-2.0
"""Peers come and go while another one works: a file is edited, the gateway gets SIGHUP, and nobody else notices.

Three peers: `stays` downloads through the tunnel and pings all the while; `new` is added to the file; `old` is taken
out of it. Not one packet of `stays` may be lost, and its session must be the one it had before.
"""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from wicketgate.errors import StateError, WicketError
from wicketgate.lab import stream, web, wgquick
from wicketgate.lab.balancer import HTTP_CHECK, Balancer
from wicketgate.lab.client import WireGuardClient
from wicketgate.lab.nlb.target import State
from wicketgate.lab.pod import Container, Rights, program, wicket
from wicketgate.lab.scenario import GREEN, RED, Teller
from wicketgate.lab.topology import INTERNET, VIP, Lab
from wicketgate.wireguard.keys import PrivateKey

PING_EVERY = 0.01  # s
DOWNLOAD = 8 << 20  # bytes
RATE = 1 << 20  # bytes a second: 8 s
APPLIED_WITHIN = 5.0  # s from SIGHUP until the device shows the new peers
READY_TIMEOUT = 15.0  # s
PEERS = {"stays": ("wg0", "10.8.0.2", 10), "old": ("wg1", "10.8.0.3", 20), "new": ("wg2", "10.8.0.4", 30)}


class Reload:
    """One telling of the story, in one lab."""

    def __init__(self, lab: Lab, teller: Teller) -> None:
        self.lab = lab
        self.teller = teller
        self.balancer = Balancer(lab)
        self.key = PrivateKey.generate()
        self.clients = {
            name: WireGuardClient(
                lab["client"],
                self.key.public(),
                f"{VIP}:{wgquick.LISTEN_PORT}",
                [f"{address}/32"],
                ["10.8.0.0/24", f"{INTERNET.ip}/32"],
                PrivateKey.generate(),
                ifname=ifname,
                metric=metric,
            )
            for name, (ifname, address, metric) in PEERS.items()
        }

    def tell(self) -> None:
        """All of it."""
        page = Container.start(self.lab, "internet", "web", program("web", str(INTERNET.ip), "80", "internet"))
        page.wait_for("listening")
        path = self._write("stays", "old")
        agent = Container.start(self.lab, "pod1", "wicket-up", wicket("up", str(path)), rights=Rights.NET_ADMIN)
        self.balancer.start(HTTP_CHECK, (1,))
        self.teller.step("before: the gateway", GREEN, lambda: self._healthy(agent))
        stays, old, new = (self.clients[name] for name in ("stays", "old", "new"))
        for name in ("stays", "old"):
            self.clients[name].up()
            self.teller.step(f"before: peer `{name}` has a session", GREEN, partial(self._dial, name))
        pings = Container.start(
            self.lab, "client", "pings", program("stream", PEERS["stays"][1], wgquick.TUNNEL4, str(PING_EVERY))
        )
        pings.wait_for("started")
        download = self._download()
        session = stays.latest_handshake()
        self.teller.say("wg0.conf: `new` added, `old` taken out; SIGHUP")
        self._write("stays", "new")
        agent.signal(signal.SIGHUP)
        self.teller.step("after SIGHUP: peers of the device", "stays, new", self._peers)
        new.up()
        self.teller.step("after SIGHUP: peer `new` is served", GREEN, lambda: self._served("new"))
        self.teller.step("after SIGHUP: peer `old` is served", "no", lambda: self._refused(old))
        self.teller.step("after SIGHUP: the download of `stays`", "complete", lambda: self._downloaded(download))
        self.teller.step(
            "after SIGHUP: the session of `stays`",
            "the same",
            lambda: ("the same" if stays.latest_handshake() == session else "another", f"handshake of {session}"),
        )
        pings.signal(signal.SIGTERM)
        self.teller.step("pings of `stays` lost", "0", lambda: self._count(pings))
        agent.stop(15)

    def _write(self, *names: str) -> Path:
        peers = [
            wgquick.Peer(name, self.clients[name].private_key.public(), (f"{PEERS[name][1]}/32",)) for name in names
        ]
        return wgquick.write(self.lab, "pod1", wgquick.render(self.key, peers, v6=self.lab.v6))

    def _healthy(self, agent: Container) -> tuple[str, str]:
        status = self.balancer.verdict(1, READY_TIMEOUT, hope=agent.running)
        ended = "" if agent.running() else f"; {agent.what} has ended: {agent.last_words()}"
        words = f"target {status.address}: {status.state}: {status.description}{ended}"
        return (GREEN if status.state is State.HEALTHY else RED), words

    def _dial(self, name: str) -> tuple[str, str]:
        seconds = self.clients[name].handshake(wgquick.TUNNEL4)
        return GREEN, f"handshake after {seconds * 1000:.0f} ms"

    def _served(self, name: str) -> tuple[str, str]:
        client = self.clients[name]
        seconds = client.handshake(wgquick.TUNNEL4)
        pings = client.ping(wgquick.TUNNEL4)
        return (GREEN if pings.received == pings.sent else RED), f"handshake after {seconds * 1000:.0f} ms; {pings}"

    def _refused(self, client: WireGuardClient) -> tuple[str, str]:
        pings = client.ping(wgquick.TUNNEL4, timeout=0.5)
        return ("yes" if pings.received else "no"), str(pings)

    def _peers(self) -> tuple[str, str]:
        """Who of the three the device knows; others (the agent's own probe peer) do not count here."""
        names = {str(client.private_key.public()): name for name, client in self.clients.items()}
        deadline = time.monotonic() + APPLIED_WITHIN
        while True:
            keys = self.lab["pod1"].run("wg", "show", "wg0", "peers").stdout.split()
            known = [name for name in PEERS if name in {names.get(key) for key in keys}]
            if known == ["stays", "new"] or time.monotonic() > deadline:
                return ", ".join(known), f"wg show wg0 peers: {len(keys)} peers"
            time.sleep(0.02)

    def _download(self) -> subprocess.Popen[bytes]:
        url = f"http://{INTERNET.ip}/bytes?n={DOWNLOAD}&rate={RATE}"
        command = f"curl -sS -m 60 --interface {PEERS['stays'][0]} '{url}' | sha256sum"
        return self.lab["client"].popen(
            "sh", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def _downloaded(self, download: subprocess.Popen[bytes]) -> tuple[str, str]:
        try:
            output, errors = download.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            download.kill()
            raise StateError("the download did not end in 60 s") from None
        got = output.decode().split()[0] if output else "(nothing)"
        if got == web.digest(DOWNLOAD):
            return "complete", f"{DOWNLOAD >> 20} MiB, SHA-256 {got[:16]}... as sent"
        return "broken", f"SHA-256 {got[:16]}...; {errors.decode(errors='replace').strip()}"

    def _count(self, pings: Container) -> tuple[str, str]:
        pings.wait()
        try:
            count = stream.read(pings.output())
        except ValueError as error:
            raise WicketError(f"the pings were not counted: {error}") from None
        words = str(count) + (f"; lost: {count.lost[:10]}" if count.lost else "")
        return str(count.sent - count.received), words


def story(lab: Lab, teller: Teller) -> None:
    """The scenario, as the runner wants it."""
    reload = Reload(lab, teller)
    try:
        reload.tell()
    finally:
        reload.balancer.stop()
