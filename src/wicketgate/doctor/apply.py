# SPDX-License-Identifier: Apache-2.0
"""Fixes put in force: each command is run as it was shown, the place is read again, and what did not help is taken back.

A fix is kept when its flow works in the place as it is now read, the very packet gets through where it can be sent, and
no flow that worked before has stopped to. In every other case, also when a command fails or Ctrl-C comes in the middle, its undo is run.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from wicketgate.doctor.examine import Examination, Finding, Judge, Passage, examine
from wicketgate.doctor.prove import Proved
from wicketgate.errors import StateError, WicketError
from wicketgate.kernel.process import Completed, run
from wicketgate.netpath.concerns import Concern
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.snapshot import Snapshot

Look = Callable[[], Snapshot]
Say = Callable[[str], None]
Agree = Callable[[Finding, Proved], bool]

_HANDLE = re.compile(r"# handle (\d+)\s*$", re.MULTILINE)
_SECONDS = 20.0  # for one command; iptables may wait for its lock


@dataclass(frozen=True, slots=True)
class Applied:
    """A fix that was tried in the place itself.

    Attributes:
        concern: the flow it was for.
        proved: the fix.
        kept: it is in force; else it was taken back.
        why: why it was taken back; empty when it is kept.
    """

    concern: Concern
    proved: Proved
    kept: bool
    why: str = ""


class Door(Protocol):
    """Asks the kernel itself; see `DoorProof`."""

    def ask(self, found: Diagnosis, /) -> Passage:
        """What becomes of a flow's very packet."""
        ...


@dataclass(slots=True)
class Surgeon:
    """Applies the best fixes, one flow after the other.

    Args:
        look: reads the place.
        say: gets a line for everything that is done.
        agree: asks whether a fix shall be applied.
        asked: the flows to examine; none: those that matter.
        judge: as of `examine`.
        door: sends the very packet before and after each fix; None sends nothing.
    """

    look: Look
    say: Say
    agree: Agree
    asked: Sequence[Concern] = ()
    judge: Judge | None = None
    door: Door | None = None
    applied: list[Applied] = field(default_factory=list)

    def operate(self, first: Examination) -> Examination:
        """Apply until every flow works, or nothing more is left to be tried.

        Returns:
            The examination of the place as it was left.

        Raises:
            StateError: something could not be taken back; the message says what is left, and how to undo it by hand.
        """
        now, refused = first, set[tuple[Concern, str]]()
        while True:
            chosen = next(
                (
                    (finding, proved)
                    for finding in now.broken
                    for proved in finding.fixes[:1]
                    if proved.fix.commands and (finding.diagnosis.concern, proved.fix.id) not in refused
                ),
                None,
            )
            if chosen is None:
                return now
            finding, proved = chosen
            concern = finding.diagnosis.concern
            refused.add((concern, proved.fix.id))
            if self.agree(finding, proved):
                now = self._try(now, concern, proved)

    def _try(self, before: Examination, concern: Concern, proved: Proved) -> Examination:
        passed = self._passages(before, concern)
        if passed.get(concern):
            why = "the very packet gets through as it is, although it was computed to fail"
            return self._left(before, concern, proved, f"not applied: {why}", why)
        commands = Commands(proved.fix.commands, proved.fix.undo, self.say)
        try:
            commands.run()
            after = examine(self.look(), self.asked, self.judge)
            why = _worse(before, after, concern)
            through: bool | None = None
            if not why:
                through, why = self._through(after, concern, passed)
        except (WicketError, KeyboardInterrupt) as error:
            commands.take_back()
            if isinstance(error, KeyboardInterrupt):
                raise
            return self._left(before, concern, proved, f"taken back: {error}", str(error))
        if why:
            commands.take_back()
            self._left(before, concern, proved, f"taken back: {why}", why)
            return examine(self.look(), self.asked, self.judge)
        if through:
            proved = replace(proved, proved_by=(*proved.proved_by, "door"))
        sent = "; the very packet and its answer get through" if through else ""
        self.say(f"it works now: {concern.spelled()}{sent}")
        self.applied.append(Applied(concern, proved, kept=True))
        return after

    def _left(self, as_it_is: Examination, concern: Concern, proved: Proved, said: str, why: str) -> Examination:
        self.say(said)
        self.applied.append(Applied(concern, proved, kept=False, why=why))
        return as_it_is

    def _passages(self, before: Examination, concern: Concern) -> dict[Concern, bool | None]:
        """Which packets get through before the change: that of the flow, and of those that work."""
        if self.door is None:
            return {}
        looked = [each.diagnosis for each in before.findings]
        return {each.concern: self.door.ask(each).works for each in looked if each.concern == concern or each.works}

    def _through(
        self, after: Examination, concern: Concern, passed: Mapping[Concern, bool | None]
    ) -> tuple[bool | None, str]:
        """Whether the flow's packet gets through now, None where that is not seen; and why the change is not to be kept."""
        if self.door is None:
            return None, ""
        through: bool | None = None
        for each in after.findings:
            found = each.diagnosis
            if found.concern != concern and not passed.get(found.concern):
                continue
            passage = self.door.ask(found)
            if found.concern == concern:
                through = passage.works
                if passage.works is False:
                    return False, f"the very packet still fails: {passage.words}"
                if passage.works is None:
                    self.say(f"the door does not tell: {passage.words}")
            elif passage.works is False:
                return False, f"the packet of {found.concern.spelled()} does not get through any more: {passage.words}"
        return through, ""


