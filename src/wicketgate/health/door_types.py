# SPDX-License-Identifier: Apache-2.0
"""What the door says: errors and answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wicketgate.errors import StateError
from wicketgate.netpath.snapshot import IPAddress


class DoorUnavailable(StateError):  # noqa: N818 - it reads as the state it is
    """No door can be built here, and nothing of it was left behind. `str()` is the reason; the model has to judge."""


class NoRouteToStrangers(StateError):  # noqa: N818 - as above
    """The uplink has no route to a stranger: what every client's answer meets as well. A failure, not a missing door."""


class Outcome(StrEnum):
    """How a TCP check ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    SILENT = "silent"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True)
class TcpAnswer:
    """What a balancer's TCP or HTTP check would have seen.

    Attributes:
        outcome: how it ended.
        seconds: until the connection stood, or the status line was read.
        status: of the HTTP answer, where one was asked for and given.
        meaning: one line for people.
    """

    outcome: Outcome
    seconds: float
    status: int | None
    meaning: str


@dataclass(frozen=True, slots=True)
class OutTarget:
    """Where a tunnel client's probe goes: send UDP from `sport` to `address`:`dport`; the payload comes back."""

    address: IPAddress
    sport: int
    dport: int
