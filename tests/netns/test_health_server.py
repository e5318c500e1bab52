# SPDX-License-Identifier: Apache-2.0
"""The health ports in a pod that wg-quick has been to.

    stranger 198.51.100.7, 2001:db8:7::7  (on router's lo)
        |
    router 10.0.0.1 ---- eth0 10.0.0.2 pod wg0  (default route, wg-quick's three rules)
           10.0.1.1 ---- eth1 10.0.1.2

The reply to a stranger misses every route of `main` but the default one, which the rule suppresses, and goes into the
tunnel: unless its socket is bound to the uplink.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

import pytest

from wicketgate.clock import SystemClock
from wicketgate.health.board import Board
from wicketgate.health.check import CheckResult, State
from wicketgate.health.metrics import Metrics
from wicketgate.health.server import HealthServer
from wicketgate.health.uplinks import Uplink
from wicketgate.lab.host import Host, wire

HTTP, TCP, UNBOUND = 8080, 9000, 7000
POD = {4: "10.0.0.2", 6: "2001:db8::2"}
POD_SECOND = "10.0.1.2"
STRANGER = {4: "198.51.100.7", 6: "2001:db8:7::7"}

ETH0 = Uplink("eth0", (ip_address(POD[4]), ip_address(POD[6])))
ETH1 = Uplink("eth1", (ip_address(POD_SECOND),))

ANSWER_SECONDS = 20.0  # generous: the machine may be busy
SILENCE_SECONDS = 0.4  # an answer on this machine takes less than a millisecond

PROBE = b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:51820\r\nConnection: close\r\n\r\n"


def plug(router: Host, pod: Host, number: int) -> None:
    """Join pod and router by eth0 or eth1; only eth0 has the default route and IPv6."""
    wire(router, f"pod{number}", pod, f"eth{number}")
    router.run("ip", "addr", "add", f"10.0.{number}.1/24", "dev", f"pod{number}")
    pod.run("ip", "addr", "add", f"10.0.{number}.2/24", "dev", f"eth{number}")
    if number == 0:
        router.run("ip", "addr", "add", "2001:db8::1/64", "dev", "pod0", "nodad")
        pod.run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
        pod.run("ip", "route", "add", "default", "via", "10.0.0.1")
        pod.run("ip", "-6", "route", "add", "default", "via", "2001:db8::1")


@pytest.fixture
def pair(new_host: Callable[..., Host]) -> tuple[Host, Host]:
    """Router (with the stranger) and pod, with wg-quick's rules in the pod."""
    router, pod = new_host("router"), new_host("pod")
    for host in (router, pod):  # no second of waiting for the link-local addresses
        host.run("sh", "-c", "cd /proc/sys/net/ipv6/conf; echo 0 > default/accept_dad; echo 0 > all/accept_dad")
    router.run("ip", "addr", "add", f"{STRANGER[4]}/32", "dev", "lo")
    router.run("ip", "addr", "add", f"{STRANGER[6]}/128", "dev", "lo")
    plug(router, pod, 0)
    pod.run("ip", "tuntap", "add", "wg0", "mode", "tun")
    pod.run("ip", "addr", "add", "10.8.0.1/24", "dev", "wg0")
    pod.run("ip", "link", "set", "wg0", "up")
    for family in ("-4", "-6"):
        pod.run("ip", family, "route", "add", "default", "dev", "wg0", "table", "51820")
        pod.run("ip", family, "rule", "add", "not", "fwmark", "51820", "table", "51820")
        pod.run("ip", family, "rule", "add", "table", "main", "suppress_prefixlength", "0")
    return router, pod


def rp_filter(pod: Host, value: int) -> None:
    pod.run("sh", "-c", f"cd /proc/sys/net/ipv4/conf; echo 0 > all/rp_filter; echo {value} > eth0/rp_filter")


def ask(
    host: Host, source: str, address: str, port: int, *, raw: bytes = PROBE, timeout: float = ANSWER_SECONDS
) -> bytes:
    """Send and read to the end; empty when nobody answers in time. Blocking."""

    def inside() -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.settimeout(timeout)
            sock.bind((source, 0))
            try:
                sock.connect((address, port))
                if raw:
                    sock.sendall(raw)
                chunks = []
                while chunk := sock.recv(65536):
                    chunks.append(chunk)
                return b"".join(chunks)
            except TimeoutError:
                return b""

    return host.call(inside)


async def aask(*args: Any, **options: Any) -> bytes:
    return await asyncio.to_thread(ask, *args, **options)


def connects(host: Host, source: str, address: str, port: int, timeout: float = ANSWER_SECONDS) -> bool:
    def inside() -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.settimeout(timeout)
            sock.bind((source, 0))
            return sock.connect_ex((address, port)) == 0

    return host.call(inside)


