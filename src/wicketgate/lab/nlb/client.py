# SPDX-License-Identifier: Apache-2.0
"""Speak to a load balancer's process from outside, and start one."""

from __future__ import annotations

import asyncio
import json
import selectors
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from wicketgate.errors import InputError, StateError
from wicketgate.lab.host import Host
from wicketgate.lab.nlb.settings import NlbSettings, Target
from wicketgate.lab.nlb.status import NlbStatus


class NlbControl:
    """Commands to the process that serves a unix socket; one connection a command."""

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        """Nothing is opened yet.

        Args:
            path: of the socket.
            timeout: seconds a command may take.
        """
        self._path = path
        self._timeout = timeout

    async def status(self) -> NlbStatus:
        """Targets, states, reasons and flows.

        Raises:
            StateError: nobody answers there.
        """
        answer = await self._ask({"command": "status"})
        return NlbStatus.from_json(json.dumps(answer["status"]))

    async def register(self, target: Target) -> None:
        """Add a target.

        Raises:
            InputError: the load balancer cannot serve it.
            StateError: nobody answers there.
        """
        await self._ask({"command": "register", "target": _plain(target)})

    async def deregister(self, target: Target) -> None:
        """Let a target drain.

        Raises:
            InputError: it is not registered.
            StateError: nobody answers there.
        """
        await self._ask({"command": "deregister", "target": _plain(target)})

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._timeout):
                # A status with thousands of flows is one long line.
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=64 * 1024 * 1024)
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
                    await writer.wait_closed()
        except TimeoutError:
            raise StateError(f"{self._path}: the load balancer gave no answer in {self._timeout:g} s") from None
        except OSError as error:
            raise StateError(
                f"{self._path}: no load balancer answers: {error.strerror or error}; is the lab up?"
            ) from None
        if not line:
            raise StateError(f"{self._path}: the load balancer ended while it was asked")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            kind = InputError if answer.get("exit_code") == InputError.exit_code else StateError
            raise kind(answer["error"])
        return answer


def launch(
    host: Host, settings: NlbSettings, socket: Path, *, log: Path | None = None, timeout: float = 30.0
) -> subprocess.Popen[str]:
    """Start a load balancer inside a host and wait until its data path stands.

    Args:
        host: where; it has the addresses that the settings name.
        settings: what it is told.
        socket: where it will take commands; visible outside the host as well.
        log: its log lines go there; without it they are dropped.
        timeout: seconds to wait for it.

    Returns:
        the process, in a session of its own: Ctrl-C does not reach it, SIGTERM ends it cleanly, and it ends with the
        host.

    Raises:
        StateError: it ended, or did not become ready; with its last words.
    """
    with log.open("ab") if log is not None else open("/dev/null", "ab") as sink:
        start = sink.tell()
        process: subprocess.Popen[str] = host.popen(
            sys.executable,
            "-m",
            "wicketgate.lab.nlb",
            "--socket",
            str(socket),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(settings.to_json())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended already; said below
    said = _line(process.stdout, timeout)
    process.stdout.close()
    if said != "ready":
        process.kill()
        code = process.wait()
        words = (
            log.read_bytes()[start:].decode(errors="replace").strip() if log is not None else "give a log to see why"
        )
        raise StateError(f"[{host.name}] the load balancer did not become ready (exit code {code}): {words}")
    return process


def _line(stream: IO[str], timeout: float) -> str:
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            return ""
        return stream.readline().strip()


def _plain(target: Target) -> dict[str, Any]:
    return asdict(target) | {"address": str(target.address)}
