# SPDX-License-Identifier: Apache-2.0
"""What the model says of the flows that health proves: the code and the very rule that breaks each.

The model (netpath) walks the place as the kernel's events keep it (kernel.live_snapshot). Nothing is opened or read
before somebody asks, and whoever has a door asks only when it is red: a green agent pays nothing for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from wicketgate.clock import Clock
from wicketgate.errors import StateError
from wicketgate.health.target import ProbeTarget
from wicketgate.netpath.snapshot import Family, IPAddress

if TYPE_CHECKING:
    from wicketgate.kernel.live_snapshot import LiveSnapshot
    from wicketgate.netpath.concerns import Concern
    from wicketgate.netpath.snapshot import Snapshot
    from wicketgate.netpath.walk import Walker

_KEY = re.compile(r"(?<![A-Za-z0-9+/])([A-Za-z0-9+/]{8})[A-Za-z0-9+/]{35}=")
# A limit or a count lets through what a client sends, unless somebody floods: what the model cannot know of it is no fault.
_LIMIT = re.compile(r"a limit|counts (?:packets|connections)")
_INITIATION = 176  # octets: 148 of the handshake initiation (WireGuard paper, 5.4.2), UDP and IP headers


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the model says of a flow.

    Attributes:
        works: it gets there, and its answer back.
        code: the cause, when it certainly does not; empty otherwise.
        where: the thing to blame, as the tool that lists it prints it; keys are shortened.
        words: one or two sentences, or what is not known.
        limited: all that is not known is whether a limit or a count is exceeded.
    """

    works: bool
    code: str = ""
    where: str = ""
    words: str = ""
    limited: bool = False

    @property
    def unknown(self) -> bool:
        """The model does not know."""
        return not self.works and not self.code


class FlowModel(Protocol):
    """Whom health asks."""

    async def ask(self, target: ProbeTarget, family: Family, uplink: str, address: IPAddress) -> Mapping[str, Opinion]:
        """Opinions by the name of the check: `handshake`, `balancer`, `tunnel`, `egress`.

        Raises:
            StateError: the place could not be read.
        """
        ...

    async def close(self) -> None:
        """Let go of what was opened."""
        ...


class LiveModel:
    """The network namespace of the calling thread.

    Args:
        health_port: where the balancer knocks.
        clock: for the snapshot's time.
    """

    def __init__(self, *, health_port: int, clock: Clock) -> None:
        self._health_port = health_port
        self._clock = clock
        self._live: LiveSnapshot | None = None
        self._last: tuple[Snapshot, Walker] | None = None

    async def ask(self, target: ProbeTarget, family: Family, uplink: str, address: IPAddress) -> Mapping[str, Opinion]:
        """See `FlowModel`."""
        from wicketgate.kernel.live_snapshot import LiveSnapshot  # noqa: PLC0415 - some MB that a green agent saves
        from wicketgate.netpath.concerns import with_senders_endpoints  # noqa: PLC0415
        from wicketgate.netpath.diagnose import diagnose  # noqa: PLC0415

        if self._live is None:
            live = LiveSnapshot(clock=self._clock)
            await live.__aenter__()
            self._live = live
        snapshot = await self._live.current()
        lacking = [f"{each.what}: {each.why}" for each in snapshot.unread if each.what in _NEEDED]
        if lacking:
            raise StateError("; ".join(lacking))
        flows = _flows(target, family, uplink, address, self._health_port)
        snapshot = _without_probe_endpoint(snapshot, target)
        walker = self._walker(with_senders_endpoints(snapshot, flows.values()))
        opinions = {}
        for name, concern in flows.items():
            found = diagnose(walker, concern)
            if found.cause is not None:
                cause = found.cause
                opinions[name] = Opinion(False, cause.code, _shown(cause.where), _shown(cause.explanation))
            elif found.works:
                opinions[name] = Opinion(True)
            else:
                limited = _LIMIT.search(found.unknown) is not None
                opinions[name] = Opinion(False, words=_shown(found.unknown), limited=limited)
        return opinions

    async def close(self) -> None:
        """See `FlowModel`."""
        live, self._live = self._live, None
        if live is not None:
            await live.__aexit__(None, None, None)

    def _walker(self, snapshot: Snapshot) -> Walker:
        """A firewall is read and compiled once, for as long as all stays that its rules look at."""
        from wicketgate.netpath.netfilter.ruleset import Ruleset  # noqa: PLC0415
        from wicketgate.netpath.routing import Routing  # noqa: PLC0415
        from wicketgate.netpath.walk import Walker  # noqa: PLC0415

        if self._last is not None:
            before, walker = self._last
            if all(getattr(before, part) is getattr(snapshot, part) for part in _COMPILED_FROM):
                routing, netfilter = walker.routing, walker.netfilter
                made = Walker(snapshot, netfilter, routing=routing)
                self._last = snapshot, made
                return made
        routing = Routing(snapshot)
        made = Walker(snapshot, Ruleset(snapshot, routing=routing), routing=routing)
        self._last = snapshot, made
        return made


_NEEDED = ("links", "addresses", "routes", "rules")
_COMPILED_FROM = ("firewall", "links", "addresses", "routes", "rules", "neighbours", "sysctls", "unread")


def _flows(
    target: ProbeTarget, family: Family, uplink: str, address: IPAddress, health_port: int
) -> dict[str, Concern]:
    from wicketgate.netpath.concerns import HTTPS, STRANGER, STRANGERS_PORT, Concern, Kind  # noqa: PLC0415
    from wicketgate.netpath.flow import Flow  # noqa: PLC0415

    stranger = STRANGER[family]
    knock = Flow(stranger, address, "udp", STRANGERS_PORT, target.listen_port, iif=uplink, length=_INITIATION)
    check = Flow(stranger, address, "tcp", STRANGERS_PORT, health_port, iif=uplink)
    flows = {"handshake": Concern(Kind.CLIENT, knock), "balancer": Concern(Kind.BALANCER, check)}
    for path in target.paths:
        if "tunnel" not in flows:
            ping = Flow(path.probe, path.gateway, "icmp", iif=target.ifname, length=84)
            flows["tunnel"] = Concern(Kind.ASKED, ping)
    for path in target.egress_paths if target.level == "egress" else ():
        if path.family == family:
            out = Flow(path.probe, stranger, "udp", STRANGERS_PORT, HTTPS, iif=target.ifname)
            flows["egress"] = Concern(Kind.EGRESS, out)
    return flows


def _without_probe_endpoint(snapshot: Snapshot, target: ProbeTarget) -> Snapshot:
    """The probe stands for a client elsewhere: where its own last packet came from (lo, without a door) says nothing."""
    probes = {path.probe for path in (*target.paths, *target.egress_paths)}
    devices = tuple(
        replace(
            device,
            peers=tuple(
                replace(peer, endpoint=None)
                if any(net.num_addresses == 1 and net.network_address in probes for net in peer.allowed_ips)
                else peer
                for peer in device.peers
            ),
        )
        for device in snapshot.wireguard
    )
    return replace(snapshot, wireguard=devices)


def _shown(text: str) -> str:
    """Without whole keys: public as they are, nobody at the health port needs them."""
    return _KEY.sub(r"\1...", text)
