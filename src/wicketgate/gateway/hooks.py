# SPDX-License-Identifier: Apache-2.0
"""PreUp, PostUp, PreDown and PostDown, as wg-quick(8) runs them: by a shell, with %i replaced by the interface."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from wicketgate.errors import StateError
from wicketgate.kernel.process import run
from wicketgate.logs import get_logger

_log = get_logger("hooks")
HOOK_TIMEOUT = 60.0  # seconds; a hook that waits for ever would keep the gateway from ever coming up. A guess.


async def run_hooks(kind: str, commands: Sequence[str], ifname: str, *, must_succeed: bool = True) -> None:
    """Run hooks one after the other.

    Args:
        kind: PreUp, PostUp, PreDown or PostDown: for messages.
        commands: with %i left in.
        ifname: the tunnel.
        must_succeed: raise at the first failure; otherwise log it and go on (on the way down).

    Raises:
        StateError: a hook failed, with its exit code and what it printed.
    """
    for command in commands:
        line = command.replace("%i", ifname)
        _log.info("hook", kind=kind, command=line)
        problem = await _run(line)
        if problem:
            text = f"{kind} = {line}: {problem}"
            if must_succeed:
                raise StateError(text)
            _log.warning("hook failed", kind=kind, command=line, problem=problem)


async def _run(line: str) -> str:
    """Empty when it went well. What a hook leaves running in the background is not waited for, as with wg-quick."""
    shell = shutil.which("bash") or "/bin/sh"
    try:
        # Cancelled (a SIGTERM while it runs) or too slow: the hook and its children are killed.
        done = await run([shell, "-c", line], timeout=HOOK_TIMEOUT)
    except StateError as error:
        return str(error)
    if done.code:
        said = (done.stdout + done.stderr).strip()[-400:]
        return f"exit code {done.code}: {said or 'it printed nothing'}"
    return ""
