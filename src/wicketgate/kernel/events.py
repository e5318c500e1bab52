# SPDX-License-Identifier: Apache-2.0
"""What changes in the network stack, told by the kernel (rtnetlink multicast).

The socket is read only as fast as its events are taken, so a flood stays in the kernel's buffer, of known size. When
that overflows (ENOBUFS) events are lost for good: the stream then builds a fresh socket, and says so with a `Resync`
before any later event. An overflow is never silent.

Invariant for whoever listens: open the stream first, read the state second. After a `Resync`, read the state again.

Trap of the kernel's: IPv4 routes that go because their interface went down or lost its address are flushed without
an event for each (fib_flush() in net/ipv4/fib_frontend.c); the link's or address's own event is all that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pyroute2.netlink import NLM_F_REPLACE, rtnl

from wicketgate.errors import StateError
from wicketgate.kernel import decode
from wicketgate.kernel.connection import CheckingMarshal
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Address, Link, Neighbour, Route, Rule

_log = get_logger("events")

NETLINK_ROUTE = 0
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; with CAP_NET_ADMIN it may exceed net.core.rmem_max
RECEIVE_BUFFER = 4 << 20  # bytes: some 5,000 events; a guess at what a busy node makes while we are stopped
READ_SIZE = 1 << 17  # more than the largest notification


class Kind(StrEnum):
    """What an event is about."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    RULE = "rule"
    NEIGHBOUR = "neighbour"
    # Told without a value: something of the kind is different now, and who wants to know reads it again.
    SETTING = "setting"  # forwarding, rp_filter, proxy_arp, ignore_routes_with_linkdown (RTM_NEWNETCONF)
    NEXTHOP = "nexthop"  # nexthop objects: routes that use one come and go with it


class Change(StrEnum):
    """What happened to it. `changed`: a link that was known before, or a route put in another's place."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


Value = Link | Address | Route | Rule | Neighbour


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        kind: what it is about.
        change: what happened.
        value: as it is now, or as it was when it was removed.
        own: one of our own requests caused it. The kernel tells this of rules, routes and IPv4 addresses; not of links
            and IPv6 addresses, nor of what follows from a change (an address's local route): those are never `own`.
        port: netlink port of the socket that asked for the change, 0 where the kernel does not tell it.
    """

    kind: Kind
    change: Change
    value: Value
    own: bool = False
    port: int = 0


@dataclass(frozen=True, slots=True)
class Resync:
    """Events were lost. Read everything again; what comes after this is complete again.

    Attributes:
        count: how many times so far on this stream.
    """

    count: int = 1


# RTNLGRP_* (linux/rtnetlink.h) by kind
_GROUPS = {
    Kind.LINK: (1,),
    Kind.NEIGHBOUR: (3,),
    Kind.ADDRESS: (5, 9),
    Kind.ROUTE: (7, 11),
    Kind.RULE: (8, 19),
    Kind.SETTING: (24, 25),
    Kind.NEXTHOP: (32,),
}
# Neighbours change all the time, for good reasons: only who asks for them gets them.
DEFAULT_KINDS = frozenset({Kind.LINK, Kind.ADDRESS, Kind.ROUTE, Kind.RULE})

_TYPES: dict[int, tuple[Kind, bool]] = {
    rtnl.RTM_NEWLINK: (Kind.LINK, True),
    rtnl.RTM_DELLINK: (Kind.LINK, False),
    rtnl.RTM_NEWADDR: (Kind.ADDRESS, True),
    rtnl.RTM_DELADDR: (Kind.ADDRESS, False),
    rtnl.RTM_NEWROUTE: (Kind.ROUTE, True),
    rtnl.RTM_DELROUTE: (Kind.ROUTE, False),
    rtnl.RTM_NEWRULE: (Kind.RULE, True),
    rtnl.RTM_DELRULE: (Kind.RULE, False),
    rtnl.RTM_NEWNEIGH: (Kind.NEIGHBOUR, True),
    rtnl.RTM_DELNEIGH: (Kind.NEIGHBOUR, False),
}
_WITHOUT_VALUE = {
    80: Kind.SETTING,
    81: Kind.SETTING,
    104: Kind.NEXTHOP,
    105: Kind.NEXTHOP,
}  # RTM_*NETCONF, RTM_*NEXTHOP
# struct nlmsghdr { u32 len; u16 type; u16 flags; u32 seq; u32 pid; }; the family is the first octet behind it
_HEADER = struct.Struct("=IHHIIB")
_IP = (socket.AF_INET, socket.AF_INET6)
_AF_BRIDGE = 7


