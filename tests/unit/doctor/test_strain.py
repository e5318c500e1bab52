# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of a tunnel's MTU and of the connection table, beside its verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unit.netpath.test_walk import SEED_POD, WG0, with_peer
from wicketgate.doctor.examine import examine
from wicketgate.doctor.strain import strains
from wicketgate.netpath.routing import Routing


def said(snapshot) -> tuple[str, ...]:
    return strains(snapshot, Routing(snapshot))


def sized(tunnel: int, uplink: int, snapshot=SEED_POD):
    """The pod with these MTUs."""
    sizes = {"wg0": tunnel, "eth0": uplink}
    return replace(snapshot, links=tuple(replace(link, mtu=sizes.get(link.name, link.mtu)) for link in snapshot.links))


@pytest.mark.parametrize(("tunnel", "uplink"), [(1420, 1500), (1440, 1500), (1280, 1360), (1420, 9001), (1440, 9001)])
def test_a_tunnel_that_fits_is_not_spoken_of(tunnel, uplink):
    """60 octets are added over IPv4; a large uplink with a tunnel for the internet is the right thing."""
    assert said(sized(tunnel, uplink)) == ()


def test_a_tunnel_larger_than_its_uplink_is_named():
    """With both sizes, what it makes of a full packet, and the command."""
    (words,) = said(sized(1500, 1500))
    assert words.startswith("mtu-too-large: wg0 (mtu 1500) makes packets of up to 1560 octets, and eth0 carries 1500: ")
    assert words.endswith("`ip link set dev wg0 mtu 1420`")


def test_a_narrow_uplink_gets_the_size_that_fits_it():
    """Cloud networks of 1460 and less."""
    (words,) = said(sized(1420, 1460))
    assert words.endswith("`ip link set dev wg0 mtu 1380`")


def test_a_jumbo_uplink_is_a_trap_for_the_internet():
    """A node's 9001 octets end at the internet gateway."""
    (words,) = said(sized(8921, 9001))
    assert "but a path over the internet 1500" in words
    assert words.endswith("`ip link set dev wg0 mtu 1420`")


def test_a_server_without_endpoints_is_asked_about_any_client():
    """A server has not heard of its clients yet."""
    assert said(sized(1500, 1500, with_peer(endpoint=None))) != ()


def test_no_way_and_no_interface_are_no_strain():
    """Nothing is said of a tunnel whose packets have no way, or that is only in wg's listing."""
    assert said(replace(sized(1500, 1500), routes=())) == ()
    assert said(replace(SEED_POD, wireguard=(replace(WG0, ifname="wg9"),))) == ()


def test_no_parameter_is_needed_for_it():
    """A paste mostly holds none."""
    assert said(replace(sized(8921, 9001), sysctls={})) == said(sized(8921, 9001))


@pytest.mark.parametrize(
    ("count", "most", "full"),
    [("262144", "262144", True), ("256902", "262144", True), ("250000", "262144", False), ("9", "0", False),
     ("", "262144", False), ("x", "10", False)],
)  # fmt: skip
def test_a_full_connection_table_is_told(count, most, full):
    """From 98 % on; a limit of 0 is none, and what was not read is not guessed."""
    values = {"net.netfilter.nf_conntrack_count": count, "net.netfilter.nf_conntrack_max": most}
    found = said(replace(SEED_POD, sysctls={**SEED_POD.sysctls, **values}))
    assert bool(found) is full
    assert all(words.startswith(f"conntrack-full: {count} connections") for words in found)


def test_the_report_has_them_as_notes():
    """They are notes: no flow's verdict rests on them."""
    plain, strained = examine(SEED_POD), examine(sized(1500, 1500))
    assert [each.diagnosis.works for each in plain.findings] == [each.diagnosis.works for each in strained.findings]
    assert set(strained.notes) - set(plain.notes) == set(said(sized(1500, 1500)))
