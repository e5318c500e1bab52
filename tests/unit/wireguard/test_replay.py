# SPDX-License-Identifier: Apache-2.0
"""The replay window against a naive one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wicketgate.wireguard.constants import REJECT_AFTER_MESSAGES
from wicketgate.wireguard.replay import WINDOW, ReplayWindow


class Naive:
    """Remembers everything."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        greatest = max(self.seen, default=-1)
        if counter in self.seen or counter >= REJECT_AFTER_MESSAGES or counter <= greatest - WINDOW:
            return False
        self.seen.add(counter)
        return True


# Steps around what a block, the window and the whole ring are long, from everywhere in the range.
steps = st.one_of(
    st.integers(-3, 3),
    st.integers(-70, 70),
    st.integers(WINDOW - 70, WINDOW + 140),
    st.integers(-WINDOW - 70, -WINDOW + 70),
    st.integers(-5000, 5000),
)


@given(start=st.one_of(st.just(0), st.integers(0, 2**64 - 1)), moves=st.lists(steps, max_size=150))
@settings(max_examples=300, deadline=None)
def test_like_the_naive_window(start: int, moves: list[int]):
    """For any walk of counters the ring and the naive set agree on every one."""
    ring, naive = ReplayWindow(), Naive()
    counter = start
    for move in [0, *moves]:
        counter = min(max(counter + move, 0), 2**64 - 1)
        assert ring.accept(counter) == naive.accept(counter), counter


def test_edges():
    """The oldest counter of the window is taken, the one before is not; the last counter of all is refused."""
    ring = ReplayWindow()
    assert ring.accept(WINDOW)
    assert ring.accept(1)
    assert not ring.accept(0)
    assert not ring.accept(REJECT_AFTER_MESSAGES)
    assert ring.accept(REJECT_AFTER_MESSAGES - 1)
    assert not ring.accept(WINDOW + 1)
