# SPDX-License-Identifier: Apache-2.0
"""From the values of `netpath.snapshot` to header fields and attributes of netlink messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wicketgate.kernel.decode import (
    FIB_RULE_INVERT,
    ROUTE_TYPES,
    RTAX_NAMES,
    RTNH_F_ONLINK,
    RULE_ACTIONS,
    family_number,
)
from wicketgate.netpath.snapshot import IPAddress, NextHop, Route, Rule

Parts = tuple[dict[str, Any], dict[str, Any]]

_TYPE_NUMBERS = {name: number for number, name in ROUTE_TYPES.items()}
_ACTION_NUMBERS = {name: number for number, name in RULE_ACTIONS.items()}
RT_TABLE_COMPAT = 252  # linux/rtnetlink.h: stands in the 8-bit field when the table does not fit


def rule_parts(rule: Rule) -> Parts:
    """Header fields and attributes of a rule.

    The priority is always sent: without one the kernel picks a place by itself on add, and takes the first rule that
    looks alike on delete.

    Raises:
        ValueError: a mark without a mask would match every packet.
    """
    if rule.fwmark and not rule.fwmask:
        raise ValueError(f"fwmark {rule.fwmark:#x} without a mask matches everything: say fwmask=0xffffffff")
    if rule.unknown:
        raise ValueError(f"a rule with unknown attributes cannot be written: {', '.join(rule.unknown)}")
    if rule.action not in _ACTION_NUMBERS:
        raise ValueError(f"rule action {rule.action!r}; allowed: {', '.join(_ACTION_NUMBERS)}")
    src_len = rule.src.prefixlen if rule.src is not None else 0
    dst_len = rule.dst.prefixlen if rule.dst is not None else 0
    fields = {
        "family": family_number(rule.family),
        "src_len": src_len,
        "dst_len": dst_len,
        "tos": rule.tos,
        "table": rule.table if rule.table < 256 else RT_TABLE_COMPAT,
        "action": _ACTION_NUMBERS[rule.action],
        "flags": FIB_RULE_INVERT if rule.invert else 0,
    }
    marked = bool(rule.fwmask)
    attributes = {
        "FRA_PRIORITY": rule.priority,
        "FRA_SRC": str(rule.src.network_address) if rule.src is not None and src_len else None,
        "FRA_DST": str(rule.dst.network_address) if rule.dst is not None and dst_len else None,
        "FRA_IIFNAME": rule.iif or None,
        "FRA_OIFNAME": rule.oif or None,
        "FRA_FWMARK": rule.fwmark if marked else None,
        "FRA_FWMASK": rule.fwmask if marked else None,
        "FRA_TABLE": rule.table if rule.action == "lookup" and not rule.l3mdev else None,
        "FRA_SUPPRESS_PREFIXLEN": rule.suppress_prefixlength,
        "FRA_SUPPRESS_IFGROUP": rule.suppress_ifgroup,
        "FRA_GOTO": rule.goto if rule.action == "goto" else None,
        "FRA_L3MDEV": 1 if rule.l3mdev else None,
        "FRA_UID_RANGE": _range(rule.uid_range),
        "FRA_PROTOCOL": rule.protocol,
        "FRA_IP_PROTO": rule.ipproto or None,
        "FRA_SPORT_RANGE": _range(rule.sport),
        "FRA_DPORT_RANGE": _range(rule.dport),
    }
    return fields, attributes


def _range(value: tuple[int, int] | None) -> str | None:
    return None if value is None else f"{value[0]}:{value[1]}"


def _gateway(via: IPAddress | None, family: int) -> dict[str, Any]:
    if via is None:
        return {}
    if via.version == family:
        return {"RTA_GATEWAY": str(via)}
    return {"RTA_VIA": {"family": family_number(via.version), "addr": str(via)}}


def route_parts(route: Route, index_of: Callable[[str], int]) -> Parts:
    """Header fields and attributes of a route.

    Args:
        route: the route.
        index_of: an interface's index by its name.

    Raises:
        ValueError: what cannot be written.
    """
    if route.unknown:
        raise ValueError(f"a route with unknown attributes cannot be written: {', '.join(route.unknown)}")
    if route.type not in _TYPE_NUMBERS:
        raise ValueError(f"route type {route.type!r}; allowed: {', '.join(_TYPE_NUMBERS)}")
    fields: dict[str, Any] = {
        "family": family_number(route.family),
        "dst_len": route.dst.prefixlen,
        "src_len": route.src.prefixlen if route.src is not None else 0,
        "tos": route.tos,
        "table": route.table if route.table < 256 else RT_TABLE_COMPAT,
        "proto": route.protocol,
        "scope": route.scope if route.family == 4 else 0,
        "type": _TYPE_NUMBERS[route.type],
    }
    attributes: dict[str, Any] = {
        "RTA_TABLE": route.table,
        "RTA_DST": str(route.dst.network_address) if route.dst.prefixlen else None,
        "RTA_SRC": str(route.src.network_address) if route.src is not None else None,
        "RTA_PREFSRC": str(route.prefsrc) if route.prefsrc is not None else None,
        "RTA_PRIORITY": route.metric or None,
        "RTA_METRICS": _metrics(route),
    }
    if route.nh_id:
        attributes["RTA_NH_ID"] = route.nh_id
    elif len(route.nexthops) == 1:
        hop = route.nexthops[0]
        fields["flags"] = hop.flags & RTNH_F_ONLINK
        attributes["RTA_OIF"] = index_of(hop.oif) if hop.oif else None
        attributes.update(_gateway(hop.via, route.family))
    elif route.nexthops:
        attributes["RTA_MULTIPATH"] = [_nexthop(hop, route.family, index_of) for hop in route.nexthops]
    return fields, attributes


def _nexthop(hop: NextHop, family: int, index_of: Callable[[str], int]) -> dict[str, Any]:
    return {
        "oif": index_of(hop.oif) if hop.oif else 0,
        "hops": hop.weight - 1,
        "flags": hop.flags & RTNH_F_ONLINK,
        "attrs": [[name, value] for name, value in _gateway(hop.via, family).items()],
    }


def _metrics(route: Route) -> dict[str, Any] | None:
    if not route.metrics:
        return None
    pairs: list[list[Any]] = []
    lock = 0
    for name, value in route.metrics.items():
        if name not in RTAX_NAMES[2:]:
            raise ValueError(f"route metric {name!r}; allowed: {', '.join(RTAX_NAMES[2:])}")
        number = value.removeprefix("lock ")
        if number != value:
            lock |= 1 << RTAX_NAMES.index(name)
        pairs.append([f"RTAX_{name.upper()}", number if name == "cc_algo" else int(number)])
    if lock:
        pairs.append(["RTAX_LOCK", lock])
    return {"attrs": pairs}
