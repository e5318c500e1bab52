# SPDX-License-Identifier: Apache-2.0
"""What the gateway and the sidecar have in common: pins, the probe peer, counting and saying what was put right."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network

from wicketgate.clock import Clock
from wicketgate.errors import KernelRefused
from wicketgate.gateway import probe_address
from wicketgate.gateway.live import Live
from wicketgate.gateway.pins import pin_changes
from wicketgate.health.metrics import Counters
from wicketgate.health.target import ProbeIdentity, TunnelPath
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import IPInterface, IPNetwork, Rule, WireGuardState
from wicketgate.netpath.spelling import rule_command
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

_log = get_logger("keeper")

# A guess at what separates a busy machine from two programs that undo each other's work.
_QUARREL_REPAIRS = 50
_QUARREL_SECONDS = 10.0
_FAMILIES = (4, 6)
# About 20 us of Python a peer (by UAPI): at this pace it stays below a thousandth of a core, however many there are.
_LOOK_SECONDS = 5.0
_LOOK_SECONDS_A_PEER = 0.02
# A network for documentation (RFC 3849), routed nowhere: among a peer's allowed-ips it says that the peer is a probe's.
TAG = ip_network("2001:db8:7769:636b::/128")


def look_every(state: WireGuardState | None) -> float:
    """Seconds between two looks at a device: reading it costs by the peer, so a device of thousands is read less often."""
    peers = len(state.peers) if state is not None else 0
    return max(_LOOK_SECONDS, peers * _LOOK_SECONDS_A_PEER)


class Tally:
    """Counts what was put right and what others did, and notices a quarrel."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._repairs: Counter[str] = Counter()
        self._changes: Counter[str] = Counter()
        self._recent: deque[float] = deque(maxlen=_QUARREL_REPAIRS)
        self._told = float("-inf")

    def repaired(self, kind: str) -> None:
        """Something of ours was put back."""
        self._repairs[kind] += 1
        self._recent.append(self._clock.monotonic())

    def changed(self, kind: str) -> None:
        """Somebody changed what we need."""
        self._changes[kind] += 1

    def quarrel(self) -> bool:
        """Whether somebody undoes our repairs as fast as we make them; said once in a while."""
        now = self._clock.monotonic()
        full = len(self._recent) == _QUARREL_REPAIRS and now - self._recent[0] < _QUARREL_SECONDS
        if full and now - self._told > _QUARREL_SECONDS:
            self._told = now
            _log.error(
                "somebody keeps undoing what is put right; trying again more slowly",
                repairs=_QUARREL_REPAIRS,
                seconds=_QUARREL_SECONDS,
            )
        return full

    def counters(self) -> Counters:
        """For the metrics."""
        return Counters(repairs=dict(self._repairs), changes=dict(self._changes))


class Pins:
    """Keeps the source rules of the uplinks' addresses."""

    def __init__(self, netlink: Netlink, tally: Tally) -> None:
        self._netlink = netlink
        self._tally = tally
        self._obstacle = ""
        self._first = True

    async def keep(self, live: Live, tunnel: str) -> bool:
        """Add what is missing, move what stands too late, delete what is no longer needed.

        Returns:
            True when something was changed.
        """
        addresses = [a for uplink in live.uplinks(tunnel) for a in uplink.addresses]
        change = pin_changes(live.rules, addresses)
        if change.obstacle != self._obstacle:
            self._obstacle = change.obstacle
            if change.obstacle:
                _log.error("the pin cannot stand before every foreign rule", why=change.obstacle)
        if not change:
            self._first = False
            return False
        if not self._first and change.add:
            self._tally.changed("rule")
        # Added first: there is no moment without a pin.
        for rule in change.add:
            await self._do("add", rule)
            if not self._first:
                self._tally.repaired("rule")
        for rule in change.delete:
            await self._do("del", rule)
        self._first = False
        return True

    async def remove(self, rules: Iterable[Rule]) -> None:
        """Delete pins."""
        for rule in rules:
            await self._do("del", rule)

    async def _do(self, verb: str, rule: Rule) -> None:
        try:
            if verb == "add":
                await self._netlink.add_rule(rule)
            else:
                await self._netlink.delete_rule(rule)
        except KernelRefused as error:
            # Gone already, or there already: somebody was faster, and the next reading shows what is true.
            if error.errno not in (2, 17):
                raise
            return
        _log.info("change", did=rule_command(verb, rule))


class ProbePeer:
    """The peer by which the agent is its own client. Fresh keys at every start; they are kept in memory alone."""

    def __init__(self) -> None:
        self.private_key = PrivateKey.generate()
        self.preshared_key = PresharedKey.generate()
        self.public_key = self.private_key.public()
        self.paths: tuple[TunnelPath, ...] = ()

    @property
    def identity(self) -> ProbeIdentity:
        """For the prober."""
        return ProbeIdentity(self.private_key, self.preshared_key)

    @property
    def allowed_ips(self) -> tuple[IPNetwork, ...]:
        """What the device takes from it: its addresses, and the tag by which a successor finds it."""
        return (*(ip_network(p.probe) for p in self.paths), TAG)

    def settle(self, addresses: Sequence[IPInterface], allowed_ips: Iterable[IPNetwork]) -> tuple[TunnelPath, ...]:
        """Choose tunnel addresses; those chosen before are kept while they are free."""
        claims = tuple(allowed_ips)
        paths = []
        for family in _FAMILIES:
            gateway = next((i.ip for i in addresses if i.version == family), None)
            if gateway is None:
                continue
            before = next((p for p in self.paths if p.family == family and p.gateway == gateway), None)
            if before is not None and not any(
                n.version == family and n.prefixlen == n.max_prefixlen and before.probe in n for n in claims
            ):
                paths.append(before)
                continue
            probe = probe_address.choose(addresses, claims, 4 if family == 4 else 6)
            if probe is not None:
                paths.append(TunnelPath(probe, gateway))
        self.paths = tuple(paths)
        return self.paths


def old_probes(state: WireGuardState, own: PublicKey) -> tuple[str, ...]:
    """Public keys of probe peers that a killed predecessor left: tagged, and not ours.

    Peers carry no name, and a client may well have the address that a probe would choose: only the tag counts.
    """
    return tuple(p.public_key for p in state.peers if p.public_key != str(own) and TAG in p.allowed_ips)


def our_rules(live: Live) -> tuple[Rule, ...]:
    """Every policy rule with our tag."""
    return tuple(r for r in live.rules if r.protocol == ROUTE_PROTOCOL)


class View:
    """What the metrics may know of the device."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.device: WireGuardState | None = None
        self.names: Mapping[str, str] = {}
        self.probe: str | None = None

    def state(self) -> WireGuardState | None:
        """The device as last read."""
        return self.device

    def peer_names(self) -> Mapping[str, str]:
        """By public key."""
        return self.names

    def probe_public_key(self) -> str | None:
        """The probe peer's."""
        return self.probe

    def counters(self) -> Counters:
        """What was counted."""
        return self._tally.counters()
