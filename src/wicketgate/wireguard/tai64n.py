# SPDX-License-Identifier: Apache-2.0
"""TAI64N timestamps that never go back (WireGuard paper, section 5.4.2; cr.yp.to/libtai/tai64.html).

A server takes an initiation only if its timestamp is greater than the last it saw from that peer. A wall clock that
is set back would lock the client out without a word; so the last stamp is remembered and outbid.
"""

from __future__ import annotations

import struct

from wicketgate.clock import Clock

TAI64N_SIZE = 12  # bytes
# struct tai64n { u64 seconds; u32 nanoseconds; }; big-endian. 2^62 plus the ten leap seconds of 1970.
_TAI64N = struct.Struct("!QI")
_EPOCH = 0x400000000000000A
# Low bits are dropped so that the stamp does not tell the machine's exact time to the server (16.8 ms; Linux noise.c
# does the same). One step is less than the 20 ms that must lie between two initiations anyway.
_STEP = 1 << 24  # nanoseconds
_SECOND = 1_000_000_000


class Tai64nClock:
    """Gives stamps, each greater than the one before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0  # nanoseconds since the epoch

    def now(self) -> bytes:
        """The next stamp, 12 bytes: the wall clock, or one step after the last stamp where the clock lags."""
        now = max(0, int(self._clock.wall() * _SECOND))
        now -= now % _SECOND % _STEP
        if now <= self._last:
            now = self._last + _STEP
            if now % _SECOND < self._last % _SECOND:  # a new second starts its steps at zero
                now -= now % _SECOND
        self._last = now
        seconds, nanoseconds = divmod(now, _SECOND)
        return _TAI64N.pack(_EPOCH + seconds, nanoseconds)
