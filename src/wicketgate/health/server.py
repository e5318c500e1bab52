# SPDX-License-Identifier: Apache-2.0
"""The health server: one listening socket an uplink and family, and the TCP port beside it.

It runs on the agent's own loop on purpose: a loop that stalls fails every check by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from wicketgate.errors import StateError, WicketError
from wicketgate.health.answers import Answers
from wicketgate.health.board import Board
from wicketgate.health.http import HttpServer
from wicketgate.health.metrics import Metrics
from wicketgate.health.tcp_port import TcpPort
from wicketgate.health.uplinks import Place, PortBusy, Uplink, bind_to_uplink, busy, places
from wicketgate.health.verdict import Verdict
from wicketgate.logs import get_logger

BACKLOG = 1024  # connections the kernel may hold for us; net.core.somaxconn (4096 since Linux 5.4) caps it
# asyncio accepts as many connections in one turn of the loop as its `backlog` says, and takes some eight turns from
# accept to answer: so many batches must fit in CONNECTION_LIMIT, or a flood's own probes are pushed out unread.
ACCEPT_BATCH = 16

_LOOPBACK = Uplink("lo", (IPv4Address("127.0.0.1"), IPv6Address("::1")))

_log = get_logger("health")


def spare_the_heap() -> None:
    """Keep the collector from walking what was made at the start and stays: a full round over all of a program's code and
    tables takes tens of milliseconds, in which no probe is answered (bench/health_load.py).
    """
    gc.collect()
    gc.freeze()


class HealthServer:
    """Tells the verdict on the uplinks.

    Args:
        board: where the verdict is.
        metrics: what /metrics prints.
        port: HTTP port (0 takes any, for tests).
        tcp_port: port that accepts connections only while serving; None or 0 for none.
        loopback: listen on `lo` as well.
        any_tcp_port: 0 as `tcp_port` means any free port (tests).
    """

    def __init__(
        self,
        board: Board,
        metrics: Metrics,
        *,
        port: int = 8080,
        tcp_port: int | None = 9000,
        loopback: bool = False,
        any_tcp_port: bool = False,
    ) -> None:
        self._board = board
        self._port = port
        self._loopback = loopback
        self._tcp = TcpPort(tcp_port or 0) if tcp_port or any_tcp_port else None
        self._answers = Answers(board, metrics)
        self._http: HttpServer | None = None
        self._listeners: dict[tuple[int, int], tuple[Place, asyncio.Server, int]] = {}
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._forget: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """HTTP connections that are open now."""
        return 0 if self._http is None else len(self._http.waiting) + len(self._http.asking)

    def listening(self) -> tuple[tuple[Place, int], ...]:
        """Where HTTP is answered, with the port."""
        return tuple((place, port) for place, _, port in self._listeners.values())

    def tcp_listening(self) -> tuple[tuple[Place, int], ...]:
        """Where the TCP port accepts connections at this moment."""
        return () if self._tcp is None else self._tcp.listening()

    def tcp_bound(self) -> tuple[tuple[Place, int], ...]:
        """Where the TCP port is held, open or closed."""
        return () if self._tcp is None else self._tcp.bound()

    async def set_uplinks(self, uplinks: tuple[Uplink, ...]) -> None:
        """Listen on these uplinks and nowhere else. Call it again whenever links or addresses changed.

        Sockets of uplinks that stay are not touched. An interface that was deleted and made again under the same name
        is another one to the kernel, and gets new sockets. One that does not exist is left out.

        Raises:
            PortBusy: another process has a port, named with its holder; all other places are served all the same.
            StateError: the kernel refused a socket otherwise.
        """
        async with self._lock:
            http = self._start()
            wanted = places((*uplinks, _LOOPBACK) if self._loopback else uplinks)
            problems = await self._listen(http, wanted)
            if self._tcp is not None:
                problems += self._tcp.set_places(wanted)
            if problems:
                kind = PortBusy if any(isinstance(problem, PortBusy) for problem in problems) else StateError
                raise kind("; ".join(str(problem) for problem in problems))

    async def close(self) -> None:
        """Stop listening and end every connection."""
        async with self._lock:
            for forget in self._forget:
                forget()
            self._forget.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for key in list(self._listeners):
                self._drop(key)
            if self._tcp is not None:
                self._tcp.close()
            if self._http is not None:
                self._http.close()
                self._http = None

    def _start(self) -> HttpServer:
        if self._http is not None:
            return self._http
        self._http = HttpServer(self._answers.handle)
        self._forget.append(self._board.on_verdict(self._arm))
        if self._tcp is not None:
            tcp = self._tcp
            self._forget.append(self._board.on_change(lambda verdict: tcp.set_open(verdict.serving)))
        self._arm(self._board.verdict())
        return self._http

    def _arm(self, verdict: Verdict) -> None:
        # Without a caller nobody would notice that evidence has gone stale, and the TCP port would stay open.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay = verdict.expires_at - self._board.now()
        if delay != float("inf"):
            # The verdict holds up to and including that moment.
            self._timer = asyncio.get_running_loop().call_later(max(0.0, delay) + 0.001, self._expired)

    def _expired(self) -> None:
        self._timer = None
        before = self._board.computations
        verdict = self._board.verdict()
        if self._board.computations == before:
            self._arm(verdict)  # woken early

    async def _listen(self, http: HttpServer, wanted: tuple[Place, ...]) -> list[WicketError]:
        keyed = {(place.ifindex, int(place.family)): place for place in wanted}
        for key in [key for key in self._listeners if key not in keyed]:
            self._drop(key)
        problems: list[WicketError] = []
        for key, place in keyed.items():
            if key in self._listeners:
                continue
            try:
                sock = bind_to_uplink(place, self._port)
            except WicketError as error:
                problems.append(error)
                continue
            if sock is None:
                continue
            port = sock.getsockname()[1]
            try:
                server = await asyncio.get_running_loop().create_server(
                    http.connection, sock=sock, backlog=ACCEPT_BATCH
                )
                sock.listen(BACKLOG)  # again, with the kernel's own limit
            except OSError as error:
                sock.close()
                problems.append(
                    busy(place, port)
                    if error.errno == errno.EADDRINUSE
                    else StateError(f"port {port} on {place.ifname} does not listen: {error.strerror}")
                )
                continue
            self._listeners[key] = (place, server, port)
            _log.info("health is told", interface=place.ifname, family=f"IPv{place.family}", port=port)
        return problems

    def _drop(self, key: tuple[int, int]) -> None:
        place, server, port = self._listeners.pop(key)
        with contextlib.suppress(OSError):
            server.close()
        _log.info("health is no longer told", interface=place.ifname, family=f"IPv{place.family}", port=port)