def serve(pod: Host, body: Callable[[HealthServer, Board], Coroutine[Any, Any, None]]) -> None:
    """Run `body` beside a green health server inside the pod."""

    async def inside() -> None:
        board = Board(SystemClock(), 60.0)
        board.publish([CheckResult("tunnel", State.PASS, "echo", at=board.now())], "tunnel", "door")
        async with HealthServer(board, Metrics(board), port=HTTP, tcp_port=TCP) as server:
            await body(server, board)

    pod.acall(inside)


@pytest.mark.parametrize("rp", [0, 2])
def test_a_bound_listener_answers_a_stranger_without_any_pin(pair: tuple[Host, Host], rp: int):
    """With wg-quick's rules and no source rule: bound listeners answer over v4 and v6, an unbound one does not."""
    router, pod = pair
    rp_filter(pod, rp)
    unbound = pod.call(lambda: socket.create_server(("0.0.0.0", UNBOUND)))

    async def body(server: HealthServer, _board: Board) -> None:
        await server.set_uplinks((ETH0,))
        for family in (4, 6):
            answer = await aask(router, STRANGER[family], POD[family], HTTP)
            assert answer.startswith(b"HTTP/1.1 200 "), (family, answer)
            assert await asyncio.to_thread(connects, router, STRANGER[family], POD[family], TCP)
        assert await asyncio.to_thread(connects, router, "10.0.0.1", POD[4], UNBOUND), "the neighbour is answered"
        assert not await asyncio.to_thread(connects, router, STRANGER[4], POD[4], UNBOUND, SILENCE_SECONDS)

    with unbound:
        serve(pod, body)


def test_strict_rp_filter_is_beyond_a_bound_listener(pair: tuple[Host, Host]):
    """The documented limit: under rp_filter 1 the stranger's IPv4 packet dies before any socket; IPv6 has no rp_filter."""
    router, pod = pair
    rp_filter(pod, 1)

    async def body(server: HealthServer, _board: Board) -> None:
        await server.set_uplinks((ETH0,))
        assert await aask(router, STRANGER[4], POD[4], HTTP, timeout=SILENCE_SECONDS) == b""
        assert (await aask(router, STRANGER[6], POD[6], HTTP)).startswith(b"HTTP/1.1 200 ")

    serve(pod, body)


def test_an_interface_made_again_is_bound_again(pair: tuple[Host, Host]):
    """eth0 is deleted and comes back with another index: after the next `set_uplinks` it answers, without a restart."""
    router, pod = pair
    rp_filter(pod, 0)

    async def body(server: HealthServer, board: Board) -> None:
        await server.set_uplinks((ETH0,))
        before = {place.ifindex for place, _ in server.listening()}
        pod.run("ip", "link", "del", "eth0")
        await server.set_uplinks((ETH0,))
        assert server.listening() == ()
        assert server.tcp_bound() == ()
        pod.run("ip", "link", "add", "eth9", "type", "bridge")  # so that the index is not the old one by chance
        plug(router, pod, 0)
        rp_filter(pod, 0)
        await server.set_uplinks((ETH0,))
        assert not before & {place.ifindex for place, _ in server.listening()}
        for family in (4, 6):
            assert (await aask(router, STRANGER[family], POD[family], HTTP)).startswith(b"HTTP/1.1 200 ")
            assert await asyncio.to_thread(connects, router, STRANGER[family], POD[family], TCP)
        # Deleted and made again between two calls: the name is the same, the socket must not be.
        pod.run("ip", "link", "del", "eth0")
        plug(router, pod, 0)
        rp_filter(pod, 0)
        await server.set_uplinks((ETH0,))
        assert (await aask(router, STRANGER[4], POD[4], HTTP)).startswith(b"HTTP/1.1 200 ")
        board.begin_drain()
        assert not await asyncio.to_thread(connects, router, "10.0.0.1", POD[4], TCP), "refused, not silent"

    serve(pod, body)


def test_two_uplinks_each_answer_for_themselves(pair: tuple[Host, Host]):
    """Two uplinks have their own sockets on the same port; an interface that is no uplink has none, loopback neither."""
    router, pod = pair
    plug(router, pod, 1)
    rp_filter(pod, 0)

    async def body(server: HealthServer, _board: Board) -> None:
        await server.set_uplinks((ETH0, ETH1))
        assert {(place.ifname, place.family) for place, _ in server.listening()} == {
            ("eth0", 4),
            ("eth0", 6),
            ("eth1", 4),
        }
        assert (await aask(router, "10.0.0.1", POD[4], HTTP)).startswith(b"HTTP/1.1 200 ")
        assert (await aask(router, "10.0.1.1", POD_SECOND, HTTP)).startswith(b"HTTP/1.1 200 ")
        assert not await asyncio.to_thread(connects, pod, "127.0.0.1", "127.0.0.1", HTTP)
        await server.set_uplinks((ETH1,))
        assert not await asyncio.to_thread(connects, router, "10.0.0.1", POD[4], HTTP)
        assert (await aask(router, "10.0.1.1", POD_SECOND, HTTP)).startswith(b"HTTP/1.1 200 ")

    serve(pod, body)


