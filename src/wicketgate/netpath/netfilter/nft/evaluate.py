# SPDX-License-Identifier: Apache-2.0
"""A packet through the chains of an nftables table, as nft_do_chain walks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.netfilter.nft.compile import Compiler
from wicketgate.netpath.netfilter.nft.effects import Effect, compile_statement, writes
from wicketgate.netpath.netfilter.nft.model import (
    Chain,
    Conditional,
    Effectless,
    MatchStatement,
    Rule,
    Statement,
    Table,
    Unknown,
    Verdict,
    VerdictMap,
)
from wicketgate.netpath.netfilter.nft.spell import ChainKey, spell_rule
from wicketgate.netpath.netfilter.nft.values import NotKnownError
from wicketgate.netpath.netfilter.run import Doubt, End, Run, UnknowableError

_DAMAGE = (NotKnownError, ValueError, TypeError, ArithmeticError)
_PASSIVE = (MatchStatement, Effectless, Conditional)


@dataclass(slots=True, eq=False)
class _Compiled:
    where: str
    effects: tuple[Effect, ...]
    handle: int


class NftEvaluator:
    """One table.

    Args:
        table: as parsed.
        facts: of the namespace.
        words: the rules of its chains as nft prints them.
    """

    def __init__(self, table: Table, facts: Facts, words: Callable[[], Mapping[ChainKey, tuple[str, ...]]]) -> None:
        self.table = table
        self._words = words
        self._compiler = Compiler(table.sets, facts, frozenset(table.filled))
        self._chains: dict[str, tuple[_Compiled, ...]] = {}

    def amended(self, table: Table, chain: str) -> NftEvaluator:
        """For the table with other rules in one chain: what was made of its sets and of the others is taken over."""
        found = copy(self)
        found.table = table
        found._chains = {name: rules for name, rules in self._chains.items() if name != chain}
        return found

    def base_chains(self) -> Iterator[Chain]:
        """Those that hang on a hook."""
        if not self.table.dormant:
            for chain in self.table.chains.values():
                if chain.hook:
                    yield chain

    def spelled(self, chain: Chain, position: int) -> str:
        """`table inet x chain y: tcp dport 9000 drop`."""
        return f"{self._place(chain.name)}: {self._rule_words(chain, position)}"

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
                for statement in rule.statements:
                    if writes(statement):
                        return True
                    waiting.extend(self._targets(statement))
        return False

    def _targets(self, statement: Statement) -> Iterator[str]:
        if isinstance(statement, Verdict) and statement.target:
            yield statement.target
        if isinstance(statement, VerdictMap):
            for element in self._compiler.map_data(statement.data):
                if isinstance(element.data, Verdict) and element.data.target:
                    yield element.data.target

    def unknowns(self) -> Iterator[Unknown]:
        """What is in the listing and the model does not know."""
        for chain in self.table.chains.values():
            for position, rule in enumerate(chain.rules):
                for statement in rule.statements:
                    try:
                        compile_statement(statement, self._compiler, self.table.family)
                    except _DAMAGE as error:
                        yield Unknown(str(error), self.spelled(chain, position))

    def run(self, chain: Chain, run: Run) -> End | None:
        """Send the packet through a base chain. None: it goes on to the next."""
        stack: list[tuple[str, tuple[_Compiled, ...], int]] = []
        name, rules, at = chain.name, self._rules(chain.name), 0
        while True:
            if at >= len(rules):
                if not stack:
                    return self._policy(chain, run)
                name, rules, at = stack.pop()
                continue
            rule = rules[at]
            at += 1
            verdict = self._rule(rule, run)
            if verdict is None:
                continue
            if isinstance(verdict, End):
                self._note(run, rule, name, str(verdict.verdict))
                return verdict
            if verdict.kind == "return":
                if not stack:
                    return self._policy(chain, run)
                name, rules, at = stack.pop()
                continue
            self._note(run, rule, name, f"{verdict.kind} {verdict.target}".strip())
            if verdict.kind == "accept":
                return None
            if verdict.kind == "drop":
                return End(HookVerdict.DROP, rule.where, "the rule drops it")
            run.jump()
            if verdict.kind == "jump":
                stack.append((name, rules, at))
            name, rules, at = verdict.target, self._rules(verdict.target), 0

    def _rule(self, rule: _Compiled, run: Run) -> Verdict | End | None:
        where = rule.where
        run.where = lambda: where
        for effect in rule.effects:
            try:
                outcome = effect(run, where)
            except _DAMAGE as error:  # a name where a number is due: nft prints no such listing
                raise UnknowableError(where, f"the listing is damaged here: {error}") from error
            if outcome is None:
                continue
            if outcome is False:
                return None
            return outcome
        return None

    def _policy(self, chain: Chain, run: Run) -> End | None:
        if chain.policy == "accept":
            return None
        where = f"{self._place(chain.name)}: policy {chain.policy}"
        if chain.policy != "drop":
            raise UnknowableError(where, "this policy is not known")
        self._note(run, _Compiled(where, (), 0), chain.name, "drop")
        return End(HookVerdict.DROP, where, "no rule accepted it and the policy drops")

    def _note(self, run: Run, rule: _Compiled, chain: str, effect: str) -> None:
        table = self.table
        run.note(
            rule.where,
            effect,
            verdict=effect.split(" ", maxsplit=1)[0],
            family=table.family,
            table=table.name,
            chain=chain,
            handle=rule.handle,
        )

    def _place(self, chain: str) -> str:
        return f"{self.table.spelled()} chain {chain}"

    def _rule_words(self, chain: Chain, position: int) -> str:
        listed = self._words().get((self.table.family, self.table.name, chain.name), ())
        return listed[position] if len(listed) == len(chain.rules) else spell_rule(chain.rules[position])

    def _rules(self, name: str) -> tuple[_Compiled, ...]:
        if name not in self._chains:
            chain = self.table.chains.get(name)
            if chain is None:
                raise UnknowableError(self.table.spelled(), f"there is no chain {name}: the listing is incomplete")
            compiled = [self._compiled(chain, position, rule) for position, rule in enumerate(chain.rules)]
            self._chains[name] = tuple(each for each in compiled if each is not None)
        return self._chains[name]

    def _compiled(self, chain: Chain, position: int, rule: Rule) -> _Compiled | None:
        # a rule that only matches, counts and logs is not run at all
        if all(isinstance(statement, _PASSIVE) for statement in rule.statements):
            return None
        where = self.spelled(chain, position)
        effects: list[Effect] = []
        for at, statement in enumerate(rule.statements):
            if all(isinstance(each, _PASSIVE) for each in rule.statements[at:]):
                break
            try:
                effect = compile_statement(statement, self._compiler, self.table.family)
            except _DAMAGE as error:
                effect = _doubting(str(error), passive=isinstance(statement, _PASSIVE))
            if effect is not None:
                effects.append(effect)
        return _Compiled(where, tuple(effects), rule.handle)


def _doubting(reason: str, *, passive: bool) -> Effect:
    """A match that is not known may hold or not; what another statement does is not known at all."""
    doubt = Doubt(reason, reason)

    def effect(run: Run, where: str) -> Verdict | End | bool | None:
        if passive:
            return None if run.believes(doubt) else False
        raise UnknowableError(where, reason)

    return effect  # type: ignore[return-value]
