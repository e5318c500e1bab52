# SPDX-License-Identifier: Apache-2.0
"""Claim: the table of docs/matrix.md is what this kernel does.

A client in another subnet connects to pod:9000 while `wg-quick up` of a peer with AllowedIPs = 0.0.0.0/0 is in force,
under each usual cure and each pair of rp_filter (rp) and src_valid_mark (svm), in both CNI shapes. `ok`: the connection
was made and its echo came back. The listener is an ordinary user's process without any right. Each cell is computed as
well, from a snapshot of the pod taken beside the connection: the model must say what the kernel did.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from _bench import CannotMeasure, conditions, goal, poll, run
from _pod import CLIENT, POD, SHAPES, Pod, Shape
from wicketgate.doctor.firewall import filter_of
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.concerns import STRANGERS_PORT, Concern, Kind
from wicketgate.netpath.diagnose import diagnose
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.walk import Walker

PAGE = Path(__file__).resolve().parent.parent / "docs" / "matrix.md"
LISTEN, BOUND = 9000, 9001  # an ordinary listener, and one bound to the uplink
PATIENCE = 0.35  # seconds for a connection over two veth pairs; tried twice
SETTINGS = [(rp, svm) for rp in (0, 1, 2) for svm in (0, 1)]
NOBODY = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
    "--no-new-privs",
)  # fmt: skip
_ECHO = f"""
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port, device in (({LISTEN}, b""), ({BOUND}, b"eth0")):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    sock.bind(("", port))
    sock.listen(64)
    ready.register(sock, 1)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        connection, _ = key.fileobj.accept()
        connection.send(b"hello")
        connection.close()
"""


@dataclass(frozen=True)
class Fix:
    """A cure: commands that put it in force, and the port to try."""

    name: str
    commands: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    port: int = LISTEN


def mangle(*rules: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Iptables rules and their undoing."""
    return tuple(f"iptables -t mangle -A {r}" for r in rules), tuple(f"iptables -t mangle -D {r}" for r in rules)


_IN = "PREROUTING -p tcp --dport 9000 -j MARK --set-mark 51820"
_OUT = "OUTPUT -p tcp --sport 9000 -j MARK --set-mark 51820"
FIXES = (
    Fix("none"),
    Fix(
        "accept in INPUT and FORWARD",
        tuple(f"iptables -I {chain} -p tcp --dport 9000 -j ACCEPT" for chain in ("INPUT", "FORWARD")),
        tuple(f"iptables -D {chain} -p tcp --dport 9000 -j ACCEPT" for chain in ("INPUT", "FORWARD")),
    ),
    Fix(
        "delete `suppress_prefixlength 0` (also breaks the pod's own subnet)",
        ("ip -4 rule del table main suppress_prefixlength 0",),
        ("ip -4 rule add table main suppress_prefixlength 0",),
    ),
    Fix("mark 51820 in mangle PREROUTING (dport) and OUTPUT (sport)", *mangle(_IN, _OUT)),
    Fix("mark in mangle OUTPUT only", *mangle(_OUT)),
    Fix(
        "connmark set on eth0, restored in OUTPUT",
        *mangle(
            "PREROUTING -i eth0 -p tcp --dport 9000 -j CONNMARK --set-mark 51820",
            "OUTPUT -p tcp --sport 9000 -j CONNMARK --restore-mark",
        ),
    ),
    Fix(
        "tcp_fwmark_accept + mark in PREROUTING",
        ("sysctl -qw net.ipv4.tcp_fwmark_accept=1", *mangle(_IN)[0]),
        ("sysctl -qw net.ipv4.tcp_fwmark_accept=0", *mangle(_IN)[1]),
    ),
    Fix(
        "`ip rule add from POD_IP lookup main`",
        (f"ip -4 rule add from {POD} lookup main",),
        (f"ip -4 rule del from {POD} lookup main",),
    ),
    Fix(
        "`ip rule add ipproto tcp sport 9000 lookup main`",
        ("ip -4 rule add ipproto tcp sport 9000 lookup main",),
        ("ip -4 rule del ipproto tcp sport 9000 lookup main",),
    ),
    Fix("listener bound to the uplink (SO_BINDTODEVICE): no rule, no right at all, uid 65534", port=BOUND),
)


