# SPDX-License-Identifier: Apache-2.0
"""Time as an argument, so that tests own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks that must never be mixed: one for ages, one for what is shown and signed."""

    def monotonic(self) -> float:
        """Seconds, never going back; for ages and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch; may jump, also backwards."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC, seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """CLOCK_REALTIME, seconds since the epoch."""
        return time.time()


class FakeClock:
    """A clock that moves when told. The two start far apart: mixing them fails at once."""

    def __init__(self, monotonic: float = 1_000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        """Seconds, as told."""
        return self._monotonic

    def wall(self) -> float:
        """Seconds since the epoch, as told."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {seconds} s")
        self._monotonic += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Set the wall clock, also backwards, as an administrator or NTP may."""
        self._wall = wall
