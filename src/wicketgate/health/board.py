# SPDX-License-Identifier: Apache-2.0
"""The board: checks go in, a verdict comes out. Pure: no loop, no socket, an injected clock.

Invariants:
- Nothing is ready without a full set of checks that passed, each no older than three intervals.
- A verdict is computed when something was published and once more when evidence goes stale; everything else is
  answered from the cache, so a thousand questions cost what one costs.
- Only the monotonic clock is read: setting the wall clock changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from wicketgate.clock import Clock
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, Evidence, Level, State
from wicketgate.health.verdict import Verdict
from wicketgate.logs import get_logger

# DESIGN: evidence older than three probe intervals is no evidence.
STALE_INTERVALS = 3

# A round may wait for several time-outs in a row and still be alive; a guess, well below kubelet's patience
# (failureThreshold 3 x periodSeconds 10).
HEARTBEAT_SECONDS = 30.0

# Kinds of rounds whose checks are remembered: uplinks and addresses come and go, and come back. A guess.
SCOPES = 16

_Kind = tuple[Level | None, Evidence | None, str]

Listener = Callable[[Verdict], None]

_log = get_logger("health")


class Board:
    """Holds the newest checks and says what they mean.

    Args:
        clock: the time; only `monotonic` is read.
        interval: seconds between two rounds of probes.
        heartbeat_limit: seconds without `beat` or `publish` after which the agent no longer counts as live.
    """

    def __init__(self, clock: Clock, interval: float, *, heartbeat_limit: float | None = None) -> None:
        if not (math.isfinite(interval) and interval > 0):
            raise ValueError(f"probe interval: {interval} s was given; it is a positive number of seconds")
        self._clock = clock
        self._limit = STALE_INTERVALS * interval
        self._heartbeat_limit = heartbeat_limit or max(HEARTBEAT_SECONDS, 10 * interval)
        self._beat = clock.monotonic()
        self._results: tuple[CheckResult, ...] = ()
        # A check that vanishes is missed. By kind of round, then by name in order of appearance; the newest result.
        self._seen: dict[_Kind, dict[str, CheckResult]] = {}
        self._level: Level | None = None
        self._evidence: Evidence | None = None
        self._scope = ""
        self._backend = ""
        self._draining = False
        self._started = False
        self._cached: Verdict | None = None
        self._told: bool | None = None
        self._listeners: list[Listener] = []
        self._watchers: list[Listener] = []
        self.computations = 0  # for tests and metrics: how often a verdict was computed

    @property
    def stale_after(self) -> float:
        """Seconds after which evidence no longer counts."""
        return self._limit

    def now(self) -> float:
        """Monotonic seconds of the board's clock, to stamp results and tell ages."""
        return self._clock.monotonic()

    def publish(
        self,
        results: Sequence[CheckResult],
        level: Level,
        evidence: Evidence,
        *,
        backend: str | None = None,
        scope: str = "",
    ) -> Verdict:
        """Replace the checks by those of a new round. Counts as a heartbeat.

        A check that passed or failed in an earlier round of the same level, evidence and scope, and is not in this one,
        is shown as UNKNOWN until it comes back or is retired: a check that is no longer run proves nothing.

        Args:
            results: every check of the round, names unique.
            level: what the round promises when it passes.
            evidence: where it comes from.
            backend: `kernel` or `userspace`; None leaves it as it was.
            scope: what there was to be proved (families, addresses, an outside host), in any stable spelling. Rounds of
                another scope rightly have other checks.

        Raises:
            ValueError: a name occurs twice.
        """
        names = [result.name for result in results]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"checks with the same name in one round: {', '.join(twice)}; each needs its own")
        self._level, self._evidence, self._scope = level, evidence, scope
        if backend is not None:
            self._backend = backend
        now = self._clock.monotonic()
        self._results = tuple(_sane(result, now) for result in results)
        kind = (level, evidence, scope)
        seen = self._seen.pop(kind, {})
        self._seen[kind] = seen  # the newest last
        # UNKNOWN alone leaves no mark: "the state could not be read" is no check that anybody would miss.
        seen |= {result.name: result for result in self._results if result.state is not State.UNKNOWN}
        while len(self._seen) > SCOPES:
            del self._seen[next(iter(self._seen))]
        self.beat()
        return self._recompute()

    def retire(self, *names: str) -> None:
        """Forget checks that are no longer run on purpose (an uplink that went away). The last one is never green."""
        for seen in self._seen.values():
            for name in names:
                seen.pop(name, None)
        self._results = tuple(result for result in self._results if result.name not in names)
        self._recompute()

    def begin_drain(self) -> None:
        """Say no to the load balancer from now on; `ready` goes on telling the truth. There is no way back."""
        self._draining = True
        self._recompute()

    def beat(self) -> None:
        """The prober turns. Called once a round, whatever the round finds."""
        self._beat = self._clock.monotonic()
        if self._cached is not None and not self._cached.live:
            self._cached = None

    @property
    def live(self) -> bool:
        """The loop and the prober turn. Knows nothing of the tunnel: a restart does not mend a network."""
        return self._clock.monotonic() <= self._beat + self._heartbeat_limit

    def verdict(self) -> Verdict:
        """The verdict that holds now, from the cache while nothing can have changed."""
        cached = self._cached
        # Written so that an age that cannot be compared (NaN) recomputes.
        if cached is not None and self._clock.monotonic() <= cached.expires_at:
            return cached
        return self._recompute()

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` at once with the verdict, then whenever `serving` changes.

        Returns:
            a function that ends it.
        """
        verdict = self.verdict()  # first: computing it may tell the listeners
        self._listeners.append(listener)
        listener(verdict)

        def forget() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return forget

    def on_verdict(self, watcher: Listener) -> Callable[[], None]:
        """Call `watcher` whenever a verdict was computed: whoever keeps a timer for `expires_at` sets it here.

        Returns:
            a function that ends it.
        """
        self._watchers.append(watcher)

        def forget() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return forget

    def _judge(self, result: CheckResult, now: float) -> CheckResult:
        # The same sum as in `expires_at`: a difference could round the other way and leave a stale check in the cache.
        if now <= result.at + self._limit:
            return result
        return replace(
            result,
            state=State.UNKNOWN,
            cause=Cause.STATE_UNREADABLE,
            evidence=f"no evidence for more than {self._limit:g} s; the last was: {result.evidence}",
        )

    def _recompute(self) -> Verdict:
        now = self._clock.monotonic()
        self.computations += 1
        current = {result.name: self._judge(result, now) for result in self._results}
        seen = self._seen.get((self._level, self._evidence, self._scope), {})
        checks = [current.pop(name) if name in current else _missed(last) for name, last in seen.items()]
        checks += current.values()
        ready = bool(checks) and all(check.state is State.PASS for check in checks)
        self._started = self._started or ready
        causes: dict[Cause, None] = {}
        if self._draining:
            causes[Cause.AGENT_DRAINING] = None
        for check in checks:
            if check.cause is not None:
                causes[check.cause] = None
        if not self._started:
            causes[Cause.AGENT_STARTING] = None
        elif not checks:
            causes[Cause.STATE_UNREADABLE] = None
        live = now <= self._beat + self._heartbeat_limit
        expiries = [check.at + self._limit for check in checks if check.at + self._limit >= now]
        if live:
            expiries.append(self._beat + self._heartbeat_limit)
        verdict = Verdict(
            ready=ready,
            serving=ready and not self._draining,
            live=live,
            draining=self._draining,
            starting=not self._started,
            level=self._level,
            evidence=self._evidence,
            backend=self._backend,
            causes=tuple(causes),
            checks=tuple(checks),
            computed_at=now,
            expires_at=min(expiries, default=math.inf),
        )
        self._cached = verdict
        if verdict.serving is not self._told:
            self._told = verdict.serving
            self._tell(self._listeners, verdict)
        self._tell(self._watchers, verdict)
        return verdict

    def _tell(self, listeners: list[Listener], verdict: Verdict) -> None:
        for listener in tuple(listeners):
            try:
                listener(verdict)
            except Exception as error:  # noqa: BLE001 - one listener must not keep the others in the dark
                _log.error("a listener to the verdict failed", error=str(error), kind=type(error).__name__)


def _missed(last: CheckResult) -> CheckResult:
    """A check that this round lacks."""
    return replace(
        last,
        state=State.UNKNOWN,
        cause=Cause.STATE_UNREADABLE,
        evidence=f"this check is no longer run; the last was: {last.evidence}",
    )


def _sane(result: CheckResult, now: float) -> CheckResult:
    """The result, or UNKNOWN when its time is not of this clock's past: its age could never be told."""
    if math.isfinite(result.at) and result.at <= now:
        return result
    return replace(
        result,
        state=State.UNKNOWN,
        cause=Cause.STATE_UNREADABLE,
        evidence=f"the time of this evidence cannot be right; it said: {result.evidence}",
        at=now,
    )
