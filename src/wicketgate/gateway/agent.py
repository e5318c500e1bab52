# SPDX-License-Identifier: Apache-2.0
"""The agent's life: start, watch, probe, mend, drain, leave. The same for `wicket up` and `wicket sidecar`.

Four tasks in one group, on one loop:
- events: netlink (and nftables) tell that something changed;
- mend: reads the namespace anew after an event, lets the tunnel's keeper compare it with what it should be, and
  moves the health ports and doors along with the uplinks;
- probe: once an interval, and at once after something was mended, publishes what a stranger experiences;
- keeper: what the keeper itself waits for (a changed file, a moved endpoint).

Invariant: whatever `Keeper.start` put up, `Keeper.leave` takes down, also when a task fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from wicketgate.clock import Clock
from wicketgate.errors import StateError, WicketError
from wicketgate.gateway.live import Live, read_live
from wicketgate.gateway.uplinks import LiveUplink
from wicketgate.health.board import Board
from wicketgate.health.doors import DoorKeeper
from wicketgate.health.prober import Prober
from wicketgate.health.server import HealthServer, spare_the_heap
from wicketgate.health.target import Subject
from wicketgate.health.uplinks import Uplink
from wicketgate.kernel.events import EventStream, Resync
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.nft_events import watch_nftables
from wicketgate.logs import get_logger
from wicketgate.tasks import start

_log = get_logger("agent")
_PATIENCE = 30.0  # seconds at most between two tries to put something right. A guess.


class Phase(Enum):
    """Where an agent's life came to its end."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Keeper(Subject, Protocol):
    """Who is responsible for the tunnel: the gateway owns it, the sidecar stands beside it."""

    ifname: str

    async def start(self, live: Live) -> None:
        """Put up what has to be there. All or nothing."""
        ...

    async def reconcile(self, live: Live) -> bool:
        """Compare with what should be and put it right.

        Returns:
            True when something was changed, so that the namespace should be read and the tunnel probed again.
        """
        ...

    async def firewall_changed(self) -> bool:
        """Some nftables transaction was committed: look at our own tables."""
        ...

    async def reload(self) -> None:
        """Read the configuration again and apply the difference; a bad one changes nothing."""
        ...

    async def serve(self, changed: asyncio.Event) -> None:
        """Whatever the keeper waits for by itself; sets `changed` to have the namespace read again."""
        ...

    async def leave(self, phase: Phase) -> None:
        """Take down exactly what was put up.

        Args:
            phase: when it ends. STOPPING is as asked; a failure while STARTING leaves nothing new behind; one while
                RUNNING is a crash, after which the next start takes over.
        """
        ...


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What the agent itself needs to know.

    Attributes:
        probe_interval: seconds.
        drain: seconds to go on serving after SIGTERM.
        privileged: CAP_NET_ADMIN is there: events of nftables can be had, doors can be built.
    """

    probe_interval: float
    drain: float
    privileged: bool = True


class Agent:
    """Runs until it is told to stop."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        netlink: Netlink,
        board: Board,
        server: HealthServer,
        doors: DoorKeeper,
        prober: Prober,
        options: AgentOptions,
        clock: Clock,
        announce: Callable[[tuple[LiveUplink, ...]], None],
    ) -> None:
        self._keeper = keeper
        self._netlink = netlink
        self._board = board
        self._server = server
        self._doors = doors
        self._prober = prober
        self._options = options
        self._clock = clock
        self._announce = announce
        self._changed = asyncio.Event()
        self._firewall = asyncio.Event()
        self._probe_now = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._announced = False
        self._port_trouble = ""
        self._mishaps = 0  # in a row
        self._retry: asyncio.TimerHandle | None = None

    def request_stop(self) -> None:
        """Begin to drain; a second request leaves at once. Before the tunnel is up there is nothing to drain."""
        if self._stop.is_set() or self._board.verdict().starting:
            self._hurry.set()
        self._stop.set()

    async def run(self) -> None:
        """Live from start to leave.

        Raises:
            WicketError: it could not start (nothing is left of the attempt), or a task failed.
        """
        loop = asyncio.get_running_loop()
        async with EventStream() as events:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.request_stop)
            phase = Phase.STARTING
            try:
                if await self._start():
                    phase = Phase.RUNNING
                    spare_the_heap()
                    await self._live_on(events)
                    phase = Phase.STOPPING
            finally:
                # The handlers stay until all is taken down: one more SIGTERM must not leave half of it behind.
                await self._leave(phase)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    loop.remove_signal_handler(number)

    async def _start(self) -> bool:
        """Put the tunnel up, unless a signal comes first: then the attempt is rolled back.

        Returns:
            False when it was told to stop meanwhile.
        """
        starting = asyncio.create_task(self._keeper.start(await read_live(self._netlink)), name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                _log.info("told to stop while starting; what was done is taken back")
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await starting
                return False
            await starting
        finally:
            stopping.cancel()
        await self._follow_uplinks(await read_live(self._netlink))
        return True

    async def _live_on(self, events: EventStream) -> None:
        reload_wanted = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_wanted.set)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    start(group, self._follow_events(events), name="events"),
                    start(group, self._mend(), name="mend"),
                    start(group, self._probe(), name="probe"),
                    start(group, self._reload(reload_wanted), name="reload"),
                    start(group, self._keeper.serve(self._changed), name="keeper", forever=False),
                ]
                if self._options.privileged:
                    tasks.append(start(group, self._follow_firewall(), name="nftables"))
                await self._stop.wait()
                await self._drain()
                for task in tasks:
                    task.cancel()
        except* WicketError as failures:
            raise _first(failures) from None

    async def _drain(self) -> None:
        self._board.begin_drain()
        seconds = self._options.drain
        _log.info("draining: the load balancer is told no, tunnels go on", seconds=seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _leave(self, phase: Phase) -> None:
        if self._retry is not None:
            self._retry.cancel()
        # Each step on its own: one that fails must not keep the others from tidying up.
        for what, step in (
            ("health ports", self._server.close),
            ("model", self._prober.close),
            ("doors", self._doors.close),
            ("tunnel", lambda: self._keeper.leave(phase)),
        ):
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - logged, and the next step is taken
                _log.error("could not take down", what=what, error=str(error), kind=type(error).__name__)

    async def _follow_events(self, events: EventStream) -> None:
        async for event in events:
            if isinstance(event, Resync):
                _log.warning("netlink events were lost: everything is read again")
            self._changed.set()

    async def _follow_firewall(self) -> None:
        try:
            async with watch_nftables() as changed:
                # What was committed between our own table and this moment went unseen.
                changed.set()
                while True:
                    await changed.wait()
                    changed.clear()
                    self._firewall.set()
                    self._changed.set()
        except StateError as error:
            _log.warning("changes of the firewall go unseen until a probe fails", why=str(error))
            await asyncio.Event().wait()

    async def _mend(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                if self._firewall.is_set():
                    self._firewall.clear()
                    # What clients need comes first; the doors only watch.
                    mended = await self._keeper.firewall_changed()
                    if await self._doors.verify() or mended:
                        self._probe_now.set()
                live = await read_live(self._netlink)
                if await self._keeper.reconcile(live):
                    live = await read_live(self._netlink)
                    self._probe_now.set()
                if await self._follow_uplinks(live):
                    self._probe_now.set()
                if not self._port_trouble:
                    self._mishaps = 0
            except Exception as error:  # noqa: BLE001 - a slip of ours must not take down a tunnel that serves people
                # Health tells what is not right. Events may be over by now, so it is tried again without one.
                kind = "" if isinstance(error, WicketError) else type(error).__name__
                _log.error("could not put right; trying again", error=str(error), **({"kind": kind} if kind else {}))
                self._firewall.set()
                self._try_again()

    def _try_again(self) -> None:
        """Have the namespace read again after a while: longer each time, at most half a minute."""
        seconds = min(0.5 * 2**self._mishaps, _PATIENCE)
        self._mishaps += 1
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(seconds, self._changed.set)

    async def _follow_uplinks(self, live: Live) -> bool:
        uplinks = live.uplinks(self._keeper.ifname)
        try:
            await self._server.set_uplinks(tuple(Uplink(u.ifname, u.addresses) for u in uplinks))
            self._port_trouble = ""
        except StateError as error:
            # At the start it is fatal, and nothing is announced; at run time the other uplinks and the doors go on.
            if not self._announced:
                raise
            if str(error) != self._port_trouble:
                self._port_trouble = str(error)
                _log.error("a health port cannot be held; trying again", error=str(error))
            self._try_again()
        self._announce(uplinks)
        self._announced = True
        return await self._doors.follow(uplinks)

    async def _reload(self, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            await self._keeper.reload()
            self._changed.set()

    async def _probe(self) -> None:
        interval = self._options.probe_interval
        while True:
            started = self._clock.monotonic()
            self._probe_now.clear()
            if await self._prober.round():
                self._changed.set()
            rest = interval - (self._clock.monotonic() - started)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(rest, 0.05)):
                    await self._probe_now.wait()


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of a group, however deep: what a person should read."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
