# SPDX-License-Identifier: Apache-2.0
"""The lines of `ip route`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from types import MappingProxyType

from wicketgate.netpath.paste.tables import TableNames, protocol_number, scope_number
from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Family, IPAddress, IPNetwork, NextHop, Route

_TYPES = frozenset({
    "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw",
})  # fmt: skip
_WORDS = frozenset({"dev", "via", "proto", "scope", "src", "table", "metric", "nhid", "onlink", "linkdown"})
# linux/rtnetlink.h RTNH_F_*
_FLAGS = {
    "dead": 1,
    "pervasive": 2,
    "onlink": 4,
    "offload": 8,
    "rt_offload": 0,
    "linkdown": 16,
    "trap": 0,
    "rt_trap": 0,
}
_METRICS = frozenset({
    "mtu", "window", "rtt", "rttvar", "ssthresh", "cwnd", "advmss", "reordering", "hoplimit", "initcwnd", "features",
    "rto_min", "initrwnd", "quickack", "congctl", "fastopen_no_cookie",
})  # fmt: skip
_NO_MATTER = {"pref": 1, "expires": 1, "error": 1, "users": 1, "used": 1, "age": 1, "cache": 0, "offload_failed": 0}
_START = re.compile(rf"^(?:(?:{'|'.join(sorted(_TYPES))}) )?(?:default|[0-9a-fA-F:.]+(?:/\d+)?)(?: |$)")


def is_route_line(line: str) -> bool:
    """`default via 10.0.0.1 dev eth0 proto static`."""
    stripped = line.strip()
    if not _START.match(stripped):
        return False
    words = stripped.split()
    if "lladdr" in words or "uid" in words:  # a neighbour; the answer of `ip route get`
        return False
    first = words[1] if words[0] in _TYPES and len(words) > 1 else words[0]
    if first != "default" and not _is_network(first):
        return False
    return len(words) > 1 and (words[0] in _TYPES or bool(_WORDS & set(words)))


def is_nexthop_line(line: str) -> bool:
    """The line of one way of a route with several."""
    return line.strip().startswith("nexthop ") and (" dev " in line or " via " in line)


def _is_network(word: str) -> bool:
    try:
        ip_network(word, strict=False)
    except ValueError:
        return False
    return True


@dataclass
class _Read:
    """What was read of one line."""

    values: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    hops: list[NextHop] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    via: IPAddress | None = None
    dev: str = ""
    flags: int = 0
    weight: int = 1
    six: bool | None = None


def route_of(
    line: str, nexthops: list[str], tables: TableNames, *, family: Family | None = None, table: str = ""
) -> Route:
    """One route; words that are not understood are in its `unknown`.

    Args:
        line: as `ip route` prints it.
        nexthops: the lines below it that begin with `nexthop`.
        tables: for the names of tables.
        family: where the command told it; a `default` without an address does not show it otherwise.
        table: that was asked for: its lines do not name it.

    Raises:
        ValueError: it is no line of `ip route`.
    """
    words = line.split()
    kind = words.pop(0) if words and words[0] in _TYPES else "unicast"
    if not words:
        raise ValueError(f"no route: {line[:60]!r}")
    read = _Read()
    where = words.pop(0)
    if where != "default":
        read.six = ":" in where
    before, ways = _split_ways(words)
    _words(before, read, tables)
    if read.dev or read.via is not None:
        read.hops.append(NextHop(read.dev, read.via, 1, read.flags))
    for way in (*ways, *(each.split()[1:] for each in nexthops)):
        hop = _Read(six=read.six)
        _words(way, hop, tables)
        read.six = hop.six if read.six is None else read.six
        read.hops.append(NextHop(hop.dev, hop.via, hop.weight, hop.flags))
        read.unknown += hop.unknown
    six = read.six if read.six is not None else family == 6
    values = read.values
    values.setdefault("table", tables.number(table) if table else RT_TABLE_MAIN)
    values.setdefault("protocol", 3)  # boot, which iproute2 does not print
    return Route(
        _destination(where, six), type=kind, nexthops=tuple(read.hops), unknown=tuple(read.unknown),
        **({"metrics": MappingProxyType(read.metrics)} if read.metrics else {}), **values,  # type: ignore[arg-type]
    )  # fmt: skip


def _destination(where: str, six: bool) -> IPNetwork:
    if where == "default":
        return ip_network("::/0" if six else "0.0.0.0/0")
    return ip_network(where)


def _split_ways(words: list[str]) -> tuple[list[str], list[list[str]]]:
    """What stands before the first `nexthop`, and the words of each."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "nexthop":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts[0], parts[1:]


def _words(words: list[str], read: _Read, tables: TableNames) -> None:
    rest = iter(words)
    for word in rest:
        try:
            _word(word, rest, read, tables)
        except (ValueError, StopIteration):
            read.unknown.append(word[:60])


def _word(word: str, rest: Iterator[str], read: _Read, tables: TableNames) -> None:
    if word in _FLAGS:
        read.flags |= _FLAGS[word]
    elif word == "via":
        value = next(rest)
        if value in ("inet", "inet6"):
            value = next(rest)
        else:
            read.six = ":" in value if read.six is None else read.six
        read.via = ip_address(value)
    elif word == "dev":
        read.dev = next(rest)
    elif word == "weight":
        read.weight = int(next(rest))
    elif word in _NO_MATTER:
        if word == "pref" and read.six is None:
            read.six = True  # only IPv6 has it, and iproute2 prints it of each route (RTA_PREF)
        for _ in range(_NO_MATTER[word]):
            next(rest)
    elif word in _METRICS:
        value = next(rest)
        read.metrics[word] = f"lock {next(rest)}" if value == "lock" else value
    else:
        _value(word, next(rest), read, tables)


def _value(word: str, value: str, read: _Read, tables: TableNames) -> None:
    values = read.values
    if word == "table":
        values["table"] = tables.number(value)
    elif word in ("proto", "protocol"):
        values["protocol"] = protocol_number(value)
    elif word == "scope":
        values["scope"] = scope_number(value)
        read.six = False if read.six is None else read.six  # iproute2 prints it of IPv4's alone
    elif word == "src":
        values["prefsrc"] = ip_address(value)
        read.six = ":" in value if read.six is None else read.six
    elif word in ("metric", "priority", "preference"):
        values["metric"] = int(value, 0)
    elif word in ("tos", "dsfield"):
        values["tos"] = int(value, 0)
    elif word == "from":
        values["src"] = None if value in ("all", "default") else ip_network(value)
    elif word == "nhid":
        values["nh_id"] = int(value)
    else:
        raise ValueError(word)
