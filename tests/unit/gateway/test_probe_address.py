# SPDX-License-Identifier: Apache-2.0
"""The probe's tunnel address: a client's, but no client's."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.gateway.probe_address import choose


def test_the_last_free_host_of_the_tunnel_is_taken():
    """Clients are numbered from the front, the probe from the back."""
    assert choose([ip_interface("10.8.0.1/24")], [ip_network("10.8.0.2/32")], 4) == ip_address("10.8.0.254")
    assert choose([ip_interface("10.8.0.254/24")], [ip_network("10.8.0.253/32")], 4) == ip_address("10.8.0.252")


def test_a_claim_as_wide_as_the_tunnel_does_not_block_it():
    """Cryptokey routing prefers the probe's /32 to a peer's whole network or default."""
    claims = [ip_network("10.8.0.0/24"), ip_network("0.0.0.0/0")]
    assert choose([ip_interface("10.8.0.1/24")], claims, 4) == ip_address("10.8.0.254")


def test_a_full_or_host_sized_tunnel_falls_back_to_a_documentation_address():
    """No room: an address that exists on no network (RFC 5737)."""
    assert choose([ip_interface("10.8.0.1/32")], [], 4) == ip_address("198.51.100.254")
    full = [ip_network(f"10.8.0.{i}/32") for i in range(2, 7)]
    assert choose([ip_interface("10.8.0.1/29")], full, 4) == ip_address("198.51.100.254")


def test_a_tunnel_without_the_family_has_no_probe_address():
    """There is nothing to ping."""
    assert choose([ip_interface("10.8.0.1/24")], [], 6) is None


@given(st.integers(16, 30), st.sets(st.integers(1, 2**14), max_size=30))
def test_the_address_is_never_anybodys(prefix, numbers):
    """Whatever clients there are, the probe's address is none of theirs and not the gateway's."""
    own = ip_interface(f"10.64.0.1/{prefix}")
    clients = [ip_network(int(own.network.network_address) + n) for n in numbers]
    found = choose([own], clients, 4)
    assert found is not None
    assert found != own.ip
    assert not any(found in c for c in clients)
