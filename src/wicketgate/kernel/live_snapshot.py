# SPDX-License-Identifier: Apache-2.0
"""A snapshot that is kept current by the kernel's events, and the changes themselves as they come.

    async with LiveSnapshot() as live:
        snapshot = await live.current()      # reads only what an event has made stale, or what no event tells of

While nobody asks, an event costs a flag. What each part rests on:

| part | becomes stale by |
|---|---|
| rules | their events |
| routes | their events; events of links, addresses and nexthop objects, with which routes go without a word |
| firewall | nftables' commits; legacy iptables' tables and ipsets are compared at each `current()`, without a program |
| links, addresses, neighbours, settings, sockets, WireGuard devices | no event tells all of it: read at each `current()` |

For who subscribes there is `run()`: it reads again what went without an event, lists the firewall when it changed, and
looks at what no event tells of once in `interval` seconds. Nothing of that runs without a subscriber.

Not seen until something else makes the firewall stale: counters, and elements that rules put into sets themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Self

from wicketgate.clock import Clock, SystemClock
from wicketgate.errors import StateError
from wicketgate.kernel import events, sysctl
from wicketgate.kernel.ears import Ears, places_of
from wicketgate.kernel.ipsets import ipsets
from wicketgate.kernel.legacy_tables import fingerprints
from wicketgate.kernel.listings import read_firewall
from wicketgate.kernel.live_changes import Teller
from wicketgate.kernel.live_parts import ALWAYS, LOOKED_AT, Generation, Part, silent_by, stale_by
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.nft_commits import Commit
from wicketgate.kernel.snapshot import read_sockets, read_wireguard
from wicketgate.kernel.subscription import Subscription
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.netpath.change import RESTLESS, Action, StateChange, What, quiet
from wicketgate.netpath.netfilter.ipsets import settled
from wicketgate.netpath.snapshot import Firewall, Neighbour, Snapshot, Unread

# What moves by itself in listings: nft's counters and its JSON's, iptables-save's, and the dates in its comments
_MOVING = re.compile(
    r'counter packets \d+ bytes \d+|"packets": \d+, "bytes": \d+|^\[\d+:\d+\] | \[\d+:\d+\]$|^#.*$', re.MULTILINE
)
NUD_FAILED = 0x20  # linux/neighbour.h
ATTEMPTS = 5  # a guess: a place that changes during each of five readings is being flooded, and the snapshot says so
MOST_BATCHES = 200  # of events, before a reading: some 20,000 in full, or 400,000 unheard; more is a flood
INTERVAL = 1.0  # seconds between looks at what no event tells of, for subscribers


class LiveSnapshot:
    """The network namespace of the calling thread. Parts that did not change are the very same objects in every snapshot."""

    def __init__(
        self,
        *,
        firewall: bool = True,
        sockets: bool = True,
        uapi_dir: str = UAPI_DIR,
        clock: Clock | None = None,
        interval: float = INTERVAL,
        own_ports: Callable[[], Collection[int]] = lambda: (),
        receive_buffer: int = events.RECEIVE_BUFFER,
    ) -> None:
        """Nothing is opened yet.

        Args:
            firewall: read nftables and iptables as well.
            sockets: read listening sockets as well.
            uapi_dir: where wireguard-go's sockets are; of another process's namespace, below /proc/PID/root.
            clock: for `taken_at` and the changes' times.
            interval: seconds between looks at what no event tells of; only while there is a subscriber.
            own_ports: netlink ports whose changes are this process's own.
            receive_buffer: bytes that the kernel keeps for us before events are lost.
        """
        unwanted = set() if firewall else {Part.FIREWALL}
        self._parts = frozenset(Part) - (unwanted if sockets else unwanted | {Part.SOCKETS})
        self._uapi_dir = uapi_dir
        self._wall = (clock or SystemClock()).wall
        self._interval = interval
        self._netlink = Netlink()
        self._ears = Ears(
            heard=self._heard,
            told=self._told,
            lost=self._lost,
            committed=self._committed,
            touched=self._touched,
            places=places_of(uapi_dir),
            own_ports=own_ports,
            receive_buffer=receive_buffer,
        )
        self._lock = asyncio.Lock()
        self._stale = set(Part)
        self._held: dict[Part, Any] = {}
        self._unread: dict[Part, tuple[Unread, ...]] = {}
        self._fingerprints: dict[str, str] | None = None
        self._generation = Generation()
        self._latest: Snapshot | None = None
        # For subscribers
        self._subscriptions: set[Subscription] = set()
        self._teller = Teller(self._publish)
        self._unsure: set[Part] = set()  # parts in which something may have changed without an event
        self._wake = asyncio.Event()
        self._commits: list[Commit] = []

    async def __aenter__(self) -> Self:
        await self._netlink.__aenter__()
        try:
            await self._ears.open(firewall=Part.FIREWALL in self._parts)
        except BaseException:
            await self._netlink.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in tuple(self._subscriptions):
            each.close()
        await self._ears.close()
        await self._netlink.__aexit__()

    # Asking

    @property
    def generation(self) -> Generation:
        """Of the last snapshot that `current` gave."""
        return self._generation

    @property
    def latest(self) -> Snapshot | None:
        """The last snapshot, as old as it may be; None before the first."""
        return self._latest

    async def current(self) -> Snapshot:
        """The place as it is now.

        Every change that was finished before the call is in it. What cannot be read is in `unread`; what changed faster
        than it could be read is said by `changed_while_read`.
        """
        async with self._lock:
            at = self._wall()
            settled = await self._refresh(self._parts)
            self._latest = self._snapshot(at, changed=not settled)
            return self._latest

    # Subscribing

    def subscribe(self) -> Subscription:
        """Hear of every change from now on, while `run` runs. Call `current` first: what was before is no change."""
        subscription = Subscription(self._unsubscribe)
        if not self._subscriptions:
            # What is stale now was heard of by nobody: its next reading is the first that others are compared with.
            self._teller.start(self._held, self._stale)
            self._ears.decoding = True
            self._watch_files()
        self._subscriptions.add(subscription)
        self._wake.set()
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._ears.decoding = False
            self._wake.set()

    async def run(self) -> None:
        """Look, for the subscribers, at what events do not tell; until it is cancelled."""
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at + self._interval if self._subscriptions else None):
                    await self._wake.wait()
            self._wake.clear()
            if not self._subscriptions:
                look_at = loop.time()
                continue
            wanted = set(self._unsure)
            self._unsure.clear()
            if loop.time() >= look_at + self._interval:
                look_at = loop.time()
                wanted |= LOOKED_AT
            if wanted:
                async with self._lock:
                    await self._refresh(self._parts & wanted)

    def _publish(self, change: StateChange) -> None:
        for each in self._subscriptions:
            each.put(change)

    # What the ears call

    def _heard(self, kind: events.Kind, family: int) -> None:
        self._stale |= stale_by(kind, family)
        if self._subscriptions and (silent := silent_by(kind)):
            self._unsure |= silent
            self._wake.set()

    def _told(self, event: events.Event) -> None:
        self._teller.event(event, self._wall())

    def _lost(self, resync: events.Resync) -> None:
        self._stale |= set(Part)
        if self._subscriptions:
            text = f"the kernel's events overflowed (time {resync.count}): everything is read again"
            self._publish(StateChange(self._wall(), What.RESYNC, Action.CHANGED, text, told=False))
            self._unsure |= set(Part)
            self._wake.set()

    def _committed(self, commit: Commit) -> None:
        self._stale.add(Part.FIREWALL)
        if self._subscriptions:
            self._commits.append(commit)
            self._unsure.add(Part.FIREWALL)
            self._wake.set()

    def _touched(self, what: str) -> None:
        self._unsure.add(Part.FIREWALL if what == "iptables" else Part.SYSCTLS)
        self._wake.set()

    # Reading

    async def _refresh(self, wanted: frozenset[Part]) -> bool:
        """Read what is stale of these parts, and what no event tells of; whether it stood still at last."""
        todo = set(wanted & ALWAYS)
        for _ in range(ATTEMPTS):
            heard = await self._drained()
            if Part.FIREWALL in wanted:
                self._compare_legacy()
            todo |= self._stale & wanted
            if Part.LINKS in todo:
                todo |= {Part.SYSCTLS} & wanted  # of interfaces that came
            if not todo:
                return True
            self._stale -= todo
            commits, self._commits = self._commits, []
            fresh = await self._read(todo)
            heard &= await self._drained()
            again = self._stale & todo
            if again:
                self._commits = commits + self._commits
            for part, (value, missing) in fresh.items():
                if part not in again:
                    self._accept(part, value, missing, commits if part is Part.FIREWALL else ())
            todo = again
            if not heard:
                return False
            if not self._stale & wanted:
                return True
        for part in todo:
            value, missing = fresh[part]
            self._teller.forget(part)
            self._accept(part, value, missing, ())
            self._teller.forget(part)
        return False

    async def _drained(self) -> bool:
        """Take what lies there; False when more kept coming than could be taken."""
        for _ in range(MOST_BATCHES):
            if self._ears.drain():
                return True
            await asyncio.sleep(0)
        return False

    def _compare_legacy(self) -> None:
        try:
            now: dict[str, str] | None = fingerprints()
        except StateError:
            now = None  # no right; then the listing says so
        listing = self._held.get(Part.FIREWALL)
        deaf = self._ears.no_nft and listing is not None and listing.nft_text is not None
        if deaf or now != self._fingerprints or _other_ipsets(listing):
            self._stale.add(Part.FIREWALL)
        self._fingerprints = now

    async def _read(self, parts: Iterable[Part]) -> dict[Part, tuple[Any, tuple[Unread, ...]]]:
        readers: dict[Part, Callable[[], Awaitable[tuple[Any, tuple[Unread, ...]]]]] = {
            Part.LINKS: lambda: _part("links", self._netlink.links()),
            Part.ADDRESSES: lambda: _part("addresses", self._netlink.addresses()),
            Part.ROUTES_4: lambda: _part("routes", self._netlink.routes(4)),
            Part.ROUTES_6: lambda: _part("routes", self._netlink.routes(6)),
            Part.RULES: lambda: _part("rules", self._netlink.rules()),
            Part.NEIGHBOURS: lambda: _part("neighbours", self._netlink.neighbours()),
            Part.WIREGUARD: lambda: _listed(lambda unread: read_wireguard(self._netlink, self._uapi_dir, unread)),
            Part.SOCKETS: lambda: _listed(read_sockets),
        }
        wanted = set(parts)
        fresh: dict[Part, tuple[Any, tuple[Unread, ...]]] = {}
        async with _beside(read_firewall() if Part.FIREWALL in wanted else None) as listing:
            for part in Part:
                if part in wanted and part in readers:
                    fresh[part] = await readers[part]()
            if Part.SYSCTLS in wanted:
                links = fresh[Part.LINKS][0] if Part.LINKS in fresh else self._held.get(Part.LINKS, ())
                fresh[Part.SYSCTLS] = MappingProxyType(sysctl.read_all(link.name for link in links)), ()
            if listing is not None:
                fresh[Part.FIREWALL] = await listing
        return fresh

    def _accept(self, part: Part, value: Any, missing: tuple[Unread, ...], commits: Iterable[Commit]) -> None:
        before = self._held.get(part)
        if before is not None and _same(part, before, value):
            value = before  # the very same object, for those who compare by identity
        if self._subscriptions:
            self._teller.read(part, before, value, commits, self._wall(), whole=not missing)
        if before is None or missing != self._unread.get(part, ()) or _matters(part, before, value):
            self._generation = self._generation.after(part)
        self._held[part] = value
        self._unread[part] = missing
        if part is Part.LINKS and self._subscriptions and value is not before:
            self._watch_files()

    def _watch_files(self) -> None:
        self._ears.watch_files(link.name for link in self._held.get(Part.LINKS, ()))

    def _snapshot(self, at: float, *, changed: bool) -> Snapshot:
        held = self._held
        routes_4, routes_6 = held[Part.ROUTES_4], held[Part.ROUTES_6]
        last = self._latest
        # One tuple of both families, and the same one as long as neither changed.
        if last is not None and self._joined == (id(routes_4), id(routes_6)):
            routes = last.routes
        else:
            routes = (*routes_4, *routes_6)
            self._joined = (id(routes_4), id(routes_6))
        unread = [each for part in Part for each in self._unread.get(part, ())]
        unread += [Unread(str(part), "not asked for") for part in (Part.FIREWALL, Part.SOCKETS) if part not in held]
        missing = tuple(dict.fromkeys(unread))
        return Snapshot(
            taken_at=at,
            kernel_release=last.kernel_release if last is not None else os.uname().release,
            links=held[Part.LINKS],
            addresses=held[Part.ADDRESSES],
            routes=routes,
            rules=held[Part.RULES],
            neighbours=held[Part.NEIGHBOURS],
            sysctls=held[Part.SYSCTLS],
            sockets=held.get(Part.SOCKETS, ()),
            wireguard=held[Part.WIREGUARD],
            firewall=held.get(Part.FIREWALL) or Firewall(),
            unread=last.unread if last is not None and last.unread == missing else missing,
            changed_while_read=changed,
        )

    _joined: tuple[int, int] = (0, 0)


async def _part(what: str, reading: Awaitable[tuple[Any, ...]]) -> tuple[Any, tuple[Unread, ...]]:
    try:
        return await reading, ()
    except StateError as error:
        return (), (Unread(what, str(error)),)


async def _listed(reading: Callable[[list[Unread]], Awaitable[tuple[Any, ...]]]) -> tuple[Any, tuple[Unread, ...]]:
    unread: list[Unread] = []
    return await reading(unread), tuple(unread)


@contextlib.asynccontextmanager
async def _beside(reading: Any) -> AsyncIterator[asyncio.Future[Any] | None]:
    """A reading that runs beside others, and ends with them."""
    task = asyncio.ensure_future(reading) if reading is not None else None
    try:
        yield task
    finally:
        if task is not None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _same(part: Part, before: Any, value: Any) -> bool:
    return bool(_rules_alone(before) == _rules_alone(value) if part is Part.FIREWALL else before == value)


def _rules_alone(firewall: Firewall) -> tuple[str | None, ...]:
    """The listings without packet counters and the dates in iptables-save's comments."""
    texts = (getattr(firewall, each.name) for each in fields(firewall) if each.name != "ipset")
    plain = (None if text is None else _MOVING.sub("", text) for text in texts)
    return (*plain, *(settled(firewall.ipset or "")))


def _matters(part: Part, before: Any, value: Any) -> bool:
    """Whether a way may be another with the new value."""
    if value is before:
        return False
    if part is Part.SYSCTLS:
        return any(before.get(name) != value.get(name) for name in (before.keys() | value.keys()) - RESTLESS)
    if part is Part.NEIGHBOURS:
        return _failed(before) != _failed(value)
    if part is Part.WIREGUARD:
        return [quiet(each) for each in before] != [quiet(each) for each in value]
    return True


def _failed(neighbours: Iterable[Neighbour]) -> set[tuple[str, object]]:
    return {(each.ifname, each.ip) for each in neighbours if each.state & NUD_FAILED}


def _other_ipsets(listing: Firewall | None) -> bool:
    """No event tells of ipsets; they are compared where a rule asks for one."""
    if listing is None or listing.ipset is None:
        return False
    try:
        return settled(ipsets()) != settled(listing.ipset)
    except StateError:
        return True