SCRIPT = """
    import asyncio, os
    from ipaddress import ip_address
    from wicketgate.clock import SystemClock
    from wicketgate.health.board import Board
    from wicketgate.health.check import CheckResult, State
    from wicketgate.health.metrics import Metrics
    from wicketgate.health.server import HealthServer
    from wicketgate.health.uplinks import Uplink

    async def main():
        board = Board(SystemClock(), 60.0)
        board.publish([CheckResult("port", State.PASS, "bound", at=board.now())], "port", "port")
        async with HealthServer(board, Metrics(board), port=8080, tcp_port=9000) as server:
            await server.set_uplinks((Uplink("eth0", (ip_address("10.0.0.2"), ip_address("2001:db8::2"))),))
            print("ready", flush=True)
            await asyncio.Event().wait()

    # Only now: the interpreter may lie where nobody but root can read.
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    asyncio.run(main())
"""


def test_no_right_at_all_is_enough(pair: tuple[Host, Host]):
    """As uid 65534 with every capability dropped the listeners are bound to the uplink and cure the pod."""
    router, pod = pair
    rp_filter(pod, 2)
    process = pod.popen(
        *("setpriv", "--no-new-privs"),
        *(sys.executable, "-c", textwrap.dedent(SCRIPT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        lines = []
        while (line := process.stdout.readline()) and line != b"ready\n":
            lines.append(line)
        assert line == b"ready\n", b"".join(lines).decode()
        status = open(f"/proc/{process.pid}/status").read()
        assert "CapEff:\t0000000000000000" in status
        assert "CapPrm:\t0000000000000000" in status
        assert "Uid:\t65534" in status
        for family in (4, 6):
            assert ask(router, STRANGER[family], POD[family], HTTP).startswith(b"HTTP/1.1 200 ")
            assert connects(router, STRANGER[family], POD[family], TCP)
        answer = ask(
            router, STRANGER[4], POD[4], HTTP, raw=PROBE.replace(b"Host:", b"Accept: application/json\r\nHost:")
        )
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["level"] == "port"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def syn(source: str, destination: str, sport: int, dport: int) -> bytes:
    """An IPv4 TCP SYN (RFC 9293 section 3.1); the kernel fills in the IP checksum."""

    def packed(checksum: int) -> bytes:
        return struct.pack("!HHIIBBHHH", sport, dport, sport, 0, 5 << 4, 0x02, 64240, checksum, 0)

    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    pseudo = addresses + struct.pack("!BBH", 0, 6, 20) + packed(0)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses + packed(~total & 0xFFFF)


def test_a_flood_does_not_stand_before_a_probe(pair: tuple[Host, Host]):
    """Half-open handshakes, silent, slow and babbling clients at once: every probe in between is answered, none refused."""
    router, pod = pair
    rp_filter(pod, 0)
    rng = random.Random(5)

    def half_open() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for number in range(3000):
                # Nobody has these addresses: the handshake is never finished.
                packet = syn(f"198.51.100.{100 + number % 100}", POD[4], 1024 + number, HTTP)
                raw.sendto(packet, (POD[4], 0))

    def clients(count: int, first: bytes) -> list[socket.socket]:
        found = []
        for _ in range(count):
            sock = socket.create_connection((POD[4], HTTP), timeout=ANSWER_SECONDS)
            sock.sendall(first)
            found.append(sock)
        return found

    async def body(server: HealthServer, board: Board) -> None:
        await server.set_uplinks((ETH0,))
        before = board.computations
        held: list[socket.socket] = []
        try:
            await asyncio.to_thread(router.call, half_open)
            for first in (b"", b"GET /healthz HTTP/1.1\r\nX: ", PROBE[:1], rng.randbytes(500), bytes(9000)):
                held += await asyncio.to_thread(router.call, lambda first=first: clients(150, first))
                for family in (4, 6):
                    answer = await aask(router, STRANGER[family], POD[family], HTTP)
                    assert answer.startswith(b"HTTP/1.1 200 "), (first[:20], family)
                assert await asyncio.to_thread(connects, router, STRANGER[4], POD[4], TCP)
            assert board.computations == before
        finally:
            for sock in held:
                sock.close()
        deadline = time.monotonic() + ANSWER_SECONDS
        while server.connections:
            assert time.monotonic() < deadline, f"{server.connections} connections are left"
            await asyncio.sleep(0.01)

    serve(pod, body)
