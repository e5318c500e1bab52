# SPDX-License-Identifier: Apache-2.0
"""The TCP port: for load balancers that can only connect. It listens while the verdict is `serving`, and only then.

While it is closed the sockets stay bound without listening: a connect is refused, and the port is not lost to another
process in between. A connection says nothing; what it sends is thrown away, and it ends after a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from wicketgate.errors import WicketError
from wicketgate.health.uplinks import Place, bind_to_uplink, busy
from wicketgate.logs import get_logger

BACKLOG = 128
CONNECTION_SECONDS = 3.0  # a probe only connects
CONNECTION_LIMIT = 128  # at once; the oldest goes first
READ_LIMIT = 4096  # bytes that a connection may send

_log = get_logger("health")


class TcpPort:
    """Listening sockets that follow the verdict. Everything happens at once, on the loop, without a task.

    Args:
        port: TCP port; 0 takes any (tests).
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = False
        self._sockets: dict[tuple[int, int], tuple[Place, socket.socket]] = {}
        self._connections: dict[socket.socket, tuple[asyncio.TimerHandle, list[int]]] = {}

    @property
    def is_open(self) -> bool:
        """Whether it should accept connections now."""
        return self._open

    def listening(self) -> tuple[tuple[Place, int], ...]:
        """Where connections are accepted now, with the port."""
        return tuple(
            (place, sock.getsockname()[1])
            for place, sock in self._sockets.values()
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )

    def bound(self) -> tuple[tuple[Place, int], ...]:
        """Where the port is held, listening or not."""
        return tuple((place, sock.getsockname()[1]) for place, sock in self._sockets.values())

    def set_places(self, places: tuple[Place, ...]) -> list[WicketError]:
        """Hold the port at these places and nowhere else.

        Returns:
            what did not work; the other places are served all the same.
        """
        wanted = {(place.ifindex, int(place.family)): place for place in places}
        for key in [key for key in self._sockets if key not in wanted]:
            self._drop(key)
        problems: list[WicketError] = []
        for key, place in wanted.items():
            if key in self._sockets:
                continue
            try:
                sock = bind_to_uplink(place, self._port)
            except WicketError as error:
                problems.append(error)
                continue
            if sock is not None:
                self._sockets[key] = (place, sock)
                if self._open:
                    self._listen(key)
        return problems

    def set_open(self, value: bool) -> None:
        """Accept connections from now on, or refuse them from now on."""
        if value is self._open:
            return
        self._open = value
        for key in list(self._sockets):
            if value:
                self._listen(key)
            else:
                self._reserve(key)
        if not value:
            for sock in list(self._connections):
                self._end(sock)

    def close(self) -> None:
        """Let the port go."""
        self._open = False
        for key in list(self._sockets):
            self._drop(key)
        for sock in list(self._connections):
            self._end(sock)

    def _listen(self, key: tuple[int, int]) -> None:
        place, sock = self._sockets[key]
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            # Only possible when another process, with SO_REUSEADDR too, was quicker than our reservation.
            why = str(busy(place, self._port)) if error.errno == errno.EADDRINUSE else str(error)
            _log.error("the TCP port does not open", port=self._port, interface=place.ifname, error=why)
            return
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _drop(self, key: tuple[int, int]) -> Place:
        place, sock = self._sockets.pop(key)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        return place

    def _reserve(self, key: tuple[int, int]) -> None:
        # A listening socket cannot stop listening, so it is closed and its port bound again.
        port = self._sockets[key][1].getsockname()[1]
        place = self._drop(key)
        try:
            sock = bind_to_uplink(place, port)
        except WicketError as error:
            _log.error("the TCP port is lost", port=port, interface=place.ifname, error=str(error))
            return
        if sock is not None:
            self._sockets[key] = (place, sock)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                sock, _peer = listener.accept()
            except OSError:
                return  # none left, or the client has gone already
            sock.setblocking(False)
            if len(self._connections) >= CONNECTION_LIMIT:
                self._end(next(iter(self._connections)))
            timer = loop.call_later(CONNECTION_SECONDS, self._end, sock)
            self._connections[sock] = (timer, [0])
            loop.add_reader(sock, self._discard, sock)

    def _discard(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(READ_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        count = self._connections[sock][1]
        count[0] += len(data)
        if not data or count[0] > READ_LIMIT:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        entry = self._connections.pop(sock, None)
        if entry is None:
            return
        entry[0].cancel()
        with contextlib.suppress(RuntimeError):  # the loop has gone
            asyncio.get_running_loop().remove_reader(sock)
        sock.close()
