# SPDX-License-Identifier: Apache-2.0
"""The client that the rounds of evidence are made with: a stranger to the device, with an identity of ours."""

from __future__ import annotations

import asyncio
import socket

from wicketgate.clock import Clock
from wicketgate.health.target import ProbeTarget
from wicketgate.wireguard.client import HandshakeDone, SyntheticClient
from wicketgate.wireguard.failure import ProbeFailure, Step

# The device drops a peer's initiations that come less than 20 ms after the last one (HandshakeInitationRate in
# wireguard-go, INITIATIONS_PER_SECOND in the kernel), so the second family waits a little.
_HANDSHAKE_SPACING = 0.03  # seconds
SHORTEST_TIMEOUT = 0.25  # seconds; a CPU limit can pause a pod for 100 ms at a time
_LOADED_TIMEOUT = 1.5  # seconds; more than the client's pause after a cookie (wireguard/client.py)


class Stranger:
    """Makes handshakes, not too many at a time, and keeps the session of the last one.

    Args:
        clock: for the time between handshakes.
        timeout: seconds for an answer.
    """

    def __init__(self, clock: Clock, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._client: SyntheticClient | None = None
        self._client_of: object = None
        self._last_handshake = float("-inf")
        self._quiet = False  # a handshake of this round was met with silence

    def new_round(self) -> None:
        """Silence that was met before is forgotten."""
        self._quiet = False

    def client(self, target: ProbeTarget) -> SyntheticClient:
        """The one for this device and identity, with the session of its last handshake."""
        assert target.identity is not None
        assert target.public_key is not None
        key = (target.identity, target.public_key)
        if self._client is None or self._client_of != key:
            if self._client is not None:
                self._client.close()
            self._client = SyntheticClient(
                target.identity.private_key, target.public_key, target.identity.preshared_key, self._clock
            )
            self._client_of = key
        return self._client

    async def handshake(self, target: ProbeTarget, sock: socket.socket, *, again: bool) -> HandshakeDone:
        """One handshake by this socket; silence is met with a second try, as a real client would: a datagram may get lost.

        Where there was silence in the last round already, one try is enough to tell that it goes on; and where there
        was silence before in this round, what comes after it is asked once and shortly: the whole of a silent round,
        with the wait for it, is to be over within two intervals (bench/fault_times.py).

        Args:
            target: the device.
            sock: connected to it.
            again: a second try may be made.

        Raises:
            ProbeFailure: there was no handshake.
        """
        client = await self._attached(target, sock)
        again = again and not self._quiet
        short = min(self._timeout, SHORTEST_TIMEOUT)
        try:
            try:
                return await client.handshake(short if self._quiet else self._timeout)
            except ProbeFailure as failure:
                if failure.step is Step.UNDER_LOAD:
                    # A cookie is an answer: alive. It is kept, and the next initiation carries it; a busy server may take
                    # its time over that.
                    return await client.handshake(_LOADED_TIMEOUT)
                if failure.step is not Step.SILENT:
                    raise
                self._quiet = True
                if not again:
                    raise
            return await client.handshake(short)
        finally:
            self._last_handshake = self._clock.monotonic()

    async def knock(self, target: ProbeTarget, sock: socket.socket, timeout: float) -> None:
        """One try of a handshake, which somebody counts.

        Raises:
            ProbeFailure: there was no handshake.
        """
        client = await self._attached(target, sock)
        try:
            await client.handshake(timeout)
        finally:
            self._last_handshake = self._clock.monotonic()

    async def _attached(self, target: ProbeTarget, sock: socket.socket) -> SyntheticClient:
        client = self.client(target)
        client.attach(sock)
        wait = self._last_handshake + _HANDSHAKE_SPACING - self._clock.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        return client
