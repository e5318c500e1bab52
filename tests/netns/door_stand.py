# SPDX-License-Identifier: Apache-2.0
"""A gateway pod with wireguard-go and a TCP port, looked at three ways: by an outside client, by the door, over `lo`.

The pod has `wg0` (10.8.0.1/24, fd08::1/64), UDP 51820, three peers of our own with preshared keys, and an HTTP answer
on TCP 8080. `Stand.look` runs the same handshake (or TCP check) all three ways at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Self

from netns.pods import PodNet, Shape, sysctl
from wicketgate.health.door import Door, Outcome
from wicketgate.health.door_types import NoRouteToStrangers
from wicketgate.kernel.netlink import Netlink
from wicketgate.lab.host import Host
from wicketgate.wireguard.client import SyntheticClient
from wicketgate.wireguard.failure import ProbeFailure
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

PORT, TCP_PORT = 51820, 8080
PATIENCE = 0.2  # seconds that a silent one is waited for; an answer takes about 1 ms
LONG_PATIENCE = 3.0  # before an answer that was expected is called missing: the machine may be busy
WHO = ("outside", "door", "lo")
TUNNEL = {4: IPv4Address("10.8.0.1"), 6: IPv6Address("fd08::1")}
PROBES = {
    "outside": {4: IPv4Address("10.8.0.201"), 6: IPv6Address("fd08::201")},
    "door": {4: IPv4Address("10.8.0.202"), 6: IPv6Address("fd08::202")},
    "lo": {4: IPv4Address("10.8.0.203"), 6: IPv6Address("fd08::203")},
}

_HTTP = """
import asyncio, sys
async def answer(reader, writer):
    try:
        await reader.read(1024)
        writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n")
        await writer.drain()
    except OSError:
        pass
    writer.close()
async def main():
    for host in sys.argv[2:]:
        await asyncio.start_server(answer, host, int(sys.argv[1]))
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Seen:
    """Who got an answer."""

    outside: bool
    door: bool
    lo: bool


