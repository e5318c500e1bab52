# SPDX-License-Identifier: Apache-2.0
"""The gateway's nftables table, as text."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.config.settings import Role
from wicketgate.gateway.firewall import render, table_name


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_a_server_translates_its_clients_wherever_they_leave():
    """Source networks of both families, merged; what stays inside (lo, the tunnel) is not translated."""
    text = render(
        "wg0", role=Role.SERVER, clients=[ip_network(n) for n in ("10.8.0.0/25", "10.8.0.128/25", "fd00::/64")]
    )
    assert 'ip saddr { 10.8.0.0/24 } oifname != { "lo", "wg0" } masquerade' in lines(text)
    assert 'ip6 saddr { fd00::/64 } oifname != { "lo", "wg0" } masquerade' in lines(text)
    assert "eth0" not in text


def test_an_exit_translates_what_enters_the_tunnel():
    """And nothing else."""
    text = render("wg0", role=Role.EXIT, clients=[ip_network("10.8.0.0/24")])
    assert [line for line in lines(text) if "masquerade" in line] == ['oifname "wg0" masquerade']


def test_clients_get_a_clamped_mss_and_no_metadata_service():
    """Both directions, and the two addresses that hand out credentials."""
    found = lines(render("wg0", role=Role.SERVER, clients=[]))
    assert sum("tcp option maxseg size set rt mtu" in line for line in found) == 2
    assert 'iifname "wg0" ip daddr 169.254.169.254 drop' in found
    assert 'iifname "wg0" ip6 daddr fd00:ec2::254 drop' in found


def test_names_that_nft_cannot_spell():
    """wg-quick allows `=` and `+` in names; the table's name has neither, and two names never share a table."""
    assert table_name("wg+1") == "wicketgate-wg_2b1"
    assert "+" not in render("wg=1", role=Role.SERVER, clients=[]).splitlines()[0]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20))
def test_nft_never_gets_overlapping_members(claims):
    """Interval sets refuse overlaps; every client's network is covered."""
    text = render("wg0", role=Role.SERVER, clients=[ip_network(c, strict=False) for c in claims])
    members = [
        ip_network(m.strip())
        for line in lines(text)
        if line.startswith("ip saddr {")
        for m in line.split("{")[1].split("}")[0].split(",")
    ]
    ordered = sorted(members)
    assert all(not a.overlaps(b) for a, b in pairwise(ordered))
    given_networks = [ip_network(c, strict=False) for c in claims if c[1] > 0]
    assert all(any(n.subnet_of(m) for m in members) for n in given_networks)
