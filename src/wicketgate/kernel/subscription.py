# SPDX-License-Identifier: Apache-2.0
"""A listener's own queue of changes. It is bounded, and what did not fit is said."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from wicketgate.netpath.change import Action, StateChange, What

# Some 30 MB of routes: a guess at what a listener that is stopped for a while should not lose.
LONGEST = 50_000


class Subscription:
    """Changes in the order in which they were heard of: `async for change in subscription`. Close it when done."""

    def __init__(self, closed: Callable[[Subscription], None], longest: int = LONGEST) -> None:
        self._closed = closed
        self._longest = longest
        self._queue: deque[StateChange] = deque()
        self._some = asyncio.Event()
        self._lost = 0
        self._open = True

    def put(self, change: StateChange) -> None:
        """Hand a change over; for `LiveSnapshot`."""
        if len(self._queue) < self._longest:
            self._queue.append(change)
        else:
            self._lost += 1
        self._some.set()

    def close(self) -> None:
        """Hear no more. An iteration that waits ends."""
        self._open = False
        self._some.set()
        self._closed(self)

    def pending(self) -> tuple[StateChange, ...]:
        """What was heard of since the last call, without waiting."""
        taken = list(self._queue)
        self._queue.clear()
        if self._lost:
            text = f"{self._lost} changes were not kept: they came faster than they were taken"
            taken.append(StateChange(taken[-1].at if taken else 0.0, What.RESYNC, Action.CHANGED, text, told=False))
            self._lost = 0
        self._some.clear()
        return tuple(taken)

    async def wait(self) -> bool:
        """Until there is something to take; False when the subscription was closed."""
        await self._some.wait()
        return self._open

    def __aiter__(self) -> AsyncIterator[StateChange]:
        return self._each()

    async def _each(self) -> AsyncIterator[StateChange]:
        while await self.wait():
            for change in self.pending():
                yield change
