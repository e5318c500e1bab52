# SPDX-License-Identifier: Apache-2.0
"""What `wicket watch` writes: a line for people, or a JSON object, for each change and each flow that became another."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any

from wicketgate.doctor.flow_watch import FlowChange, FlowState, FlowWatch, Judgement, flow_name
from wicketgate.netpath.change import Action, StateChange, What
from wicketgate.netpath.concerns import endpoint
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, Route, Rule
from wicketgate.netpath.spelling import RTPROT_KERNEL

_SIGNS = {Action.ADDED: "+", Action.CHANGED: "~", Action.REMOVED: "-"}
_WIDEST = max(len(each) for each in What)


def stamp(at: float, zone: tzinfo | None = None) -> str:
    """`14:03:07.214`, local time unless a zone is given."""
    return datetime.fromtimestamp(at, zone).strftime("%H:%M:%S.%f")[:-3]


def is_derived(change: StateChange) -> bool:
    """A route that the kernel itself keeps in table local: it comes and goes with an address, which has its own line."""
    route = change.value
    return isinstance(route, Route) and route.table == RT_TABLE_LOCAL and route.protocol == RTPROT_KERNEL


def change_line(change: StateChange, zone: tzinfo | None = None) -> str:
    """`14:03:07.214 + rule      32765: not from all fwmark 0xca6c lookup 51820  (netlink port 4711)`."""
    sign = "!" if change.what is What.RESYNC else _SIGNS[change.action]
    who = f"  ({change.who})" if change.who else ""
    return f"{stamp(change.at, zone)} {sign} {change.what:<{_WIDEST}} {_text(change)}{who}"


def _text(change: StateChange) -> str:
    # The listings of both families look alike: `ip rule` and `ip -6 rule`.
    value = change.value
    if isinstance(value, Rule) and value.family == 6:
        return f"-6 {change.text}"
    if isinstance(value, Route) and value.family == 6 and not value.dst.prefixlen:
        return f"-6 {change.text}"
    return change.text


def flow_line(at: float, change: FlowChange, zone: tzinfo | None = None) -> str:
    """`14:03:07.231 > flow      load balancer -> 10.0.0.2:9000/tcp: works -> broken: CODE: WHERE`."""
    return f"{stamp(at, zone)} > {'flow':<{_WIDEST}} {change.spelled()}"


def count_words(watch: FlowWatch) -> str:
    """`3 flows: 2 work, 1 broken`."""
    total = len(watch.states)
    if not total:
        return "no flows to watch"
    words = {Judgement.WORKS: "work", Judgement.BROKEN: "broken", Judgement.UNKNOWN: "unknown"}
    parts = [f"{watch.count(each)} {word}" for each, word in words.items() if watch.count(each)]
    return f"{total} flow{'' if total == 1 else 's'}: {', '.join(parts)}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def change_object(number: int, change: StateChange) -> dict[str, Any]:
    """A change as JSON; times are UTC."""
    family = getattr(change.value, "family", None)
    return {
        "time": _time(change.at),
        "event": "change",
        "number": number,
        "what": str(change.what),
        "action": str(change.action),
        "text": change.text,
        "family": family if family in (4, 6) else None,
        "who": change.who or None,
        "told": change.told,
    }


def state_object(state: FlowState) -> dict[str, Any]:
    """How a flow stands, as JSON."""
    flow, cause = state.concern.flow, state.cause
    return {
        "name": flow_name(state.concern),
        "flow": {
            "from": endpoint(flow.source, flow.source_port),
            "to": endpoint(flow.destination, flow.destination_port),
            "proto": flow.protocol,
            "iif": flow.iif,
        },
        "now": str(state.judgement),
        "cause": None
        if cause is None
        else {"code": cause.code, "object": cause.object, "where": cause.where, "explanation": cause.explanation},
        "unknown": state.unknown or None,
    }


def flow_object(at: float, change: FlowChange, first: int, last: int) -> dict[str, Any]:
    """A flow that became another, as JSON, with the numbers of the changes since the flows were judged before."""
    return {
        "time": _time(at),
        "event": "flow",
        **state_object(change.after),
        "was": str(change.before.judgement) if change.before is not None else None,
        "changes": [first, last] if last >= first else None,
    }


def note_object(at: float, text: str) -> dict[str, Any]:
    """Something that could not be read or judged, as JSON."""
    return {"time": _time(at), "event": "note", "text": text}


def mark_object(at: float, event: str, watch: FlowWatch, changes: int) -> dict[str, Any]:
    """The first and the last object: `event` is start or end."""
    return {
        "time": _time(at),
        "event": event,
        "changes": changes,
        "flows": [state_object(each) for each in watch.states],
    }
