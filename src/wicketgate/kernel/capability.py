# SPDX-License-Identifier: Apache-2.0
"""Which rights this process has (capabilities(7))."""

from __future__ import annotations

CAP_NET_ADMIN = 12  # linux/capability.h


def has_capability(number: int, *, status: str = "/proc/thread-self/status") -> bool:
    """Whether the capability is in the effective set; False where that cannot be read."""
    try:
        with open(status, encoding="ascii") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> number & 1)
    except (OSError, ValueError):
        return False
    return False
