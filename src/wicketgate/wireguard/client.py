# SPDX-License-Identifier: Apache-2.0
"""The synthetic client: a WireGuard peer without a device, on one connected UDP socket.

It completes a handshake, then speaks through the tunnel with packets of its own: ping, UDP echo, TCP as far as the
SYN-ACK. Every step that can fail has its name in `Step`: *which* one failed is the diagnosis.

Anybody may send to the socket. Only a message with the right type, length, index and seal has an effect; all others
are dropped without a word and without a change of state.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wicketgate.clock import Clock, SystemClock
from wicketgate.wireguard import packets
from wicketgate.wireguard.constants import (
    INITIATION_INTERVAL,
    INITIATION_MARGIN,
    REJECT_AFTER_TIME,
    REKEY_TIMEOUT,
    MessageType,
)
from wicketgate.wireguard.cookie import CookieJar, Mac1Check
from wicketgate.wireguard.failure import ProbeFailure, Step
from wicketgate.wireguard.handshake import Identity, Initiator, ResponseVerdict
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey
from wicketgate.wireguard.link import Link
from wicketgate.wireguard.messages import CookieReply, Response, Transport, message_type
from wicketgate.wireguard.packets import IPAddress, Packet, Segment
from wicketgate.wireguard.primitives import KeyPair
from wicketgate.wireguard.tai64n import Tai64nClock
from wicketgate.wireguard.transport import Session

__all__ = ["HandshakeDone", "ProbeFailure", "Step", "SyntheticClient"]

T = TypeVar("T")

# After a cookie the server's rate limit may still swallow an initiation (Linux ratelimiter.c: 20 a second and
# address), so the next try comes sooner than REKEY_TIMEOUT. A guess: longer than any sane round trip.
_LOADED_RETRY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """A handshake that was proved: the sealed payload of the response opened.

    Attributes:
        rtt: seconds from the initiation that was answered to its response.
        under_load: a cookie reply came first; the server is alive and busy.
    """

    rtt: float
    under_load: bool


class SyntheticClient:
    """One identity towards one server. One probe runs at a time; more wait for their turn."""

    def __init__(
        self,
        private_key: PrivateKey,
        server: PublicKey,
        preshared_key: PresharedKey | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare the keys; no socket yet.

        Args:
            private_key: the client's own. With a key that a living client uses the probe would steal its traffic:
                the server moves a peer's endpoint at the handshake.
            server: the server's public key. Raises ValueError when no private key can belong to it.
            preshared_key: None means none, which is the same as all zero.
            clock: for ages, and for the timestamps of initiations.
        """
        self._clock = clock or SystemClock()
        own = KeyPair(private_key)
        self._identity = Identity.between(own, server, preshared_key)
        self._cookies = CookieJar(server, self._clock)
        self._mac1 = Mac1Check(own.public_key)
        self._timestamps = Tai64nClock(self._clock)
        self._link: Link | None = None
        self._session: Session | None = None
        self._not_before = float("-inf")  # monotonic; earlier initiations would be dropped as a flood
        self._turn = asyncio.Lock()
        self._echo_identifier = secrets.randbelow(1 << 16)
        self._echo_sequence = 0
        self._owes_answer = False

    def attach(self, sock: socket.socket) -> None:
        """Use this connected UDP socket from now on. It stays the caller's, who closes it.

        A session survives (WireGuard roams); a cookie does not, it is bound to the old address and port.
        """
        self._link = Link(sock, self._clock)
        self._cookies.forget()

    async def handshake(self, timeout: float) -> HandshakeDone:
        """Complete a handshake.

        Args:
            timeout: seconds for all of it. An unanswered initiation is repeated after 5 s (the paper's
                REKEY_TIMEOUT), with a fresh ephemeral key and timestamp.

        Raises:
            ProbeFailure: with the step that failed.
        """
        async with self._turn:
            link = self._linked()
            link.drain()
            deadline = self._clock.monotonic() + timeout
            under_load = malformed = False
            while True:
                initiator, sent = await self._initiate(link, deadline)
                until = min(deadline, sent + (_LOADED_RETRY if under_load else REKEY_TIMEOUT))
                while (data := await link.receive(until)) is not None:
                    arrived = self._clock.monotonic()
                    kind = message_type(data)
                    if kind is MessageType.RESPONSE:
                        verdict = self._respond(initiator, data, arrived)
                        if verdict is ResponseVerdict.ACCEPTED:
                            return HandshakeDone(arrived - sent, under_load)
                        if verdict is ResponseVerdict.NOT_OPENED:
                            raise ProbeFailure(Step.WRONG_PSK)
                        malformed |= verdict is None
                    elif kind is MessageType.COOKIE_REPLY:
                        reply = CookieReply.parse(data)
                        if reply is not None and reply.receiver == initiator.index and self._cookies.take(reply):
                            if under_load:
                                continue  # the fresh cookie is used by the next try; never answer at once twice
                            under_load = True
                            break
                if self._clock.monotonic() >= deadline:
                    break
            if under_load:
                raise ProbeFailure(Step.UNDER_LOAD)
            raise ProbeFailure(Step.MALFORMED if malformed else Step.SILENT, f"waited {timeout:g} s")

    async def ping(self, source_ip: IPAddress, destination_ip: IPAddress, timeout: float, size: int = 56) -> float:
        """An ICMP echo through the tunnel.

        Args:
            source_ip: the tunnel address of this client.
            destination_ip: who shall answer; of the same family.
            timeout: seconds.
            size: bytes of payload; ping(8)'s default.

        Returns:
            Seconds until the echo.

        Raises:
            ProbeFailure: no_echo, or what the socket said.
        """
        self._echo_sequence = sequence = (self._echo_sequence + 1) & 0xFFFF
        identifier, payload = self._echo_identifier, secrets.token_bytes(size)
        wanted = packets.Echo(request=False, identifier=identifier, sequence=sequence, payload=payload)

        def match(packet: Packet) -> bool | None:
            return packets.parse_echo(packet) == wanted or None

        request = packets.echo_request(source_ip, destination_ip, identifier, sequence, payload)
        _, seconds = await self._exchange(
            request, source_ip, destination_ip, match, timeout=timeout, silence=Step.NO_ECHO
        )
        return seconds

    async def udp_echo(  # noqa: PLR0917 - addresses and ports, in the order of a flow
        self, source: IPAddress, sport: int, destination: IPAddress, dport: int, payload: bytes, timeout: float
    ) -> float:
        """A UDP datagram through the tunnel whose payload must come back from where it went.

        Returns:
            Seconds until it is back.

        Raises:
            ProbeFailure: no_echo, or what the socket said.
        """
        wanted = packets.Datagram(dport, sport, payload)

        def match(packet: Packet) -> bool | None:
            return packets.parse_udp(packet) == wanted or None

        request = packets.udp_datagram(source, sport, destination, dport, payload)
        _, seconds = await self._exchange(request, source, destination, match, timeout=timeout, silence=Step.NO_ECHO)
        return seconds

    async def tcp_syn(self, source: IPAddress, destination: IPAddress, dport: int, timeout: float) -> float:
        """Open a TCP connection through the tunnel as far as the SYN-ACK, and take it back with a RST.

        Returns:
            Seconds until the SYN-ACK.

        Raises:
            ProbeFailure: tcp_refused, tcp_silent, or what the socket said.
        """
        sport = 32768 + secrets.randbelow(28232)  # Linux's ip_local_port_range
        sequence = secrets.randbits(32)
        following = (sequence + 1) & 0xFFFFFFFF

        def match(packet: Packet) -> Segment | None:
            answer = packets.parse_tcp(packet)
            if answer is None or (answer.source_port, answer.destination_port) != (dport, sport):
                return None
            if not answer.flags & packets.ACK or answer.acknowledgement != following:
                return None
            return answer if answer.flags & (packets.SYN | packets.RST) else None

        syn = packets.tcp_segment(source, destination, Segment(sport, dport, sequence, 0, packets.SYN))
        answer, seconds = await self._exchange(
            syn, source, destination, match, timeout=timeout, silence=Step.TCP_SILENT
        )
        if answer.flags & packets.RST:
            raise ProbeFailure(Step.TCP_REFUSED)
        reset = packets.tcp_segment(source, destination, Segment(sport, dport, following, 0, packets.RST))
        with contextlib.suppress(ProbeFailure):  # the answer was there
            await self._send_sealed(reset)
        return seconds

    def close(self) -> None:
        """End the session; the socket stays open, it is the caller's.

        A last keepalive answers what the server sent: otherwise it would begin handshakes of its own for 90 s.
        """
        if self._owes_answer and self._session is not None and self._link is not None:
            with contextlib.suppress(OSError):  # a courtesy
                self._link.send_now(self._session.seal(b""))
        self._session = None
        self._link = None
        self._cookies.forget()

    # -- handshake ------------------------------------------------------------------------------------------------

    async def _initiate(self, link: Link, deadline: float) -> tuple[Initiator, float]:
        # Before anything is computed, so that the timestamp is that of the sending.
        pause = self._not_before - self._clock.monotonic()
        if pause > 0:
            await asyncio.sleep(min(pause, max(0.0, deadline - self._clock.monotonic())))
        initiator = Initiator(self._identity, secrets.randbits(32))
        message = self._cookies.sign(initiator.create_initiation(self._timestamps.now()).encode())
        sent = self._clock.monotonic()
        self._not_before = sent + INITIATION_INTERVAL + INITIATION_MARGIN
        await link.send(message)
        return initiator, sent

    def _respond(self, initiator: Initiator, data: bytes, now: float) -> ResponseVerdict | None:
        """None: addressed to this handshake, yet not sealed for us."""
        response = Response.parse(data)
        if response is None or response.receiver != initiator.index:
            return ResponseVerdict.NOT_OURS
        if not self._mac1.fits(data):
            return None
        # The server counts from when it read the initiation, which was before now, however slow the way was.
        self._not_before = now + INITIATION_INTERVAL + INITIATION_MARGIN
        verdict, session = initiator.consume_response(response, now)
        if session is not None:
            self._session = session
            self._owes_answer = False
        return verdict if verdict is not ResponseVerdict.NOT_OURS else None

    # -- tunnel ---------------------------------------------------------------------------------------------------

    async def _exchange(
        self,
        request: bytes,
        source: IPAddress,
        destination: IPAddress,
        match: Callable[[Packet], T | None],
        *,
        timeout: float,
        silence: Step,
    ) -> tuple[T, float]:
        async with self._turn:
            if self._session is None:
                raise RuntimeError("there is no session: handshake first")
            link = self._linked()
            link.drain()
            started = self._clock.monotonic()
            if started - self._session.established >= REJECT_AFTER_TIME:
                raise ProbeFailure(Step.SILENT, "the session is older than 180 s: handshake again")
            deadline = started + timeout
            await self._send_sealed(request)
            detail = f"waited {timeout:g} s"
            while (data := await link.receive(deadline)) is not None:
                arrived = self._clock.monotonic()
                packet = self._open(data)
                if packet is None or packet.destination != source:
                    continue
                if packet.source == destination and (found := match(packet)) is not None:
                    return found, arrived - started
                error = packets.parse_unreachable(packet)
                if error is not None and packets.quotes(error.about, request):
                    detail = f"{packet.source} answered: destination unreachable, code {error.code}"
                    break
            raise ProbeFailure(silence, detail)

    def _open(self, data: bytes) -> Packet | None:
        message = Transport.parse(data)
        if message is None or self._session is None:
            return None
        plain = self._session.unseal(message)
        if not plain:
            return None
        self._owes_answer = True
        return packets.parse_ip(plain)

    async def _send_sealed(self, packet: bytes) -> None:
        if self._session is None:
            raise RuntimeError("there is no session: handshake first")
        self._owes_answer = False
        await self._linked().send(self._session.seal(packet))

    def _linked(self) -> Link:
        if self._link is None:
            raise RuntimeError("there is no socket: attach one first")
        return self._link
