# SPDX-License-Identifier: Apache-2.0
"""`wicket lab`: one machine, the whole story, in network namespaces."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from json import dumps, loads
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from wicketgate.errors import StateError, ToolMissing, WicketError
from wicketgate.lab import scenarios, state
from wicketgate.lab.balancer import status_of
from wicketgate.lab.furnish import furnish
from wicketgate.lab.interrupt import interruptible
from wicketgate.lab.nlb import view
from wicketgate.lab.nlb.status import NlbStatus
from wicketgate.lab.scenario import tell
from wicketgate.lab.shapes import Cni
from wicketgate.lab.topology import Lab, Plan
from wicketgate.lab.unshare import ensure_rights

lab = App(name="lab", help="A client, a load balancer, nodes and pods on this machine, in network namespaces.")

Name = Annotated[str, Parameter()]
REFRESH = 0.5  # s, of --watch


@lab.command
def up(*, cni: Cni = Cni.BRIDGE, gateways: int = 1, bare: bool = False, name: Name = "lab") -> int:
    """Bring a lab up; it stays until `wicket lab down`.

    Each pod runs `wicket up`, the load balancer checks its /healthz, and a WireGuard client has dialled in:
    `wicket lab exec client -- ping 10.8.0.1`.

    Args:
        cni: how pods are attached: `bridge` (kind, flannel) or `vpc` (AWS VPC CNI, Calico, Cilium).
        gateways: how many pods, pod1 to podN; odd ones live on node1, even ones on node2.
        bare: hosts and wires only; nothing runs in them.
        name: which lab; several can live side by side.
    """
    plan = Plan(name, cni, gateways)
    ensure_rights()
    console = Console(stderr=True)
    with interruptible():
        tell_done = _teller(console)
        made = Lab.up(plan, keep=True, progress=tell_done)
        if not bare:
            try:
                furnish(made, tell_done)
            except BaseException:
                made.down()
                raise
    return 0


@lab.command
def run(scenario: str, *, cni: Cni | None = None, json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Tell a story on real packets, in a lab of its own. Exit code 0 when every step went as it should, else 1.

    Args:
        scenario: `seed` (the pod red, then green), `drain` (a gateway leaves, nobody notices) or `reload` (peers come
            and go under another's traffic).
        cni: one shape only; both when it is left out.
        json: one JSON object on stdout, the progress on stderr.
    """
    chosen = scenarios.find(scenario)
    ensure_rights()
    # Where nobody watches, rich would take 80 columns and break lines.
    console = Console(stderr=json) if sys.stdout.isatty() else Console(stderr=json, width=120)
    with interruptible():
        report = tell(scenario, chosen.story, [cni] if cni else list(Cni), console, gateways=chosen.gateways)
    if json:
        print(report.to_json())
    else:
        console.print()
        console.print(report.table())
        console.print(
            "[green]everything went as it should[/]" if report.ok else "[red]not everything went as it should[/]"
        )
    return 0 if report.ok else WicketError.exit_code


@lab.command
def status(*, watch: bool = False, json: Annotated[bool, Parameter(name="--json")] = False, name: Name = "lab") -> int:
    """Show hosts, what runs in them, and the load balancer's targets, states, reasons and flows.

    Args:
        watch: show it anew twice a second until Ctrl-C.
        json: one JSON object instead of tables.
        name: which lab.
    """
    _join(name)
    if json:
        print(dumps(_status(name)[0], indent=2))
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if not watch:
        console.print(_tables(*_status(name)))
        return 0
    with Live(_tables(*_status(name)), console=console, auto_refresh=False, screen=console.is_terminal) as live:
        try:
            while True:
                time.sleep(REFRESH)
                live.update(_tables(*_status(name)), refresh=True)
        except KeyboardInterrupt:
            return 0


@lab.command(name="exec")
def exec_(host: str, *command: Annotated[str, Parameter(allow_leading_hyphen=True)], name: Name = "lab") -> int:
    """Run a command in a host: `wicket lab exec client -- ping 203.0.113.80`. Its exit code is this one's.

    Args:
        host: client, internet, nlb, node1, node2, pod1 ...
        command: program and arguments; a shell when there are none.
        name: which lab; stands before HOST.
    """
    _join(name)
    argv = Lab.open(name)[host].argv(*(command or (os.environ.get("SHELL", "/bin/sh"),)))
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - the command takes this one's place, exit code and all
    except FileNotFoundError:
        raise ToolMissing("nsenter is not installed; Debian's package is util-linux") from None


@lab.command
def down(*, name: Name = "lab", all: Annotated[bool, Parameter(name="--all")] = False) -> int:  # noqa: A002 - the flag's name
    """End a lab with everything in it, and what killed runs left.

    Args:
        name: which lab.
        all: every lab of this user.
    """
    state.check_name(name)
    _join(None if all else name, must=False)
    wanted = set(state.names()) if all else {name}
    for each in state.names():
        record = _load_or_none(each)
        if record is not None and record.orphaned():
            wanted.add(each)
    for each in sorted(wanted):
        was_there = state.record_path(each).exists()
        ended = state.sweep(each)
        if ended or was_there:
            print(f"lab {each} is down: {', '.join(ended) if ended else 'nothing ran any more'}")
        elif each == name:
            print(f"lab {each}: nothing to end")
    return 0


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(f"[green]✓[/] {escape(line)}", highlight=False, soft_wrap=True)


def _load_or_none(name: str) -> state.LabRecord | None:
    try:
        return state.load(name)
    except StateError:
        return None


def _join(name: str | None, *, must: bool = True) -> None:
    """Get the rights over a lab that stands; as an ordinary user by joining its user namespace."""
    for each in state.names() if name is None else [name]:
        record = _load_or_none(each) if not must else state.load(each)
        if record is not None:
            alive = [host.holder.pid for host in record.hosts if host.holder.alive()]
            if alive:
                ensure_rights(alive[0])
                return
        elif must:
            Lab.open(each)  # says that there is none, and which there are


def _status(name: str) -> tuple[dict[str, Any], NlbStatus | None]:
    """What `status --json` prints, and the load balancer's part as it gave it."""
    opened = Lab.open(name)
    record = opened.record
    balancer = status_of(opened)
    return {
        "name": record.name,
        "cni": record.cni,
        "hosts": [
            {
                "name": each.name,
                "address": record.addresses.get(each.name, ""),
                "pid": each.holder.pid,
                "alive": each.holder.alive(),
                "runs": [
                    {"what": process.what, "pid": process.id.pid, "alive": process.id.alive(), "log": process.log}
                    for process in record.processes
                    if process.host == each.name
                ],
            }
            for each in record.hosts
        ],
        "vip": record.addresses.get("vip", ""),
        "load_balancer": None if balancer is None else loads(balancer.to_json()),
    }, balancer


def _tables(value: dict[str, Any], balancer: NlbStatus | None) -> RenderableType:
    hosts = Table(title=f"lab {value['name']}, {value['cni']} shape", title_justify="left")
    for column in ("host", "address", "state", "runs"):
        hosts.add_column(column)
    for each in value["hosts"]:
        runs = ", ".join(run["what"] if run["alive"] else f"[red]{run['what']} (ended)[/]" for run in each["runs"])
        hosts.add_row(each["name"], each["address"], "[green]up[/]" if each["alive"] else "[red]gone[/]", runs)
    return Group(hosts) if balancer is None else Group(hosts, view.render(balancer))
