# SPDX-License-Identifier: Apache-2.0
"""A real WireGuard client in the lab: wireguard-go and wg(8) in a host, and the questions a user asks of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from wicketgate.errors import StateError, ToolMissing, WicketError
from wicketgate.lab.host import Host
from wicketgate.wireguard.keys import PrivateKey, PublicKey

_POLL = 0.02  # s


@dataclass(frozen=True, slots=True)
class Pings:
    """What ping(8) counted. Times in milliseconds."""

    sent: int
    received: int
    average: float | None

    def __str__(self) -> str:
        times = "" if self.average is None else f", {self.average:.2f} ms"
        return f"{self.received} of {self.sent} pings answered{times}"


@dataclass(frozen=True, slots=True)
class Page:
    """What curl(1) fetched."""

    status_line: str
    body: str

    @property
    def ok(self) -> bool:
        """The status was 200."""
        return re.match(r"HTTP/1\.[01] 200\b", self.status_line) is not None

    def __str__(self) -> str:
        return f"{self.status_line}: {self.body.strip()}" if self.body.strip() else self.status_line


@dataclass(slots=True)
class WireGuardClient:
    """A peer that dials in.

    Attributes:
        host: where it runs.
        private_key: its own.
        server: whom it dials.
        endpoint: `address:port`, the load balancer's.
        addresses: its tunnel addresses with prefix.
        allowed_ips: what it sends into the tunnel; routes are added for these.
        ifname: of the device; a host may have several clients.
        keepalive: seconds; 0 = off.
        metric: of the routes; among several clients of a host the lowest is used by those who do not choose.
    """

    host: Host
    server: PublicKey
    endpoint: str
    addresses: Sequence[str]
    allowed_ips: Sequence[str]
    private_key: PrivateKey = field(default_factory=PrivateKey.generate)
    ifname: str = "wg0"
    keepalive: int = 0
    metric: int = 0

    def up(self, *, routes: bool = True) -> None:
        """Make the device.

        Args:
            routes: send traffic into it at once; else `take_routes` does that later.

        Raises:
            ToolMissing: wireguard-go or wg is not installed.
            StateError: the device could not be made.
        """
        try:
            self.host.run("wireguard-go", self.ifname)
        except StateError as error:
            if "failed to execute" in str(error):
                raise ToolMissing("wireguard-go is not installed; Debian's package is wireguard-go") from error
            raise
        config = (
            f"[Interface]\nPrivateKey = {self.private_key.expose_base64()}\n"
            f"[Peer]\nPublicKey = {self.server}\nEndpoint = {self.endpoint}\n"
            f"AllowedIPs = {', '.join(self.allowed_ips)}\nPersistentKeepalive = {self.keepalive}\n"
        )
        self.host.run("wg", "setconf", self.ifname, "/dev/stdin", stdin=config)
        lines = [
            f"address add {address} dev {self.ifname} nodad"
            if ":" in address
            else f"address add {address} dev {self.ifname}"
            for address in self.addresses
        ]
        lines.append(f"link set {self.ifname} mtu 1420 up")
        self.host.run("ip", "-batch", "-", stdin="\n".join(lines))
        if routes:
            self.take_routes(self.metric)

    def take_routes(self, metric: int) -> None:
        """Send what is allowed into this tunnel, at this metric; a route of an equal metric is replaced in one step."""
        lines = [f"route replace {network} dev {self.ifname} metric {metric}" for network in self.allowed_ips]
        self.host.run("ip", "-batch", "-", stdin="\n".join(lines))

    def down(self) -> None:
        """Remove the device; wireguard-go ends with it."""
        self.host.run("ip", "link", "delete", self.ifname, check=False)
        deadline = time.monotonic() + 5
        while self.host.run("ls", f"/run/wireguard/{self.ifname}.sock", check=False).returncode == 0:
            if time.monotonic() > deadline:
                raise StateError(f"[{self.host.name}] wireguard-go keeps {self.ifname} although its link is gone")
            time.sleep(_POLL)

    def latest_handshake(self) -> int:
        """Unix time of the newest handshake, whole seconds; 0 = never."""
        words = self.host.run("wg", "show", self.ifname, "latest-handshakes").stdout.split()
        return int(words[1]) if len(words) > 1 else 0

    def listen_port(self) -> int:
        """The UDP port that it dials from."""
        return int(self.host.run("wg", "show", self.ifname, "listen-port").stdout)

    def ping(self, address: str, *, count: int = 3, interval: float = 0.2, timeout: float = 2.0) -> Pings:
        """Ping; `timeout` is how long the last answer is waited for, seconds."""
        done = self.host.run(
            "ping", "-n", "-I", self.ifname, "-c", str(count), "-i", str(interval), "-W", str(timeout), address,
            check=False, timeout=count * (interval + timeout) + 10,
        )  # fmt: skip
        return read_pings(done.stdout + done.stderr)

    def handshake(self, address: str, timeout: float = 12.0) -> float:
        """Send something to `address` until the handshake is made; seconds it took.

        The default covers two attempts: WireGuard sends an initiation anew after 5 s (REKEY_TIMEOUT).

        Raises:
            WicketError: no handshake in time.
        """
        began = time.monotonic()
        while True:
            self.host.run("ping", "-n", "-I", self.ifname, "-c1", "-W", "0.3", address, check=False)
            if self.latest_handshake():
                return time.monotonic() - began
            if time.monotonic() - began > timeout:
                raise WicketError(f"no handshake with {self.endpoint} in {timeout:g} s")

    def dial(self, timeout: float = 12.0) -> float:
        """Make a handshake without any traffic of the host's: a keepalive does it; seconds it took.

        Raises:
            WicketError: no handshake in time.
        """
        began = time.monotonic()
        self.host.run("wg", "set", self.ifname, "peer", str(self.server), "persistent-keepalive", "25")
        while not self.latest_handshake():
            if time.monotonic() - began > timeout:
                raise WicketError(f"no handshake with {self.endpoint} in {timeout:g} s")
            time.sleep(_POLL)
        return time.monotonic() - began

    def fetch(self, url: str, timeout: float = 5.0) -> Page:
        """Fetch a page; a failure is a Page with curl's words as its status line."""
        return fetch(self.host, url, timeout)


def fetch(host: Host, url: str, timeout: float = 5.0) -> Page:
    """Fetch a page from a host."""
    done = host.run("curl", "-sS", "-i", "-m", str(timeout), url, check=False, timeout=timeout + 10)
    if done.returncode != 0:
        return Page(done.stderr.strip() or f"curl: exit code {done.returncode}", "")
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    return Page(head.splitlines()[0] if head else "(an empty answer)", body)


def read_pings(text: str) -> Pings:
    """Read ping's summary.

    Raises:
        StateError: there is none (ping is missing, or was not allowed).
    """
    found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if found is None:
        raise StateError(f"ping did not count: {text.strip()[-200:]}")
    times = re.search(r"= [\d.]+/([\d.]+)/", text)
    return Pings(int(found[1]), int(found[2]), float(times[1]) if times else None)
