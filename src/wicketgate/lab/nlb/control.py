# SPDX-License-Identifier: Apache-2.0
"""The load balancer itself: probes every target from every checker, decides, and tells the data path.

Each checker probes each target on its own phase, so more probes arrive than the interval suggests. Decisions reach the
kernel in one place (`_follow`): first the table, then the flows that must move, so that no packet between the two can
go back to where it should leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from wicketgate.clock import Clock, SystemClock
from wicketgate.errors import InputError, StateError, WicketError
from wicketgate.lab.nlb.checker import probe, require_source
from wicketgate.lab.nlb.dataplane import Backend, Dataplane
from wicketgate.lab.nlb.settings import Checker, NlbSettings, Target
from wicketgate.lab.nlb.status import FlowStatus, NlbStatus, ProbeStatus, TargetStatus
from wicketgate.lab.nlb.target import Probe, State, TargetHealth, fails_open, is_serving
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import IPAddress

_log = get_logger("lab.nlb")


@dataclass(slots=True)
class _Member:
    """One registration."""

    backend: Backend
    health: TargetHealth
    since: float
    keeps_flows: bool = False
    last: dict[IPAddress, Probe] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def target(self) -> Target:
        return self.backend.target


class LoadBalancer:
    """Runs in the network namespace of the load balancer's host.

    Attributes:
        settings: as given; targets registered later are not in it.
    """

    def __init__(self, settings: NlbSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        self._plane = Dataplane(settings)
        self._members: dict[Target, _Member] = {}
        self._numbers = 0
        self._group: asyncio.TaskGroup | None = None
        self._evictions: dict[int, Backend] = {}
        self._served: tuple[Backend, ...] = ()
        self._dirty = asyncio.Event()
        self._following = False
        self._changed = asyncio.Condition()
        for target in settings.targets:
            self._add(target)

    async def run(self, *, ready: Callable[[], None] | None = None) -> None:
        """Balance until cancelled; then take away everything that was put into the kernel.

        Args:
            ready: called once the data path stands.

        Raises:
            StateError: a missing right, tool or checker address.
        """
        for checker in self.settings.checkers:
            require_source(checker)
        try:
            await self._plane.open()
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._dirty.set()
                group.create_task(self._follow(), name="nlb data path")
                for member in self._members.values():
                    self._watch(group, member)
                if ready is not None:
                    ready()
        except BaseExceptionGroup as group_error:
            known = group_error.subgroup(WicketError)
            if known is None:
                raise
            raise _first(known) from group_error
        finally:
            self._group = None
            await self._plane.close()

    async def register(self, target: Target) -> None:
        """Add a target; one that drains starts anew, one that is registered stays as it is.

        Raises:
            InputError: a target this load balancer cannot serve.
        """
        self.settings.check_target(target)
        present = self._members.get(target)
        if present is not None and present.health.state is not State.DRAINING:
            return
        if present is not None:
            self._stop(present)
            self._evictions[present.backend.number] = present.backend
        member = self._add(target)
        _log.info("target registered", target=str(target), az=target.az, state=str(member.health.state))
        if self._group is not None:
            self._watch(self._group, member)
        await self._tell()

    async def deregister(self, target: Target) -> None:
        """Drain a target: no new flow reaches it; a healthy one keeps its flows until the delay ends.

        Raises:
            InputError: it is not registered.
        """
        member = self._members.get(target)
        if member is None:
            known = ", ".join(str(one) for one in self._members) or "none"
            raise InputError(f"target {target} is not registered; registered: {known}")
        if member.health.state is State.DRAINING:
            return
        self._stop(member)
        member.keeps_flows = member.health.deregister()
        member.since = self._clock.monotonic()
        if not member.keeps_flows:
            self._evictions[member.backend.number] = member.backend
        _log.info("target draining", target=str(target), seconds=self.settings.deregistration_delay)
        if self._group is not None:
            member.tasks.append(self._group.create_task(self._drain(member), name=f"drain {target}"))
        else:
            del self._members[target]
        await self._tell()

    async def status(self) -> NlbStatus:
        """Targets, states, reasons and flows, now.

        Raises:
            StateError: connection tracking could not be read.
        """
        flows = await self._plane.flows()
        fail_open = self._fail_open()
        served = {backend.number for backend in self._served}
        counts: dict[int, int] = {}
        for flow in flows:
            counts[flow.mark & 0xFFFF] = counts.get(flow.mark & 0xFFFF, 0) + 1
        return NlbStatus(
            name=self.settings.name,
            fail_open=fail_open,
            targets=tuple(
                self._describe(
                    member, serving=member.backend.number in served, flows=counts.get(member.backend.number, 0)
                )
                for member in sorted(self._members.values(), key=lambda one: one.target)
            ),
            flows=tuple(
                FlowStatus(
                    protocol=flow.protocol,
                    client=flow.client,
                    client_port=flow.client_port,
                    address=flow.address,
                    port=flow.port,
                    target=flow.target,
                    target_port=flow.target_port,
                    packets=flow.packets,
                    replies=flow.replies,
                    expires=flow.expires,
                )
                for flow in flows
            ),
            listeners=tuple(
                f"{one.protocol} {one.port} -> {'target port' if one.target_port is None else one.target_port}"
                for one in self.settings.listeners
            ),
        )

    def state(self, target: Target) -> State | None:
        """The state of a target; None when it is not registered (any more)."""
        member = self._members.get(target)
        return None if member is None else member.health.state

    async def wait_for(self, predicate: Callable[[LoadBalancer], bool], timeout: float) -> bool:
        """Wait until something is so, and the data path follows it.

        Returns:
            whether it came to be within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: predicate(self) and self._is_settled())
        except TimeoutError:
            return False
        return True

    def _is_settled(self) -> bool:
        idle = not self._following and not self._dirty.is_set()
        return idle and not self._evictions and self._served == self._serving()

    def _add(self, target: Target) -> _Member:
        if self._numbers >= 0xFFFF:
            raise StateError("65,535 registrations in one life of a load balancer; start it anew")
        self._numbers += 1
        check = self.settings.check
        health = TargetHealth(
            (checker.address for checker in self.settings.checkers),
            healthy_threshold=check.healthy_threshold,
            unhealthy_threshold=check.unhealthy_threshold,
            used=target.az in {checker.az for checker in self.settings.checkers},
        )
        member = _Member(Backend(self._numbers, target), health, self._clock.monotonic())
        self._members[target] = member
        return member

    def _watch(self, group: asyncio.TaskGroup, member: _Member) -> None:
        if member.health.state is State.UNUSED:
            return
        checkers = self.settings.checkers
        for index, checker in enumerate(checkers):
            phase = self.settings.check.interval * index / len(checkers)
            name = f"checker {checker.address} of {member.target}"
            member.tasks.append(group.create_task(self._check(member, checker, phase), name=name))

    async def _check(self, member: _Member, checker: Checker, phase: float) -> None:
        """Probe for ever, one probe at a time; a late one does not make the next come early."""
        due = self._clock.monotonic() + phase
        while True:
            await asyncio.sleep(max(0.0, due - self._clock.monotonic()))
            outcome = await probe(
                self.settings.check, checker, member.target, self.settings.listeners[0].port, self._clock
            )
            due = max(due + self.settings.check.interval, self._clock.monotonic())
            member.last[checker.address] = outcome
            if member.health.observe(checker.address, outcome):
                self._moved(member)
            await self._tell()

    def _moved(self, member: _Member) -> None:
        """A target changed its state."""
        member.since = self._clock.monotonic()
        health = member.health
        _log.info(
            "target " + health.state, target=str(member.target), reason=str(health.reason or ""), why=health.description
        )
        if health.state is State.UNHEALTHY:
            # Also when it is served again at once because all fail: its flows are then spread over all.
            self._evictions[member.backend.number] = member.backend

    async def _drain(self, member: _Member) -> None:
        await asyncio.sleep(self.settings.deregistration_delay)
        if self.settings.connection_termination:
            self._evictions[member.backend.number] = member.backend
        del self._members[member.target]
        _log.info("target deregistered", target=str(member.target))
        await self._tell()

    async def _follow(self) -> None:
        """Make the data path what the states say, whenever they change."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._following = True
            wanted = self._serving()
            # Who served until now without being healthy (fail-open) loses its flows to those who are.
            gone = [backend for backend in self._served if backend not in wanted and not self._keeps(backend)]
            evictions = {**self._evictions, **{backend.number: backend for backend in gone}}
            self._evictions = {}
            await self._plane.apply(wanted, tuple(self._members))
            for backend in evictions.values():
                await self._plane.evict(backend)
            self._served = wanted
            self._following = False
            async with self._changed:
                self._changed.notify_all()

    def _serving(self) -> tuple[Backend, ...]:
        fail_open = self._fail_open()
        return tuple(
            member.backend for member in self._members.values() if is_serving(member.health.state, fail_open=fail_open)
        )

    def _keeps(self, backend: Backend) -> bool:
        member = self._members.get(backend.target)
        return member is not None and member.backend == backend and member.keeps_flows

    def _fail_open(self) -> bool:
        return fails_open(member.health.state for member in self._members.values())

    def _stop(self, member: _Member) -> None:
        for task in member.tasks:
            task.cancel()
        member.tasks.clear()

    async def _tell(self) -> None:
        """Wake the data path if it has to do something, and everybody who waits for a change."""
        if self._evictions or self._serving() != self._served:
            self._dirty.set()
        async with self._changed:
            self._changed.notify_all()

    def _describe(self, member: _Member, *, serving: bool, flows: int) -> TargetStatus:
        health = member.health
        zones = {checker.address: checker.az for checker in self.settings.checkers}
        return TargetStatus(
            address=member.target.address,
            port=member.target.port,
            az=member.target.az,
            state=health.state,
            reason=health.reason,
            description=health.description,
            serving=serving,
            flows=flows,
            probes=health.probes,
            state_seconds=round(self._clock.monotonic() - member.since, 3),
            last=tuple(
                ProbeStatus(address, zones[address], one.passed, one.description, round(one.seconds, 6))
                for address, one in sorted(member.last.items())
            ),
        )


def _first(group: BaseExceptionGroup[WicketError]) -> WicketError:
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    assert isinstance(one, WicketError)
    return one
