# SPDX-License-Identifier: Apache-2.0
"""Containers of a pod: processes in its network namespace, with the rights and the read-only mounts a container has.

- privileged: everything, /proc/sys writable: what plain wg-quick needs;
- net-admin: uid 0 with CAP_NET_ADMIN alone, root filesystem and /proc/sys read-only: what a gateway gets;
- none: uid 65534, no capability, the same mounts, no_new_privs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import wicketgate
from wicketgate.errors import StateError
from wicketgate.lab.state import outer_uid
from wicketgate.lab.topology import Lab

_POLL = 0.02  # s; a file that another process writes cannot be waited for otherwise
NOBODY = 65534


class Rights(StrEnum):
    """What a container may do."""

    PRIVILEGED = "privileged"
    NET_ADMIN = "net-admin"
    NONE = "none"


_SETPRIV = {
    Rights.NET_ADMIN: ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs"],
    Rights.NONE: ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
}
# $1: folders, one a line, that must be reachable for everybody although a folder above them (a home directory, say) is
# closed: an image would be. Each is bound aside, an empty folder laid over the closed one, and bound back.
_MOUNTS = r"""
set -eu
mount -t tmpfs -o mode=0755 tmpfs /mnt
number=0
printf '%s\n' "$1" | while IFS='|' read -r closed wanted; do
  [ -n "$closed" ] || continue
  number=$((number + 1))
  mkdir /mnt/$number
  mount --rbind "$wanted" /mnt/$number
  [ "$(stat -c %a "$closed")" = 755 ] || mount -t tmpfs -o mode=0755 tmpfs "$closed"
  mkdir -p "$wanted"
  mount --rbind /mnt/$number "$wanted"
  umount -l /mnt/$number
done
umount /mnt
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro / 2>/dev/null || true
shift
exec "$@"
"""


def wicket(*arguments: str) -> list[str]:
    """The command line of this very wicket."""
    return [sys.executable, "-m", "wicketgate", *arguments]


def program(module: str, *arguments: str) -> list[str]:
    """The command line of a program of the lab."""
    return [sys.executable, "-m", f"wicketgate.lab.{module}", *arguments]


def contained(command: list[str], rights: Rights) -> list[str]:
    """A command line that drops everything a container with these rights does not have, then runs `command`."""
    if rights is Rights.PRIVILEGED:
        return command
    drop = ["setpriv", *_SETPRIV[rights]]
    if rights is Rights.NONE and outer_uid() == 0:
        # In a user namespace there is only one uid; it is nobody's out there either.
        drop += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        _MOUNTS,
        "container",
        _closed(),
        *drop,
        *command,
    ]


def _closed() -> str:
    """Folders that the program needs and that not everybody may reach: `closed folder|needed folder` lines."""
    lines = []
    for needed in dict.fromkeys((sys.prefix, str(Path(wicketgate.__file__).parents[1]), sys.base_prefix)):
        for above in reversed(Path(needed).parents):
            if not above.stat().st_mode & 0o001:
                lines.append(f"{above}|{needed}")
                break
    return "\n".join(lines)


class Container:
    """A process of a pod.

    Attributes:
        what: its name in the record and in messages.
        log: the file with its stdout and stderr.
    """

    def __init__(self, lab: Lab, host: str, what: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.lab = lab
        self.host = host
        self.what = what
        self.log = log
        self._process = process

    @classmethod
    def start(
        cls,
        lab: Lab,
        host: str,
        what: str,
        command: list[str],
        *,
        rights: Rights = Rights.PRIVILEGED,
        environment: dict[str, str] | None = None,
    ) -> Container:
        """Start a command in a host; its output goes to `what-host.log` in the lab's folder."""
        log = lab.directory() / f"{what.replace(' ', '-')}-{host}.log"
        with log.open("wb") as output:
            process = lab[host].popen(
                *contained(command, rights),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
                cwd="/",
            )
        container = cls(lab, host, what, process, log)
        lab.remember(host, what, process.pid, log)
        return container

    @property
    def pid(self) -> int:
        """Of the command itself: every wrapper execs."""
        return self._process.pid

    def running(self) -> bool:
        """It has not ended."""
        return self._process.poll() is None

    def output(self) -> str:
        """Everything it printed until now."""
        with suppress(OSError):
            return self.log.read_text(errors="replace")
        return ""

    def wait_for(self, text: str, timeout: float = 10.0) -> str:
        """Wait until it has printed a line with `text` in it; that line.

        Raises:
            StateError: it ended before, or did not print it within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.running()
            for line in self.output().splitlines():
                if text in line:
                    return line
            if ended:
                raise StateError(
                    f"[{self.host}] {self.what} ended with exit code {self._process.returncode}: {self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise StateError(
                    f"[{self.host}] {self.what} did not print {text!r} in {timeout:g} s: {self.last_words()}"
                )
            time.sleep(_POLL)

    def last_words(self) -> str:
        """Its last line, for messages."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        return lines[-1] if lines else "(it printed nothing)"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for its end; the exit code.

        Raises:
            StateError: it still runs after `timeout` seconds.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StateError(f"[{self.host}] {self.what} still runs after {timeout:g} s") from None

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM, and SIGKILL when that is not enough; the exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self._process.wait(timeout)
