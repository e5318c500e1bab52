# SPDX-License-Identifier: Apache-2.0
"""Connection tracking over netlink: what it tells of one flow as it happens, and forgetting that flow.

Source: linux/netfilter/nfnetlink_conntrack.h, enum ip_conntrack_status.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from wicketgate.errors import KernelRefused, StateError
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP, Ends

_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP = 12, 270, 1
_GROUPS = (1, 2, 3)  # NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY
_SUBSYSTEM, _NEW, _GET, _DELETE = 1, 0, 1, 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_REQUEST, _ACK, _CREATE, _ERROR = 1, 4, 0x400, 2
_HEADER = struct.Struct("=IHHII")
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _MARK = 1, 2, 3, 4, 8
_IP, _PROTO = 1, 2
_NESTED = 0x8000
_TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
_SEEN_REPLY = 1 << 1
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Tracked:
    """An event, as `conntrack -E` lists it.

    Attributes:
        action: NEW, UPDATE or DESTROY.
        original: the first packet's addresses.
        answer: those that an answer is expected with.
        state: of TCP; empty for others.
        mark: connmark.
        answered: an answer was seen.
    """

    action: str
    original: Ends
    answer: Ends
    state: str = ""
    mark: int = 0
    answered: bool = False

    def spelled(self) -> str:
        """`NEW tcp 192.0.2.1:40000 -> 10.0.0.2:9000, answer tcp 10.0.0.2:9000 -> 192.0.2.1:40000`."""
        state = f" {self.state}" if self.state else ""
        mark = f" mark={self.mark:#x}" if self.mark else ""
        return f"{self.action}{state} {self.original.spelled()}, answer {self.answer.spelled()}{mark}"


class TrackEvents:
    """Listens in the calling thread's namespace from when it is made.

    Raises:
        StateError: it cannot be had.
    """

    def __init__(self) -> None:
        self._sock = _socket()
        try:
            self._sock.bind((0, 0))
            for group in _GROUPS:
                self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self._sock.close()
            raise StateError(f"conntrack's events cannot be had: {error.strerror}") from error
        self._sock.setblocking(False)

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()

    def read(self) -> tuple[Tracked, ...]:
        """What happened since the last time."""
        found: list[Tracked] = []
        while True:
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                return tuple(found)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # others' events were too many; what is read is ours or not there
                    raise StateError(f"conntrack's events cannot be read: {error.strerror}") from error
                continue
            found += [each for kind, flags, body in _messages(data) if (each := _event(kind, flags, body)) is not None]


def known(ends: Ends) -> bool:
    """Whether a connection of these addresses is tracked now.

    Raises:
        StateError: no right.
    """
    return _asked(_GET, ends)


def forget(ends: Ends, echo: int = 0) -> bool:
    """Delete the connection of these addresses; whether there was one.

    Args:
        ends: of its first packet.
        echo: the identifier of an ICMP echo.

    Raises:
        StateError: no right.
    """
    return _asked(_DELETE, ends, echo)


def _asked(what: int, ends: Ends, echo: int = 0) -> bool:
    body = struct.pack("=BBH", 2 if ends.source.version == 4 else 10, 0, 0) + _nest(_TUPLE_ORIG, _tuple(ends, echo))
    with _socket() as sock:
        sock.settimeout(_SECONDS)
        kind = _SUBSYSTEM << 8 | what
        sock.sendto(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK, 1, 0) + body, (0, 0))
        for number, _, answer in _messages(sock.recv(1 << 16)):
            code = -int(struct.unpack_from("=i", answer)[0]) if number == _ERROR else 0
            if code and code != errno.ENOENT:
                raise KernelRefused("conntrack", code, os.strerror(code))
            return not code
    return False


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise StateError(f"no netfilter netlink socket: {error.strerror}") from error


def _tuple(ends: Ends, echo: int) -> bytes:
    first = 1 if ends.source.version == 4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    upper = _attribute(1, bytes((ends.protocol,)))
    if ends.protocol in (TCP, UDP):
        upper += _attribute(2, ends.source_port.to_bytes(2)) + _attribute(3, ends.destination_port.to_bytes(2))
    elif ends.protocol in (ICMP, ICMPV6):
        at, request = (4, 8) if ends.protocol == ICMP else (7, 128)  # CTA_PROTO_ICMP_ID, _TYPE, _CODE, and ICMPv6's
        upper += _attribute(at, echo.to_bytes(2)) + _attribute(at + 1, bytes((request,))) + _attribute(at + 2, b"\0")
    addresses = _attribute(first, ends.source.packed) + _attribute(first + 1, ends.destination.packed)
    return _nest(_IP, addresses) + _nest(_PROTO, upper)


def _event(kind: int, flags: int, body: bytes) -> Tracked | None:
    if kind >> 8 != _SUBSYSTEM or len(body) < 4:
        return None
    action = {_NEW: "NEW" if flags & _CREATE else "UPDATE", _DELETE: "DESTROY"}.get(kind & 0xFF, "")
    found = dict(_attributes(body[4:]))
    original, answer = _read_tuple(found.get(_TUPLE_ORIG, b"")), _read_tuple(found.get(_TUPLE_REPLY, b""))
    if not action or original is None or answer is None:
        return None
    status = int.from_bytes(found.get(_STATUS, b""))
    info = dict(_attributes(dict(_attributes(found.get(_PROTOINFO, b""))).get(1, b"")))  # CTA_PROTOINFO_TCP
    state = info.get(1, b"\0")[0]  # CTA_PROTOINFO_TCP_STATE
    return Tracked(
        action, original, answer, _TCP_STATES[state] if 0 < state < len(_TCP_STATES) else "",
        int.from_bytes(found.get(_MARK, b"")), bool(status & _SEEN_REPLY),
    )  # fmt: skip


def _read_tuple(data: bytes) -> Ends | None:
    parts = dict(_attributes(data))
    addresses, upper = dict(_attributes(parts.get(_IP, b""))), dict(_attributes(parts.get(_PROTO, b"")))
    first = 1 if 1 in addresses else 3
    with contextlib.suppress(KeyError, ValueError):
        protocol = upper[1][0]
        ports = (0, 0)
        if protocol not in (ICMP, ICMPV6):
            ports = (int.from_bytes(upper.get(2, b"")), int.from_bytes(upper.get(3, b"")))
        return Ends(ip_address(addresses[first]), ip_address(addresses[first + 1]), protocol, *ports)
    return None


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _nest(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | _NESTED, payload)