class EventStream:
    """Changes in the calling thread's network namespace: `async with EventStream() as events: async for event in events`.

    It needs no right. One consumer at a time.
    """

    def __init__(
        self,
        *,
        kinds: Collection[Kind] = DEFAULT_KINDS,
        own_ports: Callable[[], Collection[int]] = lambda: (),
        only: Callable[[Event], bool] = lambda _: True,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        """A stream that is not open yet.

        Args:
            kinds: what to listen to; the kernel sends no more than that.
            own_ports: netlink ports whose changes are ours (`lambda: (netlink.port,)`).
            only: further filter on decoded events.
            receive_buffer: bytes that the kernel keeps for us before it drops events.
        """
        self._kinds = frozenset(kinds) | {Kind.LINK}  # links carry the names that all others need
        self._wanted = frozenset(kinds)
        self._own_ports = own_ports
        self._only = only
        self._receive_buffer = receive_buffer
        self._marshal = CheckingMarshal()
        self._socket: socket.socket | None = None
        self._names: dict[int, str] = {}
        self._ready: deque[Event | Resync] = deque()
        self.resyncs = 0

    async def __aenter__(self) -> Self:
        self._socket = self._open_socket()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __aiter__(self) -> AsyncIterator[Event | Resync]:
        return self

    async def __anext__(self) -> Event | Resync:
        while not self._ready:
            if self._socket is None:
                raise StopAsyncIteration
            self._take(await self._receive(self._socket))
        return self._ready.popleft()

    def fileno(self) -> int:
        """The socket's descriptor, to be asked again after a `Resync`: it is another one then."""
        return -1 if self._socket is None else self._socket.fileno()

    def pending(self) -> tuple[Event | Resync, ...]:
        """What has happened so far and was not taken yet, without waiting."""
        while (data := self.read()) is not None:
            self._take(data)
        taken = tuple(self._ready)
        self._ready.clear()
        return taken

    def read(self) -> bytes | None:
        """One datagram as it came, for `kinds_in` and `decode`; None when there is none now.

        Empty after an overflow, which `decode` then tells of.
        """
        if self._socket is None:
            return None
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lost(error)
            return b""

    def decode(self, data: bytes) -> tuple[Event | Resync, ...]:
        """The events of a datagram that `read` gave."""
        self._take(data)
        taken = tuple(self._ready)
        self._ready.clear()
        return taken

    async def _receive(self, sock: socket.socket) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(sock, READ_SIZE)
        except OSError as error:
            self._lost(error)
            return b""

    def _lost(self, error: OSError) -> None:
        if error.errno != errno.ENOBUFS or self._socket is None:
            raise StateError(f"the kernel's events cannot be read: {error.strerror}") from error
        # The new one is bound before the old one goes: no moment without ears. What still lay in the old one was
        # older than the loss, and the state will be read again anyway.
        fresh = self._open_socket()
        self._socket.close()
        self._socket = fresh
        self.resyncs += 1
        _log.warning("netlink events overflowed; a fresh socket is open", times=self.resyncs)
        self._ready.clear()
        self._ready.append(Resync(self.resyncs))

    def _open_socket(self) -> socket.socket:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._receive_buffer)
            sock.bind((0, sum(1 << (group - 1) for kind in self._kinds for group in _GROUPS[kind])))
        except OSError as error:
            sock.close()
            raise StateError(f"the kernel's events cannot be had: {error.strerror}") from error
        self._names = dict(socket.if_nameindex())
        return sock

    def _take(self, data: bytes) -> None:
        if not data or all(kind in _WITHOUT_VALUE.values() for kind, _ in kinds_in(data)):
            return
        own = frozenset(self._own_ports())
        for message in self._marshal.parse(data):
            event = self._event(message, own)
            if event is not None and event.kind in self._wanted and self._only(event):
                self._ready.append(event)

    def _event(self, message: Any, own: frozenset[int]) -> Event | None:
        found = _TYPES.get(message["header"]["type"])
        if found is None:
            return None
        kind, there = found
        change = Change.ADDED if there else Change.REMOVED
        value: Value | None
        if kind is Kind.LINK:
            if message["family"] == _AF_BRIDGE:  # a bridge port's state: the link itself did not change
                return None
            value = decode.link(message)
            if there and value.index in self._names:
                change = Change.CHANGED
            if there:
                self._names[value.index] = value.name
            else:
                self._names.pop(value.index, None)
        elif kind is Kind.ADDRESS:
            value = decode.address(message, self._name) if message["family"] in _IP else None
        elif kind is Kind.NEIGHBOUR:
            value = decode.neighbour(message, self._name)
        elif message["family"] not in _IP:
            return None
        elif kind is Kind.ROUTE:
            if message["flags"] & decode.RTM_F_CLONED:
                return None
            value = decode.route(message, self._name)
            if there and message["header"]["flags"] & NLM_F_REPLACE:
                change = Change.CHANGED
        else:
            value = decode.rule(message)
        if value is None:
            return None
        port = message["header"]["pid"]
        return Event(kind, change, value, own=port in own, port=port)

    def _name(self, index: int) -> str:
        return self._names.get(index) or f"if{index}"


def kinds_in(data: bytes) -> Iterator[tuple[Kind, int]]:
    """What a datagram is about, by kind and address family, at a fraction of what decoding costs."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, number, _, _, _, family = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        kind = _TYPES[number][0] if number in _TYPES else _WITHOUT_VALUE.get(number)
        if kind is not None:
            yield kind, family
        offset += (length + 3) & ~3
