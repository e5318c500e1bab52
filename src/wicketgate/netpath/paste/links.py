# SPDX-License-Identifier: Apache-2.0
"""The lines of `ip addr` and `ip link`, with or without `-o`."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from itertools import pairwise

from wicketgate.netpath.paste.tables import scope_number
from wicketgate.netpath.snapshot import Address, IPAddress, IPInterface, Link

_HEAD = re.compile(r"^\s*(\d{1,9}):\s+([^\s:@]+)(?:@(\S+?))?:\s+<([A-Z0-9_,-]*)>(.*)$")
_ONE_LINE = re.compile(r"^\s*(\d{1,9}):\s+([^\s:@]+)(?:@\S+)?\s+(inet6?\s+.*)$")
_INSIDE = re.compile(r"^\s+\S|^(?:link/|inet6?\s|valid_lft|altname|alias\s|[a-z0-9_]+\s.*(?:addrgenmode|numtxqueues))")
# linux/if_addr.h IFA_F_*
_ADDRESS_FLAGS = {
    "secondary": 0x01, "temporary": 0x01, "nodad": 0x02, "optimistic": 0x04, "dadfailed": 0x08, "home": 0x10,
    "deprecated": 0x20, "tentative": 0x40, "mngtmpaddr": 0x100, "noprefixroute": 0x200, "autojoin": 0x400,
}  # fmt: skip
_PERMANENT = 0x80
_KINDS = (
    "wireguard",
    "tun",
    "veth",
    "bridge",
    "vlan",
    "vxlan",
    "vrf",
    "dummy",
    "ipip",
    "gre",
    "sit",
    "ipvlan",
    "macvlan",
)


def is_link_line(line: str) -> bool:
    """`2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 ...`."""
    return _HEAD.match(line) is not None


def is_address_line(line: str) -> bool:
    """A line of `ip -o addr`."""
    return _ONE_LINE.match(line) is not None


def is_inside_link(line: str) -> bool:
    """A line below that of a link."""
    return _INSIDE.match(line) is not None


class Interfaces:
    """Links and addresses, as their lines are read one after the other."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._addresses: dict[tuple[int, IPInterface, IPAddress | None], Address] = {}
        self._masters: dict[int, str] = {}
        self._last = 0

    def head(self, line: str) -> None:
        """The first line of a link."""
        match = _HEAD.match(line)
        assert match is not None
        index, name, below, flags, rest = int(match[1]), match[2], match[3] or "", match[4].split(","), match[5].split()
        said = dict(pairwise(rest))
        group = said.get("group", "default")
        kind = "veth" if below.startswith("if") else ""
        if "POINTOPOINT" in flags and "NOARP" in flags:
            # Of the two that look like this, the one of userspace takes multicast too (tun_net_initialize).
            kind = "tun" if "MULTICAST" in flags else "wireguard"
        self._last = index
        self._links[index] = Link(
            index,
            name,
            kind=kind,
            mtu=int(said.get("mtu", "1500")),
            up="UP" in flags,
            lower_up="LOWER_UP" in flags,
            loopback="LOOPBACK" in flags,
            pointopoint="POINTOPOINT" in flags,
            group=int(group) if group.isdigit() else 0,
        )
        if "master" in said:
            self._masters[index] = said["master"]

    def inside(self, line: str) -> None:
        """A line below it."""
        words = line.split()
        link = self._links[self._last]
        if words[0] in ("inet", "inet6"):
            self._address(words, link.index, link.name)
        elif words[0].startswith("link/"):
            kind = words[0][5:]
            mac = words[1] if len(words) > 1 and ":" in words[1] else ""
            if kind == "ether" and link.kind in ("tun", "wireguard"):
                link = replace(link, kind="")
            elif kind not in ("ether", "none", "loopback") and not link.kind:
                link = replace(link, kind=kind)
            self._links[link.index] = replace(link, mac=mac)
        elif words[0] in _KINDS and {"addrgenmode", "numtxqueues"} & set(words):  # ip -d
            self._links[link.index] = replace(link, kind=words[0])

    def one_line(self, line: str) -> None:
        """A line of `ip -o addr`."""
        match = _ONE_LINE.match(line)
        assert match is not None
        self._address(match[3].replace("\\", " ").split(), int(match[1]), match[2])

    def _address(self, words: list[str], index: int, name: str) -> None:
        near = words[1]
        said = dict(pairwise(words))
        interface, other = ip_interface(near), None
        if "peer" in said:
            far, _, length = said["peer"].partition("/")
            interface = ip_interface(f"{near.partition('/')[0]}/{length}" if length else near)
            other = ip_address(far)
        flags = sum({_ADDRESS_FLAGS[word] for word in words if word in _ADDRESS_FLAGS})
        flags |= 0 if "dynamic" in words else _PERMANENT
        scope = scope_number(said.get("scope", "global"))
        self._addresses.setdefault((index, interface, other), Address(name, index, interface, scope, flags, other))

    def finished(self) -> tuple[tuple[Link, ...], tuple[Address, ...]]:
        """Links by index, with the numbers of their masters, and their addresses."""
        numbers = {link.name: link.index for link in self._links.values()}
        links = [
            replace(link, master=numbers.get(self._masters.get(link.index, ""), 0))
            for _, link in sorted(self._links.items())
        ]
        return tuple(links), tuple(self._addresses.values())
