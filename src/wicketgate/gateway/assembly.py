# SPDX-License-Identifier: Apache-2.0
"""Puts an agent together from its parts: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from wicketgate.clock import Clock
from wicketgate.config.settings import Choice, GatewaySettings, SidecarSettings
from wicketgate.gateway.agent import Agent, AgentOptions, Keeper
from wicketgate.gateway.keeper import View
from wicketgate.gateway.narrate import narrate
from wicketgate.gateway.uplinks import LiveUplink
from wicketgate.health.board import Board
from wicketgate.health.door import Door, TcpMode
from wicketgate.health.doors import DoorKeeper
from wicketgate.health.explain import Explainer
from wicketgate.health.flow_model import LiveModel
from wicketgate.health.metrics import Metrics
from wicketgate.health.oracle import KernelOracle
from wicketgate.health.prober import Prober
from wicketgate.health.server import HealthServer
from wicketgate.kernel.netlink import Netlink
from wicketgate.netpath.snapshot import IPAddress


class ViewedKeeper(Keeper, Protocol):
    """A keeper that tells the metrics what it knows."""

    view: View


def assemble(
    keeper: ViewedKeeper,
    settings: GatewaySettings | SidecarSettings,
    *,
    netlink: Netlink,
    clock: Clock,
    privileged: bool,
    say: Callable[[str], None],
) -> Agent:
    """An agent, ready to run.

    Args:
        keeper: who is responsible for the tunnel.
        settings: of the command.
        netlink: open.
        clock: the time.
        privileged: CAP_NET_ADMIN is there.
        say: prints the line that tells where health is.
    """
    board = Board(clock, settings.probe_interval)
    narrate(board)
    metrics = Metrics(board, keeper.view)

    def make_door(uplink: str, addresses: tuple[IPAddress, ...]) -> Door:
        # `--door always` is the user's word that this kernel queues what is redirected.
        tcp: TcpMode = "always" if settings.door is Choice.ALWAYS else "auto"
        return Door(netlink, uplink=uplink, addresses=addresses, tag=keeper.ifname, tcp=tcp)

    doors = DoorKeeper(
        make_door if privileged else None,
        mode=settings.door.value,
        why_not="" if privileged else "no CAP_NET_ADMIN",
        clock=clock,
    )
    told: list[bool] = []

    def announce(uplinks: tuple[LiveUplink, ...]) -> None:
        addresses = [a for u in uplinks for a in u.addresses]
        if told or not addresses:
            return
        told.append(True)
        say(where_health_is(keeper.ifname, addresses, settings.health_port, settings.tcp_port))

    return Agent(
        keeper,
        netlink=netlink,
        board=board,
        server=HealthServer(board, metrics, port=settings.health_port, tcp_port=settings.tcp_port),
        doors=doors,
        prober=Prober(
            keeper,
            board=board,
            doors=doors,
            explainer=Explainer(KernelOracle(netlink), health_port=settings.health_port),
            health_port=settings.health_port,
            interval=settings.probe_interval,
            clock=clock,
            timings=metrics,
            model=LiveModel(health_port=settings.health_port, clock=clock) if privileged else None,
        ),
        options=AgentOptions(settings.probe_interval, settings.drain, privileged=privileged),
        clock=clock,
        announce=announce,
    )


def where_health_is(ifname: str, addresses: list[IPAddress], port: int, tcp_port: int) -> str:
    """`wg0: health at http://10.0.0.5:8080/healthz, tcp 10.0.0.5:9000`."""
    urls = [f"http://{f'[{a}]' if a.version == 6 else a}:{port}/healthz" for a in addresses]
    tcp = f", tcp port {tcp_port} open while that is 200" if tcp_port else ""
    return f"{ifname}: health at {' '.join(urls)}{tcp}"
