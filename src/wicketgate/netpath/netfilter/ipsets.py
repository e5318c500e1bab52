# SPDX-License-Identifier: Apache-2.0
"""ipsets, as `ipset save` lists them. Spelling: ipset(8)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from wicketgate.netpath.netfilter import names

_PARTS = frozenset({"ip", "net", "port", "iface", "mark", "mac", "set"})
_FAMILIES = {"inet": 4, "inet6": 6}
_ICMP = (1, 58)
_TAKES_A_VALUE = frozenset({
    "family", "range", "hashsize", "maxelem", "netmask", "bitmask", "markmask", "size", "timeout", "bucketsize", "initval",
})  # fmt: skip

_LEFT = re.compile(r" timeout \d+")
_ASKS = re.compile(r" --(?:match|add|del|map)-set \S")

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """The interface part of an element."""

    name: str
    wildcard: bool = False
    physdev: bool = False

    def holds(self, name: str) -> bool:
        """A bridge port is asked for by no rule of iptables (hash_netiface4_kadt)."""
        if self.physdev:
            return False
        return name.startswith(self.name) if self.wildcard else name == self.name


@dataclass(slots=True)
class IpSet:
    """One set.

    Attributes:
        name: its own.
        kind: `hash:net,port`.
        parts: of an element: ip, net, port, iface, mark, mac, set.
        family: 4 or 6; 0 where it has none.
        mask: of the first address, as a number; None without `netmask` or `bitmask`.
        mark_mask: of a mark.
        nets: by the lengths of their prefixes, longest first: elements without interface -> (interface, nomatch).
        members: names of a list:set.
        unknown: what could not be read of it.
    """

    name: str
    kind: str
    parts: tuple[str, ...]
    family: int = 0
    mask: int | None = None
    mark_mask: int = 0xFFFFFFFF
    nets: dict[Key, dict[Key, list[tuple[Device | None, bool]]]] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def bits(self) -> int:
        """Of an address."""
        return 128 if self.family == 6 else 32


def asks_for_sets(listing: str) -> bool:
    """Whether a listing of iptables-save asks for ipsets."""
    return "-set " in listing and _ASKS.search(listing) is not None


def settled(listing: str) -> tuple[str, ...]:
    """The lines of a listing without what moves by itself: the time that elements have left, and their order."""
    return tuple(sorted(_LEFT.sub("", line) if line.startswith("add ") else line for line in listing.splitlines()))


def parse_ipsets(listing: str) -> dict[str, IpSet]:
    """The sets of `ipset save`. What cannot be read is in `IpSet.unknown`: then nothing is known of the whole set."""
    found: dict[str, IpSet] = {}
    for line in listing.splitlines():
        words = _words(line)
        if len(words) < 3 or words[0] not in ("create", "add"):
            continue
        if words[0] == "create":
            found[words[1]] = _created(words)
        elif words[1] in found:
            made = found[words[1]]
            try:
                _add(made, words[2], frozenset(words[3:]))
            except (ValueError, IndexError):
                made.unknown.append(f"the element {words[2][:60]}")
    for each in found.values():
        # Longest first, and of several nets in one element the first rules (the loops of mtype_test_cidrs).
        each.nets = dict(sorted(each.nets.items(), key=lambda pair: tuple(-length for length in pair[0])))
    return found


def _words(line: str) -> list[str]:
    if '"' not in line:
        return line.split()
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _created(words: list[str]) -> IpSet:
    name, kind = words[1], words[2]
    parts = tuple(kind.partition(":")[2].split(","))
    made = IpSet(name, kind, parts)
    if not set(parts) <= _PARTS or kind.partition(":")[0] not in ("hash", "bitmap", "list"):
        made.unknown.append(f"the type {kind[:60]}")
    options: dict[str, str] = {}
    at = 3
    while at < len(words):
        if words[at] in _TAKES_A_VALUE and at + 1 < len(words):
            options[words[at]] = words[at + 1]
            at += 1
        at += 1
    made.family = _FAMILIES.get(options.get("family", "inet"), 4)
    if kind in ("bitmap:port", "list:set", "hash:mac"):
        made.family = 0
    try:
        if "netmask" in options:
            length = int(options["netmask"])
            made.mask = ((1 << length) - 1) << (made.bits - length)
        if "bitmask" in options:
            made.mask = int(ip_address(options["bitmask"]))
        made.mark_mask = int(options.get("markmask", "0xffffffff"), 0)
    except ValueError:
        made.unknown.append("its netmask or markmask")
    if made.mask is not None and parts.count("ip") + parts.count("net") > 1:
        made.unknown.append("a mask for two addresses")
    return made


def _add(made: IpSet, text: str, options: frozenset[str]) -> None:
    if made.parts == ("set",):
        made.members.append(text)
        return
    values = text.split(",")
    if len(values) != len(made.parts):
        raise ValueError(text)
    key: list[int] = []
    lengths: list[int] = []
    device: Device | None = None
    for part, value in zip(made.parts, values, strict=True):
        if part in ("ip", "net"):
            net = ip_network(value, strict=False)
            if net.version != made.family or (part == "ip" and net.prefixlen != made.bits):
                raise ValueError(value)
            key.append(int(net.network_address))
            if part == "net":
                lengths.append(net.prefixlen)
        elif part == "port":
            key += [int(value)] if made.kind == "bitmap:port" else _port(value)
        elif part == "mark":
            key.append(int(value, 0))
        elif part == "iface":
            physical = value.startswith("physdev:")
            device = Device(value.removeprefix("physdev:"), "wildcard" in options, physical)
    entry = device, "nomatch" in options
    made.nets.setdefault(tuple(lengths), {}).setdefault(tuple(key), []).append(entry)


def _port(text: str) -> list[int]:
    name, colon, port = text.partition(":")
    if not colon:
        name, port = "tcp", name  # ipset(8): tcp where nothing is said
    protocol = names.PROTOCOLS[name] if name in names.PROTOCOLS else int(name)
    if protocol in _ICMP:
        known = (names.IPT_ICMP if protocol == 1 else names.IPT_ICMPV6).get(port)
        if known is not None:
            return [protocol, known[0] << 8 | (known[1] or 0)]
        kind, _, code = port.partition("/")
        return [protocol, int(kind) << 8 | int(code)]
    return [protocol, int(port)]
