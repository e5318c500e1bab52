# SPDX-License-Identifier: Apache-2.0
"""Keeps one door at the uplink that strangers come in by, as uplinks appear, change and vanish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol

from wicketgate.clock import Clock, SystemClock
from wicketgate.errors import WicketError
from wicketgate.health.door import Door
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Family, IPAddress

_log = get_logger("door")

DoorMode = Literal["auto", "always", "never"]
_FAMILIES: tuple[Family, ...] = (4, 6)
# What kept a door from being built may pass: a firewall's reload, a busy nft. A guess at how often to look.
RETRY_SECONDS = 30.0


class DoorUplink(Protocol):
    """What a door needs to know of an uplink."""

    @property
    def ifname(self) -> str:
        """The interface."""
        ...

    @property
    def ifindex(self) -> int:
        """Tells an interface that was made anew."""
        ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Where strangers send to."""
        ...

    @property
    def default(self) -> frozenset[Family]:
        """Families with a default route through it."""
        ...


DoorFactory = Callable[[str, tuple[IPAddress, ...]], Door]


class DoorKeeper:
    """The doors, by family.

    Strangers come in by the uplink with the default route. An IPv4 address counts as served even when that route is
    missing (a pod without it serves nobody, and that must show); an IPv6 address counts once a default route has been
    seen: many clusters hand out IPv6 addresses that lead nowhere.

    Doors are built and removed by one caller at a time. A round of probes that met one half built proves nothing:
    whoever probes waits with `settled` and compares `generation` afterwards.
    """

    def __init__(
        self, make: DoorFactory | None, *, mode: DoorMode, why_not: str = "", clock: Clock | None = None
    ) -> None:
        self._make = make if mode != "never" else None
        self._clock = clock or SystemClock()
        self._turn = asyncio.Lock()
        self._tried: dict[str, float] = {}
        self.generation = 0  # grows whenever a door was built, removed or chosen anew
        self._mode = mode
        self._why_not = "switched off (--door never)" if mode == "never" else why_not
        self._open: dict[str, Door] = {}
        self._known: dict[str, DoorUplink] = {}
        self._chosen: dict[Family, DoorUplink] = {}
        self._seen_default: set[tuple[str, Family]] = set()
        self._reasons: dict[str, str] = {}

    @property
    def demanded(self) -> bool:
        """`--door always`: no evidence is better than weaker evidence."""
        return self._mode == "always"

    def families(self) -> tuple[Family, ...]:
        """The families strangers are served in."""
        return tuple(sorted(self._chosen))

    def address(self, family: Family) -> IPAddress:
        """The address strangers of a family send to. Raises KeyError for a family that is not served."""
        return next(a for a in self._chosen[family].addresses if a.version == family)

    def uplink(self, family: Family) -> str:
        """The interface strangers of a family come in by. Raises KeyError for a family that is not served."""
        return self._chosen[family].ifname

    def door(self, family: Family) -> Door | None:
        """The door of a family, None where there is none."""
        chosen = self._chosen.get(family)
        return self._open.get(chosen.ifname) if chosen is not None else None

    def reason(self, family: Family) -> str:
        """Why there is no door."""
        chosen = self._chosen.get(family)
        return self._why_not or (self._reasons.get(chosen.ifname, "") if chosen is not None else "no uplink")

    async def follow(self, uplinks: Sequence[DoorUplink]) -> bool:
        """Open, close and move doors.

        Args:
            uplinks: those with a default route first.

        Returns:
            True when something changed.
        """
        async with self._turn:
            return await self._follow(uplinks)

    async def _follow(self, uplinks: Sequence[DoorUplink]) -> bool:
        for uplink in uplinks:
            self._seen_default |= {(uplink.ifname, family) for family in uplink.default}
        chosen: dict[Family, DoorUplink] = {}
        for family in _FAMILIES:
            having = [u for u in uplinks if any(a.version == family for a in u.addresses)]
            first = next((u for u in having if family in u.default), None)
            # The route is gone for now: the uplink that had it is the one to watch.
            first = first or next((u for u in having if (u.ifname, family) in self._seen_default), None)
            first = first or (next(iter(having), None) if family == 4 else None)
            if first is not None:
                chosen[family] = first
        wanted = {u.ifname: u for u in chosen.values()}
        changed = set(chosen.items()) != set(self._chosen.items())
        self._chosen = chosen
        self.generation += changed
        for name in list(self._known):
            old, new = self._known[name], wanted.get(name)
            if new is None or (new.ifindex, new.addresses) != (old.ifindex, old.addresses):
                changed = True
                del self._known[name]
                await self._shut(name)
        for name, uplink in wanted.items():
            if name not in self._known:
                changed = True
                self._known[name] = uplink
                await self._build(uplink)
        return changed

    async def settled(self) -> None:
        """Wait until nobody is building."""
        async with self._turn:
            return

    async def retry(self) -> bool:
        """Try again to build a door that could not be built, once in a while.

        Returns:
            True when one was built.
        """
        if self._make is None or all(name in self._open for name in self._known):
            return False
        now, built = self._clock.monotonic(), False
        async with self._turn:
            for name, uplink in list(self._known.items()):
                if name not in self._open and now - self._tried.get(name, now) >= RETRY_SECONDS:
                    await self._build(uplink)
                    built = built or name in self._open
        return built

    async def verify(self) -> bool:
        """Look whether the doors still stand; build those that do not anew.

        Returns:
            True when one was built anew.
        """
        rebuilt = False
        async with self._turn:
            for name, uplink in list(self._known.items()):
                door = self._open.get(name)
                if door is None:
                    continue
                try:
                    intact = await door.verify()
                except WicketError:
                    intact = False
                if not intact:
                    _log.warning("somebody removed a part of the door; it is built anew", uplink=name)
                    await self._rebuild(uplink, door)
                    rebuilt = True
        return rebuilt

    async def close(self) -> None:
        """Remove every door."""
        async with self._turn:
            for name in list(self._open):
                await self._shut(name)
            self._known.clear()

    async def _build(self, uplink: DoorUplink) -> None:
        if self._make is None:
            return
        self.generation += 1
        self._tried[uplink.ifname] = self._clock.monotonic()
        door = self._make(uplink.ifname, uplink.addresses)
        await self._erect(uplink, door, door.open())

    async def _rebuild(self, uplink: DoorUplink, door: Door) -> None:
        self.generation += 1
        self._tried[uplink.ifname] = self._clock.monotonic()
        # It stays in `_open` meanwhile: whoever closes all doors closes this one too.
        await self._erect(uplink, door, _to_the_end(door.repair()))

    async def _erect(self, uplink: DoorUplink, door: Door, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (WicketError, OSError) as error:
            self._open.pop(uplink.ifname, None)
            if self._reasons.get(uplink.ifname) != str(error):
                _log.warning("no door here; the evidence is weaker and says so", uplink=uplink.ifname, why=str(error))
            self._reasons[uplink.ifname] = str(error)
            return
        self._reasons.pop(uplink.ifname, None)
        self._open[uplink.ifname] = door

    async def _shut(self, name: str) -> None:
        door = self._open.pop(name, None)
        if door is None:
            return
        self.generation += 1
        try:
            await _to_the_end(door.close())
        except (WicketError, OSError) as error:
            _log.warning("could not remove the door", uplink=name, error=str(error))


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish although we are told to stop meanwhile: a door that is half removed is found by nobody again."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except (WicketError, OSError):
            break  # told below
    if cancelled is not None:
        task.exception()
        raise cancelled
    task.result()
