# SPDX-License-Identifier: Apache-2.0
"""One packet on its way through one hook: what chains may read and change.

What the model does not know is a `Doubt`. A doubt that decides something becomes a fork: the run is made again for
each answer, and only when the answers lead to different ends is the verdict unknown. So a rate limit before a rule
that only logs, or a random choice between two ways to the same end, costs no certainty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wicketgate.netpath.filter import HookResult, HookVerdict
from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.packet import Connection, ConnState, Packet
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.step import FilterStep, Hook, Stage, Step, TranslationStep, UnknownStep

MOST_RUNS = 256  # a guess: eight independent doubts, all decisive; beyond that the answer is unknown
MOST_JUMPS = (
    10_000  # of one run: a guess, far above real listings; the kernel refuses loops, a damaged listing does not
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """A value, or whether something matches, that the model does not know.

    Attributes:
        reason: why, as a clause: "limit 5/second counts packets".
        key: two doubts of the same key have the same answer within a run; empty for what changes by itself.
    """

    reason: str
    key: str = ""


class UnknowableError(Exception):
    """The run cannot go on: what comes next is not known."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


@dataclass(frozen=True, slots=True)
class End:
    """A chain ended the packet's way: drop or reject."""

    verdict: HookVerdict
    object: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Fork:
    chosen: int
    of: int
    where: str
    reason: str


class Run:
    """A packet in a hook. Chains change it through its methods alone.

    Attributes:
        hook: its name.
        packet: as it is now.
        connection: as connection tracking knows it now.
        tracked: connection tracking has seen the packet (it runs at priority -200 in prerouting and output).
        facts: what the namespace looks like.
        steps: what had an effect so far.
        where: the rule that is looked at, spelled when asked.
        reroute: a chain of output asked for the way again (ip_route_me_harder).
    """

    __slots__ = (
        "_asked",
        "_plan",
        "connection",
        "destination",
        "dport",
        "facts",
        "forks",
        "hook",
        "iif",
        "jumps",
        "oif",
        "packet",
        "protocol",
        "reroute",
        "source",
        "sport",
        "stage",
        "steps",
        "tracked",
        "version",
        "where",
    )  # fmt: skip

    def __init__(
        self,
        hook: Hook,
        packet: Packet,
        connection: Connection,
        facts: Facts,
        *,
        tracked: bool = True,
        plan: tuple[int, ...] = (),
    ) -> None:
        self.hook: Hook = hook
        self.stage = Stage(hook)
        self.facts = facts
        self.connection = connection
        self.tracked = tracked
        self.steps: list[Step] = []
        self.forks: list[_Fork] = []
        self.jumps = 0
        self.reroute = False
        self.where: Callable[[], str] = str
        self._plan = plan
        self._asked: dict[str, int] = {}
        self.set_packet(packet)

    def set_packet(self, packet: Packet) -> None:
        """Go on with this packet. Its numbers are laid out for the rules, which compare integers."""
        self.packet = packet
        self.version: int = packet.destination.version
        self.source = int(packet.source)
        self.destination = int(packet.destination)
        self.protocol = packet.protocol
        self.sport = packet.source_port
        self.dport = packet.destination_port
        self.iif = packet.iif
        self.oif = packet.oif

    @property
    def has_connection(self) -> bool:
        """The packet has a conntrack entry (nf_ct_get gives one)."""
        return self.tracked and self.connection.state not in (ConnState.INVALID, ConnState.UNTRACKED)

    @property
    def ct_state(self) -> ConnState:
        """`ct state`. A packet without an entry is invalid, also where tracking has not looked at it yet."""
        if self.connection.state is ConnState.UNTRACKED:
            return ConnState.UNTRACKED
        return self.connection.state if self.tracked else ConnState.INVALID

    def route_again_if_changed(self, before: Packet) -> None:
        """What a chain of type route, and iptables' mangle OUTPUT, do at their end.

        nf_route_table_hook4, nf_route_table_hook6: mark, addresses, and TOS or hop limit.
        """
        now = self.packet
        other = now.tos != before.tos if self.version == 4 else now.hop_limit != before.hop_limit
        if other or (now.mark, now.source, now.destination) != (before.mark, before.source, before.destination):
            self.reroute = True

    def jump(self) -> None:
        """Another chain is entered."""
        self.jumps += 1
        if self.jumps > MOST_JUMPS:
            raise UnknowableError(self.where(), f"more than {MOST_JUMPS} jumps: the chains go round")

    def choose(self, of: int, doubt: Doubt) -> int:
        """One of `of` answers; the others are tried in other runs."""
        if doubt.key and doubt.key in self._asked:
            return self._asked[doubt.key]
        at = len(self.forks)
        chosen = self._plan[at] if at < len(self._plan) else 0
        self.forks.append(_Fork(chosen, of, self.where(), doubt.reason))
        if doubt.key:
            self._asked[doubt.key] = chosen
        return chosen

    def believes(self, doubt: Doubt) -> bool:
        """Does it match? First no, in another run yes."""
        return self.choose(2, doubt) == 1

    def set_mark(self, mark: int, where: str) -> None:
        """Give the packet a mark."""
        before = self.packet.mark
        mark &= 0xFFFFFFFF
        if mark == before:
            return
        self.packet = replaced(self.packet, mark=mark)
        self.steps.append(
            TranslationStep(
                stage=self.stage,
                object=where,
                effect=f"mark {before:#x} -> {mark:#x}",
                mark_before=before,
                mark_after=mark,
            )
        )

    def set_connection_mark(self, mark: int, where: str) -> None:
        """Give the connection a mark; nothing happens without one, as in the kernel."""
        mark &= 0xFFFFFFFF
        if not self.has_connection or mark == self.connection.mark:
            return
        before = self.connection.mark
        self.connection = replaced(self.connection, mark=mark)
        self.note(where, f"ct mark {before:#x} -> {mark:#x}", verdict="continue")

    def note(self, where: str, effect: str, *, verdict: str, **place: str | int) -> None:
        """A rule had an effect."""
        self.steps.append(
            FilterStep(stage=self.stage, object=where, effect=effect, verdict=verdict, **place)  # type: ignore[arg-type]
        )


