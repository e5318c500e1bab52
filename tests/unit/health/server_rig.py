# SPDX-License-Identifier: Apache-2.0
"""A health server with real sockets on `lo`, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address

from wicketgate.clock import SystemClock
from wicketgate.health.board import Board
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.metrics import Metrics
from wicketgate.health.server import HealthServer
from wicketgate.health.uplinks import Uplink

V4 = ip_address("127.0.0.1")
LO = Uplink("lo", (V4,))


@dataclass
class Rig:
    board: Board
    server: HealthServer

    @property
    def port(self) -> int:
        return self.server.listening()[0][1]

    @property
    def tcp_port(self) -> int:
        return self.server.tcp_bound()[0][1]

    def green(self) -> None:
        self.board.publish(
            [CheckResult("tunnel-v4", State.PASS, "echo through the tunnel", at=self.board.now(), seconds=0.0012)],
            "tunnel",
            "door",
            backend="userspace",
        )

    def red(self) -> None:
        self.board.publish(
            [CheckResult("tunnel-v4", State.FAIL, "no echo within 1 s", Cause.TUNNEL_SILENT, at=self.board.now())],
            "tunnel",
            "door",
        )


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Rig]:
    """A server on ports of its own."""
    board = Board(SystemClock(), 60.0)
    async with HealthServer(board, Metrics(board), port=0, tcp_port=0, any_tcp_port=True) as server:
        await server.set_uplinks((LO,))
        yield Rig(board, server)


@contextlib.asynccontextmanager
async def connect(
    port: int, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def send(port: int, raw: bytes) -> bytes:
    """Send bytes and read until the server closes; empty when it reset the connection."""
    async with asyncio.timeout(20), connect(port) as (reader, writer):
        writer.write(raw)
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def ask(port: int, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    fields = {"Host": "10.0.1.77:51820", "Connection": "close"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    answer = await send(port, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
    top, _, body = answer.decode().partition("\r\n\r\n")
    first, *rest = top.split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}, body


async def until(condition, what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


def refused(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(5)
        return sock.connect_ex(("127.0.0.1", port)) != 0
