# SPDX-License-Identifier: Apache-2.0
"""A load balancer for people: a table of targets and one of flows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wicketgate.lab.nlb.settings import endpoint
from wicketgate.lab.nlb.status import NlbStatus, TargetStatus
from wicketgate.lab.nlb.target import State

COLOURS = {
    State.HEALTHY: "green",
    State.INITIAL: "yellow",
    State.UNHEALTHY: "red",
    State.DRAINING: "cyan",
    State.UNUSED: "dim",
}


def render(status: NlbStatus, *, flows: int = 20) -> RenderableType:
    """The load balancer as tables.

    Args:
        status: what to show.
        flows: how many flows at most; the rest is counted.
    """
    parts: list[RenderableType] = [_targets(status)]
    if status.fail_open:
        parts.append(Text("fail-open: no target is healthy, so traffic goes to all of them", style="bold red"))
    if status.flows:
        parts.append(_flows(status, flows))
        if len(status.flows) > flows:
            parts.append(Text(f"and {len(status.flows) - flows} more flows", style="dim"))
    else:
        parts.append(Text("no flows", style="dim"))
    return Group(*parts)


async def watch(
    ask: Callable[[], Awaitable[NlbStatus]], console: Console, *, interval: float = 0.5, rounds: int | None = None
) -> None:
    """Show the tables live until cancelled.

    Args:
        ask: gives the status, as `NlbControl.status`.
        console: where.
        interval: seconds between two looks.
        rounds: how many looks; None means for ever.

    Raises:
        StateError: the load balancer does not answer (any more).
    """
    # rich would start a thread to refresh by itself; one refresh a look is all that is wanted.
    with Live(console=console, auto_refresh=False) as live:
        seen = 0
        while rounds is None or seen < rounds:
            live.update(render(await ask()), refresh=True)
            seen += 1
            if seen != rounds:
                await asyncio.sleep(interval)


def _targets(status: NlbStatus) -> Table:
    table = Table(title=f"{status.name}: {', '.join(status.listeners)}", title_justify="left")
    for name in ("target", "zone", "state", "for", "reason", "new flows", "flows", "probes"):
        table.add_column(name, justify="right" if name in {"for", "flows", "probes"} else "left")
    for target in status.targets:
        table.add_row(
            endpoint(target.address, target.port),
            target.az,
            Text(target.state, style=COLOURS[target.state]),
            _age(target.state_seconds),
            _why(target),
            "yes" if target.serving else "no",
            str(target.flows),
            str(target.probes),
        )
    if not status.targets:
        table.add_row("no targets", *[""] * 7)
    return table


def _flows(status: NlbStatus, limit: int) -> Table:
    table = Table(title=f"{len(status.flows)} flow{'s' if len(status.flows) != 1 else ''}", title_justify="left")
    for name in ("", "client", "load balancer", "target", "packets", "replies", "forgotten in"):
        table.add_column(name, justify="right" if name in {"packets", "replies", "forgotten in"} else "left")
    for flow in status.flows[:limit]:
        table.add_row(
            flow.protocol,
            endpoint(flow.client, flow.client_port),
            endpoint(flow.address, flow.port),
            endpoint(flow.target, flow.target_port),
            str(flow.packets),
            str(flow.replies),
            f"{flow.expires} s",
        )
    return table


def _why(target: TargetStatus) -> str:
    if target.reason is None:
        return target.description
    return f"{target.reason}: {target.description}" if target.description else str(target.reason)


def _age(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
