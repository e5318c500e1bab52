# SPDX-License-Identifier: Apache-2.0
"""The twin's sockets: bound as the snapshot says. UDP is echoed from the address that it came to, as WireGuard answers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass, field

from wicketgate.errors import StateError
from wicketgate.kernel.twin import octets
from wicketgate.netpath.snapshot import ListeningSocket

# asm-generic/socket.h, linux/in.h
_SO_MARK, _IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IP_FREEBIND = 36, 8, 49, 50, 15
_IPV6_FREEBIND = 78
_ANCILLARY = 256


@dataclass(slots=True)
class Listeners:
    """The sockets that are open, and what has arrived at them.

    Attributes:
        arrived: number of a datagram -> who took it.
        unowned: users whose sockets could not be given to them.
    """

    _open: dict[ListeningSocket, socket.socket] = field(default_factory=dict)
    arrived: dict[int, ListeningSocket] = field(default_factory=dict)
    unowned: set[int] = field(default_factory=set)

    def listen(self, wanted: ListeningSocket) -> None:
        """Open one.

        Raises:
            StateError: it cannot be bound as it was.
        """
        family = socket.AF_INET if wanted.address.version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if wanted.protocol == "tcp" else socket.SOCK_DGRAM
        end = f"{wanted.protocol} socket {spelled_end(wanted)}"
        try:
            sock = owned_socket(family, kind, 0, wanted.uid)
        except OSError:  # a user namespace has one user: who owns the socket matters to few
            self.unowned.add(wanted.uid)
            sock = socket.socket(family, kind)
        try:
            _configure(sock, wanted, family)
            sock.bind((str(wanted.address), wanted.port))
            if wanted.protocol == "tcp":
                sock.listen(1024)
        except OSError as error:
            sock.close()
            raise StateError(f"the {end}: {error.strerror}") from error
        sock.setblocking(False)
        self._open[wanted] = sock

    def close(self, which: ListeningSocket) -> None:
        """Close one."""
        sock = self._open.pop(which, None)
        if sock is not None:
            sock.close()

    def close_all(self) -> None:
        """Close every one."""
        for each in tuple(self._open):
            self.close(each)

    def datagram_sockets(self) -> list[socket.socket]:
        """Those at which datagrams arrive."""
        return [sock for each, sock in self._open.items() if each.protocol == "udp"]

    def on_ready(self, sock: socket.socket) -> bool:
        """Take what has arrived, and echo it."""
        took = False
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, peer = sock.recvmsg(65536, _ANCILLARY)
                took = True
                number = octets.tagged(data)
                if number is None:
                    continue
                self.arrived[number] = next(each for each, open_ in self._open.items() if open_ is sock)
                with contextlib.suppress(OSError):  # no way back: that is what is being found out
                    sock.sendmsg([data], _answering_from(ancillary), 0, peer)
        return took

    def sender(self, port: int, version: int) -> socket.socket | None:
        """The UDP socket of a port, from which WireGuard's own packets are played: of the family, else a dual one."""
        able = [(each, sock) for each, sock in self._open.items() if (each.protocol, each.port) == ("udp", port)]
        exact = [sock for each, sock in able if each.address.version == version]
        dual = [sock for each, sock in able if version == 4 and each.v6only is False]
        return next(iter(exact + dual), None)


def spelled_end(wanted: ListeningSocket) -> str:
    """`0.0.0.0:9000`, `[::]:9000%eth0`."""
    host = f"[{wanted.address}]" if wanted.address.version == 6 else str(wanted.address)
    return f"{host}:{wanted.port}" + (f"%{wanted.bound_device}" if wanted.bound_device else "")


def owned_socket(family: int, kind: int, protocol: int, uid: int) -> socket.socket:
    """A socket that belongs to a user: what `uidrange` and `skuid` look at is who made it. Raises OSError."""
    if uid == 0:
        return socket.socket(family, kind, protocol)
    os.seteuid(uid)
    try:
        return socket.socket(family, kind, protocol)
    finally:
        os.seteuid(0)


def _configure(sock: socket.socket, wanted: ListeningSocket, family: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if wanted.bound_device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, wanted.bound_device.encode())
    if wanted.mark:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, wanted.mark)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if wanted.v6only is not False else 0)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _answering_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The address that it came to, without the interface: the way is for routing to find."""
    for level, kind, data in ancillary:
        # struct in_pktinfo { int ifindex; in_addr spec_dst, addr; }; struct in6_pktinfo { in6_addr addr; int ifindex; };
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return [(level, kind, struct.pack("i4s4s", 0, data[8:12], bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            return [(level, kind, data[:16] + struct.pack("i", 0))]
    return []


_COUNTERS = {
    "IPReversePathFilter", "ListenDrops", "ListenOverflows", "OutRsts", "NoPorts", "InEchos", "OutNoRoutes",
    "Icmp6InEchos", "Udp6NoPorts", "Ip6OutNoRoutes", "InNoRoutes", "Ip6InNoRoutes", "InAddrErrors", "Ip6InAddrErrors",
}  # fmt: skip


def counters() -> dict[str, int]:
    """What the kernel counted in this namespace: Documentation/networking/snmp_counter.rst."""
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
            lines = file.read().splitlines()
            for heads, values in zip(lines[::2], lines[1::2], strict=False):
                for key, value in zip(heads.split()[1:], values.split()[1:], strict=False):
                    if key in _COUNTERS:
                        found[key] = found.get(key, 0) + int(value)
    with contextlib.suppress(OSError), open("/proc/thread-self/net/snmp6", encoding="ascii") as file:
        for line in file:
            key, value = line.split()
            if key in _COUNTERS:
                found[key] = int(value)
    return found
