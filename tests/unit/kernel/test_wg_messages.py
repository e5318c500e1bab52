# SPDX-License-Identifier: Apache-2.0
"""Generic netlink messages of WireGuard: cut so that they fit, put together so that nothing is lost."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import (
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    WGPEER_F_UPDATE_ONLY,
    wgmsg,
)

from wicketgate.errors import StateError
from wicketgate.kernel.wg_common import differences
from wicketgate.kernel.wg_netlink import ALLOWED_IPS_PER_MESSAGE, merge_dump, remove_message, set_messages
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

KEY = st.binary(min_size=32, max_size=32).filter(any)
NETWORKS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: ip_network(pair, strict=False))


def on_the_wire(message: Any) -> Any:
    """Encoded as it is sent, decoded as it would be received."""
    message.encode()
    assert len(message.data) < 64 * 1024
    received = wgmsg(bytes(message.data))
    received.decode()
    return received


def peers_of(messages: list[Any]) -> list[Any]:
    return [peer for message in messages for peer in on_the_wire(message).get_attr("WGDEVICE_A_PEERS") or ()]


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        DeviceConfig,
        private_key=KEY.map(PrivateKey),
        listen_port=st.integers(1, 65535),
        fwmark=st.integers(1, 2**32 - 1),
        peers=st.lists(
            st.builds(
                PeerConfig,
                public_key=KEY.map(PublicKey),
                preshared_key=st.none() | KEY.map(PresharedKey),
                endpoint=st.none() | st.tuples(st.ip_addresses(), st.integers(1, 65535)),
                allowed_ips=st.lists(NETWORKS, max_size=4, unique=True).map(tuple),
                persistent_keepalive=st.integers(0, 65535),
            ),
            max_size=4,
            unique_by=lambda peer: peer.public_key,
        ).map(tuple),
    )
)
def test_what_is_sent_is_what_a_device_would_show(config: DeviceConfig) -> None:
    """Set and get use the same attributes: what is written, read as a dump, is the configuration."""
    device = merge_dump("wg0", map(on_the_wire, set_messages("wg0", config)))
    # The kernel computes the public key; nobody sends it.
    device.public_key = str(device.private_key.public()) if device.private_key else ""
    shown = device.state()
    assert device.private_key == config.private_key
    assert {p.public_key: p.endpoint for p in shown.peers} == {str(p.public_key): p.endpoint for p in config.peers}
    assert device.preshared == {p.public_key: p.preshared_key for p in config.peers if p.preshared_key}
    owners = [network for peer in config.peers for network in peer.allowed_ips or ()]
    if len(owners) == len(set(owners)):
        assert differences(shown, config) == ()


def test_a_long_list_is_cut_and_only_its_first_piece_replaces() -> None:
    """4,000 allowed-ips overflow a 16-bit length; later pieces add, and never make a peer anew."""
    key = PrivateKey.generate().public()
    networks = tuple(ip_network(f"fd00:{n:x}::/64") for n in range(4000))
    config = DeviceConfig(peers=(PeerConfig(key, PresharedKey.generate(), allowed_ips=networks),))
    messages = set_messages("wg0", config)
    pieces = peers_of(messages)
    assert len(pieces) == 4000 // ALLOWED_IPS_PER_MESSAGE
    flags = [piece.get_attr("WGPEER_A_FLAGS") for piece in pieces]
    assert flags == [WGPEER_F_REPLACE_ALLOWEDIPS] + [WGPEER_F_UPDATE_ONLY] * (len(pieces) - 1)
    assert [piece.get_attr("WGPEER_A_PRESHARED_KEY") is not None for piece in pieces] == [True] + [False] * 7
    (peer,) = merge_dump("wg0", map(on_the_wire, messages)).state().peers
    assert peer.allowed_ips == networks
    assert peer.has_preshared_key


def test_many_peers_take_several_messages_in_order() -> None:
    """Order matters: a network belongs to the last that claims it."""
    peers = tuple(
        PeerConfig(PrivateKey.generate().public(), allowed_ips=(ip_network(f"10.0.{n}.0/24"),)) for n in range(200)
    )
    messages = set_messages("wg0", DeviceConfig(fwmark=1, peers=peers))
    assert len(messages) > 1
    assert [message.get_attr("WGDEVICE_A_FWMARK") for message in messages] == [1] + [None] * (len(messages) - 1)
    assert [p.public_key for p in merge_dump("wg0", map(on_the_wire, messages)).state().peers] == [
        str(p.public_key) for p in peers
    ]


def test_values_that_are_none_are_not_sent_and_an_empty_list_empties() -> None:
    """None leaves a value as it is; () replaces by nothing; clearing a preshared key sends zeros."""
    key = PrivateKey.generate().public()
    (plain,) = peers_of(set_messages("wg0", DeviceConfig(peers=(PeerConfig(key),))))
    assert [name for name, _ in plain["attrs"]] == ["WGPEER_A_PUBLIC_KEY", "WGPEER_A_FLAGS"]
    assert plain.get_attr("WGPEER_A_FLAGS") == 0
    (emptied,) = peers_of(set_messages("wg0", DeviceConfig(peers=(PeerConfig(key, allowed_ips=()),))))
    assert emptied.get_attr("WGPEER_A_FLAGS") == WGPEER_F_REPLACE_ALLOWEDIPS
    cleared = merge_dump(
        "wg0",
        [on_the_wire(m) for m in set_messages("wg0", DeviceConfig(peers=(PeerConfig(key, clear_preshared_key=True),)))],
    )
    assert not cleared.state().peers[0].has_preshared_key
    (bare,) = set_messages("wg0", DeviceConfig())
    assert [name for name, _ in bare["attrs"]] == ["WGDEVICE_A_IFNAME"]


def test_removing_never_makes_a_peer() -> None:
    """UPDATE_ONLY with REMOVE_ME."""
    (peer,) = peers_of([remove_message("wg0", PrivateKey.generate().public())])
    assert peer.get_attr("WGPEER_A_FLAGS") == WGPEER_F_REMOVE_ME | WGPEER_F_UPDATE_ONLY


def test_fragments_of_a_peer_keep_what_the_first_one_said() -> None:
    """A dump's later fragments carry allowed-ips only: counters, endpoint and key stay those of the first."""
    key = PrivateKey.generate().public()
    first = PeerConfig(key, PresharedKey.generate(), (ip_address("192.0.2.1"), 7), (ip_network("10.0.0.0/24"),), 25)
    rest = PeerConfig(key, allowed_ips=(ip_network("10.0.1.0/24"),))
    device = merge_dump(
        "wg0", [on_the_wire(m) for config in (first, rest) for m in set_messages("wg0", DeviceConfig(peers=(config,)))]
    )
    (peer,) = device.state().peers
    assert peer.allowed_ips == (ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24"))
    assert (peer.endpoint, peer.persistent_keepalive, peer.has_preshared_key) == (
        (ip_address("192.0.2.1"), 7),
        25,
        True,
    )


class Nonsense(dict):
    """A peer without a key."""

    def get_attr(self, name: str) -> Any:
        return [Nonsense()] if name == "WGDEVICE_A_PEERS" else None


def test_a_dump_that_makes_no_sense_is_said() -> None:
    """A StateError that names the device, never half a device."""
    with pytest.raises(StateError, match=r"wg0.*without a public key"):
        merge_dump("wg0", [Nonsense()])
