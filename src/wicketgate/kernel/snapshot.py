# SPDX-License-Identifier: Apache-2.0
"""A network namespace at one moment.

The kernel has no way to read links, routes, rules and firewall in one transaction, so the reading is watched: when an
event says that something changed meanwhile, everything is read once more, and a second change is said in the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from wicketgate.clock import Clock, SystemClock
from wicketgate.errors import StateError
from wicketgate.kernel import sysctl
from wicketgate.kernel.events import EventStream
from wicketgate.kernel.listings import read_firewall
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.nft_events import watch_nftables
from wicketgate.kernel.sockets import listening_sockets, sockets_of_proc
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.kernel.wireguard import list_devices
from wicketgate.netpath.snapshot import Firewall, ListeningSocket, Snapshot, Unread, WireGuardState

T = TypeVar("T")


async def take_snapshot(
    *,
    firewall: bool = True,
    sockets: bool = True,
    uapi_dir: str = UAPI_DIR,
    clock: Clock | None = None,
) -> Snapshot:
    """The network namespace of the calling thread.

    Args:
        firewall: list nftables and iptables as well (six programs are run).
        sockets: list listening sockets as well.
        uapi_dir: where wireguard-go's sockets are.
        clock: for `taken_at`.

    Returns:
        What could be read; what could not is in `unread`. A missing tool or right is no exception.

    Raises:
        StateError: not even a netlink socket can be had.
    """
    now = (clock or SystemClock()).wall
    async with Netlink() as netlink:
        for _ in range(2):
            snapshot = await _read_watched(
                netlink, firewall=firewall, sockets=sockets, uapi_dir=uapi_dir, taken_at=now()
            )
            if not snapshot.changed_while_read:
                break
    return snapshot


async def _read_watched(netlink: Netlink, *, firewall: bool, sockets: bool, uapi_dir: str, taken_at: float) -> Snapshot:
    async with EventStream() as events, _firewall_watch(firewall) as firewall_changed:
        snapshot = await _read(netlink, firewall=firewall, sockets=sockets, uapi_dir=uapi_dir, taken_at=taken_at)
        changed = bool(events.pending()) or await firewall_changed()
    return replace(snapshot, changed_while_read=changed)


@contextlib.asynccontextmanager
async def _firewall_watch(wanted: bool) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    async with contextlib.AsyncExitStack() as stack:
        told: asyncio.Event | None = None
        if wanted:
            # Without the right to listen the firewall cannot be listed either, and that is said there.
            with contextlib.suppress(StateError):
                told = await stack.enter_async_context(watch_nftables())

        async def changed() -> bool:
            for _ in range(2):  # the loop looks at its descriptors, then runs what they woke
                await asyncio.sleep(0)
            return told is not None and told.is_set()

        yield changed


async def _read(netlink: Netlink, *, firewall: bool, sockets: bool, uapi_dir: str, taken_at: float) -> Snapshot:
    unread: list[Unread] = []

    async def part(what: str, reading: Awaitable[tuple[T, ...]]) -> tuple[T, ...]:
        try:
            return await reading
        except StateError as error:
            unread.append(Unread(what, str(error)))
            return ()

    listing = asyncio.ensure_future(_firewall(firewall))
    try:
        links = await part("links", netlink.links())
        addresses = await part("addresses", netlink.addresses())
        routes = await part("routes", netlink.routes())
        rules = await part("rules", netlink.rules())
        neighbours = await part("neighbours", netlink.neighbours())
        listening = await read_sockets(unread) if sockets else ()
        devices = await read_wireguard(netlink, uapi_dir, unread)
        values = sysctl.read_all(link.name for link in links)
        listings, missing = await listing
    finally:
        if not listing.done():
            listing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listing
    return Snapshot(
        taken_at=taken_at,
        kernel_release=os.uname().release,
        links=links,
        addresses=addresses,
        routes=routes,
        rules=rules,
        neighbours=neighbours,
        sysctls=MappingProxyType(values),
        sockets=listening,
        wireguard=devices,
        firewall=listings,
        unread=(*unread, *missing, *(() if sockets else (Unread("sockets", "not asked for"),))),
    )


async def _firewall(wanted: bool) -> tuple[Firewall, tuple[Unread, ...]]:
    if not wanted:
        return Firewall(), (Unread("firewall", "not asked for"),)
    return await read_firewall()


async def read_sockets(unread: list[Unread]) -> tuple[ListeningSocket, ...]:
    """The listening sockets; from /proc where inet_diag is refused, which `unread` is told."""
    try:
        return await listening_sockets()
    except StateError as error:
        unread.append(Unread("sockets: bound device, v6only and mark", str(error)))
        return sockets_of_proc()


async def read_wireguard(netlink: Netlink, uapi_dir: str, unread: list[Unread]) -> tuple[WireGuardState, ...]:
    """The WireGuard devices; `unread` is told of those that cannot be read."""
    try:
        states, missing = await list_devices(netlink=netlink, uapi_dir=uapi_dir)
    except StateError as error:
        unread.append(Unread("wireguard", str(error)))
        return ()
    unread.extend(missing)
    return states
