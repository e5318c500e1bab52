# SPDX-License-Identifier: Apache-2.0
"""Which nftables tables there are, asked from the kernel itself.

nft 1.0 reads every rule of every table before it prints even the names of the tables: a second on a node with
thousands of services. Source: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from wicketgate.errors import StateError

TableKey = tuple[str, str]  # family as nft spells it, name

_NETLINK_NETFILTER = 12
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME = 1  # NFTA_TABLE_NAME
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")
_PATIENCE = 5.0  # seconds; the kernel answers at once
_READ = 1 << 16


def nft_tables() -> tuple[TableKey, ...]:
    """Every table of the calling thread's network namespace, in the kernel's order.

    Raises:
        StateError: no right, a kernel without nf_tables, or a table came or went meanwhile.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
            sock.settimeout(_PATIENCE)
            sock.bind((0, 0))
            body = _GENERIC.pack(0, 0, 0)
            sock.send(_HEADER.pack(_HEADER.size + len(body), _GET_TABLE, _REQUEST | _DUMP, 1, 0) + body)
            return tuple(_answers(sock))
    except OSError as error:
        raise StateError(f"nftables tables cannot be listed: {error.strerror or error}") from error


def _answers(sock: socket.socket) -> Iterator[TableKey]:
    while True:
        data = sock.recv(_READ)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size or flags & _DUMP_INTERRUPTED:
                raise StateError("nftables tables changed while they were listed")
            body = data[at + _HEADER.size : at + length]
            at += length + 3 & ~3
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, os.strerror(code))
            yield _table(body)


def _table(body: bytes) -> TableKey:
    family = _FAMILIES.get(body[0], f"family {body[0]}")
    at = _GENERIC.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind & 0x3FFF == _TABLE_NAME:
            return family, body[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode(errors="replace")
        at += length + 3 & ~3
    raise StateError("a nftables table without a name")
