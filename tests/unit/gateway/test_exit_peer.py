# SPDX-License-Identifier: Apache-2.0
"""Role exit: the exit peer lives as long as it answers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from wicketgate.clock import FakeClock
from wicketgate.gateway.exit_peer import DEAD_AFTER, STIR_AFTER, ExitWatch
from wicketgate.health.cause import Cause
from wicketgate.health.check import State
from wicketgate.netpath.snapshot import PeerState

PEER = PeerState("key", (ip_address("192.0.2.7"), 51820), (ip_network("0.0.0.0/0"),), latest_handshake=1.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def stirred():
    return []


@pytest.fixture
def watch(clock, stirred):
    return ExitWatch("wg0", clock, lambda _ifname, family: stirred.append(family))


def test_nobody_takes_the_default_or_nobody_knows_where_they_are(watch):
    """Each is red with its own cause."""
    plain = replace(PEER, allowed_ips=(ip_network("10.0.0.0/8"),))
    assert watch.check([plain]).cause is Cause.NO_PEER_FOR_DESTINATION
    assert watch.check([replace(PEER, endpoint=None)]).cause is Cause.PEER_WITHOUT_ENDPOINT


def test_a_peer_that_answers_is_green_and_stirred_only_when_silent(watch, clock, stirred):
    """Old bytes prove nothing; new ones do; while traffic flows nothing is sent."""
    assert watch.check([replace(PEER, rx_bytes=5000)]).state is State.FAIL
    assert stirred == [4]
    received = 5000
    for _ in range(10):
        clock.advance(1.0)
        received += 100
        assert watch.check([replace(PEER, rx_bytes=received)]).state is State.PASS
    assert stirred == [4]
    clock.advance(STIR_AFTER + 1)
    assert watch.check([replace(PEER, rx_bytes=received)]).state is State.PASS
    assert stirred == [4, 4]


def test_a_dead_peer_is_red_long_before_its_handshake_is_old(watch, clock, stirred):
    """Stirred every few seconds, and no answer: red after half a minute, also when the wall clock is set back."""
    watch.check([PEER])
    clock.advance(1)
    assert watch.check([replace(PEER, rx_bytes=92)]).state is State.PASS
    clock.set_wall(1.0)
    for _ in range(int(DEAD_AFTER)):
        clock.advance(1)
        last = watch.check([replace(PEER, rx_bytes=92)])
    assert last.state is State.PASS
    clock.advance(1)
    last = watch.check([replace(PEER, rx_bytes=92)])
    assert (last.state, last.cause) == (State.FAIL, Cause.EGRESS_UNREACHABLE)
    assert len(stirred) >= DEAD_AFTER / STIR_AFTER - 2


def test_a_device_made_anew_counts_from_zero(watch, clock):
    """Fewer bytes than before are another device: what it receives from then on counts."""
    watch.check([replace(PEER, rx_bytes=9000)])
    clock.advance(1)
    watch.check([replace(PEER, rx_bytes=0, latest_handshake=0.0)])
    clock.advance(1)
    assert watch.check([replace(PEER, rx_bytes=92, latest_handshake=2.0)]).state is State.PASS


def test_bytes_without_a_handshake_are_nobody(watch, clock):
    """A handshake is needed: anybody may send bytes."""
    silent = replace(PEER, latest_handshake=0.0)
    watch.check([silent])
    clock.advance(1)
    assert "never shook hands" in watch.check([replace(silent, rx_bytes=64)]).evidence


def test_an_exit_by_ipv6_alone_is_stirred_by_ipv6(watch, stirred):
    """A datagram of the other family would have no route."""
    watch.check([replace(PEER, allowed_ips=(ip_network("::/0"),))])
    assert stirred == [6]
