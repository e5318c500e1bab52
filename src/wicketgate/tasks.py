# SPDX-License-Identifier: Apache-2.0
"""Named, guarded tasks: an eternal task that ends, for whatever reason, is said at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from wicketgate.logs import get_logger

_log = get_logger("tasks")


async def guard(coroutine: Coroutine[Any, Any, None], *, name: str, forever: bool = True) -> None:
    """Run a task; log its failure when it happens, not when somebody awaits it.

    Args:
        coroutine: the task.
        name: how logs call it.
        forever: a normal end is a fault too.
    """
    try:
        await coroutine
    except asyncio.CancelledError:
        raise
    except Exception as error:
        _log.error("task failed", task=name, error=str(error), kind=type(error).__name__)
        raise
    if forever:
        _log.warning("task ended although it should not", task=name)


def start(
    group: asyncio.TaskGroup, coroutine: Coroutine[Any, Any, None], *, name: str, forever: bool = True
) -> asyncio.Task[None]:
    """Start a guarded, named task in a group."""
    return group.create_task(guard(coroutine, name=name, forever=forever), name=name)
