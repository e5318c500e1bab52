# SPDX-License-Identifier: Apache-2.0
"""A client, the load balancer's host and two targets: what the tests of the load balancer stand-in share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from wicketgate.lab.host import Host
from wicketgate.lab.nlb.control import LoadBalancer
from wicketgate.lab.nlb.settings import Checker, CheckSettings, Listener, NlbSettings, Target
from wicketgate.lab.nlb.target import State

DEADLINE = 10.0
PORT = 51820
HEALTH = 8080


@dataclass(frozen=True)
class Net:
    """Addresses of one family: the client, two load balancer addresses, two checkers, two targets."""

    client: str
    vips: tuple[str, str]
    checkers: tuple[str, str]
    targets: tuple[str, str]
    gateways: tuple[str, str, str]
    bits: int
    host_bits: int


NET4 = Net(
    "10.1.0.2", ("10.1.0.10", "10.1.0.11"), ("10.3.0.1", "10.3.0.2"), ("10.2.1.2", "10.2.2.2"),
    ("10.1.0.1", "10.2.1.1", "10.2.2.1"), 24, 32,
)  # fmt: skip
NET6 = Net(
    "fd01::2", ("fd01::10", "fd01::11"), ("fd03::1", "fd03::2"), ("fd02:1::2", "fd02:2::2"),
    ("fd01::1", "fd02:1::1", "fd02:2::1"), 64, 128,
)  # fmt: skip


@dataclass
class TargetHost:
    """A pod: a UDP echo that tells its name, and a health port that can be switched."""

    host: Host
    address: str
    udp: socket.socket
    health: socket.socket | None = None
    answer: bytes = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    heads: list[bytes] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    mute: bool = False

    @property
    def target(self) -> Target:
        return Target(ip_address(self.address), PORT)

    def good(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    def bad(self) -> None:
        self.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

    def listen(self) -> None:
        """Open the health port."""
        self.health = self.host.call(lambda: listening(self.address, HEALTH))

    async def echo(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, source = await loop.sock_recvfrom(self.udp, 2000)
            self.seen.append(source[:2])
            if not self.mute:
                self.udp.sendto(self.host.name.encode() + b" " + data, source)

    async def serve_health(self) -> None:
        loop = asyncio.get_running_loop()
        assert self.health is not None
        while True:
            sock, source = await loop.sock_accept(self.health)
            with sock:
                self.sources.append(source[0])
                with contextlib.suppress(OSError):
                    self.heads.append(await loop.sock_recv(sock, 4096))
                    await loop.sock_sendall(sock, self.answer)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bound(address: str, port: int = 0) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((address, port))
    return sock


def listening(address: str, port: int) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind((address, port))
    sock.listen(64)
    return sock


@dataclass
class World:
    """All of it."""

    client: Host
    nlb: Host
    pods: tuple[TargetHost, TargetHost]
    net: Net
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def settings(self) -> NlbSettings:
        """Fast checks; nothing registered."""
        return NlbSettings(
            addresses=(ip_address(self.net.vips[0]),),
            listeners=(Listener("udp", PORT),),
            checkers=(Checker(ip_address(self.net.checkers[0])),),
            check=CheckSettings(port=HEALTH, interval=0.03, timeout=1.0, healthy_threshold=2, unhealthy_threshold=2),
        )

    def flow(self, port: int = 0) -> socket.socket:
        """A client's UDP socket; each is a flow of its own."""
        sock = self.client.call(lambda: bound(self.net.client, port))
        self.sockets.append(sock)
        return sock

    def run(self, story: Callable[[], Coroutine[Any, Any, None]], *, listen: bool = True) -> None:
        """Run a story on the load balancer's host, with both pods answering."""

        async def bounded() -> None:
            async with asyncio.timeout(30):
                tasks = [asyncio.create_task(pod.echo()) for pod in self.pods]
                if listen:
                    tasks += [asyncio.create_task(pod.serve_health()) for pod in self.pods]
                try:
                    await story()
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        if listen:
            for pod in self.pods:
                pod.listen()
        self.nlb.acall(bounded)

    def close(self) -> None:
        for sock in (*self.sockets, *(p.udp for p in self.pods), *(p.health for p in self.pods if p.health)):
            sock.close()


def build(new_host: Callable[..., Host], net: Net) -> World:
    client, nlb, one, two = new_host("client"), new_host("nlb"), new_host("one"), new_host("two")
    ends = (
        (client, "client0", net.client, net.gateways[0]),
        (one, "one0", net.targets[0], net.gateways[1]),
        (two, "two0", net.targets[1], net.gateways[2]),
    )
    # Addresses are tentative for a second otherwise, and neighbour discovery waits.
    quick = "echo 0 > /proc/sys/net/ipv6/conf/{}/accept_dad"
    middle = [f"ip addr add {address}/{net.host_bits} dev lo" for address in net.checkers]
    for host, name, _, outside in ends:
        link = f"ip link add {name} type veth peer name eth0 netns {host.pid}"
        middle += [link, quick.format(name), f"ip link set {name} up", f"ip addr add {outside}/{net.bits} dev {name}"]
    middle += [f"ip addr add {address}/{net.host_bits} dev client0" for address in net.vips]
    nlb.run("sh", "-ec", "\n".join(middle))
    for host, _, inside, outside in ends:
        lines = (quick.format("eth0"), "ip link set eth0 up", f"ip addr add {inside}/{net.bits} dev eth0")
        host.run("sh", "-ec", "\n".join((*lines, f"ip route add default via {outside}")))
    pods = tuple(
        TargetHost(host, address, host.call(lambda address=address: bound(address, PORT)))
        for host, address in zip((one, two), net.targets, strict=True)
    )
    return World(client, nlb, pods, net)


@contextlib.asynccontextmanager
async def running(settings: NlbSettings, *targets: Target) -> AsyncIterator[LoadBalancer]:
    """A load balancer that runs; its failure fails the story."""
    balancer = LoadBalancer(settings)
    ready = asyncio.Event()
    task = asyncio.create_task(balancer.run(ready=ready.set))
    waiter = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    try:
        if task.done():
            task.result()
        for target in targets:
            await balancer.register(target)
        yield balancer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ask(sock: socket.socket, to: str, word: bytes = b"?", timeout: float = 2.0) -> str:
    """Send one datagram and return who answered: `one`, `two`, or `` for nobody."""
    loop = asyncio.get_running_loop()
    sock.sendto(word, (to, PORT))
    try:
        async with asyncio.timeout(timeout):
            while True:
                data, source = await loop.sock_recvfrom(sock, 2000)
                if data.endswith(b" " + word):
                    assert source[:2] == (to, PORT), f"the answer came from {source}, not from the load balancer"
                    return data.decode().split("-")[0]
    except TimeoutError:
        return ""


async def until(what: Callable[[], Awaitable[bool]], timeout: float = DEADLINE) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if await what():
            return True
        await asyncio.sleep(0.005)
    return False


async def reach(balancer: LoadBalancer, pod: TargetHost, state: State | None) -> None:
    """Wait for a state, in the data path too."""
    assert await balancer.wait_for(lambda b: b.state(pod.target) is state, DEADLINE), (
        f"{pod.host.name} is {balancer.state(pod.target)}, not {state}"
    )


SILENCE = 0.15  # s; how long nothing has to come for "nothing comes"; answers take less than 0.005 s here
