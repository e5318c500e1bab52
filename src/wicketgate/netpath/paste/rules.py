# SPDX-License-Identifier: Apache-2.0
"""The lines of `ip rule`."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_network

from wicketgate.netpath.paste.tables import TableNames, protocol_number
from wicketgate.netpath.snapshot import Family, IPNetwork, Rule

_LINE = re.compile(r"^\s*(\d{1,10}):\s+((?:not )?(?:from|to|fwmark|iif|lookup)\b.*)$")
_PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58,
    "sctp": 132, "udplite": 136,
}  # fmt: skip
_FULL_MASK = 0xFFFFFFFF
_KERNEL = 2  # RTPROT_KERNEL


def is_rule_line(line: str) -> bool:
    """`32766:	from all lookup main`."""
    return _LINE.match(line) is not None


def family_of(lines: list[str]) -> Family | None:
    """The family of a listing, where it shows: an address, or the rule that only IPv4 has; None where it does not."""
    for line in lines:
        for word in line.split()[1:]:
            if "." in word and word[0].isdigit():
                return 4
            if word.count(":") > 1:
                return 6
    if any(re.search(r"\blookup default\b", line) for line in lines):
        return 4
    return None


def rule_of(line: str, family: Family, tables: TableNames) -> Rule:
    """One rule; words that are not understood are in its `unknown`.

    Raises:
        ValueError: it is no line of `ip rule`.
    """
    match = _LINE.match(line)
    if match is None:
        raise ValueError(f"no rule: {line[:60]!r}")
    rule = Rule(family, int(match[1]) & _FULL_MASK, protocol=_KERNEL)  # whose name iproute2 leaves out
    return selector_of(match[2].split(), rule, tables)


def selector_of(words: list[str], rule: Rule, tables: TableNames) -> Rule:
    """The words of a rule, put into it."""
    found: dict[str, object] = {}
    unknown: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        value = words[at + 1] if at + 1 < len(words) else ""
        try:
            at += 1 + _take(word, value, found, rule.family, tables)
        except (ValueError, KeyError):
            unknown.append(f"{word} {value}".strip()[:60])
            at += 2
    return replace(rule, **found, unknown=tuple(unknown))  # type: ignore[arg-type]


def _take(word: str, value: str, found: dict[str, object], family: Family, tables: TableNames) -> int:
    """One word, and how many more it took."""
    if word in ("not", "[detached]", "[unresolved]"):
        if word == "not":
            found["invert"] = True
        return 0
    if word in ("nop", "blackhole", "unreachable", "prohibit"):
        found["action"] = word
        return 0
    if word in ("lookup", "table"):
        if value == "[l3mdev-table]":
            found["l3mdev"] = True
        else:
            found["table"] = tables.number(value)
        return 1
    name, reader = _READERS[word]
    read = reader(value, family)
    if read is not None:
        found[name] = read
    if word == "fwmark":
        found["fwmark"], found["fwmask"] = _mark(value)
    if word == "goto":
        found["action"] = "goto"
    return 1


def _network(value: str, family: Family) -> IPNetwork | None:
    if value in ("all", "any", "default"):
        return None
    network = ip_network(value)
    if network.version != family:
        raise ValueError(value)
    return network


def _mark(value: str) -> tuple[int, int]:
    mark, _, mask = value.partition("/")
    return int(mark, 0), int(mask, 0) if mask else _FULL_MASK


def _number(value: str, _family: Family) -> int:
    return int(value, 0)


def _group(value: str, _family: Family) -> int:
    return 0 if value == "default" else int(value, 0)


def _range(value: str, _family: Family) -> tuple[int, int]:
    low, _, high = value.partition("-")
    return int(low), int(high or low)


def _protocol(value: str, _family: Family) -> int:
    return _PROTOCOLS.get(value) or int(value.removeprefix("ipproto-"))


_READERS = {
    "from": ("src", _network),
    "to": ("dst", _network),
    "tos": ("tos", _number),
    "dsfield": ("tos", _number),
    "fwmark": ("fwmark", lambda value, _family: _mark(value)[0]),
    "iif": ("iif", lambda value, _family: value),
    "dev": ("iif", lambda value, _family: value),
    "oif": ("oif", lambda value, _family: value),
    "uidrange": ("uid_range", _range),
    "ipproto": ("ipproto", _protocol),
    "sport": ("sport", _range),
    "dport": ("dport", _range),
    "suppress_prefixlength": ("suppress_prefixlength", _number),
    "suppress_ifgroup": ("suppress_ifgroup", _group),
    "goto": ("goto", _number),
    "proto": ("protocol", lambda value, _family: protocol_number(value)),
    "protocol": ("protocol", lambda value, _family: protocol_number(value)),
    "pref": ("priority", _number),
    "priority": ("priority", _number),
}
