# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet: a closed set of ends. docs/dispositions.md is the contract."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The end of a packet's way."""

    DELIVERED = "delivered"  # a local socket, or the kernel itself, takes it
    FORWARDED = "forwarded"  # it leaves by an interface
    REFUSED = "refused"  # nobody takes it, and the sender is told: RST, ICMP error, or the local socket's errno
    DROPPED = "dropped"  # it vanishes
    MISROUTED = "misrouted"  # it leaves, but not by the interface that leads to its receiver
    UNKNOWN = "unknown"  # the model does not know, and says what

    @property
    def works(self) -> bool:
        """The packet got where it should, as far as this host decides it."""
        return self in (Verdict.DELIVERED, Verdict.FORWARDED)
