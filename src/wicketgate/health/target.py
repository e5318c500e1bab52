# SPDX-License-Identifier: Apache-2.0
"""What the prober probes: told anew each round by the gateway or the sidecar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wicketgate.health.check import CheckResult, Level
from wicketgate.netpath.snapshot import Family, IPAddress
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey


@dataclass(frozen=True, slots=True)
class ProbeIdentity:
    """The probe peer's secrets."""

    private_key: PrivateKey
    preshared_key: PresharedKey | None = None


@dataclass(frozen=True, slots=True)
class TunnelPath:
    """Who pings whom inside the tunnel, one for each family the tunnel has."""

    probe: IPAddress
    gateway: IPAddress

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.probe.version == 4 else 6


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """The tunnel as it should answer now.

    Attributes:
        ifname: the tunnel.
        level: what has to be proved.
        public_key: the device's; None when it cannot be known here.
        listen_port: UDP port clients send to.
        fwmark: of the device's own packets.
        identity: the probe peer; None when there is none on the device.
        paths: inside the tunnel.
        egress_paths: families for which the way out through an uplink is to be proved; empty for role exit.
        outside: a real host that has to be reached through the tunnel, with a TCP port or 0 for a ping.
        given: checks that the agent itself has made: the interface, its address, its peers.
        backend: `kernel`, `userspace`, or empty while unknown.
    """

    ifname: str
    level: Level
    public_key: PublicKey | None
    listen_port: int
    fwmark: int = 0
    identity: ProbeIdentity | None = None
    paths: tuple[TunnelPath, ...] = ()
    egress_paths: tuple[TunnelPath, ...] = ()
    outside: tuple[IPAddress, int] | None = None
    given: tuple[CheckResult, ...] = ()
    backend: str = ""


class Subject(Protocol):
    """Who knows the target."""

    async def target(self) -> ProbeTarget:
        """The target of this round. Cheap: answered from what events have told."""
        ...

    async def mend(self) -> bool:
        """Look at the device itself after a failure, put back what is missing.

        Returns:
            True when something was put back, so that probing again at once makes sense.
        """
        ...