Evaluate = Callable[[Run], "End | None"]


def decide(make_run: Callable[[tuple[int, ...]], Run], evaluate: Evaluate) -> HookResult:
    """Run a hook for every answer to its doubts; what all runs agree on is the result."""
    plans: list[tuple[int, ...]] = [()]
    first: HookResult | None = None
    runs = 0
    while plans:
        plan = plans.pop()
        run = make_run(plan)
        result = _result(run, evaluate)
        if first is None:
            first = result
        elif not _same(first, result):
            fork = run.forks[len(plan) - 1]
            return _unknown(first, fork.where, f"{fork.reason}: {_told(first)} or {_told(result)}")
        for at in range(len(plan), len(run.forks)):
            taken = tuple(fork.chosen for fork in run.forks[:at])
            plans.extend((*taken, other) for other in range(1, run.forks[at].of))
        runs += 1
        if plans and runs >= MOST_RUNS:
            fork = run.forks[-1] if run.forks else _Fork(0, 1, "", "")
            return _unknown(
                first, fork.where, f"more than {MOST_RUNS} possible ways; one of the reasons: {fork.reason}"
            )
    assert first is not None
    return first


def _result(run: Run, evaluate: Evaluate) -> HookResult:
    try:
        end = evaluate(run)
    except UnknowableError as error:
        run.steps.append(UnknownStep(stage=run.stage, object=error.where, effect=error.reason))
        return HookResult(HookVerdict.UNKNOWN, run.packet, run.connection, tuple(run.steps), error.where, error.reason)
    if end is None:
        return HookResult(HookVerdict.ACCEPT, run.packet, run.connection, tuple(run.steps), reroute=run.reroute)
    return HookResult(end.verdict, run.packet, run.connection, tuple(run.steps), end.object, end.reason)


def _same(one: HookResult, other: HookResult) -> bool:
    if one.verdict is not other.verdict:
        return False
    if one.verdict is HookVerdict.ACCEPT:
        return (one.packet, one.connection, one.reroute) == (other.packet, other.connection, other.reroute)
    return one.verdict is not HookVerdict.REJECT or one.reason == other.reason


def _told(result: HookResult) -> str:
    if result.verdict is not HookVerdict.ACCEPT:
        return f"{result.verdict} by {result.object}"
    mark = f", ct mark {result.connection.mark:#x}" if result.connection.mark else ""
    return f"accept ({result.packet.spelled()}{mark})"


def _unknown(first: HookResult, where: str, reason: str) -> HookResult:
    step = UnknownStep(stage=_stage(first), object=where, effect=reason)
    return HookResult(HookVerdict.UNKNOWN, first.packet, first.connection, (*first.steps, step), where, reason)


def _stage(result: HookResult) -> Stage:
    return result.steps[-1].stage if result.steps else Stage.PREROUTING
