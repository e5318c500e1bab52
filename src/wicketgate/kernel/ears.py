# SPDX-License-Identifier: Apache-2.0
"""Every source of news about this network namespace, on the running loop: rtnetlink, nftables, and touched files.

Files are /proc/sys and iptables' lock: inotify tells of writes by whoever uses the same mount of proc (the same
container, or the host for its own), and of every run of legacy iptables that takes the same /run/xtables.lock. Both
only make news come sooner: what is not told that way is found by reading again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Self

from wicketgate.errors import StateError
from wicketgate.kernel.events import RECEIVE_BUFFER, Event, EventStream, Kind, Resync, kinds_in
from wicketgate.kernel.inotify import IN_CLOSE, IN_MODIFY, Inotify
from wicketgate.kernel.nft_commits import Commit, NftCommits

KINDS = frozenset({Kind.LINK, Kind.ADDRESS, Kind.ROUTE, Kind.RULE, Kind.SETTING, Kind.NEXTHOP})
# How many datagrams are taken before the loop's other tasks get their turn; decoding one takes some 0.1 ms.
DECODED_AT_ONCE, COUNTED_AT_ONCE = 100, 2000
_MOST_INTERFACES = 500  # whose settings are watched; two watches of the kernel's for each
_SYSCTL_DIRECTORIES = ("net/ipv4", "net/ipv6", "net/netfilter")


@dataclass(frozen=True, slots=True)
class Places:
    """Where files are, as this process sees them.

    Attributes:
        proc: mounts of proc(5) of this network namespace's processes; the first is ours.
        xtables_lock: iptables' lock (XT_LOCK_NAME).
    """

    proc: tuple[str, ...] = ("/proc",)
    xtables_lock: str = "/run/xtables.lock"


class Ears:
    """Calls back, from the loop, for all that is heard.

    Args:
        heard: a kind of thing, and an address family where it is known, changed.
        told: an event in full; only while `decoding`.
        lost: events were lost; everything may be different.
        committed: an nftables transaction.
        touched: a setting (`sysctl`) or legacy iptables (`iptables`) may be different.
    """

    def __init__(
        self,
        *,
        heard: Callable[[Kind, int], None],
        told: Callable[[Event], None],
        lost: Callable[[Resync], None],
        committed: Callable[[Commit], None],
        touched: Callable[[str], None],
        places: Places,
        own_ports: Callable[[], Collection[int]],
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self._heard = heard
        self._told = told
        self._lost = lost
        self._committed = committed
        self._touched = touched
        self._places = places
        self.events = EventStream(kinds=KINDS, own_ports=own_ports, receive_buffer=receive_buffer)
        self._registered = -1
        self._commits: NftCommits | None = None
        self._files: Inotify | None = None
        self.decoding = False
        self.no_nft = ""  # why nftables' events cannot be had

    async def open(self, *, firewall: bool) -> Self:
        """Open the sockets.

        Raises:
            StateError: rtnetlink's events cannot be had.
        """
        await self.events.__aenter__()
        self._follow()
        if firewall:
            try:
                self._commits = NftCommits()
            except StateError as error:
                self.no_nft = str(error)
            else:
                asyncio.get_running_loop().add_reader(self._commits.fileno(), self._drain_commits)
        return self

    async def close(self) -> None:
        """Give all sockets back."""
        loop = asyncio.get_running_loop()
        if self._registered >= 0:
            loop.remove_reader(self._registered)
            self._registered = -1
        await self.events.__aexit__()
        for each in (self._commits, self._files):
            if each is not None:
                loop.remove_reader(each.fileno())
                each.close()
        self._commits = self._files = None

    def watch_files(self, interfaces: Iterable[str]) -> None:
        """Hear of settings of these interfaces, and of legacy iptables; those that were watched before stay no longer."""
        if self._files is None:
            with contextlib.suppress(StateError):  # no instance is left: it is found by reading, later
                self._files = Inotify()
                asyncio.get_running_loop().add_reader(self._files.fileno(), self._drain_files)
        if self._files is None:
            return
        names = ["all", "default", *list(interfaces)[:_MOST_INTERFACES]]
        wanted = {
            f"{root}/sys/{path}"
            for root in self._places.proc
            for path in (*_SYSCTL_DIRECTORIES, *(f"net/{v}/conf/{name}" for v in ("ipv4", "ipv6") for name in names))
        }
        for path in self._files.watched - wanted - {self._places.xtables_lock}:
            self._files.remove(path)
        for path in wanted:
            # Also those that are watched: a name may have come back as another interface, whose directory is new.
            self._files.add(path, IN_MODIFY)
        self._files.add(self._places.xtables_lock, IN_CLOSE)

    def drain(self) -> bool:
        """Take what lies there; False when there is more than is taken at once."""
        self._drain_commits()
        return self._drain_events()

    def _follow(self) -> None:
        """After an overflow the stream has another socket."""
        now = self.events.fileno()
        if now != self._registered:
            loop = asyncio.get_running_loop()
            if self._registered >= 0:
                loop.remove_reader(self._registered)
            loop.add_reader(now, self._drain_events)
            self._registered = now

    def _drain_events(self) -> bool:
        try:
            for _ in range(DECODED_AT_ONCE if self.decoding else COUNTED_AT_ONCE):
                data = self.events.read()
                if data is None:
                    return True
                self._take(data)
            return False
        finally:
            self._follow()

    def _take(self, data: bytes) -> None:
        kinds = set(kinds_in(data))
        for kind, family in kinds:
            self._heard(kind, family)
        # Links are decoded always: their names are needed once somebody wants to hear the rest in full.
        if self.decoding or not data or any(kind is Kind.LINK for kind, _ in kinds):
            for event in self.events.decode(data):
                if isinstance(event, Resync):
                    self._lost(event)
                elif self.decoding:
                    self._told(event)

    def _drain_commits(self) -> None:
        if self._commits is not None:
            for commit in self._commits.pending():
                self._committed(commit)

    def _drain_files(self) -> None:
        if self._files is None:
            return
        for path, _ in self._files.pending():
            self._touched("iptables" if path == self._places.xtables_lock else "sysctl")


def places_of(uapi_dir: str) -> Places:
    """The places of a network namespace that was entered as `pid:N`: `uapi_dir` then lies below /proc/N/root."""
    run = os.path.dirname(uapi_dir)
    root = run.removesuffix("/run")
    proc = ("/proc", f"{root}/proc") if root else ("/proc",)
    return Places(proc, f"{run}/xtables.lock")
