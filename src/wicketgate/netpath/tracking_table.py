# SPDX-License-Identifier: Apache-2.0
"""The table of tracked connections: when it is full."""

from __future__ import annotations

# Above this share the kernel is already throwing out flows (early_drop in nf_conntrack_core.c), or drops new ones. A guess.
_FULL = 0.98


def is_full(count: int, most: int) -> bool:
    """Whether new connections are dropped.

    Args:
        count: net.netfilter.nf_conntrack_count.
        most: net.netfilter.nf_conntrack_max; 0 is no limit.
    """
    return most > 0 and count >= _FULL * most
