# SPDX-License-Identifier: Apache-2.0
"""`wicket up`: run a gateway from a wg-quick file."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from cyclopts import Parameter

from wicketgate import logs
from wicketgate.clock import SystemClock
from wicketgate.config.settings import GatewaySettings
from wicketgate.errors import StateError
from wicketgate.gateway.assembly import assemble
from wicketgate.gateway.gateway import Gateway
from wicketgate.gateway.lock import InterfaceLock
from wicketgate.kernel.capability import CAP_NET_ADMIN, has_capability
from wicketgate.kernel.netlink import Netlink


def up(
    conf: Annotated[str, Parameter(name="CONF")],
    /,
    *,
    role: str | None = None,
    strategy: str | None = None,
    userspace: str | None = None,
    health_port: str | None = None,
    tcp_port: str | None = None,
    level: str | None = None,
    door: str | None = None,
    probe_interval: str | None = None,
    egress: str | None = None,
    drain: str | None = None,
    log: str | None = None,
) -> int:
    """Run a WireGuard gateway from a wg-quick file, in the foreground.

    The interface is named after the file (wg0.conf makes wg0). The first line on
    stdout tells where health is. SIGHUP, or a changed file, applies the
    difference: sessions of untouched peers survive. SIGTERM fails the load
    balancer's check first, goes on serving for --drain seconds, then takes down
    exactly what was put up; a second one leaves at once.

    Each flag is also an environment variable: --health-port = WICKET_HEALTH_PORT.

    Exit codes: 0 stopped as asked; 2 bad usage or a bad file; 3 a right, module
    or tool is missing, or the kernel refused.

    For example:

      wicket up /etc/wireguard/wg0.conf
      wicket up wg0.conf --role exit --egress 192.0.2.53:53
      curl http://POD:8080/healthz?verbose

    Args:
        conf: a wg-quick file; all of its keys are understood.
        role: server (default): never a default route through the tunnel, whatever a peer claims. exit: the default
            route goes through it, replies are pinned.
        strategy: pin (default): a source rule for every uplink address, kept first. off: none.
        userspace: auto (default): wireguard-go where the kernel has no WireGuard. always, never.
        health_port: HTTP port of /livez /readyz /healthz /metrics; default 8080.
        tcp_port: port that accepts connections only while /healthz is 200; default 9000, 0 for none.
        level: what has to be proved: handshake, tunnel (default of a server), egress (default of an exit).
        door: auto (default): probe as a stranger at the uplink where the kernel can. always: red where it cannot.
            never: the weaker evidence.
        probe_interval: seconds between probes; default 1.
        egress: an outside host that must answer through the tunnel: ADDRESS (ping) or ADDRESS:PORT (TCP).
        drain: seconds to go on serving after SIGTERM; default 30.
        log: console (default) or json, on stderr.
    """
    settings = GatewaySettings.load(
        {
            "role": role,
            "strategy": strategy,
            "userspace": userspace,
            "health_port": health_port,
            "tcp_port": tcp_port,
            "level": level,
            "door": door,
            "probe_interval": probe_interval,
            "egress": egress,
            "drain": drain,
            "log": log,
        },
        os.environ,
    )
    logs.configure(settings.log)
    asyncio.run(_run(conf, settings))
    return 0


async def _run(conf: str, settings: GatewaySettings) -> None:
    clock = SystemClock()
    async with Netlink() as netlink:
        gateway = Gateway(conf, settings, netlink=netlink, clock=clock)
        if not has_capability(CAP_NET_ADMIN):
            raise StateError(
                "wicket up needs CAP_NET_ADMIN in this network namespace: run it as root, or add NET_ADMIN to the container's"
                " capabilities (securityContext.capabilities.add)"
            )
        with InterfaceLock(gateway.ifname):
            agent = assemble(
                gateway,
                settings,
                netlink=netlink,
                clock=clock,
                privileged=True,
                say=lambda line: print(line, flush=True),
            )
            await agent.run()
