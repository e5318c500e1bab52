# SPDX-License-Identifier: Apache-2.0
"""Asking the kernel where a packet would go, without sending one (RTM_GETROUTE)."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2.netlink import rtnl

from wicketgate.errors import KernelRefused
from wicketgate.kernel import decode
from wicketgate.kernel.connection import Connection
from wicketgate.kernel.messages import RouteMessage
from wicketgate.netpath.snapshot import IPAddress, IPNetwork

RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000  # linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the kernel would do with a packet (RTM_GETROUTE).

    As long as a namespace has no rule of its own, IPv4 keeps `local` and `main` in one trie, and the table of an
    address of this host reads 254 (fib_unmerge() in net/ipv4/fib_frontend.c): `type` tells them apart, not `table`.
    """

    oif: str  # the interface it leaves by; `lo` for a packet to this host
    table: int
    prefsrc: IPAddress | None
    via: IPAddress | None
    type: str  # unicast, local, broadcast, multicast
    matched: IPNetwork | None  # the prefix of the route that was taken; None where the kernel does not tell


@dataclass(frozen=True, slots=True)
class RouteQuestion:
    """What is known of the packet beside its destination; see `Netlink.get_route`."""

    src: IPAddress | None = None
    iif: str | None = None
    oif: str | None = None
    mark: int = 0
    uid: int | None = None
    ipproto: int = 0
    sport: int = 0
    dport: int = 0

    def spelled(self, dst: IPAddress) -> str:
        """As `ip route get` takes it."""
        words = ["ip", "route", "get", str(dst)]
        for word, value in (
            ("from", self.src),
            ("iif", self.iif),
            ("oif", self.oif),
            ("mark", f"{self.mark:#x}" if self.mark else None),
            ("uid", self.uid),
            ("ipproto", self.ipproto or None),
            ("sport", self.sport or None),
            ("dport", self.dport or None),
        ):
            words += [word, str(value)] if value is not None else []
        return " ".join(words)


async def ask_route(connection: Connection, dst: IPAddress, question: RouteQuestion) -> RouteAnswer:
    """The kernel's answer. Raises KernelRefused; see `Netlink.get_route`."""
    what = question.spelled(dst)
    fields = {
        "family": decode.family_number(dst.version),
        "dst_len": dst.max_prefixlen,
        "src_len": dst.max_prefixlen if question.src is not None else 0,
    }
    attributes = {
        "RTA_DST": str(dst),
        "RTA_SRC": str(question.src) if question.src is not None else None,
        "RTA_IIF": index_of(question.iif, what) if question.iif else None,
        "RTA_OIF": index_of(question.oif, what) if question.oif else None,
        "RTA_MARK": question.mark or None,
        "RTA_UID": question.uid,
        "RTA_IP_PROTO": question.ipproto or None,
        "RTA_SPORT": question.sport or None,
        "RTA_DPORT": question.dport or None,
    }
    # Without this flag IPv4 says 254 whatever the table; IPv6 always tells it, and refuses the flag.
    told = RTM_F_LOOKUP_TABLE if dst.version == 4 else 0
    answer = await _ask(connection, fields | {"flags": told}, attributes, what)
    matched: IPNetwork | None = None
    try:
        entry = await _ask(connection, fields | {"flags": told | RTM_F_FIB_MATCH}, attributes, f"{what} fibmatch")
    except KernelRefused:
        entry = None  # older kernels, and answers without an entry in a table
    if entry is not None:
        any_address = "0.0.0.0" if dst.version == 4 else "::"
        matched = ip_network(f"{entry.get_attr('RTA_DST') or any_address}/{entry['dst_len']}", strict=False)
    route = decode.route(answer, _name_of)
    prefsrc = answer.get_attr("RTA_PREFSRC")
    return RouteAnswer(
        oif=route.oif,
        table=route.table,
        prefsrc=ip_address(prefsrc) if prefsrc else None,
        via=route.nexthops[0].via if route.nexthops else None,
        type=route.type,
        matched=matched,
    )


async def _ask(connection: Connection, fields: dict[str, Any], attributes: dict[str, Any], what: str) -> Any:
    answers = await connection.request(RouteMessage, rtnl.RTM_GETROUTE, fields, attributes, what=what)
    if not answers:
        raise KernelRefused(what, errno.ENODATA, "the kernel gave no answer")
    return answers[0]


def index_of(name: str, what: str) -> int:
    """An interface's index. Raises KernelRefused with ENODEV."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise KernelRefused(what, errno.ENODEV, f"there is no interface {name}") from error


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
