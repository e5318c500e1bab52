# SPDX-License-Identifier: Apache-2.0
"""The load balancer as a process of its host: `python -m wicketgate.lab.nlb --socket PATH [--config FILE]`.

It reads its settings as JSON (from standard input without `--config`), prints `ready` once the data path stands, and
takes commands on a unix socket, one JSON object a line, one JSON object back:

    {"command": "status"}                                   -> {"ok": true, "status": {...}}
    {"command": "register", "target": {"address": "10.0.1.2", "port": 51820, "az": "a"}}
    {"command": "deregister", "target": {...}}              -> {"ok": true}
    anything else                                           -> {"ok": false, "error": "..."}
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wicketgate.errors import InputError, StateError, WicketError
from wicketgate.lab.nlb.control import LoadBalancer
from wicketgate.lab.nlb.settings import NlbSettings, Target, explain
from wicketgate.logs import configure

LINE_LIMIT = 64 * 1024  # bytes of a command; a guess, some hundred times what one needs
_TARGET: TypeAdapter[Target] = TypeAdapter(Target)


class ControlSocket:
    """The unix socket of one load balancer."""

    def __init__(self, balancer: LoadBalancer, path: Path) -> None:
        self._balancer = balancer
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen; a socket that a killed process left is replaced.

        Raises:
            StateError: somebody listens there already, or the path cannot be used.
        """
        if self._path.is_socket():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_unix_connection(str(self._path))
                writer.close()
                raise StateError(f"{self._path}: a load balancer listens there already; stop it, or name another path")
            self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LINE_LIMIT)
        except OSError as error:
            raise StateError(f"{self._path}: {error.strerror or error}; name a path that can be made") from error
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop, and leave no file."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            self._path.unlink(missing_ok=True)
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except ValueError:  # a line longer than LINE_LIMIT
            writer.write(
                json.dumps({"ok": False, "error": f"a command of more than {LINE_LIMIT} bytes"}).encode() + b"\n"
            )
        except ConnectionError:
            pass  # the asker left
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **await self._do(line)}
        except WicketError as error:
            return {"ok": False, "error": str(error), "exit_code": error.exit_code}

    async def _do(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError as error:
            raise InputError(f"a command is one JSON object a line: {error}") from None
        command = request.get("command") if isinstance(request, dict) else None
        match command:
            case "status":
                return {"status": json.loads((await self._balancer.status()).to_json())}
            case "register":
                await self._balancer.register(_target(request))
            case "deregister":
                await self._balancer.deregister(_target(request))
            case _:
                raise InputError(f"command {command!r}; allowed are status, register and deregister")
        return {}


def _target(request: dict[str, Any]) -> Target:
    try:
        return _TARGET.validate_python(request.get("target"), strict=False)
    except ValidationError as error:
        raise InputError("target: " + explain(error)) from None


async def serve(settings: NlbSettings, path: Path) -> None:
    """Balance and answer until SIGTERM or SIGINT; then leave nothing behind.

    Raises:
        StateError: a missing right, tool or address; a socket that cannot be made.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    balancer = LoadBalancer(settings)
    control = ControlSocket(balancer, path)
    await control.open()
    try:
        running = asyncio.create_task(balancer.run(ready=lambda: print("ready", flush=True)), name="load balancer")  # noqa: T201 - the one line that who starts it waits for
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await control.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; its exit code: 0 stopped, 2 bad input, 3 no right, tool or address."""
    parser = argparse.ArgumentParser(prog="python -m wicketgate.lab.nlb", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, required=True, help="where commands are taken")
    parser.add_argument("--config", type=Path, help="settings as JSON; without it they are read from standard input")
    arguments = parser.parse_args(argv)
    configure("json")
    try:
        text = arguments.config.read_bytes() if arguments.config else sys.stdin.buffer.read()
    except OSError as error:
        return _fail(InputError(f"{arguments.config}: {error.strerror}"))
    # Standard input may be a pipe of a program that ends before this one: nothing more is read from it.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        asyncio.run(serve(NlbSettings.from_json(text), arguments.socket))
    except WicketError as error:
        return _fail(error)
    return 0


def _fail(error: WicketError) -> int:
    print(f"wicketgate.lab.nlb: {error}", file=sys.stderr)  # noqa: T201 - a program's last words
    return error.exit_code
