# SPDX-License-Identifier: Apache-2.0
"""One round of evidence: what a stranger experiences now.

With a door, a round is: for each family of the uplink a fresh handshake as a stranger (new source port, so that a rule
about new connections is met again), a ping through the tunnel, a TCP connection to our own health port as the load
balancer, and at level `egress` a datagram out through NAT and back. Without a door the handshake goes over `lo`, which
is blind to most of what breaks real clients, and questions to the kernel stand in; the verdict says so.

Nothing here decides what "ready" means; the board does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from wicketgate.clock import Clock
from wicketgate.errors import StateError, WicketError
from wicketgate.health.board import Board
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, Evidence, State
from wicketgate.health.door import Door, Loss, NoRouteToStrangers, Outcome
from wicketgate.health.doors import DoorKeeper
from wicketgate.health.explain import Explainer
from wicketgate.health.flow_model import FlowModel, Opinion
from wicketgate.health.metrics import Step as RoundTrip
from wicketgate.health.reasons import disagreements, judged, with_rules
from wicketgate.health.stranger import SHORTEST_TIMEOUT, Stranger
from wicketgate.health.target import ProbeTarget, Subject, TunnelPath
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Family
from wicketgate.wireguard.failure import ProbeFailure, Step

_log = get_logger("probe")

_LONGEST_TIMEOUT = 1.0
_ECHO_PAYLOAD = 16  # bytes
_ACCOUNT_TIMEOUT = 0.1  # seconds for a probe that is made for the door's counters: no answer is expected
# Seconds that an account of the same red checks is good for, one that told nothing less: asking has its price for
# everybody's packets (door_rules). A guess.
_TOLD, _UNTOLD = 10.0, 2.5
_MODEL_TIMEOUT = 2.0  # seconds; a large firewall takes nft one (bench/doctor_large.py). A guess
_UNSTEADY = 3  # tries to find the doors at rest; then the last results count, whatever they are

_HANDSHAKE_CAUSE = {
    Step.REFUSED: Cause.NO_LISTENER,
    Step.UNREACHABLE: Cause.REPLY_UNROUTABLE,
    Step.WRONG_PSK: Cause.KEY_MISMATCH,
    Step.MALFORMED: Cause.KEY_MISMATCH,
}


class Timings(Protocol):
    """Where round trips are counted."""

    def observe_round_trip(self, step: RoundTrip, seconds: float) -> None:
        """One round trip of a step (handshake, tunnel, egress, tcp)."""
        ...

    def count_disagreement(self) -> None:
        """A round in which the door was red and the model saw nothing wrong."""
        ...


class Prober:
    """Makes rounds and publishes them."""

    def __init__(
        self,
        subject: Subject,
        *,
        board: Board,
        doors: DoorKeeper,
        explainer: Explainer,
        health_port: int,
        interval: float,
        clock: Clock,
        timings: Timings | None = None,
        model: FlowModel | None = None,
    ) -> None:
        self._subject = subject
        self._board = board
        self._doors = doors
        self._explainer = explainer
        self._health_port = health_port
        self._timeout = min(max(0.4 * interval, SHORTEST_TIMEOUT), _LONGEST_TIMEOUT)
        self._clock = clock
        self._timings = timings
        self._model_of_place = model
        self._stranger = Stranger(clock, self._timeout)
        self._outside_due = False
        self._slip = ""
        self._silent: set[str] = set()  # checks that failed in the last round
        self._by_door: dict[Family, list[CheckResult]] = {}  # of this round
        self._told: dict[Family, tuple[frozenset[str], float, Loss | None]] = {}  # accounts: of which checks, when

    async def round(self) -> bool:
        """Probe and publish. Whatever goes wrong in it is a red round, never the end of the agent.

        Returns:
            True when something was mended meanwhile and the namespace should be looked at again.
        """
        self._board.beat()
        try:
            return await self._round()
        except StateError as error:
            self._board.publish([self._unknown("state", str(error))], "tunnel", "model")
        except Exception as error:  # noqa: BLE001 - a slip of ours must not take the tunnel down; it is red and said
            slip = f"{type(error).__name__}: {error}"
            if slip != self._slip:
                self._slip = slip
                _log.error("a round of probes failed in an unexpected way", error=slip)
            self._board.publish([self._unknown("state", slip)], "tunnel", "model")
        return False

    async def _round(self) -> bool:
        mended = await self._doors.retry()
        target, results, evidence = await self._steady_results()
        if any(r.state is not State.PASS for r in results):
            mended = await self._mend() or mended
            mended = await self._doors.verify() or mended
            if mended:
                target, results, evidence = await self._steady_results()
        results = await self._explained(target, results)
        self._silent = {r.name for r in results if r.state is State.FAIL}
        results = self._stamped(target, results)
        scope = self._scope(target)
        self._board.publish(results, target.level, evidence, backend=target.backend, scope=scope)
        if self._silent and self._by_door:
            # A red is told at once; which rule it is may take a moment longer.
            results = await self._with_rules(target, results)
            self._board.publish(results, target.level, evidence, backend=target.backend, scope=scope)
        return mended

    def _stamped(self, target: ProbeTarget, results: list[CheckResult]) -> list[CheckResult]:
        """A red round takes its time-outs; what failed in it, and what events have told, holds at its end.

        What passed keeps its own time: evidence does not get younger.
        """
        now = self._board.now()
        return [replace(r, at=now) if r.state is State.FAIL or r in target.given else r for r in results]

    async def _mend(self) -> bool:
        try:
            return await self._subject.mend()
        except StateError as error:
            # What was found is told all the same: it has the better cause.
            _log.warning("after a failed probe the device could not be looked at", why=str(error))
            return False

    async def _steady_results(self) -> tuple[ProbeTarget, list[CheckResult], Evidence]:
        """Results from doors that stood all the while: one that was half built would be taken for a closed one."""
        for _ in range(_UNSTEADY):
            await self._doors.settled()
            generation = self._doors.generation
            target = await self._subject.target()
            results, evidence = await self._results(target)
            if self._doors.generation == generation:
                break
        return target, results, evidence

    def _scope(self, target: ProbeTarget) -> str:
        """What the round was about: with another scope, checks that are no longer made are not missed."""
        families = ",".join(f"{f}@{self._doors.uplink(f)}" for f in self._doors.families())
        inside = ",".join(str(p.family) for p in target.paths)
        names = ",".join(sorted(c.name for c in target.given))
        return f"{target.ifname}/{families}/{inside}/{target.outside is not None}/{names}"

    # -- what a round consists of

    async def _results(self, target: ProbeTarget) -> tuple[list[CheckResult], Evidence]:
        self._stranger.new_round()
        self._by_door.clear()
        results = list(target.given)
        families = self._doors.families()
        if not families:
            results.append(
                self._fail("uplink", Cause.ADDRESS_MISSING, "no uplink has an address a stranger can send to")
            )
            return results, "model"
        if target.level == "port":
            return results + await self._port(target), "port"
        if target.identity is None or target.public_key is None:
            results.append(self._unknown("handshake", "no probe peer is on the device: nothing can be proved"))
            return results + await self._model(target, families), "model"
        # Once a round, within the first session that works: a closed socket carries nothing.
        self._outside_due = target.outside is not None
        evidence: Evidence = "door"
        doorless: list[Family] = []
        for family in families:
            door = self._doors.door(family)
            found = await self._through_door(target, family, door) if door is not None else None
            if found is not None:
                self._by_door[family] = found
                results += found
            elif door is not None:
                evidence = "model"
                doorless.append(family)
                results += await self._over_loopback(target, family)
            elif self._doors.demanded:
                why = self._doors.reason(family)
                results.append(
                    self._unknown(f"handshake-ipv{family}", f"the door was demanded and is not there: {why}")
                )
            else:
                evidence = "model"
                doorless.append(family)
                results += await self._over_loopback(target, family)
        results += await self._model(target, doorless)
        if self._outside_due:
            words = "the outside host was not tried: nothing passes through the tunnel"
            results.append(self._fail("outside", Cause.EGRESS_UNREACHABLE, words))
        return results, evidence

    async def _through_door(self, target: ProbeTarget, family: Family, door: Door) -> list[CheckResult] | None:
        """What the door shows; None where our own half of it has no way, and clients' answers have one."""
        name = f"handshake-ipv{family}"
        try:
            sock = door.udp_socket(family, target.listen_port)
        except NoRouteToStrangers as error:
            if await self._only_ours(target, family, "handshake"):
                return None
            # A client's answer would meet the same missing route: this is a finding, not a failure of the probe.
            return [self._fail(name, Cause.REPLY_UNROUTABLE, str(error))]
        except StateError as error:
            return [self._unknown(name, str(error))]
        with sock:
            results = await self._session(target, sock, f"ipv{family}", f"as a stranger on {door.uplink}")
            proved = results[-1].state is State.PASS
            if proved and target.level == "egress":
                results += [
                    await self._egress(target, path, door) for path in target.egress_paths if path.family == family
                ]
            if proved and self._outside_due:
                results.append(await self._outside(target))
        results += await self._balancer(target, family, door)
        return results

    async def _only_ours(self, target: ProbeTarget, family: Family, flow: str) -> bool:
        """A rule or route sees to what we send ourselves (by its port or user), and not to what clients are sent."""
        if self._doors.demanded:
            return False
        said = (await self._opinions(target, family)).get(flow)
        return said is not None and said.works

    async def _over_loopback(self, target: ProbeTarget, family: Family) -> list[CheckResult]:
        address = self._doors.address(family)
        try:
            sock = socket.socket(
                socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            )
        except OSError as error:
            return [self._unknown(f"handshake-ipv{family}", f"no socket for the probe: {error.strerror}")]
        with sock:
            try:
                sock.connect((str(address), target.listen_port))
            except OSError as error:
                return [self._unknown(f"handshake-ipv{family}", f"no way over lo: {error.strerror}")]
            results = await self._session(target, sock, f"ipv{family}", "over lo")
            if results[-1].state is State.PASS and self._outside_due:
                results.append(await self._outside(target))
            return results

    async def _session(self, target: ProbeTarget, sock: socket.socket, suffix: str, how: str) -> list[CheckResult]:
        """Handshake, and at level tunnel and egress a ping of each tunnel address."""
        try:
            done = await self._stranger.handshake(target, sock, again=f"handshake-{suffix}" not in self._silent)
        except ProbeFailure as failure:
            cause = _HANDSHAKE_CAUSE.get(failure.step, Cause.HANDSHAKE_SILENT)
            return [
                self._fail(f"handshake-{suffix}", cause, f"no handshake {how}: {failure.meaning}", step=failure.step)
            ]
        self._observe("handshake", done.rtt)
        words = f"handshake {how}" + (", under load (answered with a cookie first)" if done.under_load else "")
        results = [self._pass(f"handshake-{suffix}", words, done.rtt)]
        if target.level == "handshake":
            return results
        if not target.paths:
            return [
                *results,
                self._fail(f"tunnel-{suffix}", Cause.ADDRESS_MISSING, "no address of the tunnel is known to ping"),
            ]
        slowest = 0.0
        try:
            for path in target.paths:
                echo = await self._stranger.client(target).ping(path.probe, path.gateway, self._timeout)
                slowest = max(slowest, echo)
        except ProbeFailure as failure:
            return [*results, self._fail(f"tunnel-{suffix}", Cause.TUNNEL_SILENT, f"no echo {how}: {failure.meaning}")]
        self._observe("tunnel", slowest)
        return [*results, self._pass(f"tunnel-{suffix}", f"echo through the tunnel {how}", slowest)]

    async def _egress(self, target: ProbeTarget, path: TunnelPath, door: Door) -> CheckResult:
        name = f"egress-ipv{path.family}"
        out = door.out_target(path.family)
        payload = secrets.token_bytes(_ECHO_PAYLOAD)
        try:
            seconds = await self._stranger.client(target).udp_echo(
                path.probe, out.sport, out.address, out.dport, payload, self._timeout
            )
        except ProbeFailure as failure:
            return self._fail(
                name, Cause.EGRESS_UNREACHABLE, f"nothing came back from outside {door.uplink}: {failure.meaning}"
            )
        self._observe("egress", seconds)
        return self._pass(name, f"out by {door.uplink}, translated, and back", seconds)

    async def _balancer(self, target: ProbeTarget, family: Family, door: Door) -> list[CheckResult]:
        """Our own health port, as the load balancer reaches it."""
        name = f"balancer-ipv{family}"
        where = self._doors.uplink(family), self._doors.address(family)
        if not door.tcp_supported:
            return [await self._explainer.balancer(family, *where, self._board.now())]
        try:
            answer = await door.tcp_check(family, self._health_port, self._timeout, http_path="/livez")
        except NoRouteToStrangers as error:
            if await self._only_ours(target, family, "balancer"):
                checks = [await self._explainer.balancer(family, *where, self._board.now())]
                return judged(checks, await self._opinions(target, family, needed=True), family)
            return [self._fail(name, Cause.REPLY_UNROUTABLE, str(error))]
        except StateError as error:
            return [self._unknown(name, str(error))]
        words = f"as the load balancer on {door.uplink}: {answer.meaning}"
        # Any status is an answer: what /livez says is the kubelet's business, here the way counts.
        if answer.outcome is Outcome.ANSWERED:
            self._observe("tcp", answer.seconds)
            return [self._pass(name, words, answer.seconds)]
        return [
            self._fail(name, Cause.NO_LISTENER if answer.outcome is Outcome.REFUSED else Cause.REPLY_UNROUTABLE, words)
        ]

    async def _outside(self, target: ProbeTarget) -> CheckResult:
        assert target.outside is not None
        self._outside_due = False
        address, port = target.outside
        path = next((p for p in target.paths if p.family == address.version), None)
        if path is None:
            return self._fail("outside", Cause.EGRESS_UNREACHABLE, f"the tunnel has no IPv{address.version}")
        client = self._stranger.client(target)
        try:
            if port:
                seconds = await client.tcp_syn(path.probe, address, port, self._timeout)
            else:
                seconds = await client.ping(path.probe, address, self._timeout)
        except ProbeFailure as failure:
            return self._fail(
                "outside", Cause.EGRESS_UNREACHABLE, f"the outside host through the tunnel: {failure.meaning}"
            )
        return self._pass("outside", "the outside host answered through the tunnel", seconds)

    async def _model(self, target: ProbeTarget, families: Sequence[Family]) -> list[CheckResult]:
        results = []
        for family in families:
            where = self._doors.uplink(family), self._doors.address(family)
            checks = await self._explainer.all(target, family, *where, self._board.now())
            results += judged(checks, await self._opinions(target, family, needed=True), family)
        return results

    async def _port(self, target: ProbeTarget) -> list[CheckResult]:
        """The weakest promise: bound ports and routing, nothing that was tried."""
        results = []
        for family in self._doors.families():
            uplink, address = self._doors.uplink(family), self._doors.address(family)
            results.append(await self._explainer.listener(target, family, address, self._board.now()))
            results.append(await self._explainer.balancer(family, uplink, address, self._board.now()))
        return results

    # -- why it is red

    async def _explained(self, target: ProbeTarget, results: list[CheckResult]) -> list[CheckResult]:
        """A red door says that it is closed; the kernel's own answers and the door's counters often say why."""
        for family, own in self._by_door.items():
            red = [r for r in own if r.state is State.FAIL]
            door = self._doors.door(family)
            if not red or door is None:
                self._told.pop(family, None)
                continue
            with contextlib.suppress(StateError):
                where = self._doors.uplink(family), self._doors.address(family)
                why = await self._explainer.why(target, family, *where, self._board.now())
                if why is not None:
                    cause, words = why.cause, why.evidence
                else:
                    # The way out is asked about where it is red: what passed the tunnel came in.
                    out = any(r.name.startswith("egress") for r in red)
                    red = [r for r in red if r.name.startswith("egress") is out]
                    loss = await self._account(target, family, door, red, out=out)
                    cause, words = (loss.cause, loss.words) if loss is not None else (None, "")
                if cause is not None:
                    better = {id(r): self._fail(r.name, cause, f"{r.evidence}; {words}") for r in red}
                    results = [better.get(id(r), r) for r in results]
        return results

    async def _with_rules(self, target: ProbeTarget, results: list[CheckResult]) -> list[CheckResult]:
        """The very rule, as the model finds it, for each family whose door is red."""
        differ = False
        for family, own in self._by_door.items():
            names = {r.name for r in own}
            if names & self._silent:
                opinions = await self._opinions(target, family)
                differ = differ or bool(disagreements([r for r in results if r.name in names], opinions, family))
                results = with_rules(results, opinions, family)
        if differ and self._timings is not None:
            self._timings.count_disagreement()
        return results

    async def _opinions(self, target: ProbeTarget, family: Family, *, needed: bool = False) -> Mapping[str, Opinion]:
        """The model's; none where it has no right to look. What it cannot read is unknown where it is the evidence."""
        if self._model_of_place is None:
            return {}
        where = self._doors.uplink(family), self._doors.address(family)
        try:
            async with asyncio.timeout(_MODEL_TIMEOUT):
                return await self._model_of_place.ask(target, family, *where)
        except (WicketError, TimeoutError) as error:
            await self._model_of_place.close()  # a reading that was broken off proves nothing later
            why = str(error) or "the place could not be read in time"
        return {name: Opinion(False, words=why) for name in ("handshake", "balancer")} if needed else {}

    async def close(self) -> None:
        """Let go of what was opened to look for reasons."""
        if self._model_of_place is not None:
            await self._model_of_place.close()

    async def _account(
        self, target: ProbeTarget, family: Family, door: Door, red: Sequence[CheckResult], *, out: bool
    ) -> Loss | None:
        names, now = frozenset(r.name for r in red), self._clock.monotonic()
        if names == {"outside"}:
            return None  # beyond the door
        of, at, loss = self._told.get(family, (frozenset(), now, None))
        if of == names and now - at < (_UNTOLD if loss is None else _TOLD):
            return loss

        async def again() -> None:
            await self._again(target, family, door, names)

        loss = await (door.account_out(family, again) if out else door.account(family, again))
        self._told[family] = names, now, loss
        return loss

    async def _again(self, target: ProbeTarget, family: Family, door: Door, names: frozenset[str]) -> None:
        """What failed is tried once more, for the door to count; nobody waits long for an answer."""
        silent = f"handshake-ipv{family}" in names
        if silent or any(name.startswith(("tunnel", "egress")) for name in names):
            client = self._stranger.client(target)
            with contextlib.suppress(ProbeFailure, StateError), door.udp_socket(family, target.listen_port) as sock:
                await self._stranger.knock(target, sock, _ACCOUNT_TIMEOUT if silent else self._timeout)
                for path in target.egress_paths:
                    if f"egress-ipv{path.family}" in names:
                        out = door.out_target(path.family)
                        flow = out.sport, out.address, out.dport, secrets.token_bytes(_ECHO_PAYLOAD)
                        await client.udp_echo(path.probe, *flow, _ACCOUNT_TIMEOUT)
                if f"tunnel-ipv{family}" in names:
                    for path in target.paths:
                        await client.ping(path.probe, path.gateway, _ACCOUNT_TIMEOUT)
        if f"balancer-ipv{family}" in names and door.tcp_supported:
            with contextlib.suppress(StateError):
                await door.tcp_check(family, self._health_port, _ACCOUNT_TIMEOUT, http_path="/livez")

    # -- small things

    def _observe(self, step: RoundTrip, seconds: float) -> None:
        if self._timings is not None:
            self._timings.observe_round_trip(step, seconds)

    def _pass(self, name: str, evidence: str, seconds: float | None = None) -> CheckResult:
        return CheckResult(name, State.PASS, evidence, at=self._board.now(), seconds=seconds)

    def _fail(self, name: str, cause: Cause, evidence: str, **detail: str) -> CheckResult:
        return CheckResult(name, State.FAIL, evidence, cause=cause, detail=detail, at=self._board.now())

    def _unknown(self, name: str, evidence: str) -> CheckResult:
        return CheckResult(name, State.UNKNOWN, evidence, cause=Cause.STATE_UNREADABLE, at=self._board.now())