@dataclass
class Stand:
    """The pod and the three ways to look at it."""

    net: PodNet
    server: PrivateKey
    keys: dict[str, tuple[PrivateKey, PresharedKey]]
    stack: ExitStack = field(default_factory=ExitStack)
    clients: dict[str, SyntheticClient] = field(default_factory=dict)
    patience: float = PATIENCE

    @classmethod
    def create(cls, shape: Shape, label: str) -> Self:
        """Build it; `close` takes it down."""
        keys = {who: (PrivateKey.generate(), PresharedKey.generate()) for who in WHO}
        stand = cls(PodNet.create(shape, label), PrivateKey.generate(), keys)
        stand.stack.callback(stand.net.close)
        try:
            stand._tunnel()
            stand._http()
        except BaseException:
            stand.close()
            raise
        return stand

    @property
    def pod(self) -> Host:
        """The pod's host."""
        return self.net.pod

    def _tunnel(self) -> None:
        log = subprocess.DEVNULL
        self.pod.popen("wireguard-go", "-f", "wg0", stdin=log, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while self.pod.run("test", "-S", "/run/wireguard/wg0.sock", check=False).returncode:
            assert time.monotonic() < deadline, "wireguard-go did not start"
        lines = ["[Interface]", f"PrivateKey = {self.server.expose_base64()}", f"ListenPort = {PORT}"]
        for who, (key, psk) in self.keys.items():
            probe = PROBES[who]
            lines += ["[Peer]", f"PublicKey = {key.public()}", f"PresharedKey = {psk.expose_base64()}"]
            lines += [f"AllowedIPs = {probe[4]}/32, {probe[6]}/128"]
        self.pod.run("wg", "setconf", "wg0", "/dev/stdin", stdin="\n".join(lines) + "\n")
        batch = f"addr add {TUNNEL[4]}/24 dev wg0\naddr add {TUNNEL[6]}/64 dev wg0 nodad\nlink set wg0 up mtu 1420\n"
        self.pod.run("ip", "-batch", "-", stdin=batch)

    def _http(self) -> None:
        import sys

        process = self.pod.popen(
            sys.executable, "-c", _HTTP, str(TCP_PORT), "0.0.0.0", "::1", str(self.net.pod6), stdout=subprocess.PIPE
        )
        assert process.stdout.readline().strip() == b"ready"
        process.stdout.close()

    def client(self, who: str) -> SyntheticClient:
        """One of the three WireGuard clients."""
        key, psk = self.keys[who]
        return SyntheticClient(key, self.server.public(), psk)

    @asynccontextmanager
    async def door(self, **options: Any) -> AsyncIterator[Door]:
        """A door at the pod's eth0; run it inside the pod."""
        options = {"uplink": "eth0", "addresses": (self.net.pod4, self.net.pod6), "tag": "wg0"} | options
        # One client each, so that it keeps the distance that servers want between a peer's initiations.
        self.clients = {who: self.client(who) for who in WHO}
        async with Netlink() as netlink, Door(netlink, **options) as door:
            yield door

    def outside_socket(self, family: int, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A non-blocking socket in the client's host."""
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        sock: socket.socket = self.net.client.call(lambda: socket.socket(inet, kind))
        sock.setblocking(False)
        return sock

    async def handshake(self, who: str, sock: socket.socket) -> bool:
        """A whole handshake with the preshared key over a connected socket, which is closed."""
        with sock:
            client = self.clients[who]
            client.attach(sock)
            try:
                await client.handshake(self.patience)
            except ProbeFailure:
                return False
            return True

    def udp(self, who: str, family: int, door: Door) -> socket.socket | None:
        """A socket that reaches the pod's WireGuard port one of the three ways."""
        if who == "door":
            try:
                return door.udp_socket(family, PORT)
            except NoRouteToStrangers:
                return None
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        sock = self.outside_socket(family) if who == "outside" else socket.socket(inet, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((str(self.net.pod_address(family)), PORT))
        return sock

    async def _tcp(self, who: str, family: int, door: Door) -> bool:
        if who == "door":
            try:
                answer = await door.tcp_check(family, TCP_PORT, self.patience, http_path="/healthz")
            except NoRouteToStrangers:
                return False
            return answer.outcome is Outcome.ANSWERED and answer.status == 200
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        sock = (
            self.outside_socket(family, socket.SOCK_STREAM)
            if who == "outside"
            else socket.socket(inet, socket.SOCK_STREAM)
        )
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock, contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self.patience):
                await loop.sock_connect(sock, (str(self.net.pod_address(family)), TCP_PORT))
                await loop.sock_sendall(sock, b"GET / HTTP/1.1\r\n\r\n")
                return (await loop.sock_recv(sock, 100)).startswith(b"HTTP/1.1 200")
        return False

    async def _handshake(self, who: str, family: int, door: Door) -> bool:
        sock = self.udp(who, family, door)
        return sock is not None and await self.handshake(who, sock)

    async def look(self, door: Door, family: int, protocol: str = "udp") -> Seen:
        """The same try all three ways, at once."""
        how = self._handshake if protocol == "udp" else self._tcp
        return Seen(*await asyncio.gather(*(how(who, family, door) for who in WHO)))

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Look again, and wait longer: when what was seen is not what was expected."""
        self.patience = LONG_PATIENCE
        try:
            yield
        finally:
            self.patience = PATIENCE

    @contextmanager
    def state(self, do: Sequence[str], undo: Sequence[str]) -> Iterator[None]:
        """The pod after shell commands; undone whatever happens. Each line is one command."""
        try:
            if do:
                self.pod.run("sh", "-ec", "\n".join(do))
            yield
        finally:
            if undo:
                self.pod.run("sh", "-c", "\n".join(undo), check=False)

    def rp_filter(self, value: int, svm: int = 0) -> None:
        """Set the pod's reverse-path filter and src_valid_mark."""
        for name in ("all", "eth0"):
            sysctl(self.pod, f"net.ipv4.conf.{name}.rp_filter", str(value))
            sysctl(self.pod, f"net.ipv4.conf.{name}.src_valid_mark", str(svm))

    def close(self) -> None:
        """End it all."""
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()
