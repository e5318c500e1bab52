# SPDX-License-Identifier: Apache-2.0
"""The synthetic client against a real server: wireguard-go in a lab host."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from wicketgate.clock import SystemClock
from wicketgate.lab.host import Host, wire
from wicketgate.wireguard.client import HandshakeDone, ProbeFailure, Step, SyntheticClient
from wicketgate.wireguard.cookie import CookieJar
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey
from wicketgate.wireguard.messages import Initiation

PORT = 51820
SERVER4, CLIENT4 = "198.51.100.1", "198.51.100.2"
SERVER6, CLIENT6 = "2001:db8:51::1", "2001:db8:51::2"
TUNNEL4, OWN4 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
TUNNEL6, OWN6 = ip_address("fd09::1"), ip_address("fd09::2")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.01)


@dataclass
class World:
    """A WireGuard server and the host of a client, joined by a wire."""

    server: Host
    client: Host
    server_key: PublicKey
    own: PrivateKey
    psk: PresharedKey

    def socket(self, address: str = SERVER4, port: int = PORT) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def make() -> socket.socket:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.connect((address, port))
            return sock

        return self.client.call(make)

    def run(self, function, *, address: str = SERVER4, port: int = PORT, **keys):
        """Run `function(client)` with an attached client; keyword arguments replace its keys."""
        settings = {"private_key": self.own, "server": self.server_key, "preshared_key": self.psk} | keys

        async def inside():
            with closing(self.socket(address, port)) as sock, closing(SyntheticClient(**settings)) as client:
                client.attach(sock)
                return await function(client)

        return self.client.acall(inside)

    def fails(self, function, **settings) -> ProbeFailure:
        with pytest.raises(ProbeFailure) as caught:
            self.run(function, **settings)
        return caught.value


def configure(server: Host, key: PrivateKey, peer: PublicKey, psk: PresharedKey) -> None:
    configuration = f"""[Interface]
PrivateKey = {key.expose_base64()}
ListenPort = {PORT}
[Peer]
PublicKey = {peer}
PresharedKey = {psk.expose_base64()}
AllowedIPs = {OWN4}/32, {OWN6}/128
"""
    server.run("wg", "setconf", "wg0", "/dev/stdin", stdin=configuration)


@pytest.fixture
def world(new_host: Callable[..., Host]) -> Iterator[World]:
    server, client = new_host("server"), new_host("client")
    wire(server, "eth0", client, "eth0")
    for host, four, six in ((server, SERVER4, SERVER6), (client, CLIENT4, CLIENT6)):
        host.run("ip", "address", "add", f"{four}/24", "dev", "eth0")
        host.run("ip", "address", "add", f"{six}/64", "dev", "eth0", "nodad")
    process = server.popen("wireguard-go", "-f", "wg0", stdout=-3, stderr=-3)
    try:
        wait_until(lambda: server.run("wg", "show", "wg0", check=False).returncode == 0, "wireguard-go answers")
        key, own, psk = PrivateKey.generate(), PrivateKey.generate(), PresharedKey.generate()
        configure(server, key, own.public(), psk)
        server.run("ip", "address", "add", f"{TUNNEL4}/24", "dev", "wg0")
        server.run("ip", "address", "add", f"{TUNNEL6}/64", "dev", "wg0", "nodad")
        server.run("ip", "link", "set", "wg0", "up")
        yield World(server, client, key.public(), own, psk)
    finally:
        process.kill()
        process.wait()


async def handshake(client: SyntheticClient) -> HandshakeDone:
    return await client.handshake(5)


async def short_handshake(client: SyntheticClient) -> HandshakeDone:
    return await client.handshake(0.4)


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_handshake(world: World, address: str):
    """A right client's handshake succeeds over both families, again and again, and is timed."""

    async def three(client: SyntheticClient):
        return [await client.handshake(5) for _ in range(3)]

    for done in world.run(three, address=address):
        assert 0 < done.rtt < 5
        assert not done.under_load


def test_ping_both_families(world: World):
    """After one handshake an ICMP echo comes back over IPv4 and IPv6, of any size that fits."""

    async def both(client: SyntheticClient):
        await client.handshake(5)
        return [
            await client.ping(own, there, 5, size)
            for own, there in ((OWN4, TUNNEL4), (OWN6, TUNNEL6))
            for size in (0, 1, 56, 1200)
        ]

    assert all(0 < seconds < 5 for seconds in world.run(both))
    assert int(world.server.run("wg", "show", "wg0", "latest-handshakes").stdout.split()[1]) > 0


