# SPDX-License-Identifier: Apache-2.0
"""Counters to causes."""

from __future__ import annotations

import pytest

from wicketgate.health.cause import Cause
from wicketgate.health.door_account import lost_in, lost_out

WAY = ("arrived", "routed", "input", "delivered", "replied", "reply_sent", "reply_left", "reply_back", "answered")


def upto(stage: str, count: int = 2) -> dict[str, int]:
    return dict.fromkeys(WAY[: WAY.index(stage) + 1], count)


@pytest.mark.parametrize(
    ("last", "extra", "strict", "cause"),
    [
        ("arrived", {}, False, Cause.PREROUTING_DROP),
        ("routed", {}, True, Cause.RP_FILTER),
        ("routed", {}, False, Cause.DNAT_ELSEWHERE),
        ("input", {}, True, Cause.INPUT_DROP),
        ("delivered", {}, True, None),
        ("replied", {}, True, Cause.OUTPUT_DROP),
        ("reply_sent", {}, True, Cause.POSTROUTING_DROP),
        ("reply_sent", {"reply_tunnel": 2}, True, Cause.REPLY_INTO_TUNNEL),
        ("reply_sent", {"reply_astray": 2}, True, Cause.REPLY_WRONG_UPLINK),
        ("reply_left", {"reply_foreign": 2}, True, Cause.LISTENER_WRONG_ADDRESS),
        ("answered", {}, True, None),
    ],
)
def test_the_stage_after_which_packets_are_missing_names_the_cause(last, extra, strict, cause):
    """Earlier packets, lost or not, do not blur what is lost now."""
    before = upto("input", 7)
    now = {stage: before.get(stage, 0) + (upto(last) | extra).get(stage, 0) for stage in (*WAY, *extra)}
    loss = lost_in(before, now, strict=strict)
    assert (loss.cause if loss else None) == cause
    if loss is not None:
        assert loss.packets == 2


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ({}, Cause.FORWARDING_OFF),
        ({"out_client": 1}, Cause.FORWARD_DROP),
        ({"out_client": 1, "out_untranslated": 1}, Cause.MASQUERADE_MISSING),
        ({"out_client": 1, "out_astray": 1}, Cause.EGRESS_UNREACHABLE),
        ({"out_client": 1, "out_left": 1, "out_back": 1}, Cause.FORWARD_DROP),
        ({"out_client": 1, "out_left": 1, "out_back": 1, "out_forwarded": 1}, None),
    ],
)
def test_the_way_out_and_back(counts, cause):
    """Each state of the gateway that the out probe meets has its own picture in the counters."""
    loss = lost_out({}, counts)
    assert (loss.cause if loss else None) == cause
