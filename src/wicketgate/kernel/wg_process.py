# SPDX-License-Identifier: Apache-2.0
"""One wireguard-go process. It outlives us: our crash must not drop a single peer."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
from typing import Self

from wicketgate.errors import StateError
from wicketgate.kernel.process import exit_of, find_tool
from wicketgate.logs import get_logger

_log = get_logger("wireguard")

OUTPUT_LIMIT = 64 * 1024  # bytes kept of what it says; later lines are refused by the kernel, which it does not mind


def _output_file() -> int:
    """A fixed piece of anonymous memory for stdout and stderr.

    Not a pipe: with its reader (us) gone, Go dies of SIGPIPE on the next line it logs, and with its reader slow the
    tunnel would wait. Not a file: the root filesystem may be read-only. The seals make it neither grow nor shrink.
    """
    descriptor = os.memfd_create("wireguard-go", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, OUTPUT_LIMIT)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


class WireGuardGo:
    """A running `wireguard-go -f NAME` that this process has started."""

    def __init__(self, ifname: str, child: subprocess.Popen[bytes], output: int) -> None:
        self.ifname = ifname
        self._child = child
        self._output = output

    @classmethod
    def start(cls, ifname: str) -> Self:
        """Start it in a session of its own, in the calling thread's network namespace.

        Raises:
            StateError: it cannot be started; ToolMissing: it is not installed.
        """
        program = find_tool("wireguard-go")
        output = _output_file()
        # Without WG_PROCESS_FOREGROUND it prints a box that advises the kernel module; `-f` keeps it from forking.
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "error"),
            "WG_PROCESS_FOREGROUND": "1",
        }
        try:
            child = subprocess.Popen(
                [program, "-f", ifname],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(output)
            raise StateError(f"{program} cannot be started: {error.strerror}") from error
        _log.info("wireguard-go started", interface=ifname, pid=child.pid)
        return cls(ifname, child, output)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """What it has said so far, one line."""
        if self._output < 0:
            return ""
        raw = os.pread(self._output, OUTPUT_LIMIT, 0).split(b"\0", 1)[0]
        return "; ".join(line.strip() for line in raw.decode(errors="replace").splitlines() if line.strip())

    async def stop(self, *, timeout: float = 3.0) -> None:
        """SIGTERM, and SIGKILL after `timeout` seconds; it is reaped when this returns."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()
        try:
            async with asyncio.timeout(timeout):
                await exit_of(self._child)
        except TimeoutError:
            _log.warning("wireguard-go does not end, killed", interface=self.ifname, pid=self.pid)
            self._child.kill()
            await exit_of(self._child)

    def abandon(self) -> None:
        """Let go of it, dead or alive."""
        if self._output >= 0:
            os.close(self._output)
            self._output = -1
        if self._child.poll() is None:
            # It goes on without us; subprocess would otherwise warn about a child that nobody waits for.
            self._child.returncode = 0
