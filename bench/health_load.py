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
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

from aiohttp import web

from wicketgate.clock import SystemClock
from wicketgate.health.board import Board
from wicketgate.health.check import CheckResult, State
from wicketgate.health.metrics import Metrics
from wicketgate.health.server import HealthServer, spare_the_heap
from wicketgate.health.uplinks import Uplink
from wicketgate.logs import configure

RATE = 1000  # requests a second
SLOW = 200  # clients in the middle of their request head
ROUNDS = 2
SECONDS = 2.0  # of load, a round and row
PATIENCE = 5.0  # for the last answers of a round
GOAL = 0.005  # seconds, p99

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:51820\r\nConnection: close\r\n\r\n"


async def serve_ours() -> None:
    configure()  # logs on stderr: the port is read from stdout
    board = Board(SystemClock(), 1.0)
    metrics = Metrics(board)
    async with HealthServer(board, metrics, port=0, tcp_port=0, any_tcp_port=True) as server:
        await server.set_uplinks((Uplink("lo", (ip_address("127.0.0.1"),)),))
        spare_the_heap()  # as the agent does
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
    spare_the_heap()  # the same favour
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@dataclass
class Tally:
    """What a row has seen."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    cpu: float = 0.0  # seconds the server's process worked


class Clients:
    """All clients of a row in one epoll loop: cheap, so that what is measured is the server."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port, self.tally = port, tally
        self.poll = select.epoll()
        self.probes: dict[int, tuple[socket.socket, float, bytearray]] = {}
        self.slow: dict[int, socket.socket] = {}

    def connect(self) -> socket.socket:
        """A connection, whether or not the server has accepted it yet."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect(("127.0.0.1", self.port))  # on loopback it returns at once: the kernel answers, not the server
        sock.setblocking(False)
        return sock

    def probe(self, due: float) -> None:
        """Ask, on a new connection."""
        try:
            sock = self.connect()
        except OSError:
            self.tally.failed += 1
            return
        sock.send(REQUEST)
        self.probes[sock.fileno()] = (sock, due, bytearray())
        self.poll.register(sock, select.EPOLLIN)

    def begin_slow(self) -> None:
        """Open a connection and leave its request head unfinished."""
        sock = self.connect()
        sock.send(b"GET /healthz HTTP/1.1\r\nX: ")
        self.slow[sock.fileno()] = sock
        self.poll.register(sock, select.EPOLLIN)

    def drip(self) -> None:
        """A byte more of every slow head."""
        for sock in self.slow.values():
            with contextlib.suppress(OSError):
                sock.send(b"y")

    def wait(self, seconds: float) -> None:
        """Take what has come in, for at most that long."""
        for fd, _ in self.poll.poll(max(0.0, seconds)):
            if fd in self.slow:
                with contextlib.suppress(OSError):
                    if self.slow[fd].recv(4096):
                        continue
                self.slow.pop(fd).close()  # thrown out: come back as another
                self.begin_slow()
                continue
            sock, due, got = self.probes[fd]
            try:
                data = sock.recv(4096)
            except OSError:
                data = b""
            got += data
            # The probe ends with the answer, as a balancer's does, not with the end of the connection.
            whole = got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\nok\n")
            if whole:
                self.tally.seconds.append(time.perf_counter() - due)
            if whole or not data:
                self.tally.failed += not whole
                del self.probes[fd]
                sock.close()

    def close(self) -> None:
        """End all of them."""
        self.tally.failed += len(self.probes)
        for sock in (*self.slow.values(), *(probe[0] for probe in self.probes.values())):
            sock.close()
        self.poll.close()


def load(port: int, tally: Tally, seconds: float, slow: int = 0) -> None:
    """Open loop: requests leave when they are due, whether or not earlier ones were answered."""
    clients = Clients(port, tally)
    try:
        for _ in range(slow):
            clients.begin_slow()
        begin = time.perf_counter() + 0.1
        next_drip = begin
        for number in range(int(RATE * seconds)):
            due = begin + number / RATE
            while (wait := due - time.perf_counter()) > 0:
                clients.wait(wait)
            if due >= next_drip:
                clients.drip()
                next_drip += 1.0
            clients.probe(due)
            clients.wait(0)
        end = time.perf_counter() + PATIENCE
        while clients.probes and time.perf_counter() < end:
            clients.wait(0.1)
    finally:
        clients.close()


def worked(pid: int) -> float:
    """CPU seconds of a process (proc_pid_stat(5), fields 14 and 15)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        words = stat.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure() -> dict[tuple[str, int], Tally]:
    rows = {(kind, slow): Tally() for slow in (0, SLOW) for kind in ("bare", "ours")}
    with contextlib.ExitStack() as stack:
        ports, pids = {}, {}
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
            ports[kind], pids[kind] = int(process.stdout.readline()), process.pid
        for port in ports.values():
            load(port, Tally(), 0.5)
        gc.collect()
        gc.disable()  # of this client, not of the servers
        for _ in range(ROUNDS):
            for (kind, slow), tally in rows.items():
                before = worked(pids[kind])
                load(ports[kind], tally, SECONDS, slow)
                tally.cpu += worked(pids[kind]) - before
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve_ours() if sys.argv[2] == "ours" else serve_bare())
        return
    rows = measure()
    names = {"bare": "bare aiohttp handler", "ours": "wicketgate /healthz"}
    print(f"{RATE} requests/s, a connection each, {ROUNDS} x {SECONDS:g} s a row\n")
    print(
        f"{'server':<22}{'slow clients':>13}{'answered':>10}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'core %':>8}"
    )
    p99 = {}
    for (kind, slow), tally in rows.items():
        cuts = statistics.quantiles(tally.seconds, n=100)
        p99[kind, slow] = cuts[98]
        print(
            f"{names[kind]:<22}{slow:>13}{len(tally.seconds):>10}{tally.failed:>8}"
            f"{cuts[49] * 1000:>9.2f}{cuts[98] * 1000:>9.2f}{max(tally.seconds) * 1000:>9.2f}"
            f"{100 * tally.cpu / (ROUNDS * SECONDS):>8.0f}"
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
