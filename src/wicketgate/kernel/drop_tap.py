# SPDX-License-Identifier: Apache-2.0
"""Why the kernel threw a packet away: the drop reasons of the tracepoint skb:kfree_skb, told apart by sender's marks.

The event names neither addresses nor a namespace. But over veth a packet's whole way up to its end runs in the
thread that sent it, so what lies between two marks of that thread belongs to the packet sent between them.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from types import TracebackType
from typing import Self

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # one number on all architectures since Linux 5.2
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6
_LINE = re.compile(r"(?:tracing_mark_write: sent (\d+))|(?:kfree_skb: .* reason: (\w+))")


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _tracefs() -> int:
    """Open tracefs, as a folder that is mounted nowhere."""
    context = _call(_SYS_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC)
    try:
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


class DropTap:
    """An instance of the tracer for the thread that enters it. Needs CAP_SYS_ADMIN of the machine and tracefs.

    Raises:
        OSError: on entering, where tracing cannot be had.
    """

    def __enter__(self) -> Self:
        self._root = _tracefs()
        self._name = f"instances/wicketgate-{os.getpid()}-{threading.get_native_id()}"
        try:
            os.mkdir(self._name, dir_fd=self._root)
        except OSError:
            os.close(self._root)
            raise
        try:
            self._write("set_event_pid", str(threading.get_native_id()))
            self._write("buffer_size_kb", "4096")
            self._write("events/skb/kfree_skb/enable", "1")
            self._marker = self._open("trace_marker", os.O_WRONLY)
            self._pipe = self._open("trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._marker)
        os.close(self._pipe)
        self._remove()

    def _remove(self) -> None:
        os.rmdir(self._name, dir_fd=self._root)
        os.close(self._root)

    def _open(self, name: str, flags: int) -> int:
        return os.open(f"{self._name}/{name}", flags | os.O_CLOEXEC, dir_fd=self._root)

    def _write(self, name: str, text: str) -> None:
        file = self._open(name, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def mark(self, nonce: int) -> None:
        """What follows belongs to this packet."""
        os.write(self._marker, b"sent %d" % nonce)

    def read(self) -> dict[int, list[str]]:
        """The drop reasons since the last read, by packet, in order."""
        text = b""
        while True:
            try:
                part = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                break
            text += part
        found: dict[int, list[str]] = {}
        now: list[str] = []
        for line in text.decode(errors="replace").splitlines():
            event = _LINE.search(line)
            if event is None:
                continue
            if event.group(1):
                now = found.setdefault(int(event.group(1)), [])
            else:
                now.append(event.group(2))
        return found


def why_no_tap() -> str:
    """Why the kernel's drop reasons cannot be had here; empty when they can."""
    try:
        with DropTap():
            return ""
    except OSError as error:
        return f"tracefs: {error.strerror}"
