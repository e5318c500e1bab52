# SPDX-License-Identifier: Apache-2.0
"""A flow's computed way beside what the kernel did with the very packet."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from wicketgate.doctor.live_difference import (
    LEAVES,
    Compared,
    Point,
    compare,
    computed_points,
    first_difference,
    kernel_points,
)
from wicketgate.errors import InputError
from wicketgate.kernel.live_table import Watched
from wicketgate.kernel.live_watch import LiveWatch, Observed
from wicketgate.kernel.twin.octets import ends_of
from wicketgate.netpath.concerns import Concern
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.packet import RST, TCP
from wicketgate.netpath.verdict import Verdict

Diagnose = Callable[[Concern], Diagnosis]
SAME, BROKEN = 0, 1


@dataclass(frozen=True, slots=True)
class LiveTrace:
    """Both ways, side by side.

    Attributes:
        found: what was computed.
        observed: what the kernel told.
        forward: the packet's way, point by point.
        reply: the answer's; empty when neither knows one.
        works: whether the flow works, as the kernel has it; None when that cannot be seen.
        untold: what the kernel could not tell, in sentences.
    """

    found: Diagnosis
    observed: Observed
    forward: tuple[Compared, ...]
    reply: tuple[Compared, ...]
    works: bool | None
    untold: tuple[str, ...] = ()

    @property
    def difference(self) -> tuple[str, Compared] | None:
        """The first one, and on which way."""
        for name, points in (("forward", self.forward), ("reply", self.reply)):
            if (each := first_difference(points)) is not None:
                return name, each
        return None

    @property
    def exit_code(self) -> int:
        """0 the kernel does as computed, and the flow is not seen to be broken; 1 otherwise."""
        good = self.works is not False and not self.found.broken
        return SAME if self.difference is None and good else BROKEN


def watch_live(
    watch: LiveWatch,
    concern: Concern,
    diagnose: Diagnose,
    *,
    wait: float | None = None,
    anybody: bool = False,
    any_port: bool = True,
) -> LiveTrace:
    """Send the flow's packet, or wait for one, and compare.

    Args:
        watch: open.
        concern: the flow.
        diagnose: computes it, from a state that was read before.
        wait: seconds to wait for a real packet; None sends one.
        anybody: with `wait`: whoever sends it.
        any_port: with `wait`: from whichever source port.

    Raises:
        StateError: it could not be done, or none came.
        InputError: a flow that is not looked at this way.
    """
    flow = concern.flow
    here = flow.iif is None
    if (
        here
        and diagnose(concern).forward.packet.oif in ("", "lo")
        and diagnose(concern).forward.verdict is Verdict.DELIVERED
    ):
        raise InputError("--live: this host sends that packet to itself, over lo; allowed: one that comes in or leaves")
    if wait is not None:
        source = type(flow.source)(0) if anybody else flow.source
        ends = ends_of(
            source, flow.destination, flow.protocol, 0 if any_port else flow.source_port, flow.destination_port
        )
        observed = watch.wait_for(Watched(ends, "" if here else flow.iif or ""), wait)
    elif here:
        observed = watch.send_from_here(flow)
    else:
        observed = watch.send_into(flow)
    if observed.ends is not None and not (
        here and observed.ends.source.is_unspecified and not observed.ends.source_port
    ):
        flow = replace(flow, source=observed.ends.source, source_port=observed.ends.source_port)
        concern = replace(concern, flow=flow)
    return _compared(diagnose(concern), observed, waited=wait is not None)


def _compared(found: Diagnosis, observed: Observed, *, waited: bool) -> LiveTrace:
    untold = list(observed.untold)
    request = kernel_points(observed.request, _name, observed.reasons)
    forward = compare(computed_points(found.forward), request)
    reply: tuple[Compared, ...] = ()
    arrived = bool(request) and request[-1].kind == LEAVES
    computed = computed_points(found.reply) if found.reply is not None else ()
    comes_back = bool(computed) and computed[0].hook == "prerouting"
    answer = kernel_points(observed.answer, _name, observed.reasons)
    if first_difference(forward) is None and arrived and computed:
        if observed.answer or not (_may_be_silent(found) or comes_back):
            reply = compare(computed, answer)
        else:
            reply = tuple(Compared(each, None, None) for each in computed)
            if not observed.sender:
                untold.append(_silent(found, waited=waited, comes_back=comes_back))
    if not reply and observed.answer:
        reply = tuple(Compared(None, each, None) for each in answer)
    works = _works(found, observed, request, answer)
    if works and found.broken and first_difference((*forward, *reply)) is None:
        # It fares as computed, and what is wrong with that is judged, not seen: an address that nobody outside answers to.
        works = None
        untold.append("whether anybody out there can answer it; here it fares as computed")
    return LiveTrace(found, observed, forward, reply, works, tuple(untold))


def _silent(found: Diagnosis, *, waited: bool, comes_back: bool) -> str:
    if comes_back and not waited:
        return "the packet was kept in before it left, so nobody out there answered it"
    if comes_back:
        return "no answer came in"
    return f"nothing answered; the receiver of {found.concern.flow.protocol} may well be silent to such a packet"


def _may_be_silent(found: Diagnosis) -> bool:
    return found.concern.flow.protocol == "udp" and found.forward.verdict is Verdict.DELIVERED


def _works(found: Diagnosis, observed: Observed, request: tuple[Point, ...], answer: tuple[Point, ...]) -> bool | None:
    """As far as it was seen."""
    if observed.sender in ("connected", "answered"):
        return True
    if not request or request[-1].kind != LEAVES:
        return False
    if observed.sender:
        return None if observed.sender == "no answer" and found.concern.flow.protocol == "udp" else False
    if not observed.answer:
        delivered = request[-1].hook == "input"
        return False if delivered and found.concern.flow.protocol != "udp" else None
    if answer[-1].kind != LEAVES:
        return False
    refused = any(
        each.ends is not None and each.ends.protocol == TCP and each.tcp_flags & RST for each in observed.answer
    )
    error = any(each.ends is not None and each.ends.protocol in (1, 58) for each in observed.answer)
    if refused or (error and found.concern.flow.protocol != "icmp"):
        return False
    out = answer[-1].facts.get("oif", "")
    return not out or found.concern.flow.iif in (None, out)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
