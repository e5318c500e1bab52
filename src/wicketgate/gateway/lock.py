# SPDX-License-Identifier: Apache-2.0
"""One agent for one tunnel.

An abstract unix socket is the lock: it lives in the network namespace, needs no file system, and the kernel lets go
of it the moment its owner is gone, however it went.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Self

from wicketgate.errors import StateError

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
_PREFIX = "wicketgate/"


def other_agents(ifname: str) -> tuple[str, ...]:
    """The tunnels in this network namespace that other living agents are in charge of.

    What carries our tag may be theirs: pins are shared, as they belong to uplinks and not to a tunnel.
    """
    try:
        rows = Path("/proc/thread-self/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    # An abstract name is shown with `@` for its leading zero byte.
    names = {row.split(maxsplit=7)[7].strip() for row in rows[1:] if len(row.split(maxsplit=7)) == 8}
    held = {name.removeprefix(f"@{_PREFIX}") for name in names if name.startswith(f"@{_PREFIX}")}
    return tuple(sorted(held - {ifname}))


class InterfaceLock:
    """Held while open."""

    def __init__(self, ifname: str) -> None:
        self._ifname = ifname
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        name = f"\0{_PREFIX}{self._ifname}"
        try:
            self._socket.bind(name)
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            raise StateError(
                f"another wicket is in charge of {self._ifname}{_owner(name)}; one tunnel has one agent: stop that one,"
                " or name another interface"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _owner(name: str) -> str:
    """` (pid N)` of whoever listens there, as far as the kernel tells."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(name)
            pid, _uid, _gid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError:
            return ""
    # 0 is what the kernel says of a process of another pid namespace: the other container of a pod.
    return f" (pid {pid})" if pid else " (in another container)"
