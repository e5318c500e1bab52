# SPDX-License-Identifier: Apache-2.0
"""PreUp, PostUp, PreDown and PostDown, as wg-quick(8) runs them: by a shell, with %i replaced by the interface."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence

from wicketgate.errors import StateError
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
    shell = shutil.which("bash") or "/bin/sh"
    process = await asyncio.create_subprocess_exec(
        shell,
        "-c",
        line,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env=dict(os.environ),
    )
    try:
        async with asyncio.timeout(HOOK_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"did not end within {HOOK_TIMEOUT:g} s and was killed"
    if process.returncode:
        return (
            f"exit code {process.returncode}: {output.decode(errors='replace').strip()[-400:] or 'it printed nothing'}"
        )
    return ""
