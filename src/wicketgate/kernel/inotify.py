# SPDX-License-Identifier: Apache-2.0
"""Tells when a file may have changed, from the kernel's events (inotify(7)); no polling.

The directory is watched and not the file: editors replace files, and Kubernetes swaps the `..data` symlink beside
them, so the file that was opened first is often not the one that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wicketgate.errors import StateError

# sys/inotify.h
IN_MODIFY = 0x002
_IN_CLOSE_WRITE = 0x008
IN_CLOSE = 0x018
_IN_MOVED_TO = 0x080
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_READ = 65536  # bytes; many events at once
_EVENT = struct.Struct("=iIII")  # struct inotify_event { int wd; u32 mask, cookie, len; char name[]; }


@asynccontextmanager
async def watch_directory(path: str) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever something in the directory changed; the caller clears it.

    Raises:
        StateError: the directory cannot be watched (gone, or no watches left: fs.inotify.max_user_watches).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    if fd < 0:
        raise StateError(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def drain() -> None:
        try:
            while os.read(fd, _READ):
                pass
        except BlockingIOError:
            pass
        changed.set()

    try:
        if libc.inotify_add_watch(fd, os.fsencode(path), _EVENTS) < 0:
            raise StateError(f"cannot watch {path}: {os.strerror(ctypes.get_errno())}")
        loop.add_reader(fd, drain)
        try:
            yield changed
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


class Inotify:
    """Several files and directories, with what was touched in each. Read it when its descriptor is readable.

    Raises:
        StateError: no instance is left (fs.inotify.max_user_instances).
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise StateError(f"files cannot be watched: {os.strerror(ctypes.get_errno())}")
        self._paths: dict[int, str] = {}
        self._watches: dict[str, int] = {}

    def fileno(self) -> int:
        """The descriptor."""
        return int(self._fd)

    def close(self) -> None:
        """Give it back."""
        os.close(self._fd)

    def add(self, path: str, mask: int) -> bool:
        """Watch a file, or what is in a directory; False when it is not there or cannot be watched."""
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if number < 0:
            return False
        self._paths[number] = path
        self._watches[path] = number
        return True

    def remove(self, path: str) -> None:
        """Watch it no more; it may have gone by itself."""
        number = self._watches.pop(path, None)
        if number is not None:
            self._libc.inotify_rm_watch(self._fd, number)
            self._paths.pop(number, None)

    @property
    def watched(self) -> frozenset[str]:
        """What is watched."""
        return frozenset(self._watches)

    def pending(self) -> set[tuple[str, str]]:
        """What was touched since the last call: the path that is watched, and the name in it (empty for a file)."""
        found: set[tuple[str, str]] = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, _READ):
                found |= self._events(data)
        return found

    def _events(self, data: bytes) -> set[tuple[str, str]]:
        found = set()
        offset = 0
        while offset + _EVENT.size <= len(data):
            number, _, _, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            if number == -1:  # IN_Q_OVERFLOW: anything may have been touched
                found |= {(path, "") for path in self._watches}
            elif number in self._paths:
                found.add((self._paths[number], os.fsdecode(name)))
        return found
