# SPDX-License-Identifier: Apache-2.0
"""Netfilter of one snapshot: nftables, iptables-nft and legacy iptables, in the order in which the kernel calls them.

Order: by priority. All nat chains together run in the one hook of nf_nat, at its own priority; among themselves by
theirs. Of chains with one priority the one that was registered last runs first (nf_hook_entries_grow), which no
listing tells across tables: where it matters both orders are tried, and the verdict is unknown when they differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import groupby, permutations
from typing import Literal

from wicketgate.netpath.filter import HookResult, HookVerdict
from wicketgate.netpath.netfilter import conntrack
from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.netfilter.ipt.evaluate import TableEvaluator
from wicketgate.netpath.netfilter.ipt.model import Unknown as IptUnknown
from wicketgate.netpath.netfilter.ipt.parse import BUILT_IN, Table, mixed_tables
from wicketgate.netpath.netfilter.ipt.parse import parse as parse_ipt
from wicketgate.netpath.netfilter.nft.amend import inserted, with_rule
from wicketgate.netpath.netfilter.nft.evaluate import NftEvaluator
from wicketgate.netpath.netfilter.nft.model import Chain, Unknown
from wicketgate.netpath.netfilter.nft.model import Table as NftTable
from wicketgate.netpath.netfilter.nft.parse import parse as parse_nft
from wicketgate.netpath.netfilter.nft.spell import ListedRules, dormant_tables, rules_of_listing
from wicketgate.netpath.netfilter.run import Doubt, End, Run, UnknowableError, decide
from wicketgate.netpath.netfilter.tracked import tracked_families
from wicketgate.netpath.packet import Connection, Packet
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Family, Firewall, Snapshot
from wicketgate.netpath.step import Hook, Stage, UnknownStep

# NF_IP_PRI_*: fixed for both kinds of iptables
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_MOST_ORDERS = 4  # chains of one priority whose order matters; more are not permuted (24 orders)

Step = Callable[[Run], "End | None"]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the kernel calls at one priority of a hook.

    Attributes:
        priority: as registered.
        step: runs it.
        name: for people.
        nat: a nat chain, called from nf_nat's hook.
        writes: the order among its equals may matter.
        table: chains of one table stand in a known order.
        age: within the table; later ones run first.
    """

    priority: int
    step: Step
    name: str
    nat: bool = False
    writes: Callable[[], bool] = lambda: True
    table: tuple[str, str] = ("", "")
    age: tuple[int, int] = (0, 0)


# What a ruleset is made of beside nft's own listing.
_PARTS = tuple(each.name for each in fields(Snapshot) if each.name != "firewall")
_LISTINGS = tuple(each.name for each in fields(Firewall) if not each.name.startswith("nft_"))


@dataclass(frozen=True, slots=True)
class _HookChains:
    groups: tuple[tuple[_Entry, ...], ...]
    nat: tuple[tuple[_Entry, ...], ...]
    unread: tuple[tuple[str, str], ...] = field(default=())