def _worse(before: Examination, after: Examination, concern: Concern) -> str:
    """Why a fix is not to be kept; empty when it is."""
    worked = {each.diagnosis.concern for each in before.findings if each.diagnosis.works}
    for finding in after.findings:
        found = finding.diagnosis
        reason = found.cause.code if found.cause is not None else f"unknown: {found.unknown}"
        if found.concern == concern and not found.works:
            return f"the flow still does not work ({reason})"
        if found.concern in worked and not found.works:
            return f"{found.concern.spelled()} does not work any more ({reason})"
    return ""


class Commands:
    """The commands of a fix, as a transaction.

    Args:
        commands: lines as they were shown: ip, nft, iptables, sysctl, wg.
        undo: their undoing, last command first; where there are fewer, they undo all together.
        say: gets each line that is run.
        runner: runs them; without one, they are run here.
    """

    def __init__(
        self,
        commands: Sequence[str],
        undo: Sequence[str],
        say: Say,
        runner: Callable[[list[str]], Completed] | None = None,
    ) -> None:
        self._runner = runner or (lambda argv: asyncio.run(run(argv, timeout=_SECONDS)))
        self._commands = commands
        self._undo = list(undo)
        self._say = say
        self._begun: list[int] = []

    def run(self) -> None:
        """Run them all.

        Raises:
            StateError: one failed, with what it said. What ran before it is for `take_back`.
        """
        for number, command in enumerate(self._commands):
            argv = shlex.split(command)
            self._say(f"# {command}")
            made = argv[:3] in (["nft", "insert", "rule"], ["nft", "add", "rule"])
            self._begun.append(number)
            done = self._runner([*argv[:1], "--echo", "--handle", *argv[1:]] if made else argv)
            if done.code != 0:
                self._begun.remove(number)
                raise StateError(f"{command}: {done.said}")
            handle = _HANDLE.search(done.stdout) if made else None
            if handle is not None and len(self._undo) == len(self._commands):
                # Only the kernel knows the rule's number, so that is how it is found again.
                self._undo[-1 - number] = f"nft delete rule {' '.join(argv[3:6])} handle {handle[1]}"

    def take_back(self) -> None:
        """Undo what was run, the last first.

        Raises:
            StateError: a part of it could not be undone.
        """
        if not self._begun:
            return
        paired = len(self._undo) == len(self._commands)
        wanted = [self._undo[-1 - number] for number in reversed(self._begun)] if paired else self._undo
        left = []
        with _uninterrupted():
            for command in wanted:
                self._say(f"# {command}")
                try:
                    done = self._runner(shlex.split(command))
                except WicketError as error:
                    left.append(f"{command}: {error}")
                    continue
                if done.code != 0:
                    left.append(f"{command}: {done.said}")
        if left:
            raise StateError(f"not taken back: {'; '.join(left)}")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals that would end it are passed over: half taken back is worse than a moment's wait."""
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
