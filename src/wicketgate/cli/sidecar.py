# SPDX-License-Identifier: Apache-2.0
"""`wicket sidecar`: stand beside any WireGuard container and tell the truth about it."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wicketgate import logs
from wicketgate.cli.keyfiles import read_key
from wicketgate.clock import SystemClock
from wicketgate.config.settings import SidecarSettings
from wicketgate.errors import InputError
from wicketgate.gateway.assembly import assemble
from wicketgate.gateway.lock import InterfaceLock
from wicketgate.gateway.sidecar import OwnPeer, Sidecar
from wicketgate.kernel.capability import CAP_NET_ADMIN, has_capability
from wicketgate.kernel.netlink import Netlink
from wicketgate.wireguard.keys import PresharedKey, PrivateKey


def sidecar(
    *leftovers: Annotated[str, Parameter(name="PORT WORD", show=True)],
    interface: str | None = None,
    strategy: str | None = None,
    health_port: str | None = None,
    tcp_port: str | None = None,
    listen_port: str | None = None,
    level: str | None = None,
    door: str | None = None,
    probe_interval: str | None = None,
    egress: str | None = None,
    drain: str | None = None,
    private_key_file: str | None = None,
    preshared_key_file: str | None = None,
    public_key: str | None = None,
    log: str | None = None,
) -> int:
    """Stand beside any WireGuard container in the pod: pin its replies, tell the truth about it.

    Waits for the interface, and keeps up when the other container restarts, runs
    `wg syncconf` or makes the interface anew. Changes nothing that it does not
    take back when it leaves.

    With CAP_NET_ADMIN it proves that a client would be served. Without any right
    its health ports still answer the load balancer (they are bound to the
    uplink), but nothing can be proved: /healthz stays red and says so, unless
    --level port accepts that weaker promise, or --private-key-file and
    --public-key name a peer that was added for it (--level handshake).

    Exit codes: 0 stopped as asked; 2 bad usage; 3 the state could not be read or
    changed.

    For example:

      wicket sidecar
      wicket sidecar --interface wg1 --listen-port 51821
      wicket sidecar 9000 hello --level port

    Args:
        leftovers: the arguments of a TCP echo server that this takes the place of: its port becomes --tcp-port.
        interface: the tunnel; default wg0.
        strategy: pin (default) or off.
        health_port: HTTP port of /livez /readyz /healthz /metrics; default 8080.
        tcp_port: port that accepts connections only while /healthz is 200; default 9000, 0 for none.
        listen_port: the UDP port clients send to; default whichever the device has.
        level: port, handshake, tunnel (default) or egress.
        door: auto (default), always, never.
        probe_interval: seconds between probes; default 1.
        egress: an outside host that must answer through the tunnel: ADDRESS or ADDRESS:PORT.
        drain: seconds to go on after SIGTERM; default 30.
        private_key_file: the key of a peer that you added for the sidecar, for where it may not add one itself.
        preshared_key_file: that peer's preshared key.
        public_key: the gateway's public key; goes with --private-key-file.
        log: console (default) or json, on stderr.
    """
    settings = SidecarSettings.load(
        {
            "interface": interface,
            "strategy": strategy,
            "health_port": health_port,
            "tcp_port": tcp_port if tcp_port is not None else _echo_port(leftovers),
            "listen_port": listen_port,
            "level": level,
            "door": door,
            "probe_interval": probe_interval,
            "egress": egress,
            "drain": drain,
            "private_key_file": private_key_file,
            "preshared_key_file": preshared_key_file,
            "public_key": public_key,
            "log": log,
        },
        os.environ,
    )
    logs.configure(settings.log)
    own = _own_peer(settings)
    asyncio.run(_run(settings, own))
    return 0


def _echo_port(leftovers: tuple[str, ...]) -> str | None:
    """The port of `9000 hello`, the arguments of the echo server that this replaces."""
    if not leftovers:
        return None
    port, *words = leftovers
    if len(words) > 1:
        raise InputError(f"sidecar {' '.join(leftovers)}: at most a port and a word are understood, as in `9000 hello`")
    # An echo server takes a list of ports; the health check has one.
    return port.split(",")[0]


def _own_peer(settings: SidecarSettings) -> OwnPeer | None:
    if settings.private_key_file is None and settings.public_key is None:
        return None
    if settings.private_key_file is None or settings.public_key is None:
        raise InputError(
            "--private-key-file and --public-key go together: the peer's own key, and the gateway's public one"
        )
    preshared = read_key(Path(settings.preshared_key_file), PresharedKey) if settings.preshared_key_file else None
    return OwnPeer(read_key(Path(settings.private_key_file), PrivateKey), settings.public_key, preshared)


async def _run(settings: SidecarSettings, own: OwnPeer | None) -> None:
    clock = SystemClock()
    privileged = has_capability(CAP_NET_ADMIN)
    async with Netlink() as netlink:
        keeper = Sidecar(settings, netlink=netlink, clock=clock, privileged=privileged, own_peer=own)
        with ExitStack() as stack:
            if privileged:
                stack.enter_context(InterfaceLock(settings.interface))
            agent = assemble(
                keeper,
                settings,
                netlink=netlink,
                clock=clock,
                privileged=privileged,
                say=lambda line: print(line, flush=True),
            )
            await agent.run()