class Ruleset:
    """The `Filter` of a snapshot. It keeps what it parsed; a new snapshot needs a new one.

    Args:
        snapshot: with its firewall listings.
        routing: of the same snapshot, where it is made already.

    Raises:
        InputError: a listing is damaged.
    """

    def __init__(self, snapshot: Snapshot, *, routing: Routing | None = None) -> None:
        self._snapshot = snapshot
        self._facts = Facts(snapshot, routing)
        firewall = snapshot.firewall
        self._ipt: dict[Family, list[TableEvaluator]] = {4: [], 6: []}
        skip: set[tuple[str, str]] = set()
        mixed: dict[tuple[str, str], Table] = {}
        sources: tuple[tuple[str | None, Family, str], ...] = (
            (firewall.iptables_nft, 4, "iptables"),
            (firewall.ip6tables_nft, 6, "ip6tables"),
            (firewall.iptables_legacy, 4, "iptables-legacy"),
            (firewall.ip6tables_legacy, 6, "ip6tables-legacy"),
        )
        for text, family, tool in sources:
            nfts = mixed_tables(text or "")
            for table in parse_ipt(text or "", source=f"{tool}-save").values():
                self._ipt[family].append(TableEvaluator(table, family, tool))
                key = ("ip" if family == 4 else "ip6", table.name)
                if table.name in nfts:
                    mixed[key] = table
                elif not tool.endswith("legacy"):
                    skip.add(key)
        parsed = parse_nft(firewall.nft_json or "", skip=skip)
        for key, table in mixed.items():
            if key in parsed:
                _leave_to_iptables(parsed[key], table)
        for key in dormant_tables(firewall.nft_text or "") & parsed.keys():
            parsed[key] = replace(parsed[key], dormant=True)
        self._nft = [NftEvaluator(table, self._facts, lambda: self._words) for table in parsed.values()]
        self._hooks: dict[tuple[Hook, Family], _HookChains] = {}
        self._nat_of: dict[Family, bool] = {}

    def amended(self, snapshot: Snapshot) -> Ruleset | None:
        """That of a snapshot with one more rule of nftables and no other difference; None: it must be read."""
        mine, theirs = self._snapshot, snapshot
        if any(getattr(mine, part) is not getattr(theirs, part) for part in _PARTS):
            return None
        if any(getattr(mine.firewall, part) is not getattr(theirs.firewall, part) for part in _LISTINGS):
            return None
        more = inserted(mine.firewall.nft_json or "", theirs.firewall.nft_json or "")
        if more is None:
            return None
        evaluator = next((each for each in self._nft if (each.table.family, each.table.name) == more.table), None)
        table = with_rule(evaluator.table, more) if evaluator is not None else None
        if evaluator is None or table is None:
            return None
        found = copy(self)
        # The printed rules and devices of the other chains stand; the listing that has changed no longer fits its text.
        found._snapshot = replace(theirs, firewall=replace(theirs.firewall, nft_text=mine.firewall.nft_text))
        found._nft = [evaluator.amended(table, more.chain) if each is evaluator else each for each in self._nft]
        found._hooks, found._nat_of = {}, {}
        found._tracked = self._tracked | tracked_families(Firewall(nft_json=json.dumps({"rule": more.body})))
        return found

    @cached_property
    def _words(self) -> ListedRules:
        return rules_of_listing(self._snapshot.firewall.nft_text or "")

    def unknowns(self) -> Iterator[Unknown | IptUnknown]:
        """What is in the listings and the model does not know."""
        for tables in self._ipt.values():
            for table in tables:
                yield from table.unknowns()
        for evaluator in self._nft:
            yield from evaluator.unknowns()

    def hook(self, name: Hook, packet: Packet, connection: Connection) -> HookResult:
        """Run a hook's chains (see `wicketgate.netpath.filter.Filter`)."""
        family: Family = packet.family
        chains = self._chains(name, family)
        if chains.unread:
            what, why = chains.unread[0]
            step = UnknownStep(stage=Stage(name), object=what, effect=why)
            return HookResult(HookVerdict.UNKNOWN, packet, connection, (step,), what, why)
        if not chains.groups and not chains.nat and not self._has_nat(family):
            return HookResult(HookVerdict.ACCEPT, packet, connection)
        devices = self._devices(name, packet)

        def make_run(plan: tuple[int, ...]) -> Run:
            return Run(name, packet, connection, self._facts, plan=plan)

        def evaluate(run: Run) -> End | None:
            return self._evaluate(run, chains, devices)

        return decide(make_run, evaluate)

    def _evaluate(self, run: Run, chains: _HookChains, devices: Sequence[Step]) -> End | None:
        # A packet that this host sends to itself comes to prerouting with the entry it got in output.
        run.tracked = run.hook not in ("prerouting", "output") or (run.hook == "prerouting" and run.iif == "lo")
        if run.hook == "prerouting":
            before, run.tracked = run.tracked, False
            for step in devices:
                end = step(run)
                if end is not None:
                    return end
            run.tracked = before
        for group in chains.groups:
            for entry in self._order(run, group):
                end = entry.step(run)
                if end is not None:
                    return end
        if run.hook == "postrouting":
            for step in devices:
                end = step(run)
                if end is not None:
                    return end
        return None

    def _order(self, run: Run, group: tuple[_Entry, ...]) -> Sequence[_Entry]:
        if len(group) == 1 or not any(entry.writes() for entry in group):
            return group
        orders = [order for order in permutations(group[:_MOST_ORDERS]) if _possible(order)]
        if len(orders) == 1:
            return group
        names = ", ".join(entry.name for entry in group)
        run.where = lambda: names
        doubt = Doubt(
            "they have one priority, and which of them was registered first is not in the listings",
            f"order {run.hook} {names}",
        )
        return (*orders[run.choose(len(orders), doubt)], *group[_MOST_ORDERS:])

    def _has_nat(self, family: Family) -> bool:
        if family not in self._nat_of:
            self._nat_of[family] = any(self._nat_entries(hook, family) for hook in conntrack.SIDE)
        return self._nat_of[family]

    def _chains(self, hook: Hook, family: Family) -> _HookChains:
        if (hook, family) not in self._hooks:
            self._hooks[hook, family] = self._make(hook, family)
        return self._hooks[hook, family]

    def _make(self, hook: Hook, family: Family) -> _HookChains:
        entries = [entry for entry in self._entries(hook, family) if not entry.nat]
        nat = _grouped(self._nat_entries(hook, family))
        if hook in conntrack.SIDE and self._has_nat(family):
            entries.append(_Entry(conntrack.NAT_PRIORITY[hook], lambda run: self._nat(run, nat), "nat"))
        if hook in ("prerouting", "output"):
            entries.append(_Entry(conntrack.CONNTRACK_PRIORITY, _track, "connection tracking"))
        groups = _grouped(entries)
        return _HookChains(groups, nat, self._unread(family))

    def _nat(self, run: Run, groups: tuple[tuple[_Entry, ...], ...]) -> End | None:
        """nf_nat_inet_fn: bind what is not bound yet, then translate."""
        if not run.has_connection:
            return None
        side = conntrack.SIDE[run.hook]
        bound = False
        if conntrack.wants_binding(run, side):
            for group in groups:
                for entry in self._order(run, group):
                    end = entry.step(run)
                    if end is not None:
                        return end
                    if not conntrack.wants_binding(run, side):
                        break
                if not conntrack.wants_binding(run, side):
                    bound = True
                    break
            else:
                conntrack.bind(run, side, None, None, "")
        conntrack.translate(run, told=bound)
        return None

    @cached_property
    def _tracked(self) -> frozenset[Family]:
        return tracked_families(self._snapshot.firewall)

    def _nat_entries(self, hook: Hook, family: Family) -> list[_Entry]:
        """Those that are called: without tracked connections none is."""
        if family not in self._tracked:
            return []
        return [entry for entry in self._entries(hook, family) if entry.nat]

    def _entries(self, hook: Hook, family: Family) -> Iterator[_Entry]:
        for table in self._ipt[family]:
            name = hook.upper()
            priority = _PRIORITIES.get(table.table.name)
            if priority is None or name not in BUILT_IN[table.table.name] or not table.has(name):
                continue
            nat = table.table.name == "nat"
            yield _Entry(
                conntrack.NAT_PRIORITY.get(hook, priority) if nat else priority,
                _ipt_step(table, name),
                f"{table.tool} -t {table.table.name} {name}",
                nat,
                _ipt_writes(table, name),
            )
        for evaluator in self._nft:
            if evaluator.table.family not in ("inet", "ip" if family == 4 else "ip6"):
                continue
            for chain in evaluator.base_chains():
                if chain.hook == hook:
                    yield _Entry(
                        chain.priority,
                        _nft_step(evaluator, chain),
                        f"{evaluator.table.spelled()} chain {chain.name}",
                        chain.type == "nat",
                        _nft_writes(evaluator, chain),
                        (evaluator.table.family, evaluator.table.name),
                        (evaluator.table.handle, chain.handle),
                    )

    def _devices(self, hook: Hook, packet: Packet) -> list[Step]:
        """Chains at an interface: ingress before prerouting, egress behind postrouting."""
        wanted: dict[Hook, tuple[Literal["ingress", "egress"], str]] = {
            "prerouting": ("ingress", packet.iif),
            "postrouting": ("egress", packet.oif),
        }
        if hook not in wanted:
            return []
        kind, device = wanted[hook]
        found: list[tuple[int, Step]] = []
        for evaluator in self._nft:
            if evaluator.table.family not in ("netdev", "inet"):
                continue
            for chain in evaluator.base_chains():
                if chain.hook != kind:
                    continue
                key = evaluator.table.family, evaluator.table.name, chain.name
                devices = chain.devices or self._words.devices(key)
                if device in devices:
                    found.append((chain.priority, _nft_step(evaluator, chain)))
                elif not devices:
                    found.append(
                        (chain.priority, _at_unknown_devices(f"{evaluator.table.spelled()} chain {chain.name}"))
                    )
        return [step for _, step in sorted(found, key=lambda pair: pair[0])]

    def _unread(self, family: Family) -> tuple[tuple[str, str], ...]:
        firewall = self._snapshot.firewall
        legacy = firewall.iptables_legacy if family == 4 else firewall.ip6tables_legacy
        tool = "iptables-legacy-save -c" if family == 4 else "ip6tables-legacy-save -c"
        why = {each.what: each.why for each in self._snapshot.unread}
        missing = []
        if firewall.nft_json is None:
            missing.append("nft -j list ruleset")
        if legacy is None:
            missing.append(tool)
        return tuple(
            (what, f"was not read: {why.get(what, why.get('firewall', 'it is not in the snapshot'))}")
            for what in missing
        )


