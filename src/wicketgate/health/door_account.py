# SPDX-License-Identifier: Apache-2.0
"""Where a probe's packet was lost, told by the door's counters. Pure.

A packet passes the stages of `door_rules.STAGES` in order; between two reads of the counters, more packets at one stage
than at the next one means that something there took them. This sees what no question about routing can: firewalls, of
whatever make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wicketgate.health.cause import Cause


@dataclass(frozen=True, slots=True)
class Loss:
    """What took the packets.

    Attributes:
        cause: its code.
        words: one line for people.
        packets: how many.
    """

    cause: Cause
    words: str
    packets: int


def lost_in(before: Mapping[str, int], after: Mapping[str, int], *, strict: bool = False) -> Loss | None:
    """Where packets of the in probe were lost between two reads; None where the counters do not show it.

    Args:
        before: counters then.
        after: counters now.
        strict: rp_filter is strict on the uplink, which is then what routing drops by.
    """
    seen = _Delta(before, after)
    routing = (
        (Cause.RP_FILTER, "routing drops a stranger's packet on arrival, and rp_filter is strict")
        if strict
        else (Cause.DNAT_ELSEWHERE, "a stranger's packet is routed elsewhere than to a local socket")
    )
    return (
        seen.loss("arrived", ("routed",), Cause.PREROUTING_DROP, "a rule in PREROUTING drops a stranger's packet")
        or seen.loss("routed", ("input",), *routing)
        or seen.loss("input", ("delivered",), Cause.INPUT_DROP, "a rule in INPUT drops a stranger's packet")
        or seen.any("reply_tunnel", Cause.REPLY_INTO_TUNNEL, "the answer to a stranger leaves by the tunnel")
        or seen.any("reply_astray", Cause.REPLY_WRONG_UPLINK, "the answer to a stranger leaves by another interface")
        or seen.loss("replied", ("reply_sent",), Cause.OUTPUT_DROP, "a rule in OUTPUT drops the answer to a stranger")
        or seen.loss(
            "reply_sent",
            ("reply_left",),
            Cause.POSTROUTING_DROP,
            "a rule in POSTROUTING drops the answer to a stranger",
        )
        or seen.any(
            "reply_foreign",
            Cause.LISTENER_WRONG_ADDRESS,
            "the answer to a stranger comes from another address than the one that was asked",
        )
    )


def lost_out(before: Mapping[str, int], after: Mapping[str, int]) -> Loss | None:
    """Where packets of the out probe were lost between two reads; None where the counters do not show it."""
    seen = _Delta(before, after)
    return (
        seen.any(
            "out_untranslated",
            Cause.MASQUERADE_MISSING,
            "a tunnel client's packet leaves with an address that nobody outside can answer",
        )
        or seen.any("out_astray", Cause.EGRESS_UNREACHABLE, "a tunnel client's packet leaves by another interface")
        or seen.loss(
            "out_client", ("out_left",), Cause.FORWARD_DROP, "a rule drops a tunnel client's packet on its way out"
        )
        or seen.loss("out_back", ("out_forwarded",), Cause.FORWARD_DROP, "a rule drops the answer to a tunnel client")
        or seen.none("out_client", Cause.FORWARDING_OFF, "a tunnel client's packet is not forwarded at all")
    )


class _Delta:
    def __init__(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        self._counts = {stage: count - before.get(stage, 0) for stage, count in after.items()}

    def _at(self, stage: str) -> int:
        return self._counts.get(stage, 0)

    def loss(self, entered: str, left: tuple[str, ...], cause: Cause, words: str) -> Loss | None:
        missing = self._at(entered) - sum(self._at(stage) for stage in left)
        return Loss(cause, words, missing) if missing > 0 else None

    def any(self, stage: str, cause: Cause, words: str) -> Loss | None:
        return Loss(cause, words, self._at(stage)) if self._at(stage) > 0 else None

    def none(self, stage: str, cause: Cause, words: str) -> Loss | None:
        return Loss(cause, words, 0) if self._at(stage) == 0 else None
