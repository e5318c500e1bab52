# SPDX-License-Identifier: Apache-2.0
"""The client's one connected UDP socket: datagrams out, datagrams in until a deadline, errors as steps of a probe."""

from __future__ import annotations

import asyncio
import socket

from wicketgate.clock import Clock
from wicketgate.wireguard.failure import ProbeFailure, Step

_BUFFER = 65536  # bytes; the largest UDP datagram
_FAIR = 64  # datagrams in a row after which other tasks get their turn; a guess
_STALE = 1024  # datagrams of earlier probes that are thrown away at most before a new one starts; a guess


class Link:
    """A connected, non-blocking UDP socket. It stays its owner's, who closes it."""

    __slots__ = ("_clock", "_received", "_socket")

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._clock = clock
        self._received = 0

    def drain(self) -> None:
        """Throw away what earlier probes left: late answers, and late errors that are not about this one."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # reading clears it
        for _ in range(_STALE):
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError:
                continue

    async def send(self, data: bytes) -> None:
        """Send a datagram. Raises ProbeFailure: refused, unreachable."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise _failed(error) from error

    def send_now(self, data: bytes) -> None:
        """Send a datagram without waiting. Raises OSError."""
        self._socket.send(data)

    async def receive(self, deadline: float) -> bytes | None:
        """The next datagram; None at the deadline (monotonic seconds). Raises ProbeFailure: refused, unreachable."""
        left = deadline - self._clock.monotonic()
        if left <= 0:
            return None
        self._received += 1
        if self._received % _FAIR == 0:
            # sock_recv does not yield while there is something to read: a flood would own the loop.
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(left):
                return await asyncio.get_running_loop().sock_recv(self._socket, _BUFFER)
        except TimeoutError:
            return None
        except OSError as error:
            raise _failed(error) from error


def _failed(error: OSError) -> ProbeFailure:
    if isinstance(error, ConnectionRefusedError):
        return ProbeFailure(Step.REFUSED)
    return ProbeFailure(Step.UNREACHABLE, error.strerror or str(error))
