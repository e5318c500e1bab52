# SPDX-License-Identifier: Apache-2.0
"""`wicket watch`: every change of links, routes, rules and firewall, and what it broke."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Sequence
from typing import Annotated

from cyclopts import Parameter

from wicketgate.cli.flow_arguments import concern_of, ends_of
from wicketgate.cli.place import enter_place
from wicketgate.cli.printable import printable
from wicketgate.clock import SystemClock
from wicketgate.doctor.flow_watch import FlowChange, FlowWatch
from wicketgate.doctor.watch_report import (
    change_line,
    change_object,
    count_words,
    flow_line,
    flow_object,
    is_derived,
    mark_object,
    note_object,
    stamp,
)
from wicketgate.errors import InputError, StateError, WicketError
from wicketgate.kernel.live_snapshot import LiveSnapshot
from wicketgate.kernel.namespace import end_of
from wicketgate.kernel.subscription import Subscription
from wicketgate.netpath.concerns import Concern
from wicketgate.netpath.snapshot import Snapshot, Unread

# Seconds without a further change before flows are judged, and how long a flood may put that off.
QUIET, LONGEST = 0.03, 0.3


def watch(
    *,
    netns: str | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    no_flows: Annotated[bool, Parameter(negative="")] = False,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    interval: float = 1.0,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Write a line for every change of links, addresses, routes, rules, nftables, iptables, sysctls, WireGuard devices and
    listeners, and one for each flow that a change broke or mended, with the cause and the very rule. Nothing is changed.

    It ends with Ctrl-C or SIGTERM, and a summary. Run it as root, or the firewall cannot be read.

    Exit codes: 0 it was ended; 2 bad input; 3 the state could not be read, or the place is gone.

    For example:

      wicket watch
      wicket watch --netns pid:4711 --json
      wicket watch --to 10.0.0.2:9000/tcp

    Args:
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        from_: who sends the flow of --to, ADDRESS or ADDRESS:PORT. Without it: somebody elsewhere.
        to: judge this flow alone, ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp.
        no_flows: judge none, write changes alone.
        all_: also the routes that the kernel keeps in table local by itself.
        interval: seconds between looks at what the kernel sends no event for.
        json_: write one JSON object a line, for log systems.
    """
    if from_ is not None and to is None:
        raise InputError(f"--from {from_} without --to; --to ADDRESS:PORT/PROTO names the other end")
    if to is not None and no_flows:
        raise InputError(f"--to {to} with --no-flows: read both; allowed: one of them")
    if not 0.1 <= interval <= 3600:
        raise InputError(f"--interval {interval:g}: allowed: 0.1 to 3600 seconds")
    ends = ends_of(from_, to) if to is not None else None
    asked: Callable[[Snapshot], Sequence[Concern]] | None = None
    if ends is not None:
        known = ends

        def asked(snapshot: Snapshot) -> Sequence[Concern]:
            return [concern_of(snapshot, known)]

    uapi_dir = enter_place(netns)
    book = None if no_flows else FlowWatch(asked)
    live = LiveSnapshot(uapi_dir=uapi_dir, interval=interval)
    asyncio.run(_Watcher(live, book, netns, everything=all_, as_json=json_).run())
    return 0


class _Watcher:
    """One run of the command."""

    def __init__(
        self, live: LiveSnapshot, book: FlowWatch | None, netns: str | None, *, everything: bool, as_json: bool
    ) -> None:
        self._live = live
        self._judges = book is not None
        self._book = book or FlowWatch()
        self._netns = netns
        self._everything = everything
        self._json = as_json
        self._now = SystemClock().wall
        self._began = self._now()
        self._written = 0
        self._turned = 0
        self._judged = 0  # number of the last change before the flows were judged
        self._unread: tuple[Unread, ...] = ()
        self._news = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until it is ended.

        Raises:
            WicketError: the place is gone, or could not be read at all.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            async with self._live, asyncio.TaskGroup() as group:
                snapshot = await self._live.current()
                if self._judges:
                    self._book.look(snapshot)
                changes = self._live.subscribe()
                self._start(snapshot)
                tasks = [
                    group.create_task(self._live.run(), name="live snapshot"),
                    group.create_task(self._write(changes), name="changes"),
                    group.create_task(self._judge(changes), name="flows"),
                    group.create_task(self._until_gone(), name="place"),
                ]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as several:
            error: Exception = several
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        self._end()

    async def _until_gone(self) -> None:
        if self._netns is not None:
            await end_of(self._netns)
            raise StateError(f"--netns {self._netns}: it has ended; what is left of it is held by this watch alone")

    # Changes

    async def _write(self, changes: Subscription) -> None:
        while await changes.wait():
            self._flush(changes)

    def _flush(self, changes: Subscription) -> None:
        for change in changes.pending():
            if is_derived(change) and not self._everything:
                continue
            self._written += 1
            self._say(change_object(self._written, change) if self._json else change_line(change))
            self._news.set()

    # Flows

    async def _judge(self, changes: Subscription) -> None:
        """Judge the flows when a burst of changes is over, or goes on for too long."""
        loop = asyncio.get_running_loop()
        while self._judges:
            await self._news.wait()
            end = loop.time() + LONGEST
            while self._news.is_set() and loop.time() < end:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET):
                        await self._news.wait()
            self._news.clear()
            snapshot = await self._live.current()
            self._flush(changes)  # what the reading found comes before what it did
            self._tell_unread(snapshot)
            self._look(snapshot)

    def _look(self, snapshot: Snapshot) -> None:
        try:
            turned = self._book.look(snapshot)
        except WicketError as error:
            self._note(f"the flows cannot be judged: {error}")
            return
        for each in turned:
            self._turned += 1
            at = self._now()
            self._say(flow_object(at, each, self._judged + 1, self._written) if self._json else flow_line(at, each))
        self._judged = self._written

    # The rest

    def _start(self, snapshot: Snapshot) -> None:
        if self._json:
            self._say(mark_object(self._began, "start", self._book, 0))
        else:
            words = f"; {count_words(self._book)}" if self._judges else ""
            print(f"{stamp(self._began)} watching {self._netns or 'this network namespace'}{words}", flush=True)
            for state in self._book.states:
                print(printable(flow_line(self._began, FlowChange(None, state))), flush=True)
        for note in self._book.notes:
            self._note(note)
        self._tell_unread(snapshot)

    def _tell_unread(self, snapshot: Snapshot) -> None:
        for each in snapshot.unread:
            if each not in self._unread:
                self._note(f"not read: {each.what}: {each.why}")
        self._unread = snapshot.unread

    def _end(self) -> None:
        if self._json:
            self._say(mark_object(self._now(), "end", self._book, self._written))
            return
        words = f"; {_plural(self._turned, 'flow')} changed, now {count_words(self._book)}" if self._judges else ""
        print(f"{stamp(self._now())} ended: {_plural(self._written, 'change')}{words}", flush=True)

    def _note(self, text: str) -> None:
        at = self._now()
        self._say(note_object(at, text) if self._json else f"{stamp(at)} ! {text}")

    def _say(self, line: str | dict[str, object]) -> None:
        print(printable(line) if isinstance(line, str) else json.dumps(line), flush=True)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
