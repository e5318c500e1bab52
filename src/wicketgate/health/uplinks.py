# SPDX-License-Identifier: Apache-2.0
"""Listening sockets bound to their uplink.

A socket bound to a device with SO_BINDTODEVICE answers by that device, whatever policy rules the tunnel has added: the
accepted socket inherits the device, and a route lookup with an output device skips the tunnel's default route. It needs
no rule, and since Linux 5.7 (c427bfec18f2, "net: core: enable SO_BINDTODEVICE for non-root users") no right. It also
means that nobody on another interface reaches the port.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from wicketgate.errors import StateError
from wicketgate.netpath.snapshot import Family, IPAddress

TCP_LISTEN = "0A"  # include/net/tcp_states.h, as /proc/net/tcp prints it


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface that is not the tunnel, and the addresses on it."""

    ifname: str
    addresses: tuple[IPAddress, ...] = ()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families it has addresses of."""
        versions = {address.version for address in self.addresses}
        return tuple(family for family in (4, 6) if family in versions)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket listens. The index, not the name, is what the kernel binds to: a re-created eth0 is another."""

    ifname: str
    ifindex: int
    family: Family


class PortBusy(StateError):  # noqa: N818 - it reads as the sentence it is: the port is busy
    """Another process has the port."""


def places(uplinks: tuple[Uplink, ...]) -> tuple[Place, ...]:
    """One place an uplink and family, for the interfaces that exist at this moment."""
    found = []
    for uplink in uplinks:
        try:
            index = socket.if_nametoindex(uplink.ifname)
        except OSError:
            continue  # it vanished; the event that says so is on its way
        found += [Place(uplink.ifname, index, family) for family in uplink.families]
    return tuple(found)


def bind_to_uplink(place: Place, port: int) -> socket.socket | None:
    """A TCP socket bound to an uplink and a port, not yet listening.

    Args:
        place: interface and family.
        port: 0 takes any.

    Returns:
        the socket, non-blocking; None when the interface, or IPv6 on it, has just gone.

    Raises:
        PortBusy: naming port and holder.
        StateError: the kernel does not let this process bind to a device.
    """
    family = socket.AF_INET if place.family == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None  # a kernel without IPv6
        raise StateError(f"no socket for port {port} on {place.ifname}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, place.ifname.encode() + b"\0")
        sock.bind(("0.0.0.0" if place.family == 4 else "::", port))
    except OSError as error:
        sock.close()
        if error.errno in {errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL}:
            return None
        if error.errno == errno.EADDRINUSE:
            raise busy(place, port) from error
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise StateError(
                f"port {port} cannot be bound to {place.ifname}: {error.strerror}; before Linux 5.7 binding to an "
                "interface needs CAP_NET_RAW, and ports below 1024 need CAP_NET_BIND_SERVICE"
            ) from error
        raise StateError(f"port {port} cannot be bound to {place.ifname}: {error.strerror}") from error
    return sock


def busy(place: Place, port: int) -> PortBusy:
    """The error for a port that is taken, with the holder where it can be read."""
    who = holder(port)
    return PortBusy(
        f"TCP port {port} on {place.ifname} (IPv{place.family}) is taken by {who or 'a process that cannot be read from here'}; "
        "stop it, or choose another port"
    )


def holder(port: int) -> str:
    """Who listens on a TCP port of this network namespace, as far as /proc may be read; empty when it is not known."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        # thread-self: /proc/net is the process's first thread's namespace.
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == TCP_LISTEN and int(words[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    if not inodes:
        return ""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for fd in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(fd) in inodes:
                        return f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
    return ""
