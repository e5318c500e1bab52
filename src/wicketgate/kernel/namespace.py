# SPDX-License-Identifier: Apache-2.0
"""Entering another network namespace, for commands that look at one place and end."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re

from wicketgate.errors import InputError, StateError
from wicketgate.kernel.inotify import watch_directory

CLONE_NEWNET = 0x40000000  # linux/sched.h
NAMED = "/run/netns"  # ip-netns(8)


def namespace_path(where: str) -> str:
    """The file of a namespace.

    Args:
        where: a name as `ip netns` shows it, a path, or `pid:N` for a process's.

    Raises:
        InputError: none of these.
    """
    if where.startswith("pid:"):
        pid = where.removeprefix("pid:")
        if not re.fullmatch(r"[1-9][0-9]{0,9}", pid):
            raise InputError(f"--netns {where}: read the process id {pid!r}; allowed: a positive number, as pid:1234")
        return f"/proc/{pid}/ns/net"
    if "/" in where:
        return where
    if not where or where in (".", ".."):
        raise InputError(f"--netns {where!r}; allowed: a name of `ip netns`, a path, or pid:N")
    return f"{NAMED}/{where}"


def enter(where: str) -> None:
    """Move the calling thread there. There is no way back: for a process that looks and ends.

    Raises:
        StateError: no such namespace, or no right to enter it.
    """
    path = namespace_path(where)
    try:
        # Never O_CREAT: a mistyped name must not become a namespace.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"--netns {where}: {path}: {error.strerror}; `ip netns` lists the names there are") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            step = {
                errno.EPERM: "; CAP_SYS_ADMIN is needed: run as root",
                errno.EINVAL: "; it is no network namespace",
            }.get(number, "")
            raise StateError(f"--netns {where}: {path} cannot be entered: {os.strerror(number)}{step}")
    finally:
        os.close(descriptor)


def uapi_dir_of(where: str) -> str | None:
    """Where wireguard-go's sockets of that place are: a process's own mount namespace is reached through /proc.

    Returns:
        None for names and paths: they say nothing about a file system.
    """
    return f"/proc/{where.removeprefix('pid:')}/root/run/wireguard" if where.startswith("pid:") else None


_OF_PROCESS = re.compile(r"/proc/([1-9][0-9]*)/ns/net")


def _is_there(path: str) -> bool:
    return os.path.exists(path)


async def end_of(where: str) -> None:
    """Wait until a namespace's process has ended, or its file is gone. A process within keeps the namespace itself alive.

    Args:
        where: as for `namespace_path`.
    """
    path = namespace_path(where)
    process = _OF_PROCESS.fullmatch(path)
    if process is None:
        async with watch_directory(os.path.dirname(path)) as touched:
            while _is_there(path):
                await touched.wait()
                touched.clear()
        return
    try:
        descriptor = os.pidfd_open(int(process[1]))
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
