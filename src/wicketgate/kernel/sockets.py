# SPDX-License-Identifier: Apache-2.0
"""Listening TCP and bound UDP sockets, asked of inet_diag; /proc/net where that is refused.

inet_diag tells what /proc does not: the device a socket is bound to, IPV6_V6ONLY and, with CAP_NET_ADMIN, SO_MARK.
pyroute2's DiagSocket is not used: its decoder takes an error message (type 2) for AF_INET and waits for ever.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from wicketgate.errors import KernelRefused
from wicketgate.netpath.snapshot import Family, ListeningSocket

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
TCP_CLOSE, TCP_LISTEN = 7, 10  # net/tcp_states.h; an unconnected UDP socket is in TCP_CLOSE
INET_DIAG_SKV6ONLY, INET_DIAG_MARK = 11, 15

Protocol = Literal["tcp", "udp"]
_PROTOCOLS: tuple[tuple[Protocol, int, int], ...] = (
    ("tcp", socket.IPPROTO_TCP, TCP_LISTEN),
    ("udp", socket.IPPROTO_UDP, TCP_CLOSE),
)
# struct nlmsghdr { u32 len; u16 type; u16 flags; u32 seq; u32 pid; }
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2 { u8 family, protocol, ext, pad; u32 states; struct inet_diag_sockid id (48 bytes); }
_REQUEST = struct.Struct("=BBBBI48x")
# struct inet_diag_msg { u8 family, state, timer, retrans;
#   struct inet_diag_sockid { be16 sport, dport; be32 src[4], dst[4]; u32 if; u32 cookie[2]; } id;
#   u32 expires, rqueue, wqueue, uid, inode; }
_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8xIIIII")
_TIMEOUT = 5.0


async def listening_sockets() -> tuple[ListeningSocket, ...]:
    """Every listening TCP and unconnected, bound UDP socket of the calling thread's network namespace.

    Raises:
        KernelRefused: the kernel has no inet_diag (ENOENT) or does not let us ask.
    """
    names = dict(socket.if_nameindex())
    found: list[ListeningSocket] = []
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as sock:
            sock.setblocking(False)
            for protocol, number, state in _PROTOCOLS:
                for family in (socket.AF_INET, socket.AF_INET6):
                    body = _REQUEST.pack(family, number, 0, 0, 1 << state)
                    header = _HEADER.pack(
                        _HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, len(found), 0
                    )
                    await loop.sock_sendall(sock, header + body)
                    async with asyncio.timeout(_TIMEOUT):
                        found.extend([entry async for entry in _answers(sock, protocol, names)])
    except OSError as error:
        raise KernelRefused("ss -lntu", error.errno or errno.EIO, error.strerror or str(error)) from error
    return tuple(found)


async def _answers(sock: socket.socket, protocol: Protocol, names: dict[int, str]) -> AsyncIterator[ListeningSocket]:
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(sock, 1 << 17)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            body = data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
                if code < 0:
                    raise OSError(-code, os.strerror(-code))
                return
            yield decode(body, protocol, names)


def decode(body: bytes, protocol: Protocol, names: dict[int, str]) -> ListeningSocket:
    """One inet_diag_msg with its attributes."""
    family, _, _, _, sport, _, src, _, device, _, _, _, uid, inode = _MESSAGE.unpack_from(body)
    attributes = dict(_attributes(body[_MESSAGE.size :]))
    v4 = family == socket.AF_INET
    only = attributes.get(INET_DIAG_SKV6ONLY)
    mark = attributes.get(INET_DIAG_MARK)
    return ListeningSocket(
        protocol=protocol,
        family=4 if v4 else 6,
        address=IPv4Address(src[:4]) if v4 else IPv6Address(src),
        port=int.from_bytes(sport, "big"),
        bound_device=names.get(device, f"if{device}") if device else "",
        v6only=None if v4 or only is None else bool(only[0]),
        uid=uid,
        inode=inode,
        mark=None if mark is None else int(struct.unpack("=I", mark[:4])[0]),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    # struct nlattr { u16 len; u16 type; }
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def sockets_of_proc(root: str = "/proc/thread-self/net") -> tuple[ListeningSocket, ...]:
    """The same from /proc: without the device, IPV6_V6ONLY and mark."""
    found: list[ListeningSocket] = []
    for protocol, _, state in _PROTOCOLS:
        for family, suffix in ((4, ""), (6, "6")):
            try:
                with open(f"{root}/{protocol}{suffix}", encoding="ascii") as file:
                    lines = file.read().splitlines()[1:]
            except OSError:
                continue  # no such family here
            found.extend(_proc_entries(lines, protocol, 4 if family == 4 else 6, state))
    return tuple(found)


def _proc_entries(lines: list[str], protocol: Protocol, family: Family, state: int) -> Iterator[ListeningSocket]:
    # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode (Documentation/networking/proc_net_tcp)
    for line in lines:
        words = line.split()
        if len(words) < 10 or int(words[3], 16) != state:
            continue
        host, port = words[1].split(":")
        yield ListeningSocket(
            protocol=protocol,
            family=family,
            address=_proc_address(host),
            port=int(port, 16),
            uid=int(words[7]),
            inode=int(words[9]),
        )


def _proc_address(text: str) -> IPv4Address | IPv6Address:
    # Each 32-bit word is printed as a number in the machine's byte order.
    raw = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
