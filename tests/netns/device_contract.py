# SPDX-License-Identifier: Apache-2.0
"""The contract of every WireGuard backend, as coroutines: run on the fake, on wireguard-go, and in the VM on the kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network

from wicketgate.errors import StateError
from wicketgate.kernel.wireguard import WireGuardBackend
from wicketgate.netpath.snapshot import PeerState, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

Check = Callable[[WireGuardBackend, str], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def _public() -> PublicKey:
    return PrivateKey.generate().public()


def _peer(state: WireGuardState, key: PublicKey) -> PeerState | None:
    return next((peer for peer in state.peers if peer.public_key == str(key)), None)


async def refused(work: Awaitable[object]) -> str:
    """The sentence of the StateError that it must raise."""
    try:
        await work
    except StateError as error:
        return str(error)
    raise AssertionError("it was not refused")


@check
async def a_new_device_is_empty(backend: WireGuardBackend, name: str) -> None:
    """Made once, found the second time; without key, mark and peers."""
    assert await backend.create(name) is True
    assert await backend.create(name) is False
    state = await backend.get(name)
    assert (state.ifname, state.backend, state.public_key, state.fwmark) == (name, backend.kind, "", 0)
    assert state.peers == ()
    assert await backend.private_key(name) is None
    assert await backend.preshared_keys(name) == {}
    assert await backend.version()


@check
async def everything_set_is_read_back(backend: WireGuardBackend, name: str) -> None:
    """Keys, mark, both families of endpoints and allowed-ips, keepalive, preshared key."""
    await backend.create(name)
    private, psk = PrivateKey.generate(), PresharedKey.generate()
    one, two = _public(), _public()
    await backend.configure(
        name,
        DeviceConfig(
            private_key=private,
            fwmark=0xCA6C,
            peers=(
                PeerConfig(
                    one,
                    preshared_key=psk,
                    endpoint=(ip_address("192.0.2.1"), 51820),
                    allowed_ips=(ip_network("10.0.0.0/24"), ip_network("fd00::/64"), ip_network("0.0.0.0/0")),
                    persistent_keepalive=25,
                ),
                PeerConfig(two, endpoint=(ip_address("2001:db8::1"), 1), allowed_ips=(ip_network("::/0"),)),
            ),
        ),
    )
    state = await backend.get(name)
    assert state.public_key == str(private.public())
    assert state.fwmark == 0xCA6C
    first, second = _peer(state, one), _peer(state, two)
    assert first is not None
    assert second is not None
    assert first.endpoint == (ip_address("192.0.2.1"), 51820)
    assert set(map(str, first.allowed_ips)) == {"10.0.0.0/24", "fd00::/64", "0.0.0.0/0"}
    assert (first.persistent_keepalive, first.has_preshared_key, first.latest_handshake) == (25, True, 0.0)
    assert second.endpoint == (ip_address("2001:db8::1"), 1)
    assert not second.has_preshared_key
    assert await backend.private_key(name) == private
    assert await backend.preshared_keys(name) == {one: psk}
    assert private.expose_base64() not in repr(state)


@check
async def none_leaves_a_value_as_it_is(backend: WireGuardBackend, name: str) -> None:
    """A second configuration changes what it names; other peers and values stay."""
    await backend.create(name)
    private, psk, one, two = PrivateKey.generate(), PresharedKey.generate(), _public(), _public()
    networks = (ip_network("10.1.0.0/16"),)
    await backend.configure(
        name,
        DeviceConfig(private, fwmark=7, peers=(PeerConfig(one, psk, allowed_ips=networks, persistent_keepalive=9),)),
    )
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(two), PeerConfig(one, persistent_keepalive=0))))
    state = await backend.get(name)
    assert state.public_key == str(private.public())
    assert state.fwmark == 7
    kept = _peer(state, one)
    assert kept is not None
    assert (kept.allowed_ips, kept.persistent_keepalive, kept.has_preshared_key) == (networks, 0, True)
    assert _peer(state, two) is not None
    await backend.configure(name, DeviceConfig(fwmark=0))
    assert (await backend.get(name)).fwmark == 0


@check
async def allowed_ips_are_replaced_and_a_preshared_key_cleared(backend: WireGuardBackend, name: str) -> None:
    """The list given is the list afterwards, an empty one too."""
    await backend.create(name)
    key = _public()
    many = tuple(ip_network(f"10.2.{n}.0/24") for n in range(5))
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(key, PresharedKey.generate(), allowed_ips=many),)))
    await backend.configure(
        name, DeviceConfig(peers=(PeerConfig(key, allowed_ips=many[2:3], clear_preshared_key=True),))
    )
    peer = _peer(await backend.get(name), key)
    assert peer is not None
    assert peer.allowed_ips == many[2:3]
    assert not peer.has_preshared_key
    assert await backend.preshared_keys(name) == {}
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(key, allowed_ips=()),)))
    peer = _peer(await backend.get(name), key)
    assert peer is not None
    assert peer.allowed_ips == ()


@check
async def a_network_belongs_to_the_last_peer_that_claims_it(backend: WireGuardBackend, name: str) -> None:
    """Cryptokey routing: within one request and across two."""
    await backend.create(name)
    one, two, shared = _public(), _public(), ip_network("10.3.0.0/16")
    await backend.configure(
        name, DeviceConfig(peers=(PeerConfig(one, allowed_ips=(shared,)), PeerConfig(two, allowed_ips=(shared,))))
    )
    state = await backend.get(name)
    assert [peer.allowed_ips for peer in (_peer(state, one), _peer(state, two)) if peer] == [(), (shared,)]
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(one, allowed_ips=(shared,)),)))
    state = await backend.get(name)
    assert [peer.allowed_ips for peer in (_peer(state, one), _peer(state, two)) if peer] == [(shared,), ()]


@check
async def peers_are_removed_one_by_one(backend: WireGuardBackend, name: str) -> None:
    """The others stay; one that is not there is as good as removed, and is not made by it."""
    await backend.create(name)
    one, two = _public(), _public()
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(one), PeerConfig(two))))
    await backend.remove_peer(name, one)
    await backend.remove_peer(name, one)
    await backend.remove_peer(name, _public())
    assert [peer.public_key for peer in (await backend.get(name)).peers] == [str(two)]


@check
async def many_peers_and_many_allowed_ips_fit(backend: WireGuardBackend, name: str) -> None:
    """1,700 allowed-ips of one peer are more than one netlink attribute holds; 120 peers are more than one message."""
    await backend.create(name)
    big = _public()
    networks = tuple(ip_network(f"10.{n // 250}.{n % 250}.0/24") for n in range(100))
    networks += tuple(ip_network(f"fd00:0:{n:x}::/64") for n in range(1600))
    others = tuple(
        PeerConfig(_public(), allowed_ips=(ip_network(f"192.0.{n // 250}.{n % 250}/32"),)) for n in range(120)
    )
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(big, allowed_ips=networks), *others)))
    state = await backend.get(name)
    peer = _peer(state, big)
    assert peer is not None
    assert set(peer.allowed_ips) == set(networks)
    assert len(peer.allowed_ips) == len(networks)
    assert {p.public_key for p in state.peers} == {str(big), *(str(p.public_key) for p in others)}
    await backend.configure(name, DeviceConfig(peers=(PeerConfig(big, allowed_ips=networks[:1200]),)))
    peer = _peer(await backend.get(name), big)
    assert peer is not None
    assert set(peer.allowed_ips) == set(networks[:1200])


@check
async def the_devices_own_key_is_no_peer(backend: WireGuardBackend, name: str) -> None:
    """The device would drop it in silence; the read-back says so."""
    await backend.create(name)
    private = PrivateKey.generate()
    await backend.configure(name, DeviceConfig(private))
    said = await refused(backend.configure(name, DeviceConfig(peers=(PeerConfig(private.public()),))))
    assert "own key" in said


@check
async def a_missing_device_is_said(backend: WireGuardBackend, name: str) -> None:
    """Every question about a device that is not there is a StateError that names it; destroying it is no fault."""
    for work in (
        backend.get(name),
        backend.configure(name, DeviceConfig()),
        backend.remove_peer(name, _public()),
        backend.private_key(name),
        backend.preshared_keys(name),
    ):
        assert name in await refused(work)
    await backend.destroy(name)


@check
async def a_destroyed_device_is_gone_and_its_name_is_free(backend: WireGuardBackend, name: str) -> None:
    """At once: the next device of that name starts empty."""
    await backend.create(name)
    await backend.configure(name, DeviceConfig(PrivateKey.generate(), peers=(PeerConfig(_public()),)))
    await backend.destroy(name)
    assert name in await refused(backend.get(name))
    assert await backend.create(name) is True
    assert (await backend.get(name)).peers == ()
