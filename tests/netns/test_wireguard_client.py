# SPDX-License-Identifier: Apache-2.0
"""The synthetic client against a real server: wireguard-go in a lab host."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from wicketgate.lab.host import Host, wire
from wicketgate.wireguard.client import HandshakeDone, ProbeFailure, Step, SyntheticClient
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

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
