# SPDX-License-Identifier: Apache-2.0
"""Random peers of a device against wireguard-go: cryptokey routing both ways, and the way of the carrier."""

from __future__ import annotations

import os
from collections import Counter
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from netns.tunnel_judge import Judge
from wicketgate.netpath.snapshot import PeerState

SEED = int(os.environ.get("WICKETGATE_TUNNEL_SEED", "1"))
PACKETS = int(os.environ.get("WICKETGATE_TUNNEL_PACKETS", "60"))


@pytest.fixture
def judge(new_host):
    """The pod and the far host."""
    made = Judge(new_host("pod"), new_host("far"), Random(SEED))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(60 + PACKETS)
def test_a_packet_goes_to_the_peer_that_the_model_names_and_its_carrier_by_that_uplink(judge):
    """Longest prefix of all peers; endpoint or none; the carrier's uplink with and without the device's mark."""
    codes: Counter[str] = Counter()
    for number in range(PACKETS):
        if number % 20 == 0:
            snapshot = judge.routes()
        problem, said = judge.out(snapshot)
        assert problem is None
        codes[said.code or f"{said.verdict} {said.egress} {said.carrier}".strip()] += 1
    assert {"forwarded wg0 e0", "forwarded wg0 e1", "no-peer-for-destination", "peer-without-endpoint"} <= set(codes), (
        codes
    )


def test_wireguard_go_encrypts_for_the_next_peer_what_the_driver_calls_a_loop(judge):
    """Found with seed 2: a carrier that is routed into its own device leaves as another peer's, if there is one."""
    snapshot = judge.routes("wg-quick")
    far, near = (ip_address("2001:db8:9::9"), 0), (ip_address("192.0.2.9"), 0)
    inner, around = (ip_network("fd20::/64"),), (ip_network("::/0"),)
    for endpoint, wanted in ((near, ""), (far, "tunnel-loop")):
        peers = [PeerState("", far, inner), PeerState("", endpoint, around)]
        problem, said = judge.out(snapshot, judge.state(peers, 0), "fd20::7")
        assert problem is None
        assert said.code == wanted


@pytest.mark.slow
@pytest.mark.timeout(60 + PACKETS)
def test_a_source_comes_in_when_the_model_has_it_in_the_peers_allowed_ips(judge):
    """Longest prefix again: a wider one of the sender's own does not help against a narrower one of another peer."""
    judge.session()
    for number in range(PACKETS // 5):
        assert judge.come_in(number) == []
