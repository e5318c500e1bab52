# SPDX-License-Identifier: Apache-2.0
"""The keeper of `wicket up`: it owns the tunnel, from a wg-quick file to the kernel and back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wicketgate.clock import Clock
from wicketgate.config import wgquick
from wicketgate.config.model import Peer
from wicketgate.config.settings import GatewaySettings, Level, Role, Strategy
from wicketgate.errors import InputError, StateError
from wicketgate.gateway import endpoints, firewall
from wicketgate.gateway.agent import Phase
from wicketgate.gateway.desired import Desired, desire
from wicketgate.gateway.exit_peer import ExitWatch
from wicketgate.gateway.forwarding import Forwarding
from wicketgate.gateway.given import interface_check
from wicketgate.gateway.hooks import run_hooks
from wicketgate.gateway.keeper import Pins, ProbePeer, Tally, View, look_every, old_probes, our_rules
from wicketgate.gateway.live import Live, read_live
from wicketgate.gateway.loading import load
from wicketgate.gateway.lock import other_agents
from wicketgate.gateway.peers import peer_changes
from wicketgate.gateway.saving import save_config
from wicketgate.gateway.steps import kind_of, tunnel_steps
from wicketgate.health.target import ProbeTarget
from wicketgate.kernel.changes import DeleteRule, SetLink
from wicketgate.kernel.device_changes import ConfigureDevice, CreateDevice, ReplaceNftTable
from wicketgate.kernel.inotify import watch_directory
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.nft import nft_apply, nft_delete_table, nft_list_table
from wicketgate.kernel.ownership import LINK_ALIAS
from wicketgate.kernel.plan import Change, Plan
from wicketgate.kernel.wireguard import WireGuardBackend, choose_backend, find_backend
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Rule
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PublicKey

_log = get_logger("gateway")

_RESOLVE_EVERY = 30.0  # seconds between looks at silent peers with named endpoints
_RELOAD_AGAIN = 5.0  # seconds until a reload that could not be completed is tried again. A guess.
_LEVELS = {Level.HANDSHAKE: "handshake", Level.TUNNEL: "tunnel", Level.EGRESS: "egress"}


class _FromFile(ConfigureDevice):
    """All settings of a file at once: told by the file's name, not by each of a thousand peers."""

    def __init__(self, backend: WireGuardBackend, ifname: str, config: DeviceConfig, path: str) -> None:
        super().__init__(backend, ifname, config)
        self._path = path

    @property
    def spelled(self) -> str:
        """The wg(8) command that comes nearest."""
        return f"wg setconf {self.ifname} {self._path}"


