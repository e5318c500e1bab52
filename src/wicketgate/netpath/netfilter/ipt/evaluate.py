# SPDX-License-Identifier: Apache-2.0
"""A packet through the chains of an iptables table, as ipt_do_table walks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.ipt.arguments import NotKnownError, Test
from wicketgate.netpath.netfilter.ipt.matches import compile_match, is_known, one_address
from wicketgate.netpath.netfilter.ipt.model import Rule, Unknown
from wicketgate.netpath.netfilter.ipt.parse import Chain, Table
from wicketgate.netpath.netfilter.ipt.targets import EFFECTLESS, Action, Go, compile_target, writes
from wicketgate.netpath.netfilter.run import Doubt, End, Run, UnknowableError
from wicketgate.netpath.snapshot import Family

LONG_CHAIN = 48  # rules; longer ones are looked up by destination. Measured: below it the loop is as quick
_UNREADABLE = (NotKnownError, ValueError, KeyError, IndexError)


@dataclass(slots=True, eq=False)
class _Compiled:
    """A rule ready to run.

    Attributes:
        where: as the user finds it.
        tests: all must hold.
        chain: the user's chain it leads to.
        goto: without a way back.
        action: what it does where it leads to no chain.
    """

    where: str
    tests: tuple[Test, ...]
    chain: _Chain | None = None
    goto: bool = False
    action: Action | None = None


class _Chain:
    """A chain whose rules are read and compiled when a packet first comes to them.

    Of a long chain a packet comes to those for its destination and those for no one address (kube-proxy's
    KUBE-SERVICES has one rule a service); the others cannot match it, and are not even read.
    """

    def __init__(self, chain: Chain, owner: TableEvaluator) -> None:
        self.name = chain.name
        self.policy = chain.policy
        self._source = chain
        self._owner = owner
        self._places: dict[int, list[int]] | None = None
        self._others: list[int] = []
        self._compiled: dict[int, _Compiled | None] = {}
        self._for_others: tuple[_Compiled, ...] | None = None
        self._by_destination: dict[int, tuple[_Compiled, ...]] = {}

    def rules_for(self, destination: int) -> tuple[_Compiled, ...]:
        """The rules that a packet to this address may match, in order."""
        if self._places is None:
            self._places = self._sorted()
        if destination not in self._places:
            if self._for_others is None:
                self._for_others = self._made(self._others)
            return self._for_others
        if destination not in self._by_destination:
            self._by_destination[destination] = self._made(sorted((*self._places[destination], *self._others)))
        return self._by_destination[destination]

    def _sorted(self) -> dict[int, list[int]]:
        places: dict[int, list[int]] = {}
        if len(self._source) < LONG_CHAIN:
            self._others = [*range(len(self._source))]
            return places
        for at in range(len(self._source)):
            text = self._source.destination(at)
            value = one_address(text, self._owner.family) if text is not None else None
            (self._others if value is None else places.setdefault(value, [])).append(at)
        return places

    def _made(self, wanted: list[int]) -> tuple[_Compiled, ...]:
        for at in wanted:
            if at not in self._compiled:
                self._compiled[at] = self._owner.compile(self._source.rule(at))
        made = (self._compiled[at] for at in wanted)
        return tuple(each for each in made if each is not None)


class TableEvaluator:
    """A table of one listing, for one family."""

    def __init__(self, table: Table, family: Family, tool: str) -> None:
        self.table = table
        self.family: Family = family
        self.tool = tool
        self._prefix = "" if table.name == "filter" else f"-t {table.name} "
        self._chains = {name: _Chain(chain, self) for name, chain in table.chains.items()}

    def has(self, chain: str) -> bool:
        """The table has this built-in chain."""
        return chain in self._chains

    def compile(self, rule: Rule) -> _Compiled | None:
        """Ready to run; None where the rule only counts."""
        target = rule.target
        where = self._prefix + rule.text
        tests: list[Test] = [_doubting(each) for each in rule.unknown]
        for match in rule.matches:
            tests.extend(compile_match(match, self.family))
        chain = self._chains.get(target.name)
        if chain is not None and not chain.policy:
            return _Compiled(where, tuple(tests), chain=chain, goto=target.goto)
        if target.name in EFFECTLESS and not rule.unknown:
            return None
        try:
            action = compile_target(target, self.family)
        except _UNREADABLE as error:
            action = _unknowable(f"what `-j {target.name}` does here is not known ({error})")
        return _Compiled(where, tuple(tests), action=action)

    def order_matters(self, chain: str) -> bool:
        """Something reachable from the chain changes the packet, or tells the sender."""
        seen: set[str] = set()
        waiting = [chain]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.table.chains:
                continue
            seen.add(name)
            for rule in self.table.chains[name].rules():
                if rule.target.name in self.table.chains:
                    waiting.append(rule.target.name)
                elif rule.unknown or writes(rule):
                    return True
        return False

    def unknowns(self) -> Iterator[Unknown]:
        """What is in the listing and the model does not know."""
        for chain in self.table.chains.values():
            for rule in chain.rules():
                yield from rule.unknown
                for match in rule.matches:
                    if not is_known(match, self.family):
                        yield Unknown("match", f"{match.spelled()} in {rule.text}")
                if rule.target.name in self.table.chains or rule.target.name in EFFECTLESS:
                    continue
                try:
                    compile_target(rule.target, self.family)
                except _UNREADABLE as error:
                    yield Unknown("target", f"{error} in {rule.text}")

    def run(self, name: str, run: Run) -> End | None:
        """Send the packet through a built-in chain. None: it goes on."""
        chain = self._chains.get(name)
        if chain is None:
            return None
        stack: list[tuple[tuple[_Compiled, ...], int]] = []
        rules, at = chain.rules_for(run.destination), 0
        while True:
            if at >= len(rules):
                if not stack:
                    return self._policy(chain, run)
                rules, at = stack.pop()
                continue
            rule = rules[at]
            at += 1
            doubt: Doubt | None = None
            matched = True
            for test in rule.tests:
                answer = test(run)
                if answer is True:
                    continue
                if answer is False:
                    matched = False
                    break
                doubt = answer
            if not matched:
                continue
            run.where = _spelled(rule)
            if doubt is not None and not run.believes(doubt):
                continue
            if rule.chain is not None:
                run.note(rule.where, f"{'goto' if rule.goto else 'jump'} {rule.chain.name}",
                         verdict="goto" if rule.goto else "jump", family=self.tool, table=self.table.name, chain=name)  # fmt: skip
                run.jump()
                if not rule.goto:
                    stack.append((rules, at))
                rules, at = rule.chain.rules_for(run.destination), 0
                continue
            assert rule.action is not None
            after = rule.action(run, rule.where)
            if isinstance(after, End):
                run.note(rule.where, str(after.verdict), verdict=str(after.verdict), family=self.tool,
                         table=self.table.name, chain=name)  # fmt: skip
                return after
            if after is Go.ACCEPTED:
                return None
            if after is Go.RETURN:
                if not stack:
                    return self._policy(chain, run)
                rules, at = stack.pop()

    def _policy(self, chain: _Chain, run: Run) -> End | None:
        if chain.policy == "DROP":
            where = f"{self._prefix}-P {chain.name} DROP"
            run.note(where, "drop", verdict="drop", family=self.tool, table=self.table.name, chain=chain.name)
            return End(HookVerdict.DROP, where, "no rule accepted it and the policy drops")
        if chain.policy != "ACCEPT":
            raise UnknowableError(f"{self._prefix}-P {chain.name} {chain.policy}", "this policy is not known")
        return None


def _spelled(rule: _Compiled) -> Callable[[], str]:
    return lambda: rule.where


def _doubting(unknown: Unknown) -> Test:
    doubt = Doubt(f"{unknown.what} could not be read: {unknown.text[:120]}", unknown.text)
    return lambda _run: doubt


def _unknowable(reason: str) -> Action:
    def action(_run: Run, where: str) -> End:
        raise UnknowableError(where, reason)

    return action
