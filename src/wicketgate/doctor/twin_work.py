# SPDX-License-Identifier: Apache-2.0
"""What is done in the room of a twin: it is built once, every flow is sent, every fix is put in force, tried, undone.

Each word that is told has `flow`, the number of a finding; a fix's has `fix` as well. A fix that several flows share
is put in force once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wicketgate.doctor.apply import Commands
from wicketgate.doctor.change import Fix
from wicketgate.doctor.examine import Finding
from wicketgate.doctor.twin_outcome import Judgement, Outcome, contradicts, stranger_like
from wicketgate.errors import StateError
from wicketgate.kernel.twin import readback
from wicketgate.kernel.twin.nft_trace import Traced
from wicketgate.kernel.twin.room import Tell
from wicketgate.kernel.twin.twin import Twin
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.verdict import Verdict

TRIES, MANY = 8, 32  # of a flow that the model cannot tell; where chance or a counter is at work, more
_CHANCE = re.compile(r"statistic|numgen|random|limit|quota|hash")
_NOT_TOLD = "is not in the listings"  # which chain was registered first: a twin's own order says nothing of it


class Work:
    """One snapshot's twin, and the findings that are looked at in it.

    Args:
        snapshot: the place.
        findings: of the model.
        tell: gets each result.
    """

    def __init__(self, snapshot: Snapshot, findings: Sequence[Finding], tell: Tell) -> None:
        self._snapshot = snapshot
        self._findings = findings
        self._tell = tell
        self._twin: Twin
        self._judgement: Judgement
        self._works: set[int] = set()  # flows that work here, in the model and in the twin

    def do(self) -> None:
        """All of it.

        Raises:
            StateError: it cannot be built.
        """
        self._build()
        if all(self._twin.lacks(version) for version in (4, 6)):
            self._tell({"lacking": list(self._twin.lacking)})
            return
        same = [at for at, each in enumerate(self._findings) if self._reproduced(at, each.diagnosis)]
        self._unknown()
        for fix, users in self._fixes(same).items():
            self._try(fix, users)

    def _build(self) -> None:
        self._twin = Twin(self._snapshot)
        self._twin.build()
        self._judgement = Judgement(self._twin, self._snapshot)

    def _reproduced(self, at: int, found: Diagnosis) -> bool:
        """Whether the twin shows what the model says; told when it does not."""
        if not found.works and not found.broken:
            return False
        try:
            outcome = self._judgement.of(found.concern)
        except StateError as error:
            self._tell({"flow": at, "unplayed": str(error)})
            return False
        why = contradicts(outcome, found)
        if why:
            self._tell({"flow": at, "contradiction": why})
        elif found.works:
            self._works.add(at)
        return not why

    # What the model does not know

    def _unknown(self) -> None:
        unknown = [
            at for at, each in enumerate(self._findings) if not each.diagnosis.works and not each.diagnosis.broken
        ]
        if not unknown:
            return
        traced = True
        try:
            self._twin.trace()
        except StateError:
            traced = False
        for at in unknown:
            self._decide(at, self._findings[at].diagnosis)
        if traced:
            self._twin.stop_tracing()

    def _decide(self, at: int, found: Diagnosis) -> None:
        if _NOT_TOLD in found.unknown:
            return
        tries = MANY if _CHANCE.search(found.unknown) else TRIES
        outcomes: list[Outcome] = []
        words: list[tuple[str, Traced]] = []
        try:
            for attempt in range(tries):
                outcomes.append(self._judgement.of(stranger_like(found.concern, attempt)))
                words = words or self._judgement.traced
        except StateError as error:
            self._tell({"flow": at, "unplayed": str(error)})
            return
        first = outcomes[0]
        if all(each.same_end(first) for each in outcomes):
            self._tell(
                {
                    "flow": at,
                    "decided": first.plain(),
                    "way": self._way(found, first),
                    "steps": _plain(words),
                    "tries": tries,
                }
            )
        else:
            good = sum(each.works for each in outcomes)
            self._tell({"flow": at, "mixed": f"in the twin {good} of {tries} tries worked"})

    def _way(self, found: Diagnosis, outcome: Outcome) -> str:
        flow = found.concern.flow
        if outcome.reply is not Verdict.MISROUTED and outcome.code != "reply-unroutable":
            return ""
        return self._twin.way_out(flow.destination, flow.source)

    # Fixes

    def _fixes(self, same: Sequence[int]) -> dict[Fix, list[tuple[int, int]]]:
        """Those of reproduced flows; equal ones once."""
        found: dict[tuple[Any, ...], tuple[Fix, list[tuple[int, int]]]] = {}
        for rank in range(max((len(self._findings[at].fixes) for at in same), default=0)):
            for at in same:
                if rank < len(self._findings[at].fixes):
                    fix = self._findings[at].fixes[rank].fix
                    found.setdefault((fix.id, fix.commands, fix.words), (fix, []))[1].append((at, rank))
        return dict(found.values())

    def _try(self, fix: Fix, users: Sequence[tuple[int, int]]) -> None:
        changed = fix.apply(self._snapshot).sockets
        commands = Commands(fix.commands, fix.undo, lambda _: None, self._twin.run)
        try:
            commands.run()
            self._twin.replace_sockets(self._snapshot.sockets, changed)
        except StateError as error:
            for at, rank in users:
                self._tell({"flow": at, "fix": rank, "unplayed": str(error)})
            self._afresh()
            return
        results: list[dict[str, Any]] = []
        for at, rank in users:
            try:
                after = self._findings[at].fixes[rank].after
                outcome = self._judgement.of(self._findings[at].diagnosis.concern)
                why = "" if outcome.works else f"{outcome.forward}, then {outcome.reply}: {outcome.reason}"
                if outcome.works and after is not None:
                    why = contradicts(outcome, after)
                results.append({"flow": at, "fix": rank, "proved": not why, "why": why})
            except StateError as error:
                results.append({"flow": at, "fix": rank, "unplayed": str(error)})
        harm = [at for at in sorted(self._works) if not self._still_works(at)]
        left = self._undo(commands, changed)
        for each in results:
            self._tell({**each, "harm": harm, "left": left})

    def _still_works(self, at: int) -> bool:
        try:
            return self._judgement.of(self._findings[at].diagnosis.concern).works
        except StateError:
            return True  # not seen is not broken

    def _undo(self, commands: Commands, changed: Sequence[Any]) -> str:
        """Take it back by its own undo; what is left of it then, in words. The twin is as before in any case."""
        try:
            commands.take_back()
            self._twin.replace_sockets(changed, self._snapshot.sockets)
            different = readback.differences(self._snapshot, self._twin.look())
        except StateError as error:
            different = (str(error),)
        if different:
            self._afresh()
        return "; ".join(different)

    def _afresh(self) -> None:
        self._twin.leave()
        self._build()


def _plain(words: Sequence[tuple[str, Traced]]) -> list[dict[str, Any]]:
    return [
        {
            "direction": direction, "family": each.family, "table": each.table, "chain": each.chain,
            "handle": each.handle, "verdict": each.verdict, "hook": each.hook, "text": each.text,
        }
        for direction, each in words
        if not each.ours and (each.verdict not in ("continue", "") or not each.handle)
    ]  # fmt: skip
