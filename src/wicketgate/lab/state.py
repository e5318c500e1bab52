# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a lab between two commands: one JSON file a lab in the runtime directory.

A process is remembered by its pid and its start time (proc(5), field 22), so that `down` never ends a stranger that
got the number later. What a killed `up` or `run` did not get round to writing down is found by the holders' command
lines: they carry the lab's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from wicketgate.errors import InputError, StateError
from wicketgate.lab.host import Host, holder_name

VERSION = 1  # of the record
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_HOST = re.compile(r"client|internet|nlb|node\d+|pod\d+")  # hosts of a lab; others may be somebody else's holders


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for another: pid and start time in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this pid now; None when there is none."""
        start = start_time(pid)
        return None if start is None else cls(pid, start)

    def alive(self) -> bool:
        """The very process still runs."""
        return start_time(self.pid) == self.start


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host of a lab: its name there ("pod1") and its holder."""

    name: str
    holder: ProcessId


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Something that runs in a host: a load balancer, a gateway, an echo server."""

    host: str
    what: str
    id: ProcessId
    log: str


@dataclass(slots=True)
class LabRecord:
    """All that a later command must know to use or to end a lab."""

    name: str
    cni: str
    gateways: int
    owner: ProcessId | None  # the command that must live as long as the lab; None: the lab stays until `down`
    hosts: list[HostRecord] = field(default_factory=list)
    processes: list[ProcessRecord] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)

    def path(self) -> Path:
        """The file of this lab."""
        return record_path(self.name)

    def directory(self) -> Path:
        """Where this lab keeps logs, configuration files and sockets; made when it is missing."""
        directory = runtime_dir() / self.name
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def save(self) -> None:
        """Write the record, whole or not at all."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        fresh = self.path().with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(text)
        fresh.replace(self.path())

    def forget(self) -> None:
        """Remove the record and the lab's files."""
        shutil.rmtree(runtime_dir() / self.name, ignore_errors=True)
        self.path().unlink(missing_ok=True)

    def orphaned(self) -> bool:
        """The command that owned the lab has ended without taking it down."""
        return self.owner is not None and not self.owner.alive()

    def pid_of(self, host: str) -> int:
        """The holder of a host.

        Raises:
            InputError: the lab has no such host.
            StateError: the host's holder has ended.
        """
        for each in self.hosts:
            if each.name == host:
                if not each.holder.alive():
                    raise StateError(
                        f"lab {self.name}: host {host} is gone; `wicket lab down --name {self.name}` cleans up"
                    )
                return each.holder.pid
        raise InputError(f"lab {self.name} has no host {host!r}; it has: {', '.join(each.name for each in self.hosts)}")


def check_name(name: str) -> str:
    """A lab's name as it may appear in files and command lines.

    Raises:
        InputError: it is not made of small letters, digits and dashes.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: a lab's name has 1 to 40 of a-z, 0-9 and -, not at its ends")
    return name


def runtime_dir() -> Path:
    """The folder of records: /run/wicketgate-lab for root, else below $XDG_RUNTIME_DIR or the temporary folder.

    Raises:
        StateError: the folder belongs to somebody else.
    """
    chosen = os.environ.get("WICKET_LAB_DIR")
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if chosen:
        directory = Path(chosen)
    elif os.access("/run", os.W_OK):
        directory = Path("/run/wicketgate-lab")
    elif xdg and os.access(xdg, os.W_OK):
        directory = Path(xdg) / "wicketgate-lab"
    else:
        # The outer user's id, not the 0 of a user namespace: both must find the same folder.
        directory = Path(tempfile.gettempdir()) / f"wicketgate-lab-{outer_uid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.geteuid():
        raise StateError(f"{directory} belongs to another user; remove it or set WICKET_LAB_DIR")
    return directory


def outer_uid() -> int:
    """The effective user id outside of this user namespace (user_namespaces(7): /proc/self/uid_map)."""
    uid = os.geteuid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, outside, count = (int(part) for part in line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def record_path(name: str) -> Path:
    """The file of the lab of this name."""
    return runtime_dir() / f"{check_name(name)}.json"


def load(name: str) -> LabRecord | None:
    """The record of a lab; None when there is none.

    Raises:
        StateError: the file cannot be read as a record.
    """
    path = record_path(name)
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{path}: not a lab's record ({type(error).__name__}: {error}); `wicket lab down --name {name}` removes it"
        ) from error


def parse(text: str) -> LabRecord:
    """A record from its JSON; ValueError, KeyError or TypeError when it is none."""
    raw: dict[str, Any] = json.loads(text)
    if raw["version"] != VERSION:
        raise ValueError(f"version {raw['version']}; this program writes {VERSION}")
    owner = raw["owner"]
    return LabRecord(
        name=raw["name"],
        cni=raw["cni"],
        gateways=int(raw["gateways"]),
        owner=None if owner is None else ProcessId(**owner),
        hosts=[HostRecord(each["name"], ProcessId(**each["holder"])) for each in raw["hosts"]],
        processes=[
            ProcessRecord(each["host"], each["what"], ProcessId(**each["id"]), each["log"]) for each in raw["processes"]
        ],
        addresses=dict(raw["addresses"]),
    )


def names() -> list[str]:
    """The names of all labs that have a record here."""
    return sorted(path.stem for path in runtime_dir().glob("*.json"))


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (proc(5)); None when it has ended, or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def holders(name: str) -> Iterator[tuple[str, ProcessId]]:
    """Holders of a lab's hosts found by their command line: (name of the host in the lab, process)."""
    own = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with suppress(OSError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            full = holder_name(argv)
            if full is None or entry.stat().st_uid != os.geteuid():
                continue
            lab, _, host = full.rpartition("-")
            if lab != name or not _HOST.fullmatch(host):
                continue
            if os.readlink(entry / "ns/net") == own and os.path.basename(argv[0]) != "unshare":
                continue  # it may look like a holder, but holds no namespace
            process = ProcessId.of(pid)
            if process is not None:
                yield host, process


def sweep(name: str) -> list[str]:
    """End whatever is left of a lab, by record and by command line; the names of the hosts that were ended."""
    ended: dict[str, ProcessId] = {}
    try:
        record = load(name)
    except StateError:
        record = None
    if record is not None:
        for each in record.hosts:
            if each.holder.alive():
                ended[each.name] = each.holder
    ended.update(holders(name))
    for host, process in ended.items():
        if process.alive():
            Host(f"{name}-{host}", process.pid).close()
    if record is not None:
        for each_process in record.processes:
            # Those in a host ended with it; this is for one whose host's holder was killed.
            if each_process.id.alive():
                with suppress(ProcessLookupError):
                    os.kill(each_process.id.pid, signal.SIGKILL)
    shutil.rmtree(runtime_dir() / check_name(name), ignore_errors=True)
    record_path(name).unlink(missing_ok=True)
    return sorted(ended)
