# SPDX-License-Identifier: Apache-2.0
"""TCP connections that have begun: a SYN was taken by a listener. They are seen, and forgotten without a packet.

A RST would be seen by the firewall, and what counts packets there would count it. Source: linux/inet_diag.h.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SOCK_DIAG, _BY_FAMILY, _DESTROY = 4, 20, 21  # linux/netlink.h, linux/sock_diag.h
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_STATES = 1 << 3 | 1 << 12  # TCP_SYN_RECV, TCP_NEW_SYN_RECV: include/net/tcp_states.h
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 { u8 family, protocol, ext, pad; u32 states; struct inet_diag_sockid id; }
_ASK = struct.Struct("=BBBBI48s")
_FAMILY_AT, _ID_AT, _ID_END = 0, 4, 52  # struct inet_diag_msg { u8 family, state, timer, retrans; id; ... }
TCP_REPAIR = 19  # linux/tcp.h
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """One of them.

    Attributes:
        family: AF_INET or AF_INET6.
        identity: struct inet_diag_sockid, as the kernel told it.
    """

    family: int
    identity: bytes

    @property
    def port(self) -> int:
        """The listener's."""
        return int.from_bytes(self.identity[:2])


def half_open() -> tuple[HalfOpen, ...]:
    """Those of the calling thread's namespace. Raises OSError."""
    found: list[HalfOpen] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with _diag() as sock:
            sock.send(_message(_BY_FAMILY, _REQUEST | _DUMP, _ASK.pack(family, socket.IPPROTO_TCP, 0, 0, _STATES, b"")))
            found += [HalfOpen(body[_FAMILY_AT], body[_ID_AT:_ID_END]) for body in _answers(sock)]
    return tuple(found)


def forget(these: tuple[HalfOpen, ...]) -> bool:
    """Drop them; whether the kernel could (CONFIG_INET_DIAG_DESTROY)."""
    for each in these:
        with _diag() as sock:
            ask = _ASK.pack(each.family, socket.IPPROTO_TCP, 0, 0, _STATES, each.identity)
            sock.send(_message(_DESTROY, _REQUEST | _ACK, ask))
            try:
                list(_answers(sock))
            except OSError as error:
                if error.errno != errno.ENOENT:  # gone already
                    return False
    return True


def close_silently(sock: socket.socket) -> None:
    """Close a socket without a FIN or RST."""
    if sock.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):  # one that is not connected says nothing anyway
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.close()


def _diag() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    sock.settimeout(_SECONDS)
    return sock


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _answers(sock: socket.socket) -> Iterator[bytes]:
    while True:
        data = sock.recv(1 << 17)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            body = data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
            if kind in (_ERROR, _DONE):
                code = int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0
                if code < 0:
                    raise OSError(-code, "sock_diag")
                return
            yield body
