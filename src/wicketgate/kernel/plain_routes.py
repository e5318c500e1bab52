# SPDX-License-Identifier: Apache-2.0
"""Routes of a dump, decoded without pyroute2 where they hold nothing special.

pyroute2 takes 0.13 ms and 5 KB for a route, which is 13 seconds and half a gigabyte for 100,000 of them. A message with
an attribute that is not read here is left to it; the two are held against each other by a test.
Source: struct rtmsg and RTA_* of linux/rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from wicketgate.netpath.snapshot import IPAddress, IPNetwork, NextHop, Route

RTM_NEWROUTE = 24
_HEADER = 16  # octets of struct nlmsghdr
_RTMSG = struct.Struct("=BBBBBBBBI")  # family dst_len src_len tos table protocol scope type flags
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _CACHEINFO, _TABLE, _PREF, _EXPIRES = 1, 4, 5, 6, 7, 12, 15, 20, 23
_NUMBERS = frozenset({_OIF, _PRIORITY, _TABLE})
_HARMLESS = frozenset({_CACHEINFO, _EXPIRES})
_LENGTHS = {socket.AF_INET: 4, socket.AF_INET6: 16}


class PlainRoute:
    """RTM_NEWROUTE with one way or none. For pyroute2's own loop it looks like one of its messages.

    Attributes:
        header: as pyroute2's; shared by the messages of a dump.
        fields: of struct rtmsg.
        found: attributes by number: octets of addresses, and numbers.
    """

    __slots__ = ("fields", "found", "header")

    def __init__(self, header: dict[str, Any], fields: tuple[int, ...], found: dict[int, Any]) -> None:
        self.header = header
        self.fields = fields
        self.found = found

    def __getitem__(self, name: str) -> Any:
        if name == "header":
            return self.header
        if name == "family":
            return self.fields[0]
        if name == "flags":
            return self.fields[8]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dictionary's."""
        return self.header if name == "header" else default


def plain_route(data: bytes, offset: int, length: int, header: dict[str, Any]) -> PlainRoute | None:
    """The message at an offset; None where it holds more than is understood here."""
    end = offset + length
    at = offset + _HEADER + _RTMSG.size
    if end > len(data) or at > end:
        return None
    fields = _RTMSG.unpack_from(data, offset + _HEADER)
    width = _LENGTHS.get(fields[0])
    if width is None or fields[2]:  # source-specific routes are rare
        return None
    found: dict[int, Any] = {}
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            return None
        if kind in _NUMBERS:
            if size != 8:
                return None
            (found[kind],) = _U32.unpack_from(data, at + 4)
        elif kind in (_DST, _GATEWAY, _PREFSRC):
            if size != 4 + width:
                return None
            found[kind] = data[at + 4 : at + size]
        elif kind == _PREF:
            if size != 5 or data[at + 4]:
                return None
        elif kind not in _HARMLESS:
            return None
        at += size + 3 & ~3
    return PlainRoute(header, fields, found)


def parts_of(message: PlainRoute, name: str, types: dict[int, str]) -> Route:
    """The route.

    Args:
        message: from a dump.
        name: of its interface; empty when it names none.
        types: RTN_* as iproute2 spells them.
    """
    family, length, _, tos, table, protocol, scope, kind, flags = message.fields
    found = message.found
    return Route(
        _network(family, found.get(_DST), length),
        found.get(_TABLE, table),
        types.get(kind, f"type {kind}"),
        _hops(name, found.get(_GATEWAY), flags & 0xFF) if _OIF in found or _GATEWAY in found else (),
        _address(found[_PREFSRC]) if _PREFSRC in found else None,
        found.get(_PRIORITY, 0),
        scope,
        protocol,
        tos,
    )


def interface_of(message: PlainRoute) -> int:
    """Its interface's number, 0 for none."""
    return int(message.found.get(_OIF, 0))


def _network(family: int, octets: bytes | None, length: int) -> IPNetwork:
    if family == socket.AF_INET:
        return IPv4Network((octets or 0, length), strict=False)
    return IPv6Network((octets or 0, length), strict=False)


@lru_cache(maxsize=1024)
def _address(octets: bytes) -> IPAddress:
    return IPv4Address(octets) if len(octets) == 4 else IPv6Address(octets)


@lru_cache(maxsize=1024)
def _hops(name: str, gateway: bytes | None, flags: int) -> tuple[NextHop, ...]:
    """Thousands of routes share their way."""
    return (NextHop(oif=name, via=_address(gateway) if gateway else None, flags=flags),)
