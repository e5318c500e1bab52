# SPDX-License-Identifier: Apache-2.0
"""Claim: 1,000 health requests a second and 200 slow clients at once leave the answer's p99 below 5 ms.

Each request is a connection of its own, as a load balancer makes it, and is timed from the moment it was due: a client
that falls behind counts against the server. A bare aiohttp handler gets the same load in the same run, in turns.
Server and clients are two processes on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from aiohttp import web

from wicketgate.clock import SystemClock
from wicketgate.health.board import Board
from wicketgate.health.check import CheckResult, State
from wicketgate.health.metrics import Metrics
from wicketgate.health.server import HealthServer
from wicketgate.health.uplinks import Uplink
from wicketgate.logs import configure

RATE = 1000  # requests a second
SLOW = 200  # clients in the middle of their request head
ROUNDS = 2
SECONDS = 2.5  # of load, a round and row
PATIENCE = 5.0  # for the last answers of a round
GOAL = 0.005  # seconds, p99

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:51820\r\nConnection: close\r\n\r\n"


async def serve_ours() -> None:
    configure()  # logs on stderr: the port is read from stdout
    board = Board(SystemClock(), 1.0)
    metrics = Metrics(board)
    async with HealthServer(board, metrics, port=0, tcp_port=0, any_tcp_port=True) as server:
        await server.set_uplinks((Uplink("lo", (ip_address("127.0.0.1"),)),))
        print(server.listening()[0][1], flush=True)
        while True:  # as the prober does, once an interval
            checks = [
                CheckResult(name, State.PASS, "echo", at=board.now(), seconds=0.001)
                for name in ("handshake-ipv4", "tunnel-ipv4", "egress-ipv4", "balancer-ipv4")
            ]
            board.publish(checks, "egress", "door")
            metrics.observe_round_trip("handshake", 0.001)
            await asyncio.sleep(1.0)


async def serve_bare() -> None:
    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@dataclass
class Tally:
    """What a row has seen."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0


class Probe(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, due: float, tally: Tally, done: asyncio.Future[None]) -> None:
        self.due, self.tally, self.done = due, tally, done
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """Collect the answer."""
        self.got += data

    def connection_lost(self, _exc: Exception | None) -> None:
        """The server has closed: the answer is complete, or there is none."""
        if self.got.startswith(b"HTTP/1.1 200 ") and self.got.endswith(b"ok\n"):
            self.tally.seconds.append(time.perf_counter() - self.due)
        else:
            self.tally.failed += 1
        if not self.done.done():
            self.done.set_result(None)


async def one(port: int, due: float, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    try:
        async with asyncio.timeout(PATIENCE):
            await loop.create_connection(lambda: Probe(due, tally, done), "127.0.0.1", port)
            await done
    except (OSError, TimeoutError):
        tally.failed += 1


async def load(port: int, tally: Tally, seconds: float) -> None:
    """Open loop: requests leave when they are due, whether or not earlier ones were answered."""
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * seconds)):
            due = begin + number / RATE
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(one(port, due, tally))


async def drip(port: int) -> None:
    """A slow client: a byte of a header a second, and again when it is thrown out."""
    while True:
        with contextlib.suppress(OSError):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
                while not writer.transport.is_closing():
                    writer.write(b"y")
                    await asyncio.sleep(1.0)
            finally:
                writer.transport.abort()


@contextlib.asynccontextmanager
async def slow_clients(port: int, count: int) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(drip(port)) for _ in range(count)]
    if count:
        await asyncio.sleep(0.3)  # all of them are connected
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure() -> dict[tuple[str, int], Tally]:
    rows = {(kind, slow): Tally() for slow in (0, SLOW) for kind in ("bare", "ours")}
    with contextlib.ExitStack() as stack:
        ports = {}
        for kind in ("bare", "ours"):
            process = subprocess.Popen(
                [sys.executable, __file__, "--serve", kind],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            ports[kind] = int(process.stdout.readline())
        for port in ports.values():
            await load(port, Tally(), 0.5)
        gc.collect()
        gc.disable()  # of this client, not of the servers
        for _ in range(ROUNDS):
            for (kind, slow), tally in rows.items():
                async with slow_clients(ports[kind], slow):
                    await load(ports[kind], tally, SECONDS)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve_ours() if sys.argv[2] == "ours" else serve_bare())
        return
    rows = asyncio.run(measure())
    names = {"bare": "bare aiohttp handler", "ours": "wicketgate /healthz"}
    print(f"{RATE} requests/s, a connection each, {ROUNDS} x {SECONDS:g} s a row\n")
    print(f"{'server':<22}{'slow clients':>13}{'answered':>10}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    p99 = {}
    for (kind, slow), tally in rows.items():
        cuts = statistics.quantiles(tally.seconds, n=100)
        p99[kind, slow] = cuts[98]
        print(
            f"{names[kind]:<22}{slow:>13}{len(tally.seconds):>10}{tally.failed:>8}"
            f"{cuts[49] * 1000:>9.2f}{cuts[98] * 1000:>9.2f}{max(tally.seconds) * 1000:>9.2f}"
        )
    ratio = p99["ours", SLOW] / p99["bare", SLOW]
    met = p99["ours", SLOW] < GOAL and not rows["ours", SLOW].failed
    print(f"\np99 with {SLOW} slow clients, ours / bare: {ratio:.2f}")
    print(
        f"goal p99 < {GOAL * 1000:g} ms with {SLOW} slow clients and none failed: {'met' if met else 'NOT met'}"
        f" ({p99['ours', SLOW] * 1000:.2f} ms, {rows['ours', SLOW].failed} failed)"
    )


if __name__ == "__main__":
    main()
