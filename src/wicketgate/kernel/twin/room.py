# SPDX-License-Identifier: Apache-2.0
"""A room for a twin: a process in namespaces of its own, which end with whoever asked for them.

The process is a fork of the asking one: what it needs is loaded already, which saves half a second. It is made twice:
the first fork enters the namespaces, the second is process 1 of a pid namespace. When the asking process ends, in
whatever way, the first is killed by its PR_SET_PDEATHSIG, so the second by its own, and the kernel kills with it
everything that runs in the pid namespace; the network namespaces go with their last process.

As root a network and a pid namespace are made; as an ordinary user they are made inside a user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from wicketgate.errors import StateError, WicketError
from wicketgate.kernel.capability import CAP_NET_ADMIN, has_capability
from wicketgate.kernel.namespace import CLONE_NEWNET

# linux/sched.h, linux/prctl.h, linux/capability.h
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG = 1
_CAP_SYS_ADMIN = 21
_ERROR = "error"  # the key of a line that tells why it ended
_WAYS = (
    "run as root, or allow user namespaces: user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 "
    "(Debian before 11), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
)

Tell = Callable[[dict[str, Any]], None]


def in_a_room(work: Callable[[Tell], None], *, seconds: float) -> Iterator[dict[str, Any]]:
    """Run a function in new namespaces, in a process of its own.

    Args:
        work: gets a function that hands an object of plain values over; runs as process 1 of its room.
        seconds: for all of it; then it is killed.

    Yields:
        What it told, as it tells it.

    Raises:
        StateError: no namespaces can be made here, the work failed, or the time was over.
    """
    deadline = time.monotonic() + seconds
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    asking = os.getpid()
    child = os.fork()
    if not child:
        os.close(reading)
        _first(work, writing, asking)
    os.close(writing)
    try:
        yield from _lines(reading, deadline, seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # The other end closes with the last process of the room: nothing is left when this returns.
        while os.read(reading, 65536):
            pass
        os.close(reading)


def _lines(reading: int, deadline: float, seconds: float) -> Iterator[dict[str, Any]]:
    rest = b""
    while True:
        left = deadline - time.monotonic()
        ready = select.select([reading], [], [], max(0.0, left))[0]
        if not ready:
            raise StateError(f"the twin was not done after {seconds:g} s")
        data = os.read(reading, 65536)
        if not data:
            if rest:
                raise StateError("the twin ended in the middle of a word")
            return
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            told = json.loads(line)
            if _ERROR in told:
                raise StateError(told[_ERROR])
            yield told


def _first(work: Callable[[Tell], None], writing: int, asking: int) -> NoReturn:
    try:
        _tied_to_parent()
        if os.getppid() == asking:
            _quiet()
            _enter_namespaces()
            _tied_to_parent()  # a change of credentials may have loosened it
            alive, held = os.pipe2(os.O_CLOEXEC)
            second = os.fork()
            if not second:
                os.close(held)
                _tied_to_parent()
                # It may have ended before we were tied to it.
                if not select.select([alive], [], [], 0)[0]:
                    _work(work, writing)
            else:
                os.close(writing)
                os.waitpid(second, 0)
    except BaseException as error:  # noqa: BLE001 - nothing of the asking process may run here
        _say(writing, {_ERROR: str(error)})
    finally:
        os._exit(0)
    raise AssertionError("unreachable")


def _work(work: Callable[[Tell], None], writing: int) -> None:
    try:
        work(lambda told: _say(writing, told))
    except WicketError as error:
        _say(writing, {_ERROR: str(error)})
    except BaseException as error:  # noqa: BLE001 - told to the asking process
        _say(writing, {_ERROR: f"{type(error).__name__}: {error}"})


def _say(writing: int, told: dict[str, Any]) -> None:
    data = json.dumps(told).encode() + b"\n"
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(writing, data) :]


def _tied_to_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _quiet() -> None:
    """Ctrl-C is the asking process's business; nothing is printed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(nothing, each)
    os.close(nothing)


def _enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if has_capability(_CAP_SYS_ADMIN) and has_capability(CAP_NET_ADMIN):
        unshare(CLONE_NEWNET | CLONE_NEWPID)
        return
    try:
        unshare(CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        unshare(CLONE_NEWNET | CLONE_NEWPID)
    except OSError as error:
        raise StateError(f"this user may not make network namespaces ({error.strerror}): {_WAYS}") from error


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Netns:
    """A network namespace that this process made, by descriptor."""

    def __init__(self) -> None:
        self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    def another(cls) -> Netns:
        """Make one; the calling thread stays where it was."""
        here = cls()
        unshare(CLONE_NEWNET)
        made = cls()
        here.enter()
        os.close(here.descriptor)
        return made

    def enter(self) -> None:
        """Move the calling thread there."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(self.descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {errno.errorcode.get(number, number)}")

    @contextlib.contextmanager
    def inside(self, home: Netns) -> Iterator[None]:
        """Be there for a while, then at home again."""
        self.enter()
        try:
            yield
        finally:
            home.enter()