class Gateway:
    """Owns one tunnel."""

    def __init__(self, path: str, settings: GatewaySettings, *, netlink: Netlink, clock: Clock) -> None:
        self.ifname = wgquick.interface_name(path)
        self._path = path
        self._settings = settings
        self._netlink = netlink
        self._clock = clock
        self._config = load(path)
        if self._config.interface.private_key is None:
            raise InputError(f"{path}: [Interface] has no PrivateKey; a gateway needs one (wg genkey)")
        self._probe = ProbePeer()
        self._tally = Tally(clock)
        self._pins = Pins(netlink, self._tally)
        self._forwarding = Forwarding(netlink, self.ifname)
        self.view = View(self._tally)
        self._backend: WireGuardBackend | None = None
        self._desired: Desired | None = None
        self._live: Live | None = None
        self._table = ""  # our nft table as the kernel lists it
        self._exit = ExitWatch(self.ifname, clock)
        self._behind = False  # a reload could not be completed
        self._up = False
        self._took_over = False
        self._busy = asyncio.Lock()
        # Keys that the last configuration put on the device: they may be taken off it again.
        self._ours: set[PublicKey] = set()
        self._preshared: dict[PublicKey, PresharedKey | None] = {}

    # -- up

    async def start(self, live: Live) -> None:
        """Put the tunnel up, or take over what a predecessor left.

        Raises:
            StateError: and nothing of the attempt is left.
        """
        link = live.link(self.ifname)
        fresh = link is None
        self._took_over = not fresh
        backend = await self._find(live)
        self._backend = backend
        await self._desire(live)
        assert self._desired is not None
        for warning in self._desired.warnings:
            _log.warning(warning)
        if fresh:
            await run_hooks("PreUp", self._config.interface.pre_up, self.ifname)
        else:
            _log.info("taking over the tunnel that is there", interface=self.ifname, backend=backend.kind)
        plan = Plan()
        if fresh:
            for change in self._fresh_device(backend):
                plan.add(change)
        else:
            if not self._config.interface.save_config:
                # The file is the truth: a client that was struck out while nobody was in charge must not stay. With
                # SaveConfig the device is, and what was added by hand is kept.
                self._ours |= {PublicKey.parse(p.public_key) for p in (await backend.get(self.ifname)).peers}
            await self._keep_device()
        for step in tunnel_steps(self._desired, live, self._netlink, stale=self._left_rules(live)):
            plan.add(step)
        try:
            if self._settings.strategy is Strategy.PIN:
                # Before role exit's rules take effect, so that no reply is lost in between.
                await self._pins.keep(live, self.ifname)
            if not fresh:
                # Half of it is there already and serves people: what cannot be completed must not tear it down.
                await plan.apply()
            else:
                plan.add(ReplaceNftTable("inet", firewall.table_name(self.ifname), self._desired.nft))
                await plan.apply()
                await run_hooks("PostUp", self._config.interface.post_up, self.ifname)
        except BaseException:
            if fresh:
                await plan.undo()
                await self._pins.remove(self._left_rules(await read_live(self._netlink)))
            raise
        self._up = True
        self._remember()
        if fresh:
            self._table = await self._list_table()
        else:
            await self._apply_table()
        self._live = await read_live(self._netlink)
        await self._forwarding.keep(self._live, self._desired)
        self.view.device = await backend.get(self.ifname)

    def _left_rules(self, live: Live) -> tuple[Rule, ...]:
        """Rules with our tag that go when this tunnel goes: pins and those of other tunnels stay while these live."""
        return () if other_agents(self.ifname) else our_rules(live)

    async def _find(self, live: Live) -> WireGuardBackend:
        link = live.link(self.ifname)
        if link is None:
            return await choose_backend(self._settings.userspace.value, netlink=self._netlink)
        backend = await find_backend(self.ifname, netlink=self._netlink)
        if backend is None:
            raise StateError(f"{self.ifname} vanished while it was looked at; try again")
        if link.alias != LINK_ALIAS and await backend.private_key(self.ifname) not in (
            self._config.interface.private_key,
            None,
        ):
            raise StateError(
                f"{self.ifname} is there already and is not ours; it was left alone: use `wicket sidecar` beside whatever"
                f" made it, or remove it (ip link delete {self.ifname})"
            )
        return backend

    def _fresh_device(self, backend: WireGuardBackend) -> tuple[Change, ...]:
        """The device, our tag on it, and all that the file says of it."""
        assert self._desired is not None
        device = self._desired.device
        whole = replace(device, peers=(*device.peers, self._probe_config()))
        return (
            CreateDevice(backend, self._netlink, self.ifname),
            SetLink(self._netlink, self.ifname, alias=LINK_ALIAS),
            _FromFile(backend, self.ifname, whole, self._path),
        )

    def _probe_config(self) -> PeerConfig:
        return PeerConfig(
            self._probe.public_key,
            preshared_key=self._probe.preshared_key,
            allowed_ips=self._probe.allowed_ips,
            persistent_keepalive=0,
        )

    def _remember(self) -> None:
        self._ours = {p.public_key for p in self._config.peers}
        self._preshared = {p.public_key: p.preshared_key for p in self._config.peers}
        self._preshared[self._probe.public_key] = self._probe.preshared_key
        self.view.names = {str(p.public_key): p.name for p in self._config.peers if p.name}
        self.view.probe = str(self._probe.public_key)

    async def _desire(self, live: Live) -> None:
        interface = self._config.interface
        claims = [n for p in self._config.peers for n in p.allowed_ips]
        self._probe.settle(interface.addresses, claims)
        self._desired = desire(
            self._config,
            ifname=self.ifname,
            role=self._settings.role,
            uplinks=live.uplinks(self.ifname),
            endpoints=await endpoints.resolve(self._config.peers),
            probe_addresses=[p.probe for p in self._probe.paths],
        )

    # -- keeping it so

    async def reconcile(self, live: Live) -> bool:
        """Put right what somebody changed. Serialised with reload and mend."""
        async with self._busy:
            if not self._up or self._desired is None or self._backend is None:
                return False
            if self._tally.quarrel():
                await asyncio.sleep(1.0)
            before, self._live = self._live, live
            changed = False
            if live.link(self.ifname) is None:
                # Making it anew ends every session: one look is not enough.
                live = await read_live(self._netlink)
                if live.link(self.ifname) is None:
                    await self._recreate()
                    live = await read_live(self._netlink)
                    changed = True
            if before is not None and [u.mtu for u in before.uplinks(self.ifname)] != [
                u.mtu for u in live.uplinks(self.ifname)
            ]:
                await self._desire(live)
            if self._settings.strategy is Strategy.PIN:
                changed = await self._pins.keep(live, self.ifname) or changed
            steps = tunnel_steps(self._desired, live, self._netlink)
            if steps:
                await self._repair(steps)
                changed = True
            if await self._forwarding.keep(live, self._desired):
                changed = True
            # What was just repaired must not be told as broken by the round of probes that follows.
            self._live = await read_live(self._netlink) if steps else live
            return changed

    async def _recreate(self) -> None:
        _log.warning("somebody removed the tunnel; it is made anew", interface=self.ifname)
        self._tally.changed("device")
        assert self._backend is not None
        await self._backend.destroy(self.ifname)  # whatever is left of it: a dead process, a dead socket
        self._backend = await choose_backend(self._settings.userspace.value, netlink=self._netlink)
        await Plan(self._fresh_device(self._backend)).apply()
        self._remember()
        self._tally.repaired("device")

    async def _repair(self, steps: Sequence[Change]) -> None:
        for step in steps:
            _log.warning("somebody changed what the tunnel needs; it is put right", change=step.spelled)
            self._tally.changed(kind_of(step))
        await Plan(steps).apply()
        for step in steps:
            self._tally.repaired(kind_of(step))

    async def firewall_changed(self) -> bool:
        """Look whether our own table is as we left it."""
        async with self._busy:
            if not self._up or not self._table:
                return False
            if await nft_list_table("inet", firewall.table_name(self.ifname)) == self._table:
                return False
            _log.warning("somebody changed our nftables table; it is put right", table=firewall.table_name(self.ifname))
            self._tally.changed("nft")
            await self._apply_table()
            self._tally.repaired("nft")
            return True

    async def mend(self) -> bool:
        """After a failed probe: look at what sends no events, the device's own settings."""
        async with self._busy:
            if not self._up or self._backend is None:
                return False
            return await self._keep_device()

    async def _keep_device(self) -> bool:
        """Give the device what it lacks: key, port, mark, peers; take off what we put there and no longer want."""
        assert self._backend is not None
        assert self._desired is not None
        state = await self._backend.get(self.ifname)
        want = self._desired.device
        assert want.private_key is not None
        wanted_port = want.listen_port or state.listen_port
        different = (
            state.public_key != str(want.private_key.public())
            or state.listen_port != wanted_port
            or state.fwmark != (want.fwmark or 0)
        )
        leftovers = {PublicKey.parse(k) for k in old_probes(state, self._probe.public_key)}
        change = peer_changes(
            state.peers,
            (*want.peers, self._probe_config()),
            removable=self._ours | leftovers,
            known_preshared=self._preshared or None,
        )
        if different:
            _log.info(
                "change",
                did=f"wg set {self.ifname} listen-port {wanted_port} private-key (hidden) fwmark {want.fwmark or 0:#x}",
            )
            await self._backend.configure(
                self.ifname,
                DeviceConfig(private_key=want.private_key, listen_port=want.listen_port, fwmark=want.fwmark or 0),
            )
        for key in change.remove:
            _log.info("change", did=f"wg set {self.ifname} peer {key} remove")
            await self._backend.remove_peer(self.ifname, key)
        if change.configure:
            for peer in change.configure:
                if peer.public_key != self._probe.public_key:
                    _log.info("change", did=f"wg set {self.ifname} peer {peer.public_key} ...")
            await self._backend.configure(self.ifname, DeviceConfig(peers=change.configure))
        self._remember()
        self.view.device = await self._backend.get(self.ifname) if different or change else state
        if self._up and (different or change):
            self._tally.changed("device")
            self._tally.repaired("device")
        return bool(different or change)

    async def reload(self) -> None:
        """Read the file again and apply the difference; a bad file changes nothing."""
        async with self._busy:
            try:
                config = load(self._path)
                if config.interface.private_key is None:
                    raise InputError(f"{self._path}: [Interface] has no PrivateKey")
            except InputError as error:
                _log.error("the new configuration is not taken; the old one goes on", problem=str(error))
                return
            if config == self._config and not self._behind:
                return
            _log.info("reload", path=self._path)
            old_rules = self._desired.rules if self._desired is not None else ()
            self._ours |= {p.public_key for p in self._config.peers}
            self._config = config
            live = await read_live(self._netlink)
            await self._desire(live)
            assert self._desired is not None
            for warning in self._desired.warnings:
                _log.warning(warning)
            try:
                await self._keep_device()
                await Plan(tunnel_steps(self._desired, live, self._netlink, stale=old_rules)).apply()
                await self._apply_table()
                self._behind = False
            except StateError as error:
                self._behind = True
                _log.error("reload is incomplete; it is tried again soon", error=str(error))

    async def serve(self, changed: asyncio.Event) -> None:
        """Follow the file, and look silent named endpoints up again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_file(changed), name="file")
            group.create_task(self._follow_endpoints(), name="endpoints")
            group.create_task(self._follow_device(changed), name="device")

    async def _follow_device(self, changed: asyncio.Event) -> None:
        """Look at the device now and then: WireGuard tells nobody when a peer is removed, and metrics want its counts."""
        while True:
            await asyncio.sleep(look_every(self.view.device))
            try:
                if await self.mend():
                    changed.set()
            except StateError as error:
                _log.debug("the device cannot be read; the next probe tells more", error=str(error))

    async def _follow_file(self, changed: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                touched = await stack.enter_async_context(watch_directory(str(Path(self._path).parent)))
            except StateError as error:
                # Many nodes are short of inotify instances; that is no reason to serve nobody.
                _log.warning("a changed file is only noticed on SIGHUP", why=str(error))
                touched = asyncio.Event()
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RELOAD_AGAIN if self._behind else None):
                        await touched.wait()
                touched.clear()
                await self.reload()
                changed.set()

    async def _follow_endpoints(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_EVERY)
            if not any(p.endpoint is not None and p.endpoint.address is None for p in self._config.peers):
                continue
            try:
                await self._move_endpoints()
            except StateError as error:
                _log.warning("endpoints were not looked up", error=str(error))

    async def _move_endpoints(self) -> None:
        assert self._backend is not None
        state = await self._backend.get(self.ifname)
        have = {p.public_key: p for p in state.peers}
        now = self._clock.wall()
        quiet: list[Peer] = [p for p in self._config.peers if endpoints.silent(p, have.get(str(p.public_key)), now)]
        # Names may take seconds; nothing else waits for them.
        found = await endpoints.resolve(quiet)
        async with self._busy:
            for peer in quiet:
                where, known = found.get(str(peer.public_key)), have.get(str(peer.public_key))
                if not self._up or where is None or known is None or known.endpoint == where:
                    continue
                if self._config.peer(peer.public_key) != peer:
                    continue  # reloaded meanwhile
                _log.info("change", did=f"wg set {self.ifname} peer {peer.public_key} endpoint {peer.endpoint}")
                moved = PeerConfig(peer.public_key, endpoint=where)
                await self._backend.configure(self.ifname, DeviceConfig(peers=(moved,)))

    # -- what the prober asks

    async def target(self) -> ProbeTarget:
        """The tunnel as it should answer now."""
        if not self._up or self._desired is None or self._backend is None:
            raise StateError(f"{self.ifname} is not up yet")
        level = self._settings.effective_level
        checks = (
            [interface_check(self._live, self.ifname, self._desired.addresses, self._clock.monotonic())]
            if self._live is not None
            else []
        )
        device = self._desired.device
        is_exit = self._settings.role is Role.EXIT
        if is_exit and level is Level.EGRESS:
            self.view.device = await self._backend.get(self.ifname)
            checks.append(self._exit.check(self.view.device.peers))
        port = device.listen_port or (self.view.device.listen_port if self.view.device else 0)
        egress = self._settings.egress
        assert device.private_key is not None
        return ProbeTarget(
            ifname=self.ifname,
            level=_LEVELS[level],  # type: ignore[arg-type]
            public_key=device.private_key.public(),
            listen_port=port,
            fwmark=device.fwmark or 0,
            identity=self._probe.identity,
            paths=self._probe.paths,
            egress_paths=() if is_exit else self._probe.paths,
            outside=(egress.address, egress.port or 0) if egress is not None else None,
            given=tuple(checks),
            backend=self._backend.kind,
        )

    # -- down

    async def leave(self, phase: Phase) -> None:
        """Take down exactly what was put up; after a crash, and where a take-over failed, the tunnel goes on serving."""
        async with self._busy:
            if not self._up or self._backend is None:
                return
            self._up = False
            if phase is Phase.RUNNING or (phase is Phase.STARTING and self._took_over):
                _log.error("the tunnel is left as it is, for the next start to take over", interface=self.ifname)
                await self._backend.close()
                return
            interface = self._config.interface
            await run_hooks("PreDown", interface.pre_down, self.ifname, must_succeed=False)
            if interface.save_config:
                await save_config(self._path, self._config, self._backend, self.ifname, hide=self._probe.public_key)
            await self._delete_table()
            live = await read_live(self._netlink)
            assert self._desired is not None
            own = [r for r in live.rules if r in self._desired.rules]
            for rule in dict.fromkeys((*self._left_rules(live), *own)):
                with contextlib.suppress(StateError):  # gone already; whatever it is, the rest has to go as well
                    await Plan([DeleteRule(self._netlink, rule)]).apply()
            await self._forwarding.restore()
            _log.info("change", did=f"ip link delete {self.ifname}")
            await self._backend.destroy(self.ifname)
            await self._backend.close()
            await run_hooks("PostDown", interface.post_down, self.ifname, must_succeed=False)

    # -- the nftables table

    async def _apply_table(self) -> None:
        assert self._desired is not None
        await nft_apply(self._desired.nft)
        self._table = await self._list_table()

    async def _list_table(self) -> str:
        return await nft_list_table("inet", firewall.table_name(self.ifname)) or ""

    async def _delete_table(self) -> None:
        self._table = ""
        if await nft_list_table("inet", firewall.table_name(self.ifname)) is not None:
            _log.info("change", did=f"nft delete table inet {firewall.table_name(self.ifname)}")
            await nft_delete_table("inet", firewall.table_name(self.ifname))
