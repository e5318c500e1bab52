# SPDX-License-Identifier: Apache-2.0
"""Changes to the machine: planned, shown, applied in order, and taken back in reverse when one of them fails.

The concrete changes are in `kernel.changes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wicketgate.errors import StateError, WicketError
from wicketgate.logs import get_logger

_log = get_logger("kernel")


class Change(Protocol):
    """One change. Its `apply` is all or nothing, and reads back what it wrote where that makes sense."""

    @property
    def spelled(self) -> str:
        """As a person could type it: iproute2, nft, wg or sysctl. Never with a key."""
        ...

    async def apply(self) -> None:
        """Make it so. Raises StateError. When it was so already, nothing happens and nothing is undone later."""
        ...

    async def undo(self) -> None:
        """Take back what `apply` did; nothing, when it did nothing. May be called again after a failure."""
        ...


@dataclass(frozen=True, slots=True)
class RolledBack:
    """One change that was taken back, or should have been.

    Attributes:
        spelled: the change.
        error: why taking it back failed; empty when it did not.
    """

    spelled: str
    error: str = ""


class PlanFailed(StateError):  # noqa: N818 - it reads as the sentence it is: the plan failed
    """A change failed, and those before it were taken back.

    Attributes:
        spelled: the change that failed.
        reason: the error it failed with.
        rolled_back: what was taken back, in that order.
    """

    def __init__(self, spelled: str, reason: WicketError | OSError, rolled_back: Sequence[RolledBack]) -> None:
        left = [f"{entry.spelled} ({entry.error})" for entry in rolled_back if entry.error]
        done = len(rolled_back) - len(left)
        text = f"{spelled}: {reason}; {done} earlier change{'' if done == 1 else 's'} taken back"
        if left:
            text += f"; STILL IN PLACE, because taking them back failed: {'; '.join(left)}"
        super().__init__(text)
        self.spelled = spelled
        self.reason = reason
        self.rolled_back = tuple(rolled_back)


class Plan:
    """Changes in the order they are made.

    A plan remembers what it applied, so that one plan can be undone as a whole at the end of its life.
    """

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._changes: list[Change] = list(changes)
        self._applied: list[Change] = []

    def add(self, change: Change) -> None:
        """One more, at the end."""
        self._changes.append(change)

    def __len__(self) -> int:
        return len(self._changes)

    def show(self) -> list[str]:
        """The changes as lines, for a dry run."""
        return [change.spelled for change in self._changes]

    @property
    def applied(self) -> tuple[Change, ...]:
        """What is in place by this plan's doing."""
        return tuple(self._applied)

    async def apply(self) -> None:
        """Make every change that is not in place yet.

        Raises:
            PlanFailed: one failed; everything this call made has been taken back.
            asyncio.CancelledError: after taking everything back, too.
        """
        made: list[Change] = []
        pending = [change for change in self._changes if not any(change is done for done in self._applied)]
        for change in pending:
            try:
                await change.apply()
            except (WicketError, OSError) as error:
                _log.error("change failed", did=change.spelled, error=str(error))
                raise PlanFailed(change.spelled, error, await _shielded(_undo_half(change, made))) from error
            except BaseException:
                # Ctrl-C, a deadline, a programmer's slip: the same duty. The change itself may be half done.
                await _shielded(_undo_half(change, made))
                raise
            made.append(change)
            for line in getattr(change, "lines", (change.spelled,)):
                _log.info("change", did=line)
        self._applied += made

    async def undo(self) -> tuple[RolledBack, ...]:
        """Take back everything applied, in reverse; a failure is reported and does not stop the rest."""
        applied, self._applied = self._applied, []
        return await _shielded(_undo_all(applied))


async def _undo_half(change: Change, made: Sequence[Change]) -> tuple[RolledBack, ...]:
    """Take back a change that may have been made in part, then those before it."""
    half = await _undo_one(change)
    # Its undo had nothing to do in most cases; only a failure is worth a word.
    return (*([half] if half.error else []), *await _undo_all(made))


async def _undo_all(made: Sequence[Change]) -> tuple[RolledBack, ...]:
    results = []
    for change in reversed(made):
        result = await _undo_one(change)
        if not result.error:
            _log.info("change taken back", did=change.spelled)
        results.append(result)
    return tuple(results)


async def _undo_one(change: Change) -> RolledBack:
    try:
        await change.undo()
    except Exception as error:  # noqa: BLE001 - whatever it was, the others are still to be taken back
        _log.error("change could not be taken back", did=change.spelled, error=str(error))
        return RolledBack(change.spelled, str(error) or type(error).__name__)
    return RolledBack(change.spelled)


async def _shielded(work: asyncio.Future[tuple[RolledBack, ...]] | object) -> tuple[RolledBack, ...]:
    """Finish taking back even when we are cancelled (again) meanwhile; the cancellation comes out afterwards."""
    task: asyncio.Task[tuple[RolledBack, ...]] = asyncio.ensure_future(work)  # type: ignore[arg-type]
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
