# SPDX-License-Identifier: Apache-2.0
"""Which nftables transactions were committed in this network namespace, and by whom (also iptables-nft's).

Each commit ends with NFT_MSG_NEWGEN, which names the process: NFTA_GEN_ID, NFTA_GEN_PROC_PID (as the machine's own pid
namespace counts) and NFTA_GEN_PROC_NAME in linux/netfilter/nf_tables.h. What it changed is for the listings to tell.

Not told by the kernel at all: counters, and elements that a rule itself puts into a set or that time out of it.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from wicketgate.errors import StateError

_NETLINK_NETFILTER = 12  # linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_NEWGEN = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_PROC_PID, _PROC_NAME = 2, 3  # NFTA_GEN_*
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NFGENMSG = 4  # octets of struct nfgenmsg
_READ = 65536


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction.

    Attributes:
        pid: of the process; 0 where the kernel does not tell.
        name: the process's, `nft` or `iptables-nft`, at most 15 characters.
    """

    pid: int = 0
    name: str = ""

    def spelled(self) -> str:
        """`nft[4711]`."""
        return f"{self.name}[{self.pid}]" if self.name else ""


class NftCommits:
    """The commits of the calling thread's network namespace. Read it when its descriptor is readable.

    Raises:
        StateError: no CAP_NET_ADMIN, or a kernel without nf_tables.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        except OSError as error:
            raise StateError(f"nftables events cannot be had: {error.strerror}") from error
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise StateError(f"nftables events cannot be had: {error.strerror}; CAP_NET_ADMIN is needed") from error

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def pending(self) -> tuple[Commit, ...]:
        """What was committed since the last call. After an overflow one nameless commit stands for what was lost."""
        found: list[Commit] = []
        while True:
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                return tuple(found)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise StateError(f"nftables events cannot be read: {error.strerror}") from error
                found.append(Commit())
                continue
            found += commits_in(data)


def commits_in(data: bytes) -> list[Commit]:
    """The commits that a datagram tells of."""
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        if kind == _NEWGEN:
            found.append(_commit(data[offset + _HEADER.size + _NFGENMSG : offset + length]))
        offset += (length + 3) & ~3
    return found


def _commit(attributes: bytes) -> Commit:
    pid, name = 0, ""
    offset = 0
    while offset + 4 <= len(attributes):  # struct nlattr { u16 len; u16 type; }
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if length < 4:
            break
        value = attributes[offset + 4 : offset + length]
        if kind & 0x3FFF == _PROC_PID and len(value) == 4:
            pid = int.from_bytes(value, "big")
        elif kind & 0x3FFF == _PROC_NAME:
            name = value.rstrip(b"\0").decode("ascii", "replace")
        offset += (length + 3) & ~3
    return Commit(pid, name)
