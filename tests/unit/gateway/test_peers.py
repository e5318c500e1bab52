# SPDX-License-Identifier: Apache-2.0
"""The difference between a device's peers and the configuration's."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from wicketgate.gateway.peers import peer_changes
from wicketgate.netpath.snapshot import PeerState
from wicketgate.wireguard.device import PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PublicKey

A, B, C = (PublicKey(bytes([n]) * 32) for n in (1, 2, 3))
NET = ip_network("10.8.0.2/32")


def state(key, **more):
    return PeerState(str(key), allowed_ips=(NET,), **more)


def test_a_peer_that_is_as_it_should_be_is_not_touched():
    """No change for it: its session, its endpoint and its counters stay."""
    want = [PeerConfig(A, allowed_ips=(NET,), endpoint=(ip_address("192.0.2.9"), 5))]
    assert not peer_changes([state(A, endpoint=(ip_address("198.51.100.1"), 9))], want, removable={A})


def test_only_what_we_put_there_is_removed():
    """A peer of the last configuration goes, one that somebody added by hand stays."""
    change = peer_changes([state(A), state(B), state(C)], [PeerConfig(A, allowed_ips=(NET,))], removable={A, B})
    assert change.remove == (B,)
    assert change.configure == ()


def test_a_changed_preshared_key_is_set_and_the_endpoint_left_alone():
    """Only the part that differs is configured."""
    old, new = PresharedKey(b"o" * 32), PresharedKey(b"n" * 32)
    want = [PeerConfig(A, preshared_key=new, allowed_ips=(NET,), endpoint=(ip_address("192.0.2.9"), 5))]
    change = peer_changes([state(A, has_preshared_key=True)], want, removable={A}, known_preshared={A: old})
    assert change.configure == (PeerConfig(A, preshared_key=new),)


def test_a_preshared_key_taken_out_of_the_file_is_cleared():
    """No key in the file, none on the device."""
    change = peer_changes([state(A, has_preshared_key=True)], [PeerConfig(A, allowed_ips=(NET,))], removable={A})
    assert change.configure[0].clear_preshared_key
