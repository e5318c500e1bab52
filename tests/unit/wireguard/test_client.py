# SPDX-License-Identifier: Apache-2.0
"""The synthetic client against a server made of our own responder, on loopback, that misbehaves as told."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from wicketgate.clock import SystemClock
from wicketgate.wireguard import client as client_module
from wicketgate.wireguard import packets
from wicketgate.wireguard.client import ProbeFailure, Step, SyntheticClient
from wicketgate.wireguard.cookie import CookieJar, CookieMaker, MacVerdict
from wicketgate.wireguard.handshake import Responder
from wicketgate.wireguard.keys import PresharedKey, PrivateKey
from wicketgate.wireguard.messages import CookieReply, Initiation, MessageType, Response, Transport, message_type
from wicketgate.wireguard.packets import Segment
from wicketgate.wireguard.primitives import KeyPair
from wicketgate.wireguard.transport import Session

OWN4, THERE4 = ip_address("10.0.0.2"), ip_address("10.0.0.1")
OWN6, THERE6 = ip_address("fd00::2"), ip_address("fd00::1")


class Server(asyncio.DatagramProtocol):
    """Answers handshakes, and echoes what comes through the tunnel. The switches make it worse."""

    def __init__(self, psk: PresharedKey | None = None) -> None:
        self.key = PrivateKey.generate()
        self.psk = psk
        self.pair = KeyPair(self.key)
        self.cookies = CookieMaker(self.key.public(), SystemClock())
        self.under_load = self.mute = self.garbage = self.forge = False
        self.swallow = 0  # initiations that get lost
        self.stamps: list[bytes] = []
        self.ephemerals: list[bytes] = []
        self.verdicts: list[MacVerdict] = []
        self.keepalives = 0
        self.answer = self.echo
        self.session: Session | None = None
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        kind = message_type(data)
        if self.garbage:
            self.noise(data, addr)
        if kind is MessageType.INITIATION:
            self.initiation(data, addr)
        elif kind is MessageType.TRANSPORT and self.session is not None:
            message = Transport.parse(data)
            assert message is not None
            plain = self.session.unseal(message)
            if plain == b"":
                self.keepalives += 1
            elif plain:
                for reply in self.answer(plain):
                    self.transport.sendto(self.session.seal(reply), addr)

    def initiation(self, data: bytes, addr) -> None:
        verdict = self.cookies.check(data, str(addr).encode())
        self.verdicts.append(verdict)
        first = Initiation.parse(data)
        assert first is not None
        self.ephemerals.append(first.ephemeral)
        if self.mute or verdict is MacVerdict.INVALID:
            return
        if self.swallow:
            self.swallow -= 1
            return
        if self.under_load and verdict is MacVerdict.MAC1:
            self.transport.sendto(self.cookies.reply(data, first.sender, str(addr).encode()).encode(), addr)
            return
        responder = Responder(self.pair)
        peer = responder.consume_initiation(first)
        if peer is None:
            return
        self.stamps.append(responder.timestamp)
        made = responder.create_response(secrets.randbits(32), self.psk)
        assert made is not None
        response, self.session = made
        signed = CookieJar(peer, SystemClock()).sign(response.encode())
        if self.forge:
            signed = signed[:-32] + bytes(32)
        self.transport.sendto(signed, addr)

    def noise(self, data: bytes, addr) -> None:
        """What strangers may send: every type, right and wrong lengths, the true index or another."""
        index = data[4:8]
        for body in (
            b"",
            b"\x02",
            os.urandom(92),
            b"\x02\0\0\0" + os.urandom(88),
            Response(1, int.from_bytes(index, "little") ^ 1, os.urandom(32), os.urandom(16)).encode(),
            Response(1, int.from_bytes(index, "little"), os.urandom(32), os.urandom(16)).encode(),
            CookieReply(int.from_bytes(index, "little"), os.urandom(24), os.urandom(32)).encode(),
            Transport(int.from_bytes(index, "little"), 0, os.urandom(48)).encode(),
            b"\x04\0\0\0" + os.urandom(4),
            data,
        ):
            self.transport.sendto(body, addr)

    @staticmethod
    def echo(plain: bytes) -> list[bytes]:
        packet = packets.parse_ip(plain)
        assert packet is not None
        echo = packets.parse_echo(packet)
        if echo is not None:
            wrong = packets.echo_request(
                packet.destination, packet.source, echo.identifier, echo.sequence ^ 1, echo.payload
            )
            return [wrong, as_reply(packet, echo)]
        datagram = packets.parse_udp(packet)
        if datagram is not None:
            ends = packet.destination, datagram.destination_port, packet.source, datagram.source_port
            return [packets.udp_datagram(*ends, b"wrong"), packets.udp_datagram(*ends, datagram.payload)]
        return []


def as_reply(packet: packets.Packet, echo: packets.Echo) -> bytes:
    """An echo reply: the same bytes with another type and checksum."""
    body = bytearray(packet.payload)
    body[0] = 0 if packet.source.version == 4 else 129
    body[2:4] = b"\0\0"
    pseudo = b""
    if packet.source.version == 6:
        pseudo = packet.destination.packed + packet.source.packed + len(body).to_bytes(4) + (58).to_bytes(4)
    body[2:4] = packets.checksum(pseudo + bytes(body)).to_bytes(2)
    return packets.ip_packet(packet.destination, packet.source, packet.protocol, bytes(body))


@asynccontextmanager
async def world(
    *, psk: PresharedKey | None = None, client_psk: PresharedKey | None = None
) -> AsyncIterator[tuple[Server, SyntheticClient, socket.socket]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: Server(psk), local_addr=("127.0.0.1", 0))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.connect(transport.get_extra_info("sockname"))
        client = SyntheticClient(PrivateKey.generate(), server.key.public(), client_psk)
        client.attach(sock)
        yield server, client, sock
    finally:
        sock.close()
        transport.close()


async def failure(awaitable) -> ProbeFailure:
    with pytest.raises(ProbeFailure) as caught:
        await awaitable
    return caught.value


async def test_handshake_ping_and_udp():
    """The whole way, both families; wrong echoes that come first are passed over."""
    async with world() as (server, client, _):
        assert 0 < (await client.handshake(5)).rtt < 5
        assert await client.ping(OWN4, THERE4, 5) > 0
        assert await client.ping(OWN6, THERE6, 5, size=0) > 0
        assert await client.udp_echo(OWN4, 7000, THERE4, 7000, b"once round", 5) > 0
        assert server.session is not None


async def test_strangers_do_not_confuse():
    """With ten kinds of garbage before each true answer, among them a response and a cookie reply with our own
    index, everything works as if nothing had come.
    """
    async with world() as (server, client, _):
        server.garbage = True
        for _ in range(3):
            done = await client.handshake(5)
            assert not done.under_load
            assert await client.ping(OWN4, THERE4, 5) > 0
        assert server.verdicts == [MacVerdict.MAC1] * 3


async def test_a_flood_leaves_the_loop_to_others():
    """While a thousand strange datagrams wait on the socket, other tasks of the loop still get their turns."""
    async with world() as (server, client, sock):
        server.mute = True
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        class Endless:
            """A socket that always has one more datagram."""

            def __getattr__(self, name: str):
                return getattr(sock, name)

            def recv(self, _size: int) -> bytes:
                return b"x" * 92

        client.attach(Endless())  # type: ignore[arg-type]
        task = asyncio.get_running_loop().create_task(other())
        assert (await failure(client.handshake(0.1))).step is Step.SILENT
        task.cancel()
        assert turns > 10


async def test_a_cookie_is_answered_with_mac2():
    """Under load the client comes again with mac2, a fresh ephemeral key and a later timestamp, and says so; the next
    handshake uses the cookie at once.
    """
    async with world() as (server, client, _):
        server.under_load = True
        done = await client.handshake(5)
        assert done.under_load
        assert server.verdicts == [MacVerdict.MAC1, MacVerdict.MAC2]
        assert len(set(server.ephemerals)) == 2
        again = await client.handshake(5)
        assert not again.under_load
        assert server.verdicts[2:] == [MacVerdict.MAC2]
        assert server.stamps == sorted(set(server.stamps))


async def test_a_new_socket_drops_the_cookie():
    """A cookie belongs to an address and port: with another socket the next handshake starts without mac2."""
    async with world() as (server, client, sock):
        server.under_load = True
        await client.handshake(5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.connect(sock.getpeername())
            client.attach(other)
            assert (await client.handshake(5)).under_load
        assert server.verdicts == [MacVerdict.MAC1, MacVerdict.MAC2] * 2


async def test_under_load_and_never_finished():
    """A cookie and then nothing is its own failure: alive, not silent."""
    async with world() as (server, client, _):
        server.under_load = True
        server.initiation = lambda data, addr: (  # type: ignore[method-assign]
            Server.initiation(server, data, addr) if not server.verdicts else None
        )
        assert (await failure(client.handshake(0.2))).step is Step.UNDER_LOAD


async def test_a_lost_initiation_is_repeated(monkeypatch: pytest.MonkeyPatch):
    """A lost initiation is repeated within the timeout, with a fresh ephemeral key and a later timestamp."""
    monkeypatch.setattr(client_module, "REKEY_TIMEOUT", 0.05)
    async with world() as (server, client, _):
        server.swallow = 2
        done = await client.handshake(5)
        assert done.rtt < 0.05 * 2
        assert len(set(server.ephemerals)) == 3


async def test_wrong_psk_silent_and_malformed():
    """What the server's answer is worth is told apart."""
    async with world(psk=PresharedKey.generate()) as (server, client, _):
        assert (await failure(client.handshake(5))).step is Step.WRONG_PSK
        server.forge = True
        assert (await failure(client.handshake(0.1))).step is Step.MALFORMED
        server.forge, server.mute = False, True
        silent = await failure(client.handshake(0.1))
        assert silent.step is Step.SILENT
        assert "by design" in silent.meaning


