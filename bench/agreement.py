# SPDX-License-Identifier: Apache-2.0
"""Claim: of 10,000 random cases the model agrees with the kernel in each that it does not call unknown.

Three kinds of case, made anew on every run (WICKETGATE_AGREEMENT_SEED repeats one):
- routing: random rules, routes, nexthop objects, addresses and settings; the kernel is asked for the way
  (RTM_GETROUTE), its egress, gateway, type, chosen source and errno are compared;
- packets: the like, into which real packets come; their end, egress, next hop and the kernel's drop reason are compared
  (the reason where tracefs can be had);
- netfilter: random rulesets of nftables and both iptables; real packets go into a namespace, with their replies and
  what follows; their end, egress, mark and translation are compared;
- tunnels: random peers of a WireGuard device (wireguard-go), packets into it and out of it; which peer gets one, whose
  source may come in, and endpoint, uplink and mark of the carrier are compared.

A ruleset counts for every feature that its text has. Where tracefs can be had, every packet that is dropped must be
dropped for the reason that the model has. `silent` are rejections whose ICMP error or reset was not seen: it may have
been filtered on its way out, which the trace tells, or not been sent.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from _bench import conditions, goal, run, table
from netns.drop_tap import DropTap, why_no_tap
from netns.filter_judge import Judge as FilterJudge
from netns.filter_rules import Maker, Rules
from netns.filter_stand import FilterStand, on_one_cpu
from netns.kernel_judge import Judge as RouteJudge
from netns.packet_judge import Judge as PacketJudge
from netns.tunnel_judge import COMING_IN
from netns.tunnel_judge import Judge as TunnelJudge
from netpath_worlds import Ask, World, asks, open_worlds, worlds
from wicketgate.lab.host import Host
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Rule
from wicketgate.netpath.verdict import Verdict

CASES = int(os.environ.get("WICKETGATE_AGREEMENT_CASES", "10000"))
SEED = int(os.environ.get("WICKETGATE_AGREEMENT_SEED", "0"))  # 0: another one on each run
QUICK = 1500
FLOWS = 40  # packets for each ruleset, before replies
ROUTING_SHARE, PACKETS_SHARE, TUNNELS_SHARE = 0.3, 0.2, 0.03
ROUTED_ALIKE = 20  # packets into a tunnel before its routes are others

# What a ruleset's text has when it has the feature.
FILTER_FEATURES = {
    "ipset": r"-m set ",
    "nft": r"^table ", "nft sets": r"@(plain|wide|pairs|ports)", "nft concatenations": r"saddr \. ip6? daddr|@pairs",
    "nft verdict maps": r"vmap", "nft maps": r" map \{", "nft jump, goto": r"(jump|goto) u\d", "nft fib": r"\bfib ",
    "nft payload": r"@(th|nh),", "nft ct": r"\bct ", "nft marks": r"meta mark", "nft nat": r"dnat|snat|masquerade|redirect",
    "nft chains of type route": r"type route", "nft log, limit": r"log prefix|limit rate",
    "nft dscp, hop limit": r"dscp|hoplimit|ip ttl",
    "nft reject": r"^ .*reject", "nft notrack": r"^ .*notrack", "nft nfproto": r"nfproto",
    "iptables, user chains": r"-[jg] U\d", "iptables mark, connmark": r"-j (MARK|CONNMARK)|-m (mark|connmark)",
    "iptables conntrack": r"-m (conntrack|state) ", "iptables nat": r"-j (DNAT|SNAT|MASQUERADE|REDIRECT|NETMAP)",
    "iptables reject": r"-j REJECT", "iptables notrack": r"-j CT", "iptables addrtype": r"-m addrtype",
    "iptables multiport, iprange": r"-m (multiport|iprange)",
    "iptables statistic, limit": r"-m (statistic|limit)",
    "iptables rpfilter": r"-m rpfilter", "iptables owner": r"-m owner",
    "iptables physdev, devgroup": r"-m (physdev|devgroup)", "iptables TCPMSS": r"-j TCPMSS",
    "iptables LOG, NFLOG, TRACE": r"-j (LOG|NFLOG|TRACE)", "iptables DSCP, TTL, HL": r"-j (DSCP|TTL|HL)|-m dscp",
}  # fmt: skip


@dataclass
class Row:
    """One line of the table."""

    cases: int = 0
    unknown: int = 0
    wrong: int = 0

    def add(self, cases: int, unknown: int, wrong: int) -> None:
        """Count more."""
        self.cases += cases
        self.unknown += unknown
        self.wrong += wrong

    def cells(self, name: str) -> list[object]:
        """For the table."""
        agree = self.cases - self.unknown - self.wrong
        return [name, self.cases, agree, self.wrong, self.unknown, f"{100 * self.unknown / max(1, self.cases):.2f}"]


@dataclass
class Result:
    """All that was counted."""

    rows: dict[str, Row] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    silent: int = 0
    filtered: int = 0
    rejected: int = 0
    no_tap: str = ""

    def row(self, name: str) -> Row:
        """The line of that name."""
        return self.rows.setdefault(name, Row())


def features_of_rules(rules: Rules) -> list[str]:
    """What a ruleset has."""
    tools = [tool.replace("-restore", "") for tool, _ in rules.restore]
    text = rules.spelled()
    return tools + [name for name, pattern in FILTER_FEATURES.items() if re.search(pattern, text, re.MULTILINE)]


RULE_FEATURES: dict[str, Callable[[Rule], object]] = {
    "rule fwmark": lambda r: r.fwmask, "rule not": lambda r: r.invert, "rule ports": lambda r: r.sport or r.dport,
    "rule ipproto": lambda r: r.ipproto, "rule uidrange": lambda r: r.uid_range, "rule tos": lambda r: r.tos,
    "rule iif, oif": lambda r: r.iif or r.oif,
    "rule suppress_prefixlength": lambda r: r.suppress_prefixlength is not None,
    "rule suppress_ifgroup": lambda r: r.suppress_ifgroup is not None,
}  # fmt: skip


def features_of_world(world: World) -> list[str]:
    """What a configuration of rules and routes has."""
    found = [f"rule {rule.action}" for rule in world.rules]
    found += [name for name, test in RULE_FEATURES.items() if any(test(rule) for rule in world.rules)]
    found += [f"route {route.type}" for route in world.routes]
    found += ["route multipath"] if any(len(route.nexthops) > 1 for route in world.routes) else []
    found += ["nexthop objects"] if any(route.nh_id for route in world.routes) else []
    found += ["route from SOURCE"] if any(route.src for route in world.routes) else []
    found += [f"rp_filter {value}" for name, value in world.sysctls.items() if name.endswith(".rp_filter") and value]
    return list(dict.fromkeys(found))


def routing(result: Result, cases: int, chosen: int) -> None:
    """Ask about so many ways."""
    counted = Row()

    def inside() -> None:
        with RouteJudge() as judge:

            @seed(chosen)
            @settings(
                max_examples=max(1, cases // 45 + 1), database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(worlds, st.lists(asks(), min_size=40, max_size=60))
            def check(world: World, questions: list[Ask]) -> None:
                judge.apply(world)
                model = Routing(judge.snapshot())
                here = Row()
                for question in questions:
                    problem, unknown = judge.disagreement(question, model)
                    here.add(1, bool(unknown) and problem is None, problem is not None)
                    if unknown:
                        result.reasons[f"{unknown}"] += 1
                    if problem is not None:
                        result.problems.append(f"routing, seed {chosen}: {question}: {problem}")
                counted.add(here.cases, here.unknown, here.wrong)
                for name in features_of_world(world):
                    result.row(name).add(here.cases, here.unknown, here.wrong)

            check()

    with Host.create(f"agree-routes-{os.getpid()}") as host:
        host.call(inside)
    result.rows = {"all routing": counted, **result.rows}


def packets(result: Result, cases: int, chosen: int) -> None:
    """Send so many packets into rules, routes and settings."""
    counted = Row()
    result.no_tap = why_no_tap()

    def inside(far: Host, tap: DropTap | None) -> None:
        with PacketJudge(far, tap) as judge:
            while counted.cases < cases:
                # Counted while it runs: how many packets a world has is drawn too.
                @seed(chosen + counted.cases)
                @settings(
                    max_examples=10, database=None, deadline=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(open_worlds(), st.lists(asks(), min_size=40, max_size=60))
                def check(world: World, questions: list[Ask]) -> None:
                    problems, here, unknown = judge.judge(world, questions)
                    counted.add(here, unknown, len(problems))
                    result.problems += [f"packets, seed {chosen}: {problem}\n{world}" for problem in problems]

                check()
            for verdict, times in judge.verdicts.items():
                result.row(f"packet {verdict}").add(times, times if verdict == "unknown" else 0, 0)
            result.reasons += judge.unknown
            result.silent += judge.untold
            result.rejected += sum(times for verdict, times in judge.verdicts.items() if verdict.startswith("refused"))

    def traced(far: Host) -> None:
        if result.no_tap:
            on_one_cpu(lambda: inside(far, None))
            return
        with DropTap() as tap:
            on_one_cpu(lambda: inside(far, tap))

    with Host.create(f"agree-packets-{os.getpid()}") as pod, Host.create(f"agree-far-{os.getpid()}") as far:
        pod.call(lambda: traced(far))
    result.rows["all packets"] = counted


def netfilter(result: Result, cases: int, chosen: int) -> None:
    """Send so many packets."""
    if result.no_tap:
        _netfilter(result, cases, chosen, None)
        return
    with DropTap() as tap:
        _netfilter(result, cases, chosen, tap)


def _netfilter(result: Result, cases: int, chosen: int, tap: DropTap | None) -> None:
    counted = Row()
    chance = Random(chosen)
    with Host.create(f"agree-pod-{os.getpid()}") as pod, Host.create(f"agree-near-{os.getpid()}") as near:
        stand = FilterStand(pod, near)
        try:
            judge = FilterJudge(stand, tap)
            tally, number = judge.tally, 0
            while counted.cases < cases:
                maker = Maker(Random(chance.getrandbits(64)))
                rules = judge.settle(maker.rules())
                flows = [maker.flow(number + at) for at in range(FLOWS)]
                number += FLOWS
                before = tally.cases, tally.unknown.total(), len(tally.wrong)
                judge.judge(rules, flows)
                here = tally.cases - before[0], tally.unknown.total() - before[1], len(tally.wrong) - before[2]
                counted.add(*here)
                for name in features_of_rules(rules):
                    result.row(name).add(*here)
        finally:
            stand.close()
    result.row("all netfilter").add(counted.cases, counted.unknown, counted.wrong)
    result.problems += tally.wrong
    result.silent += tally.silent
    result.filtered += tally.filtered
    result.rejected += tally.verdicts["rejected"]
    for reason, times in tally.unknown.items():
        result.reasons[re.sub(r"^[^:]*: ", "", reason)] += times


def tunnels(result: Result, cases: int, chosen: int) -> None:
    """Send so many packets into a WireGuard device, and out of it."""
    counted = Row()
    with Host.create(f"agree-inner-{os.getpid()}") as pod, Host.create(f"agree-peer-{os.getpid()}") as far:
        judge = TunnelJudge(pod, far, Random(chosen))
        try:
            for number in range(cases * 2 // 3):
                if number % ROUTED_ALIKE == 0:
                    snapshot = judge.routes()
                problem, said = judge.out(snapshot)
                unknown = said.verdict is Verdict.UNKNOWN
                counted.add(1, unknown, problem is not None)
                name = said.code or f"{said.verdict} {'by a peer' if said.carrier else 'past it'}"
                result.row(f"tunnel out {name}").add(1, unknown, problem is not None)
                if unknown:
                    result.reasons[said.reason] += 1
                if problem is not None:
                    result.problems.append(f"tunnels, seed {chosen}: {problem}")
            judge.session()
            for number in range(-(-(cases - counted.cases) // COMING_IN)):
                problems = judge.come_in(number)
                counted.add(COMING_IN, 0, len(problems))
                result.row("tunnel in, allowed-ips").add(COMING_IN, 0, len(problems))
                result.problems += [f"tunnels, seed {chosen}: {problem}" for problem in problems]
        finally:
            judge.close()
    result.rows["all tunnels"] = counted


def measure(quick: bool) -> None:
    cases = QUICK if quick else CASES
    chosen = SEED or SystemRandom().getrandbits(32)
    result = Result()
    began = time.monotonic()
    routing(result, int(cases * ROUTING_SHARE), chosen)
    routed = time.monotonic()
    packets(result, int(cases * PACKETS_SHARE), chosen)
    sent = time.monotonic()
    tunnels(result, int(cases * TUNNELS_SHARE), chosen)
    tunneled = time.monotonic()
    netfilter(
        result, cases - sum(result.rows[f"all {name}"].cases for name in ("routing", "packets", "tunnels")), chosen
    )
    heads = {
        "all routing": routed - began, "all packets": sent - routed, "all tunnels": tunneled - sent,
        "all netfilter": time.monotonic() - tunneled,
    }  # fmt: skip
    total = Row()
    for name in heads:
        total.add(result.rows[name].cases, result.rows[name].unknown, result.rows[name].wrong)
    print(f"seed {chosen}; {conditions()}\n")
    count = {name: result.rows[name].cases for name in heads}
    rows = [total.cells("all"), *(result.rows.pop(name).cells(name) for name in heads)]
    rows += [row.cells(f"  {name}") for name, row in sorted(result.rows.items())]
    table(["feature", "cases", "agree", "disagree", "unknown", "unknown %"], rows)
    speeds = ", ".join(f"{name[4:]} {count[name] / seconds:.0f}" for name, seconds in heads.items())
    print(f"\ndrop reasons: {'not compared: ' + result.no_tap if result.no_tap else 'compared'}")
    print(
        f"cases a second: {speeds}; of {result.rejected} rejections {result.silent} silent, "
        f"{result.filtered} of them by a rule that took the error itself"
    )
    for reason, times in result.reasons.most_common(5):
        print(f"unknown {times} times: {reason}")
    for problem in result.problems[: int(os.environ.get("WICKETGATE_AGREEMENT_SHOW", "3"))]:
        print(f"\ndisagreement:\n{problem}")
    print()
    goal(f"{total.cases} cases without a disagreement", total.wrong == 0)
    goal(f"unknown below 1 % ({100 * total.unknown / max(1, total.cases):.2f} %)", total.unknown * 100 < total.cases)


if __name__ == "__main__":
    run(measure, __doc__)
