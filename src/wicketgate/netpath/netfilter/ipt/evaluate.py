# SPDX-License-Identifier: Apache-2.0
"""A packet through the chains of an iptables table, as ipt_do_table walks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.ipt.arguments import NotKnownError, Test
from wicketgate.netpath.netfilter.ipt.matches import compile_match, exact_destination, is_known
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
        rule: as read.
        where: as the user finds it.
        tests: all must hold.
        chain: the user's chain it leads to.
        goto: without a way back.
        action: what it does where it leads to no chain.
    """

    rule: Rule
    where: str
    tests: tuple[Test, ...]
    chain: _Chain | None = None
    goto: bool = False
    action: Action | None = None


class _Chain:
    """A chain whose rules are compiled when a packet first comes to it."""

    def __init__(self, chain: Chain, owner: TableEvaluator) -> None:
        self.name = chain.name
        self.policy = chain.policy
        self._source = chain
        self._owner = owner
        self._rules: tuple[_Compiled, ...] | None = None
        self._by_destination: dict[int, tuple[_Compiled, ...]] = {}
        self._for_others: tuple[_Compiled, ...] = ()

    def rules_for(self, destination: int) -> tuple[_Compiled, ...]:
        """The rules that a packet to this address may match, in order."""
        if self._rules is None:
            self._compile()
        if self._by_destination:
            return self._by_destination.get(destination, self._for_others)
        assert self._rules is not None
        return self._rules

    def _compile(self) -> None:
        compiled = [each for each in map(self._owner.compile, self._source.rules) if each is not None]
        self._rules = tuple(compiled)
        if len(compiled) < LONG_CHAIN:
            return
        family = self._owner.family
        wanted = [exact_destination(each.rule.matches, family) for each in compiled]
        others = [at for at, value in enumerate(wanted) if value is None]
        places: dict[int, list[int]] = {}
        for at, value in enumerate(wanted):
            if value is not None:
                places.setdefault(value, []).append(at)
        if len(places) * len(others) > 4 * len(compiled):
            return  # the tables would be larger than what they save
        self._for_others = tuple(compiled[at] for at in others)
        for value, mine in places.items():
            self._by_destination[value] = tuple(compiled[at] for at in sorted((*mine, *others)))


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
            return _Compiled(rule, where, tuple(tests), chain=chain, goto=target.goto)
        if target.name in EFFECTLESS and not rule.unknown:
            return None
        try:
            action = compile_target(target, self.family)
        except _UNREADABLE as error:
            action = _unknowable(f"what `-j {target.name}` does here is not known ({error})")
        return _Compiled(rule, where, tuple(tests), action=action)

    def order_matters(self, chain: str) -> bool:
        """Something reachable from the chain changes the packet, or tells the sender."""
        seen: set[str] = set()
        waiting = [chain]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.table.chains:
                continue
            seen.add(name)
            for rule in self.table.chains[name].rules:
                if rule.target.name in self.table.chains:
                    waiting.append(rule.target.name)
                elif rule.unknown or writes(rule):
                    return True
        return False

    def unknowns(self) -> Iterator[Unknown]:
        """What is in the listing and the model does not know."""
        for chain in self.table.chains.values():
            for rule in chain.rules:
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