async def test_refused_is_told_at_once_and_forgotten():
    """A closed port is refused; a late refusal of an old probe does not fail the next one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        where = held.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(where)
        client = SyntheticClient(PrivateKey.generate(), PrivateKey.generate().public())
        client.attach(sock)
        assert (await failure(client.handshake(5))).step is Step.REFUSED
    async with world() as (server, client, sock):
        port = sock.getpeername()
        server.transport.close()
        await asyncio.sleep(0)
        sock.send(b"refused later")
        loop = asyncio.get_running_loop()
        transport, again = await loop.create_datagram_endpoint(Server, local_addr=port)
        again.key, again.pair, again.cookies = server.key, server.pair, server.cookies
        assert (await client.handshake(5)).rtt > 0
        transport.close()


async def test_no_echo_and_unreachable_inside():
    """No echo within the timeout is told; an ICMP error from the way ends the wait at once and is quoted."""
    async with world() as (server, client, _):
        await client.handshake(5)
        server.answer = lambda plain: []
        assert (await failure(client.ping(OWN4, THERE4, 0.05))).step is Step.NO_ECHO
        router = ip_address("10.0.0.254")

        def unreachable(plain: bytes) -> list[bytes]:
            body = b"\x03\x01\0\0" + bytes(4) + plain[:28]
            body = body[:2] + packets.checksum(body).to_bytes(2) + body[4:]
            return [packets.ip_packet(router, OWN4, packets.ICMP, body)]

        server.answer = unreachable
        said = await failure(client.ping(OWN4, THERE4, 60))
        assert said.step is Step.NO_ECHO
        assert "10.0.0.254 answered: destination unreachable, code 1" in said.meaning


@pytest.mark.parametrize(("flags", "step"), [(packets.SYN | packets.ACK, None), (packets.RST | packets.ACK, "refused")])
async def test_tcp_syn(flags: int, step: str | None):
    """A SYN-ACK is success and is taken back with a RST; a RST is refused; wrong acknowledgements are passed over."""
    seen: list[Segment] = []

    def answer(plain: bytes) -> list[bytes]:
        packet = packets.parse_ip(plain)
        assert packet is not None
        segment = packets.parse_tcp(packet)
        assert segment is not None
        seen.append(segment)
        if not segment.flags & packets.SYN:
            return []
        return [
            packets.tcp_segment(
                THERE4, OWN4, Segment(9000, segment.source_port, 1, (segment.sequence + more) & 0xFFFFFFFF, flags)
            )
            for more in (2, 1)
        ]

    async with world() as (server, client, _):
        server.answer = answer
        await client.handshake(5)
        if step is None:
            assert await client.tcp_syn(OWN4, THERE4, 9000, 5) > 0
            await client.handshake(5)  # what was sent before it has arrived
            assert [s.flags for s in seen] == [packets.SYN, packets.RST]
        else:
            assert (await failure(client.tcp_syn(OWN4, THERE4, 9000, 5))).step is Step.TCP_REFUSED
        server.answer = lambda plain: []
        assert (await failure(client.tcp_syn(OWN4, THERE4, 9000, 0.05))).step is Step.TCP_SILENT


async def test_close_answers_with_a_keepalive():
    """After an echo the server has the last word, and would start handshakes of its own; a keepalive prevents it."""
    async with world() as (server, client, sock):
        await client.handshake(5)
        await client.ping(OWN4, THERE4, 5)
        client.close()
        deadline = asyncio.get_running_loop().time() + 5
        while not server.keepalives and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0)
        assert server.keepalives == 1
        assert sock.fileno() >= 0
        with pytest.raises(RuntimeError, match="handshake first"):
            await client.ping(OWN4, THERE4, 1)
        with pytest.raises(RuntimeError, match="attach"):
            await client.handshake(1)


async def test_probes_at_once_take_turns():
    """Probes that are started together do not take each other's packets."""
    async with world() as (_, client, _sock):
        await client.handshake(5)
        results = await asyncio.gather(
            *(client.ping(OWN4, THERE4, 5) for _ in range(5)), client.udp_echo(OWN4, 7, THERE4, 7, b"x", 5)
        )
        assert all(seconds > 0 for seconds in results)
