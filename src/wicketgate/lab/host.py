# SPDX-License-Identifier: Apache-2.0
"""A host of the lab: a network namespace and a mount namespace of its own, held open by one small process.

The mount namespace gives every host its own /run/wireguard: wireguard-go's sockets are named after the device alone
and would otherwise be shared by the whole machine. When the holder ends it takes every process of its network
namespace with it, so a host that is closed, or whose owner dies, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from wicketgate.errors import StateError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
HOLDER_NAME = "wicket-host"  # the holder's $0, followed by the host's name and `keep` or `bound`
_HOLDER = r"""
if ! mkdir -p /run/wireguard 2>/dev/null; then
  # An ordinary user in a namespace of its own: /run is root's, so it is laid over with one that has the same folders.
  aside=$(mktemp -d) && mount --rbind /run "$aside" && mount -t tmpfs -o mode=0755 tmpfs /run && mkdir /run/wireguard || exit 3
  for each in "$aside"/*; do
    name=${each##*/}
    if [ -d "$each" ] && [ ! -L "$each" ]; then mkdir "/run/$name" && mount --rbind "$each" "/run/$name"; fi
  done
  umount -l "$aside"; rmdir "$aside"
fi
mount -t tmpfs -o mode=0755 tmpfs /run/wireguard || exit 3
ip link set lo up || exit 3
echo ready
if [ "$2" = keep ]; then trap : TERM; sleep infinity & wait; kill $! 2>/dev/null; else cat >/dev/null; fi
mine=$(readlink /proc/$$/ns/net)
for round in 1 2 3; do
  for p in /proc/[0-9]*; do
    q=${p#/proc/}
    [ "$q" = $$ ] && continue
    [ "$(readlink $p/ns/net 2>/dev/null)" = "$mine" ] && kill -9 "$q" 2>/dev/null
  done
done
exit 0
"""


class Host:
    """One namespace with a name people can read.

    Attributes:
        name: as shown to people; also in the holder's argv, so that `ps` explains it.
        pid: the holder; `nsenter -t PID -n -m` enters.
    """

    def __init__(self, name: str, pid: int, holder: subprocess.Popen[str] | None = None) -> None:
        self.name = name
        self.pid = pid
        self._holder = holder
        self._started: list[subprocess.Popen[Any]] = []

    @classmethod
    def create(cls, name: str, *, keep: bool = False) -> Self:
        """Make the namespaces.

        Args:
            name: for people and `ps`.
            keep: the host outlives this process (until `kill`); otherwise it ends with it, even after kill -9.

        Raises:
            StateError: no right to make namespaces.
        """
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _HOLDER, HOLDER_NAME, name, "keep" if keep else "bound"],
            stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is the owner's business
        )
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            ready = holder.stdout.readline().strip() == "ready"
            why = "" if ready else holder.stderr.read().strip()
        except BaseException:  # Ctrl-C while it starts
            holder.kill()
            holder.wait()
            raise
        finally:
            holder.stdout.close()
        holder.stderr.close()
        if not ready:
            holder.wait()
            raise StateError(f"host {name}: no namespaces can be made here: {why}; run as root, or in a user namespace")
        return cls(name, holder.pid, holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` in this host."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", *command]

    def run(
        self, *command: str, check: bool = True, stdin: str | None = None, timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Raises:
            StateError: with the command and what it printed, when it failed and `check` is set.
        """
        done = subprocess.run(
            self.argv(*command), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise StateError(
                f"[{self.name}] {' '.join(command)}: exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command. Its pid is the command's own (nsenter execs), so signals reach it."""
        process: subprocess.Popen[Any] = subprocess.Popen(self.argv(*command), **options)
        self._started = [each for each in self._started if each.poll() is None] + [process]
        return process

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread inside this network namespace. The mount namespace stays the caller's.

        Sockets made there stay in the namespace after the thread has ended.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                enter_netns(f"/proc/{self.pid}/ns/net")
                result.append(function())
            except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
                failure.append(error)

        thread = threading.Thread(target=inside, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def acall(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end on a loop of its own, in a thread inside this network namespace."""
        return self.call(lambda: asyncio.run(function()))

    def pids(self) -> list[int]:
        """Every process of this network namespace but the holder."""
        try:
            mine = os.readlink(f"/proc/{self.pid}/ns/net")
        except OSError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/net") == mine:
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End every process of the host, then the host; interfaces go with the namespace."""
        # One that was just started may not have entered the namespace yet, so that nobody would find it there.
        for process in self._started:
            if process.poll() is None:
                process.kill()
        self._started = []
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._holder is not None:
            if self._holder.stdin is not None:
                self._holder.stdin.close()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            self._holder.wait()
            self._holder = None
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while os.path.exists(f"/proc/{self.pid}/ns/net") and time.monotonic() < deadline:
            time.sleep(0.005)


def holder_name(argv: list[str]) -> str | None:
    """The host's name when a command line is a holder's, in this or an earlier version; else None."""
    if len(argv) < 6 or argv[-3] != HOLDER_NAME or argv[-1] not in ("keep", "bound"):
        return None
    if argv[-5] != "-c" or os.path.basename(argv[-6]) != "sh" or "/run/wireguard" not in argv[-4]:
        return None
    return argv[-2]


def enter_netns(path: str) -> None:
    """Move the calling thread into a network namespace. Never on the main thread: there is no way back."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise StateError(f"cannot enter the network namespace {path}: {os.strerror(error)}")
    finally:
        os.close(fd)


def wire(a: Host, name_a: str, b: Host, name_b: str) -> None:
    """Join two hosts by a veth pair; both ends are up."""
    # Made inside of `a`: in a user namespace there is no right over the machine's own network namespace.
    a.run("ip", "link", "add", name_a, "type", "veth", "peer", "name", name_b, "netns", str(b.pid))
    a.run("ip", "link", "set", name_a, "up")
    b.run("ip", "link", "set", name_b, "up")
