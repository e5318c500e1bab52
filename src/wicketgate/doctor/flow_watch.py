# SPDX-License-Identifier: Apache-2.0
"""The flows that matter in one place, judged again and again, and which of them became another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wicketgate.doctor.examine import complete
from wicketgate.doctor.firewall import Walkers
from wicketgate.netpath.concerns import Concern, Kind, endpoint, find, with_senders_endpoints
from wicketgate.netpath.diagnose import Cause, Diagnosis, diagnose
from wicketgate.netpath.snapshot import Snapshot

# Flows that were found once are judged for as long as the watch runs: a listener that is gone is the point. A guess.
MOST_FLOWS = 200


class Judgement(StrEnum):
    """What is known of a flow."""

    WORKS = "works"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FlowState:
    """A flow at one moment.

    Attributes:
        concern: the flow.
        judgement: whether it works.
        cause: why it is broken.
        unknown: what is not known of it.
    """

    concern: Concern
    judgement: Judgement
    cause: Cause | None = None
    unknown: str = ""

    def spelled(self) -> str:
        """`works`, `broken: rp-filter: net.ipv4.conf.eth0.rp_filter = 1`, `unknown: WHY`."""
        if self.cause is not None:
            return f"{self.judgement}: {self.cause.code}: {self.cause.where}"
        return f"{self.judgement}: {self.unknown}" if self.unknown else str(self.judgement)


@dataclass(frozen=True, slots=True)
class FlowChange:
    """A flow that became another; `before` is None for one that was not there."""

    before: FlowState | None
    after: FlowState

    def spelled(self) -> str:
        """`load balancer -> 10.0.0.2:9000/tcp: works -> broken: CODE: WHERE`."""
        was = f"{self.before.judgement} -> " if self.before is not None else ""
        return f"{flow_name(self.after.concern)}: {was}{self.after.spelled()}"


def flow_name(concern: Concern) -> str:
    """`load balancer -> 10.0.0.2:9000/tcp`; the tunnel's clients are named by their address."""
    flow = concern.flow
    who = {Kind.EGRESS: f"tunnel client {flow.source}", Kind.ASKED: str(flow.source)}.get(
        concern.kind, concern.kind.partition(" -> ")[0]
    )
    if concern.kind is Kind.ASKED and flow.source.is_unspecified:
        who = "this host"
    return f"{who} -> {endpoint(flow.destination, flow.destination_port)}/{flow.protocol}"


def _state(found: Diagnosis) -> FlowState:
    if found.works:
        return FlowState(found.concern, Judgement.WORKS)
    if found.cause is not None:
        return FlowState(found.concern, Judgement.BROKEN, found.cause)
    return FlowState(found.concern, Judgement.UNKNOWN, None, found.unknown)


class FlowWatch:
    """Remembers how the flows stood.

    Args:
        asked: makes the flows that were asked for of the first snapshot; without it those that matter are found, in
            every snapshot anew.
    """

    def __init__(self, asked: Callable[[Snapshot], Sequence[Concern]] | None = None) -> None:
        self._asked = asked
        self._states: dict[Concern, FlowState] = {}
        self._walkers: tuple[Snapshot, Walkers] | None = None
        self.notes: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[FlowState, ...]:
        """How each flow stands."""
        return tuple(self._states.values())

    def count(self, judgement: Judgement) -> int:
        """How many flows stand so."""
        return sum(each.judgement is judgement for each in self._states.values())

    def look(self, snapshot: Snapshot) -> tuple[FlowChange, ...]:
        """Judge every flow in this snapshot; those that became another, or are new.

        Raises:
            StateError: what every verdict rests on was not read.
            InputError: a listing is damaged.
        """
        wanted = dict.fromkeys(self._states)
        if self._asked is None:
            found = find(complete(snapshot))
            self.notes = found.notes
            wanted |= dict.fromkeys(found.concerns)
        elif not wanted:
            wanted = dict.fromkeys(self._asked(complete(snapshot)))
        concerns = list(wanted)[:MOST_FLOWS]
        completed = with_senders_endpoints(complete(snapshot), concerns)
        walker = self._of(completed).of(completed)
        changes = []
        for concern in concerns:
            now = _state(diagnose(walker, concern))
            before = self._states.get(concern)
            self._states[concern] = now
            if before is None or (before.judgement, before.spelled()) != (now.judgement, now.spelled()):
                changes.append(FlowChange(before, now))
        return tuple(changes)

    def _of(self, snapshot: Snapshot) -> Walkers:
        """A large firewall is read once, for as long as it and the interfaces stay."""
        kept = self._walkers
        if kept is not None:
            first = kept[0]
            pairs = (
                (snapshot.firewall, first.firewall),
                (snapshot.unread, first.unread),
                (snapshot.links, first.links),
                (snapshot.addresses, first.addresses),
                (snapshot.routes, first.routes),
            )
            if all(now is before for now, before in pairs):
                return kept[1]
        self._walkers = (snapshot, Walkers(snapshot))
        return self._walkers[1]