@contextmanager
def seed(shape: Shape) -> Iterator[Pod]:
    """A pod with two listeners, under wg-quick's rules."""
    with Pod(shape, ipv6=False) as pod:
        echo = pod.pod.popen(
            *NOBODY, sys.executable, "-c", _ECHO, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert echo.stdout is not None
            if echo.stdout.readline().strip() != "ready":
                raise CannotMeasure("the listeners did not start: SO_BINDTODEVICE without a right needs Linux 5.7")
            for port in (LISTEN, BOUND):
                poll(lambda port=port: connects(pod, port), f"pod:{port} answers before wg-quick")  # type: ignore[misc]
            pod.pod.run("wg-quick", "up", str(pod.conf(allowed="0.0.0.0/0")))
            yield pod
        finally:
            echo.kill()
            echo.wait()
            if echo.stdout is not None:
                echo.stdout.close()


def connects(pod: Pod, port: int) -> bool:
    """Whether the client's connection is made and the word comes back."""

    def once() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect((POD, port))
                return sock.recv(16) == b"hello"
            except OSError:
                return False

    return pod.client.call(lambda: once() or once())


def computed(pod: Pod, port: int) -> str:
    """What the model says of the same connection: `works`, `broken: CODE`, or `unknown: WHY`."""
    snapshot = pod.pod.acall(take_snapshot)
    flow = Flow(ip_address(CLIENT), ip_address(POD), "tcp", STRANGERS_PORT, port, iif="eth0")
    found = diagnose(Walker(snapshot, filter_of(snapshot)), Concern(Kind.BALANCER, flow))
    if found.works:
        return "works"
    return f"broken: {found.cause.code}" if found.cause is not None else f"unknown: {found.unknown}"


def set_filters(pod: Pod, rp: int, svm: int) -> None:
    """rp_filter and src_valid_mark of the uplink; the kernel takes the larger of `all` and the interface."""

    def write() -> None:
        for name, value in (("rp_filter", rp), ("src_valid_mark", svm)):
            for interface in ("all", "eth0"):
                Path(f"/proc/sys/net/ipv4/conf/{interface}/{name}").write_text(str(value), encoding="ascii")

    pod.pod.call(write)


_over = threading.Event()  # Ctrl-C reaches the main thread only


@dataclass(frozen=True)
class Cell:
    """One connection: what the kernel did, and what the model says of it."""

    kernel: bool
    model: str

    @property
    def agrees(self) -> bool:
        """The model says what the kernel did; unknown does not agree."""
        return self.model == "works" if self.kernel else self.model.startswith("broken: ")


def column(shape: Shape, fixes: tuple[Fix, ...] = FIXES) -> dict[str, list[Cell]]:
    """What every fix does in one shape, a cell for each of SETTINGS."""
    found: dict[str, list[Cell]] = {}
    with seed(shape) as pod:
        for fix in fixes:
            for command in fix.commands:
                pod.pod.run(*command.split())
            found[fix.name] = []
            for rp, svm in SETTINGS:
                if _over.is_set():
                    raise CannotMeasure("interrupted")
                set_filters(pod, rp, svm)
                found[fix.name].append(Cell(connects(pod, fix.port), computed(pod, fix.port)))
            for command in fix.undo:
                pod.pod.run(*command.split())
    return found


def rerun(fixes: tuple[Fix, ...] = FIXES) -> tuple[list[str], list[str]]:
    """The table as lines of markdown, where a cell in which the shapes differ names both; and where the model is wrong."""
    with ThreadPoolExecutor(len(SHAPES)) as pool:
        try:
            by_shape = list(pool.map(lambda shape: column(shape, fixes), SHAPES))
        except BaseException:
            _over.set()
            raise
    word: Callable[[bool], str] = lambda good: "ok" if good else "--"  # noqa: E731
    lines = [
        "| fix | " + " | ".join(f"rp{rp} svm{svm}" for rp, svm in SETTINGS) + " |",
        "|---|" + "---|" * len(SETTINGS),
    ]
    for fix in fixes:
        cells = []
        for number in range(len(SETTINGS)):
            answers = [each[fix.name][number].kernel for each in by_shape]
            same = len(set(answers)) == 1
            cells.append(
                word(answers[0]) if same else ", ".join(f"{s} {word(a)}" for s, a in zip(SHAPES, answers, strict=True))
            )
        lines.append(f"| {fix.name} | " + " | ".join(cells) + " |")
    wrong = [
        f"{shape}, {name}, rp{rp} svm{svm}: the kernel {'answers' if cell.kernel else 'does not answer'}, the model says {cell.model}"
        for shape, columns in zip(SHAPES, by_shape, strict=True)
        for name, cells_of in columns.items()
        for (rp, svm), cell in zip(SETTINGS, cells_of, strict=True)
        if not cell.agrees
    ]
    return lines, wrong


def committed(text: str) -> list[str]:
    """The table of docs/matrix.md."""
    return re.findall(r"^\|.*\|$", text, re.MULTILINE)


def measure(quick: bool) -> None:
    fixes = tuple(f for f in FIXES if f.commands[:1] != () or f.port == BOUND)[-3:] if quick else FIXES
    lines, wrong = rerun(fixes)
    print(f"client in another subnet -> pod:{LISTEN} under wg-quick's rules, bridge and vpc alike; {conditions()}\n")
    print("\n".join(lines) + "\n")
    page = committed(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else []
    different = [line for line in lines if line not in page]
    for line in different:
        print(f"differs from docs/matrix.md: {line}")
    for line in wrong:
        print(f"the model is wrong: {line}")
    goal("this kernel does what docs/matrix.md says", not different)
    goal("the model says of every cell what the kernel does", not wrong)


if __name__ == "__main__":
    run(measure, __doc__)
