# SPDX-License-Identifier: Apache-2.0
"""Run a program and wait for it: an argument list, a deadline, no shell, no threads.

The standard library's asyncio children need a thread each on Python 3.11. Here the exit is told by a pidfd, and input
and output go through anonymous memory: no pipe can fill up, and a grandchild that keeps a pipe open cannot hang us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wicketgate.errors import StateError, ToolMissing

# Debian's package of each program that is run anywhere in the agent.
PACKAGES: Mapping[str, str] = {
    "nft": "nftables",
    "ip": "iproute2",
    "tc": "iproute2",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
    "sysctl": "procps",
    "bash": "bash",
    "resolvconf": "openresolv",
    "iptables-nft-save": "iptables",
    "ip6tables-nft-save": "iptables",
    "iptables-legacy-save": "iptables",
    "ip6tables-legacy-save": "iptables",
}

# A login without root's PATH still has these programs.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that has ended.

    Attributes:
        argv: as it was run.
        code: exit code; negative = the signal that ended it.
        stdout: what it printed, undecodable bytes replaced.
        stderr: the same.
    """

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What it said about itself: stderr, or stdout when that is empty, in one piece."""
        return self.stderr.strip() or self.stdout.strip() or f"exit code {self.code}, and no word about it"


def find_tool(name: str) -> str:
    """The path of a program.

    Raises:
        ToolMissing: naming Debian's package.
    """
    found = shutil.which(name) or (shutil.which(name, path=_SBIN) if "/" not in name else None)
    if found is None:
        package = PACKAGES.get(os.path.basename(name))
        step = f"install it: apt-get install {package}" if package else "install it, or correct PATH"
        raise ToolMissing(f"{name} is not installed here (PATH={os.environ.get('PATH', '')}); {step}")
    return found


def has_tool(name: str) -> bool:
    """Whether the program is there."""
    try:
        find_tool(name)
    except ToolMissing:
        return False
    return True


async def exit_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until a child has ended and take its exit code. Safe to cancel and to call again."""
    code = process.poll()
    if code is not None:
        return code
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


def _memory(name: str, content: bytes = b"") -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    if content:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


async def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 10.0,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program to its end; any exit code is an answer, not an error.

    It gets a session of its own: Ctrl-C at our terminal does not cut a transaction in two.

    Args:
        argv: the program, looked up on PATH and in root's directories, and its arguments.
        stdin: its whole input; None = empty.
        timeout: seconds; then the program and its children are killed.
        env: its whole environment; None = ours.

    Raises:
        ToolMissing: no such program.
        StateError: it could not be started, or did not end in time.
    """
    program = find_tool(argv[0])
    descriptors: list[int] = []
    try:
        # One at a time, so that a failure of the second still closes the first.
        for name, content in (("stdin", (stdin or "").encode()), ("stdout", b""), ("stderr", b"")):
            descriptors.append(_memory(name, content))
        source, out, err = descriptors
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - fork and exec are quick; the waiting is not done here
                list(argv),
                executable=program,
                stdin=source if stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if env is None else dict(env),
                start_new_session=True,
            )
        except OSError as error:
            raise StateError(f"{program} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout):
                code = await exit_of(process)
        except TimeoutError:
            raise StateError(
                f"{' '.join(argv)}: no end after {timeout:g} s, it was killed; it had said: {_text(err).strip() or 'nothing'}"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # After SIGKILL this is at most a moment, and a zombie is worse.
                process.wait()
        return Completed(tuple(argv), code, _text(out), _text(err))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
