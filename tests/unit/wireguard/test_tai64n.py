# SPDX-License-Identifier: Apache-2.0
"""Timestamps that never go back."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.clock import FakeClock
from wicketgate.wireguard.constants import INITIATION_INTERVAL
from wicketgate.wireguard.tai64n import Tai64nClock


@given(st.lists(st.floats(-1e6, 1e6), max_size=50))
def test_never_back(jumps: list[float]):
    """However the wall clock jumps, each stamp is greater than the last, as a server compares them."""
    clock = FakeClock()
    stamps = Tai64nClock(clock)
    last = stamps.now()
    for jump in jumps:
        clock._wall += jump
        now = stamps.now()
        assert now > last
        assert struct.unpack("!QI", now)[1] < 1_000_000_000
        last = now


def test_known_time():
    """1992-06-02 08:07:09 UTC with TAI-10 as WireGuard counts it (cr.yp.to/libtai/tai64.html has 2a2b2c2d + 10)."""
    assert Tai64nClock(FakeClock(wall=0x2A2B2C2D)).now().hex() == "400000002a2b2c3700000000"


def test_follows_the_clock_and_hides_its_fine_digits():
    """Stamps are rounded to 16.8 ms, and those of two initiations at the allowed rate still differ by the clock alone."""
    clock = FakeClock()
    stamps = Tai64nClock(clock)
    for _ in range(200):
        nanoseconds = struct.unpack("!QI", stamps.now())[1]
        assert nanoseconds % (1 << 24) == 0
        clock.advance(INITIATION_INTERVAL)
    seconds = struct.unpack("!QI", stamps.now())[0] - 0x400000000000000A
    assert seconds == int(clock.wall())
