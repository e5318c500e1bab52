# SPDX-License-Identifier: Apache-2.0
"""What events have told of the tunnel itself: checks that need no probe. Pure."""

from __future__ import annotations

from collections.abc import Collection

from wicketgate.gateway.live import Live
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.netpath.snapshot import IPInterface


def interface_check(live: Live, ifname: str, wanted: Collection[IPInterface], at: float) -> CheckResult:
    """The interface is there, is up, and has its addresses.

    Args:
        live: what was read last.
        ifname: the tunnel.
        wanted: its addresses.
        at: monotonic seconds.
    """
    link = live.link(ifname)
    if link is None:
        return CheckResult("interface", State.FAIL, f"{ifname} is gone", cause=Cause.INTERFACE_MISSING, at=at)
    if not link.up:
        return CheckResult("interface", State.FAIL, f"{ifname} is down", cause=Cause.INTERFACE_DOWN, at=at)
    have = {a.interface for a in live.addresses if a.ifname == ifname}
    missing = [str(i) for i in wanted if i not in have]
    if missing:
        words = f"{ifname} lacks {', '.join(missing)}"
        return CheckResult("interface", State.FAIL, words, cause=Cause.ADDRESS_MISSING, at=at)
    return CheckResult("interface", State.PASS, f"{ifname} is up and has its addresses", at=at)