def _leave_to_iptables(nft: NftTable, printed: Table) -> None:
    """Of a table with base chains of both, nft's listing is asked for those that iptables does not print."""
    for name, chain in nft.chains.items():
        if chain.hook and name in printed.chains:
            nft.chains[name] = replace(chain, hook="")


def _track(run: Run) -> End | None:
    run.tracked = True
    return None


def _ipt_step(table: TableEvaluator, chain: str) -> Step:
    plain: Step = lambda run: table.run(chain, run)  # noqa: E731
    return _rerouting(plain) if (table.table.name, chain) == ("mangle", "OUTPUT") else plain


def _nft_step(evaluator: NftEvaluator, chain: Chain) -> Step:
    plain: Step = lambda run: evaluator.run(chain, run)  # noqa: E731
    return _rerouting(plain) if chain.type == "route" else plain


def _at_unknown_devices(where: str) -> Step:
    def step(_run: Run) -> End | None:
        raise UnknowableError(where, "at which interfaces the chain hangs is not in the listings")

    return step


def _rerouting(step: Step) -> Step:
    def run_and_compare(run: Run) -> End | None:
        before = run.packet
        end = step(run)
        run.route_again_if_changed(before)
        return end

    return run_and_compare


def _ipt_writes(table: TableEvaluator, chain: str) -> Callable[[], bool]:
    # Asked where another chain has the same priority; it reads every chain that can be reached.
    return cache(lambda: table.table.name == "nat" or table.order_matters(chain))


def _nft_writes(evaluator: NftEvaluator, chain: Chain) -> Callable[[], bool]:
    return cache(lambda: chain.type == "nat" or evaluator.order_matters(chain.name))


def _grouped(entries: list[_Entry]) -> tuple[tuple[_Entry, ...], ...]:
    """By priority; within one, what was made later first."""
    ordered = sorted(entries, key=lambda entry: (entry.priority, tuple(-each for each in entry.age)))
    return tuple(tuple(group) for _, group in groupby(ordered, key=lambda entry: entry.priority))


def _possible(order: tuple[_Entry, ...]) -> bool:
    """Chains of one table keep their order: later ones first."""
    for at, entry in enumerate(order):
        for later in order[at + 1 :]:
            if entry.table[0] and entry.table == later.table and entry.age < later.age:
                return False
    return True
