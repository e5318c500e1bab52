# SPDX-License-Identifier: Apache-2.0
"""One check's result: what was tried, what was seen, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from wicketgate.health.cause import Cause

# What `ready` promises: a handshake, a packet through the tunnel, out through NAT and back; `port` is the weaker promise
# of a sidecar without any right.
Level = Literal["port", "handshake", "tunnel", "egress"]

# Where the evidence comes from: a stranger's own packets at the uplink, the kernel's answers, or a bound port alone.
Evidence = Literal["door", "model", "port"]

Detail = Mapping[str, str | int | float | bool]

NO_DETAIL: Detail = MappingProxyType({})


class State(StrEnum):
    """How a check ended. UNKNOWN (it could not run, or is too old) is not healthy."""

    PASS = "pass"  # noqa: S105 - a check's word, no password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check saw.

    Attributes:
        name: unique in a round, kebab-case, stable: metrics carry it as a label.
        state: how it ended.
        evidence: one line for people: what was observed. No keys, no peer's address.
        cause: why it did not pass. FAIL needs one; UNKNOWN without one is `state-unreadable`; PASS has none.
        where: the rule, route, setting or socket that is to blame, as its own tool lists it; empty where not known.
        detail: numbers and words for machines, shown in JSON only.
        at: monotonic seconds (the board's clock) at which it was observed.
        seconds: how long a round trip took, where there was one.

    Raises:
        ValueError: a FAIL without a cause, or a PASS with one.
    """

    name: str
    state: State
    evidence: str
    cause: Cause | None = None
    where: str = ""
    detail: Detail = field(default_factory=lambda: NO_DETAIL)
    at: float = 0.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.state is State.UNKNOWN and self.cause is None:
            object.__setattr__(self, "cause", Cause.STATE_UNREADABLE)
        if self.state is State.FAIL and self.cause is None:
            raise ValueError(f"check {self.name}: a failure names its cause; see health/cause.py for the codes")
        if self.state is State.PASS and self.cause is not None:
            raise ValueError(f"check {self.name}: it passed, so it has no cause ({self.cause})")
