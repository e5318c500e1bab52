# SPDX-License-Identifier: Apache-2.0
"""Tells when a file may have changed, from the kernel's events (inotify(7)); no polling.

The directory is watched and not the file: editors replace files, and Kubernetes swaps the `..data` symlink beside
them, so the file that was opened first is often not the one that matters.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wicketgate.errors import StateError

# sys/inotify.h
_IN_CLOSE_WRITE = 0x008
_IN_MOVED_TO = 0x080
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_READ = 65536  # bytes; many events at once


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
