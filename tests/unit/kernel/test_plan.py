# SPDX-License-Identifier: Apache-2.0
"""Plans: in order, all or nothing, and taken back in reverse whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.plan import Plan, PlanFailed


class Step:
    """A change to a list that everybody shares."""

    def __init__(self, name: str, world: list[str], *, fails: bool = False, undo_fails: bool = False) -> None:
        self.name, self.world = name, world
        self.fails, self.undo_fails = fails, undo_fails
        self.made = False

    @property
    def spelled(self) -> str:
        return f"do {self.name}"

    async def apply(self) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise KernelRefused(self.spelled, 17, "File exists")
        self.world.append(self.name)
        self.made = True

    async def undo(self) -> None:
        await asyncio.sleep(0)
        if not self.made:
            return
        if self.undo_fails:
            raise KernelRefused(f"undo {self.name}", 1, "Operation not permitted")
        # Only the newest may go: an undo out of order fails right here.
        assert self.world[-1] == self.name
        self.world.pop()
        self.made = False


async def test_changes_are_made_in_order_and_said_one_by_one() -> None:
    """One log line for each, in the spelling of the dry run."""
    world: list[str] = []
    plan = Plan(Step(name, world) for name in "abc")
    assert plan.show() == ["do a", "do b", "do c"]
    assert world == []
    with capture_logs() as lines:
        await plan.apply()
    assert world == ["a", "b", "c"]
    assert [line["did"] for line in lines if line["event"] == "change"] == ["do a", "do b", "do c"]


@given(size=st.integers(1, 8), data=st.data())
def test_a_failure_leaves_nothing_behind(size: int, data: st.DataObject) -> None:
    """Whichever change fails, those before it are undone in reverse, and those after it were never made."""
    failing = data.draw(st.integers(0, size - 1))
    world: list[str] = ["before"]
    plan = Plan(Step(str(number), world, fails=number == failing) for number in range(size))
    with pytest.raises(PlanFailed) as caught:
        asyncio.run(plan.apply())
    assert world == ["before"]
    assert caught.value.spelled == f"do {failing}"
    assert isinstance(caught.value.reason, KernelRefused)
    assert [entry.spelled for entry in caught.value.rolled_back] == [f"do {n}" for n in reversed(range(failing))]
    assert plan.applied == ()
    assert f"{failing} earlier change" in str(caught.value)


@given(size=st.integers(2, 8), data=st.data())
def test_an_undo_that_fails_does_not_stop_the_others_and_is_said(size: int, data: st.DataObject) -> None:
    """What could not be taken back is named in the error; the rest is taken back nevertheless."""
    stuck = data.draw(st.integers(0, size - 2))

    class Loose(Step):
        async def undo(self) -> None:
            if self.undo_fails:
                raise KernelRefused(f"undo {self.name}", 1, "Operation not permitted")
            if self.made:
                self.world.remove(self.name)
                self.made = False

    world: list[str] = []
    plan = Plan(
        Loose(str(number), world, fails=number == size - 1, undo_fails=number == stuck) for number in range(size)
    )
    with pytest.raises(PlanFailed) as caught:
        asyncio.run(plan.apply())
    assert world == [str(stuck)]
    assert "STILL IN PLACE" in str(caught.value)
    assert f"do {stuck}" in str(caught.value)


async def test_a_change_that_fails_half_way_is_taken_back_itself() -> None:
    """A change that raised after it had written something is undone too."""
    world: list[str] = []

    class Half(Step):
        async def apply(self) -> None:
            await super().apply()
            raise StateError("it does not read back as written")

    with pytest.raises(PlanFailed, match="does not read back"):
        await Plan([Step("a", world), Half("b", world)]).apply()
    assert world == []


@given(size=st.integers(1, 6), turns=st.integers(0, 12), again=st.booleans())
def test_cancelling_at_any_moment_rolls_back(size: int, turns: int, again: bool) -> None:
    """Ctrl-C in the middle, even twice, leaves all or nothing."""

    async def scenario() -> list[str]:
        world: list[str] = []
        plan = Plan(Step(str(number), world) for number in range(size))
        task = asyncio.ensure_future(plan.apply())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        if again:
            await asyncio.sleep(0)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled() == (world == [])
        return world

    assert asyncio.run(scenario()) in ([], [str(number) for number in range(size)])


async def test_a_programmers_slip_rolls_back_and_comes_out_unchanged() -> None:
    """An error that is none of ours is not dressed up, but nothing stays behind."""
    world: list[str] = []

    class Slip(Step):
        async def apply(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Plan([Step("a", world), Slip("b", world)]).apply()
    assert world == []


async def test_a_plan_that_was_applied_can_be_undone_once() -> None:
    """`exit takes down exactly what it put up`, and a second call has nothing left to do."""
    world: list[str] = []
    plan = Plan(Step(name, world) for name in "ab")
    await plan.apply()
    await plan.apply()
    assert world == ["a", "b"]
    assert [entry.spelled for entry in await plan.undo()] == ["do b", "do a"]
    assert world == []
    assert await plan.undo() == ()


async def test_changes_added_later_are_made_alone() -> None:
    """A reload extends a plan: what is in place stays untouched, and a failure takes back the addition only."""
    world: list[str] = []
    plan = Plan([Step("a", world)])
    await plan.apply()
    plan.add(Step("b", world))
    plan.add(Step("c", world, fails=True))
    with pytest.raises(PlanFailed):
        await plan.apply()
    assert world == ["a"]
    assert len(plan.applied) == 1
