# SPDX-License-Identifier: Apache-2.0
"""The keeper of `wicket sidecar`: it stands beside a tunnel that another container owns.

Two grades. With CAP_NET_ADMIN it pins replies, adds its probe peer, and proves. Without any right it changes nothing:
its health ports are bound to the uplink, which cures the replies, and it can read links, routes and bound ports; a
handshake it can make only with the key of a peer that the user added.

The tunnel may come, go and change at any time: `wg syncconf` takes the probe peer away, a restart makes the interface
anew. Interfaces tell by events; peers do not, so a failed probe looks at the device before it counts as one.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from ipaddress import ip_network

from wicketgate.clock import Clock
from wicketgate.config.settings import Level, SidecarSettings, Strategy
from wicketgate.errors import StateError
from wicketgate.gateway.agent import Phase
from wicketgate.gateway.keeper import Pins, ProbePeer, Tally, View, look_every, old_probes, our_rules
from wicketgate.gateway.live import Live, read_live
from wicketgate.gateway.lock import other_agents
from wicketgate.gateway.steps import route_steps
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.target import ProbeIdentity, ProbeTarget, TunnelPath
from wicketgate.kernel.changes import DeleteRoute
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.kernel.plan import Plan
from wicketgate.kernel.wireguard import WireGuardBackend, find_backend
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Link, NextHop, Route, Rule, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

_log = get_logger("sidecar")
_DEFAULT_PORT = 51820  # what every example uses; only a guess where the device cannot be read
_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class OwnPeer:
    """A peer that the user added for the sidecar, for where it may not add one itself.

    Attributes:
        private_key: its key.
        server: the gateway's public key.
        preshared_key: if the peer has one.
    """

    private_key: PrivateKey
    server: PublicKey
    preshared_key: PresharedKey | None = None


class Sidecar:
    """Stands beside one tunnel."""

    def __init__(
        self,
        settings: SidecarSettings,
        *,
        netlink: Netlink,
        clock: Clock,
        privileged: bool,
        own_peer: OwnPeer | None = None,
    ) -> None:
        self.ifname = settings.interface
        self._settings = settings
        self._netlink = netlink
        self._clock = clock
        self._privileged = privileged
        self._own_peer = own_peer
        self._probe = ProbePeer()
        self._tally = Tally(clock)
        self._pins = Pins(netlink, self._tally)
        self.view = View(self._tally)
        self.view.probe = str(self._probe.public_key)
        self._live: Live | None = None
        self._backend: WireGuardBackend | None = None
        self._device: WireGuardState | None = None
        self._ifindex = 0
        self._obstacle = ""  # why the device cannot be reached, where it cannot
        self._seen = False
        self._busy = asyncio.Lock()
        self._left = False

    # -- keeping up with the other container

    async def start(self, live: Live) -> None:
        """Look around; the tunnel need not be there yet."""
        if not self._privileged:
            _log.warning(
                "no CAP_NET_ADMIN: nothing is changed and nothing is proved by a stranger's packets; the health ports answer"
                " by their own uplink all the same (they are bound to it)"
            )
        if live.link(self.ifname) is None:
            _log.info("waiting for the tunnel", interface=self.ifname)
        await self.reconcile(live)

    async def reconcile(self, live: Live) -> bool:
        """Follow the tunnel and keep the pins."""
        async with self._busy:
            self._live = live
            if not self._privileged or self._left:
                return False
            if self._tally.quarrel():
                await asyncio.sleep(1.0)
            changed = False
            if self._settings.strategy is Strategy.PIN:
                changed = await self._pins.keep(live, self.ifname)
            link = live.link(self.ifname)
            if link is None:
                if self._ifindex:
                    _log.warning("the tunnel is gone; waiting for it to come back", interface=self.ifname)
                self._obstacle = ""
                await self._forget()
                return changed
            if link.index != self._ifindex or self._backend is None:
                changed = await self._meet(link) or changed
            if self._backend is not None:
                changed = await self._keep_peer(live) or changed
            return changed

    async def _forget(self) -> None:
        self._ifindex = 0
        self._device = self.view.device = None
        if self._backend is not None:
            await self._backend.close()
        self._backend = None

    async def _meet(self, link: Link) -> bool:
        """A tunnel that was not known, or one made anew under the old name."""
        await self._forget()
        try:
            self._backend = await find_backend(self.ifname, netlink=self._netlink)
        except StateError as error:
            # wireguard-go of another container whose socket is not shared, or an interface that is still being made.
            if str(error) != self._obstacle:
                self._obstacle = str(error)
                _log.warning("the tunnel's device cannot be reached; nothing can be proved about it", why=str(error))
            return False
        if self._backend is None:
            return False
        self._obstacle = ""
        self._ifindex = link.index
        _log.info("found the tunnel", interface=self.ifname, backend=self._backend.kind)
        return True

    async def _keep_peer(self, live: Live) -> bool:
        """The probe peer and its route are on the device; a predecessor's are not."""
        assert self._backend is not None
        try:
            state = await self._backend.get(self.ifname)
        except StateError as error:
            self._obstacle = str(error)
            self._device = None
            await self._forget()
            return False
        self._device = self.view.device = state
        if not state.public_key:
            return False  # not configured yet: the other container is at it
        addresses = [a.interface for a in live.addresses if a.ifname == self.ifname and a.scope == 0]
        leftovers = old_probes(state, self._probe.public_key)
        probes = {str(self._probe.public_key), *leftovers}
        claims = [n for p in state.peers if p.public_key not in probes for n in p.allowed_ips]
        paths = self._probe.settle(addresses, claims)
        wanted = set(self._probe.allowed_ips)
        mine = next((p for p in state.peers if p.public_key == str(self._probe.public_key)), None)
        changed = False
        if paths and (mine is None or set(mine.allowed_ips) != wanted or not mine.has_preshared_key):
            if self._seen and mine is None:
                _log.info("somebody took the probe peer off the device; it is put back", interface=self.ifname)
                self._tally.changed("peer")
                self._tally.repaired("peer")
            for key in leftovers:
                _log.info("change", did=f"wg set {self.ifname} peer {key} remove # a probe's, left behind")
                await self._backend.remove_peer(self.ifname, PublicKey.parse(key))
            _log.info("change", did=f"wg set {self.ifname} peer {self._probe.public_key} ... # the probe's own")
            peer = PeerConfig(
                self._probe.public_key,
                preshared_key=self._probe.preshared_key,
                allowed_ips=tuple(sorted(wanted, key=str)),
            )
            await self._backend.configure(self.ifname, DeviceConfig(peers=(peer,)))
            self._device = self.view.device = await self._backend.get(self.ifname)
            self._seen = True
            changed = True
        return await self._keep_routes(live, paths) or changed

    async def _keep_routes(self, live: Live, paths: tuple[TunnelPath, ...]) -> bool:
        """A route for a probe address outside the tunnel's networks; ours that are no longer needed go."""
        link = live.link(self.ifname)
        if link is None or not link.up:
            return False
        networks = [a.interface.network for a in live.addresses if a.ifname == self.ifname]
        wanted = [
            Route(
                dst=ip_network(p.probe),
                nexthops=(NextHop(oif=self.ifname),),
                metric=1024 if p.family == 6 else 0,
                scope=0 if p.family == 6 else _SCOPE_LINK,
                protocol=ROUTE_PROTOCOL,
            )
            for p in paths
            if not any(n.version == p.family and p.probe in n for n in networks)
        ]
        steps = route_steps(self.ifname, wanted, live, self._netlink)
        await Plan(steps).apply()
        return bool(steps)

    async def firewall_changed(self) -> bool:
        """The firewall is somebody else's business; the doors look after their own tables."""
        return False

    async def reload(self) -> None:
        """There is no file of ours; what the other container does tells itself."""

    async def serve(self, changed: asyncio.Event) -> None:
        """Nothing of its own to wait for but the device itself: neither it nor its socket sends events."""
        looked = self._clock.monotonic()
        while True:
            await asyncio.sleep(self._settings.probe_interval)
            live = self._live
            if self._privileged and live is not None and live.link(self.ifname) is not None:
                unmet = self._backend is None
                unsettled = self._device is not None and not self._device.public_key
                # WireGuard tells nobody when a peer is removed, and metrics want the device's counts.
                due = self._clock.monotonic() - looked > look_every(self._device)
                if unmet or unsettled or not self._probe.paths or due:
                    looked = self._clock.monotonic()
                    changed.set()

    async def mend(self) -> bool:
        """After a failed probe: is our peer still on the device, is it the same device?"""
        if not self._privileged:
            return False
        live = await read_live(self._netlink)
        return await self.reconcile(live)

    # -- what the prober asks

    async def target(self) -> ProbeTarget:
        """The tunnel as the other container has it now."""
        at = self._clock.monotonic()
        checks = [self._interface(at)]
        device = self._device
        expected = self._settings.listen_port
        port = expected or (device.listen_port if device is not None else 0) or _DEFAULT_PORT
        if device is not None and expected and device.listen_port != expected:
            words = f"the device listens on UDP {device.listen_port}, expected is {expected}"
            checks.append(CheckResult("port", State.FAIL, words, cause=Cause.PORT_MISMATCH, at=at))
        elif expected and device is not None:
            checks.append(CheckResult("port", State.PASS, f"the device listens on UDP {expected}", at=at))
        if self._obstacle and self._settings.effective_level is not Level.PORT:
            checks.append(CheckResult("device", State.UNKNOWN, self._obstacle, cause=Cause.STATE_UNREADABLE, at=at))
        if self._privileged and device is not None and device.public_key:
            public_key, identity, paths = PublicKey.parse(device.public_key), self._probe.identity, self._probe.paths
        elif self._own_peer is not None:
            own = self._own_peer
            public_key, identity, paths = own.server, ProbeIdentity(own.private_key, own.preshared_key), ()
        else:
            public_key, identity, paths = None, None, ()
        egress = self._settings.egress
        return ProbeTarget(
            ifname=self.ifname,
            level=self._settings.effective_level.value,
            public_key=public_key,
            listen_port=port,
            fwmark=device.fwmark if device is not None else self._guessed_mark(),
            identity=identity,
            paths=paths,
            egress_paths=paths,
            outside=(egress.address, egress.port or 0) if egress is not None else None,
            given=tuple(checks),
            backend=self._backend.kind if self._backend is not None else "",
        )

    def _interface(self, at: float) -> CheckResult:
        link = self._live.link(self.ifname) if self._live is not None else None
        if link is None:
            words = f"{self.ifname} is not there"
            return CheckResult("interface", State.FAIL, words, cause=Cause.INTERFACE_MISSING, at=at)
        if not link.up:
            words = f"{self.ifname} is down"
            return CheckResult("interface", State.FAIL, words, cause=Cause.INTERFACE_DOWN, at=at)
        return CheckResult("interface", State.PASS, f"{self.ifname} is up", at=at)

    def _guessed_mark(self) -> int:
        """Where the device cannot be read: the mark that wg-quick's own rule leaves alone."""
        rules: tuple[Rule, ...] = self._live.rules if self._live is not None else ()
        return next((r.fwmark for r in rules if r.invert and r.fwmask == 0xFFFFFFFF), 0)

    # -- leaving

    def _others_routes_to_us(self, live: Live) -> list[DeleteRoute]:
        """Routes that wg-quick made for the probe's peer: it makes one for every peer that the device has by then."""
        return [
            DeleteRoute(self._netlink, route)
            for route in live.routes
            if route.oif == self.ifname
            and route.type == "unicast"
            and route.protocol != ROUTE_PROTOCOL
            and route.dst in self._probe.allowed_ips
        ]

    async def leave(self, _phase: Phase) -> None:
        """Leave no trace, however it ended: the peer, its route and the pins go; the tunnel stays as its owner made it."""
        async with self._busy:
            self._left = True
            if not self._privileged:
                return
            if self._seen and self._backend is None:
                with contextlib.suppress(StateError):  # it could not be reached a moment ago
                    self._backend = await find_backend(self.ifname, netlink=self._netlink)
            if self._backend is not None and self._seen:
                try:
                    _log.info("change", did=f"wg set {self.ifname} peer {self._probe.public_key} remove")
                    await self._backend.remove_peer(self.ifname, self._probe.public_key)
                except StateError as error:
                    _log.info("the probe peer went with its device", why=str(error))
                await self._backend.close()
            live = await read_live(self._netlink)
            await Plan([*route_steps(self.ifname, (), live, self._netlink), *self._others_routes_to_us(live)]).apply()
            # Pins belong to uplinks: while another agent lives here they are its as well.
            if not other_agents(self.ifname):
                await self._pins.remove(our_rules(live))