@pytest.mark.parametrize("wrong", [PresharedKey.generate(), None], ids=["another", "none"])
def test_wrong_preshared_key(world: World, wrong: PresharedKey | None):
    """Another preshared key is told apart from silence: the server answers, its payload does not open."""
    assert world.fails(handshake, preshared_key=wrong).step is Step.WRONG_PSK


def test_silence(world: World):
    """A wrong server key and an unknown client key are silence, as the protocol wants."""
    assert world.fails(short_handshake, server=PrivateKey.generate().public()).step is Step.SILENT
    assert world.fails(short_handshake, private_key=PrivateKey.generate()).step is Step.SILENT


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_refused(world: World, address: str):
    """A port without a listener is refused at once, not waited for."""
    assert world.fails(handshake, address=address, port=PORT + 1).step is Step.REFUSED


def test_no_echo(world: World):
    """A handshake without an echo is told: source not allowed, or nobody at the destination."""

    async def unanswered(client: SyntheticClient):
        await client.handshake(5)
        for own, there in ((ip_address("10.9.0.77"), TUNNEL4), (OWN4, ip_address("10.9.0.99"))):
            with pytest.raises(ProbeFailure) as caught:
                await client.ping(own, there, 0.3)
            assert caught.value.step is Step.NO_ECHO

    world.run(unanswered)


@pytest.mark.parametrize(("own", "there"), [(OWN4, TUNNEL4), (OWN6, TUNNEL6)], ids=["v4", "v6"])
def test_tcp_syn(world: World, own, there):
    """A SYN through the tunnel is answered by an open port and refused by a closed one; no connection stays behind."""
    family = socket.AF_INET6 if there.version == 6 else socket.AF_INET

    def listen() -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind((str(there), 9000))
        listener.listen()
        return listener

    async def both(client: SyntheticClient):
        await client.handshake(5)
        seconds = await client.tcp_syn(own, there, 9000, 5)
        with pytest.raises(ProbeFailure) as caught:
            await client.tcp_syn(own, there, 9001, 5)
        return seconds, caught.value.step

    with world.server.call(listen):
        seconds, step = world.run(both)
        half_open = ("ss", "-Htan", "state", "syn-recv")
        wait_until(
            lambda: not world.server.run(*half_open).stdout.strip(), "the RST has ended the half-open connection"
        )
    assert 0 < seconds < 5
    assert step is Step.TCP_REFUSED


def test_udp_echo(world: World):
    """A datagram that an echo service behind the tunnel returns is timed."""
    echo = world.server.call(lambda: bound(str(TUNNEL4), 7007))

    async def once(client: SyntheticClient):
        loop = asyncio.get_running_loop()

        async def serve():
            data, sender = await loop.sock_recvfrom(echo, 2048)
            await loop.sock_sendto(echo, data, sender)

        await client.handshake(5)
        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            return await client.udp_echo(OWN4, 7007, TUNNEL4, 7007, b"there and back", 5)

    with echo:
        assert 0 < world.run(once) < 5


def bound(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((address, port))
    return sock


@pytest.mark.slow
def test_cookie_under_load(world: World):
    """A server that a flood of initiations has loaded answers with a cookie; the client comes again with mac2, gets
    its handshake, and says that the server is under load.
    """
    jar = CookieJar(world.server_key, SystemClock())
    flood = [
        jar.sign(Initiation(number, secrets.token_bytes(32), bytes(48), bytes(28)).encode()) for number in range(3000)
    ]

    async def under_fire(client: SyntheticClient):
        with closing(world.socket()) as other:
            other.setblocking(True)
            for _ in range(20):
                for message in flood:
                    other.send(message)
                done = await client.handshake(10)
                if done.under_load:
                    return await client.ping(OWN4, TUNNEL4, 5)
        return None

    assert world.run(under_fire), "no cookie in twenty bursts of 3000 initiations"


def test_a_packet_that_cannot_be_sent(world: World):
    """What the own machine forbids or cannot route is said as such, not as silence."""
    rules = "table ip t {\n chain o {\n type filter hook output priority 0;\n udp dport 51820 drop\n }\n}\n"
    world.client.run("nft", "-f", "-", stdin=rules)
    assert world.fails(short_handshake).step is Step.UNREACHABLE
    assert "not permitted" in world.fails(short_handshake).meaning


def test_the_wall_clock_set_back(world: World):
    """A client whose wall clock jumps back goes on shaking hands: its timestamps do not go back."""

    class Jumping(SystemClock):
        def __init__(self) -> None:
            self.back = 0.0

        def wall(self) -> float:
            return super().wall() - self.back

    clock = Jumping()

    async def jump(client: SyntheticClient):
        await client.handshake(5)
        clock.back = 1e6
        await client.handshake(5)
        await client.handshake(5)

    world.run(jump, clock=clock)
