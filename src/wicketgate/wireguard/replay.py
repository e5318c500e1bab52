# SPDX-License-Identifier: Apache-2.0
"""The sliding window that refuses counters seen before (RFC 6479, section 2)."""

from __future__ import annotations

from wicketgate.wireguard.constants import REJECT_AFTER_MESSAGES

_BLOCK_BITS = 64
_BLOCKS = 32  # a power of two; RFC 6479 asks for one block more than the window
WINDOW = _BLOCK_BITS * (_BLOCKS - 1)  # counters behind the greatest that are still taken


class ReplayWindow:
    """Remembers which of the last counters came.

    A ring of blocks of 64 bits: moving on clears whole blocks instead of shifting bits, which is RFC 6479's idea.
    """

    __slots__ = ("_blocks", "_greatest")

    def __init__(self) -> None:
        self._greatest = -1
        self._blocks = [0] * _BLOCKS

    def accept(self, counter: int) -> bool:
        """Whether the counter is new, and remember it. Call it only after the packet's tag was checked."""
        if counter < 0 or counter >= REJECT_AFTER_MESSAGES or counter + WINDOW <= self._greatest:
            return False
        block = counter // _BLOCK_BITS
        if counter > self._greatest:
            current = self._greatest // _BLOCK_BITS  # -1 before the first
            for passed in range(1, min(block - current, _BLOCKS) + 1):
                self._blocks[(current + passed) % _BLOCKS] = 0
            self._greatest = counter
        bit = 1 << counter % _BLOCK_BITS
        index = block % _BLOCKS
        if self._blocks[index] & bit:
            return False
        self._blocks[index] |= bit
        return True
