# SPDX-License-Identifier: Apache-2.0
"""Tells when some nftables transaction was committed in this network namespace (also iptables-nft's).

Which table it was is not decoded: whoever listens looks at its own table again. Legacy iptables sends no events.
Source: NFNLGRP_NFTABLES in linux/netfilter/nfnetlink.h; each commit ends with NFT_MSG_NEWGEN.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wicketgate.errors import StateError

_NETLINK_NETFILTER = 12  # linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_READ = 65536


@asynccontextmanager
async def watch_nftables() -> AsyncIterator[asyncio.Event]:
    """An event that is set after every commit; the caller clears it. Overflow sets it as well.

    Raises:
        StateError: no CAP_NET_ADMIN, or a kernel without nf_tables.
    """
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise StateError(f"nftables events cannot be had: {error.strerror}") from error
    with sock:
        try:
            sock.bind((0, 0))
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            raise StateError(f"nftables events cannot be had: {error.strerror}; CAP_NET_ADMIN is needed") from error
        sock.setblocking(False)
        changed = asyncio.Event()

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        sock.recv(_READ)
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
            changed.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(sock.fileno(), drain)
        try:
            yield changed
        finally:
            loop.remove_reader(sock.fileno())
