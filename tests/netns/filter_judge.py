# SPDX-License-Identifier: Apache-2.0
"""What the model says of a packet in the stand, and whether the kernel agrees."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

from netns.drop_tap import DropTap
from netns.filter_rules import Rules
from netns.filter_stand import DROPPED, LOCAL, FilterStand, Seen, on_one_cpu, told
from wicketgate.netpath.filter import Filter, HookResult, HookVerdict
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import ACK, ICMP, ICMPV6, SYN, TCP, UDP, Connection, ConnState, Packet
from wicketgate.netpath.snapshot import IPAddress

BY_A_RULE, UNTRACED = "NETFILTER_DROP", "not traced"
_LOCAL = frozenset(map(ip_address, LOCAL))
_UP = [ip_network(each) for each in ("10.99.0.0/24", "172.16.0.0/16", "fd99::/64", "fd72::/64")]


def way(destination: IPAddress) -> str:
    """The stand's routing table."""
    if destination in _LOCAL or destination.is_loopback:
        return "lo"
    return "up0" if any(destination in network for network in _UP) else "far0"


@dataclass(frozen=True)
class Said:
    """The model's answer: what will be seen, or why it does not know."""

    seen: Seen | None
    connection: Connection
    unknown: str = ""
    by: str = ""


def predict(rules: Filter, packet: Packet, connection: Connection) -> Said:
    """Walk the hooks as the stand's kernel does: one table of routes, no source checks."""
    if packet.iif:
        return _arrive(rules, packet, connection)
    first = rules.hook("output", replace(packet, oif=way(packet.destination)), connection)
    ended = _ended(first)
    if ended:
        return ended
    oif = way(first.packet.destination)
    second = rules.hook("postrouting", replace(first.packet, oif=oif), first.connection)
    ended = _ended(second)
    if ended:
        return ended
    if oif == "lo":
        looped = replace(second.packet, iif="lo", oif="", from_socket=False, uid=None, gid=None)
        return _arrive(rules, looped, second.connection)
    return Said(Seen("sent", second.packet.ends, second.packet.mark, oif), second.connection)


def _arrive(rules: Filter, packet: Packet, connection: Connection) -> Said:
    first = rules.hook("prerouting", packet, connection)
    ended = _ended(first)
    if ended:
        return ended
    arrived = first.packet
    oif = way(arrived.destination)
    if oif == "lo":
        last = rules.hook("input", arrived, first.connection)
        return _ended(last) or Said(Seen("delivered", last.packet.ends, last.packet.mark), last.connection)
    # ip_forward lowers the hop limit before FORWARD
    second = rules.hook("forward", replace(arrived, oif=oif, hop_limit=arrived.hop_limit - 1), first.connection)
    ended = _ended(second)
    if ended:
        return ended
    last = rules.hook("postrouting", second.packet, second.connection)
    return _ended(last) or Said(Seen("sent", last.packet.ends, last.packet.mark, oif), last.connection)


def _ended(result: HookResult) -> Said | None:
    if result.verdict is HookVerdict.ACCEPT:
        return None
    if result.verdict is HookVerdict.UNKNOWN:
        return Said(None, result.connection, f"{result.object}: {result.reason}")
    if result.verdict is HookVerdict.REJECT:
        return Said(Seen("rejected", how=told(result.reason)), result.connection, by=result.object)
    return Said(DROPPED, result.connection, by=result.object)


@dataclass
class Tally:
    """How often model and kernel were compared, and what came of it."""

    cases: int = 0
    rulesets: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    silent: int = 0  # rejections of which nothing was seen
    filtered: int = 0  # of these, a rule took the ICMP error or reset itself, as the kernel traced it
    seconds: float = 0.0

    def line(self) -> str:
        unknown = self.unknown.total()
        return (
            f"{self.cases} cases in {self.rulesets} rulesets, {self.cases - unknown - len(self.wrong)} agreements, "
            f"{len(self.wrong)} disagreements, {unknown} unknown ({100 * unknown / max(1, self.cases):.2f} %), "
            f"{self.cases / max(self.seconds, 1e-9):.0f} cases/s; {dict(self.verdicts)}, {self.silent} rejections silent"
        )


@dataclass
class _Flow:
    packet: Packet
    connection: Connection
    nonce: int


class Judge:
    """Loads rulesets into the stand and compares.

    Args:
        stand: where the packets go.
        tap: of the calling thread: then a drop is one by a rule, in the kernel's own words.
    """

    def __init__(self, stand: FilterStand, tap: DropTap | None = None) -> None:
        self.stand = stand
        self.tap = tap
        self.tally = Tally()
        self._nonce = 1
        self._sets = False

    def load(self, rules: Rules) -> str:
        """Put the rules in place. What the tools say when they refuse."""
        pod = self.stand.pod
        script = ["nft flush ruleset"]
        if rules.ipset or self._sets:
            # A set can be taken away when no rule asks for it any more.
            script += [
                f"grep -qs . /proc/net/{tool.split('tables')[0]}_tables_names && {tool} <<'END'\n{_EMPTY}END"
                for tool in ("iptables-legacy-restore", "ip6tables-legacy-restore")
            ]
            # nf_tables lets go of a rule's objects a moment after the rule is gone.
            script.append("ipset flush; for _ in $(seq 200); do ipset destroy 2>/dev/null && break; sleep 0.02; done")
            script.append(f"ipset restore <<'END' || exit 9\n{rules.ipset}END")
            self._sets = bool(rules.ipset)
        for tool in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
            if tool not in dict(rules.restore):
                script.append(
                    f"grep -qs . /proc/net/{tool.split('tables')[0]}_tables_names && {tool} <<'END'\n{_EMPTY}END"
                )
        if rules.nft:
            script.append(f"nft -f - <<'END' || exit 9\n{rules.nft}END")
        for tool, text in rules.restore:
            script.append(f"{tool} <<'END' || exit 9\n{text}END")
        done = pod.run("sh", "-c", "\n".join([*script, "true"]), check=False, timeout=60)
        return done.stderr if done.returncode == 9 else ""

    def settle(self, rules: Rules) -> Rules:
        """The rules without those that the tools refuse: the maker does not know every rule of nft's grammar."""
        for _ in range(30):
            refused = self.load(rules)
            if not refused:
                return rules
            bad = {int(each) for each in re.findall(r"/dev/stdin:(\d+):", refused)}
            lines = rules.nft.split("\n")
            kept = [line for at, line in enumerate(lines, 1) if at not in bad or not line.startswith("  ")]
            failed = re.search(r"(ip6?tables)-(?:nft-|legacy-)?restore.*line:? (\d+)", refused, re.DOTALL)
            if len(kept) < len(lines):
                rules = replace(rules, nft="\n".join(kept))
            elif failed:
                rules = _without(rules, refused, int(failed.group(2)))
            else:
                raise AssertionError(f"{refused}\n{rules.spelled()}")
        raise AssertionError(f"still refused: {refused}\n{rules.spelled()}")

    def judge(self, rules: Rules, flows: list[Packet], *, followed: bool = True) -> list[str]:
        """Load, send, compare.

        Returns:
            The disagreements, with everything that is needed to see them again.
        """
        refused = self.load(rules)
        assert not refused, f"{refused}\n{rules.spelled()}"
        started = time.monotonic()
        self.stand.forget_connections()
        model = Ruleset(self.stand.snapshot())
        before = len(self.tally.wrong)
        self.tally.rulesets += 1

        def run() -> None:
            first = [_Flow(packet, Connection.opened_by(packet), self._number()) for packet in flows]
            passed = self._round(model, rules, first, "first")
            if followed:
                replies = self._round(model, rules, [each for each in map(self._reply, passed) if each], "reply")
                self._round(model, rules, [each for each in map(self._again, replies) if each], "after the reply")
            self.stand.deafen()

        on_one_cpu(run)
        self.tally.seconds += time.monotonic() - started
        return self.tally.wrong[before:]

    def _number(self) -> int:
        self._nonce += 0x10001
        return self._nonce & 0x7FFFFFFF

    def _round(
        self, model: Filter, rules: Rules, flows: list[_Flow], what: str
    ) -> list[tuple[_Flow, Seen, Connection]]:
        passed = []
        said = [predict(model, flow.packet, flow.connection) for flow in flows]
        for flow in flows:
            if self.tap is not None:
                self.tap.mark(flow.nonce)
            self.stand.send(flow.packet, flow.nonce)
        if self.tap is not None:
            self.tap.mark(0)
        found = self.stand.collect()
        reasons = self.tap.read() if self.tap is not None else None
        for flow, each in zip(flows, said, strict=True):
            seen = _decisive(found.get(flow.nonce, []))
            why = reasons.get(flow.nonce, []) if reasons is not None else [UNTRACED]
            self.tally.cases += 1
            if each.seen is None:
                self.tally.unknown[each.unknown] += 1
                continue
            self.tally.verdicts[each.seen.verdict] += 1
            if not _agree(each.seen, seen, why):
                self.tally.wrong.append(
                    f"{what}: {flow.packet.spelled()} iif {flow.packet.iif or '-'} {flow.connection.state}/"
                    f"{flow.connection.direction}\n  model:  {each.seen.spelled()} ({each.by})\n  kernel: {seen.spelled()} {' '.join(why)}\n"
                    f"{rules.spelled()}"
                )
            elif each.seen.verdict == "rejected":
                self.tally.silent += seen == DROPPED
                self.tally.filtered += seen == DROPPED and why.count(BY_A_RULE) > 1
            elif seen.verdict in ("sent", "delivered"):
                passed.append((flow, seen, each.connection))
        return passed

    def _reply(self, passed: tuple[_Flow, Seen, Connection]) -> _Flow | None:
        flow, seen, connection = passed
        packet = flow.packet
        if seen.verdict != "sent" or connection.state is ConnState.UNTRACKED or connection.state is ConnState.INVALID:
            return None
        assert seen.ends is not None
        if packet.protocol == UDP and not packet.iif:
            self.stand.listen(packet.family, packet.source_port)
        answer = replace(
            packet.with_ends(seen.ends.turned()), iif=seen.oif, mark=0, from_socket=False, uid=None, gid=None, hop_limit=64,
            tcp_flags=SYN | ACK if packet.protocol == TCP else 0,
            icmp_type={ICMP: 0, ICMPV6: 129}.get(packet.protocol),
        )  # fmt: skip
        # conntrack checks that a SYN-ACK acknowledges the SYN, so the nonce stays
        nonce = flow.nonce if packet.protocol in (TCP, ICMP, ICMPV6) else self._number()
        self._first[nonce] = flow
        return _Flow(answer, connection.replying(), nonce)

    @property
    def _first(self) -> dict[int, _Flow]:
        return self.__dict__.setdefault("_firsts", {})

    def _again(self, passed: tuple[_Flow, Seen, Connection]) -> _Flow | None:
        reply, _, connection = passed
        first = self._first.get(reply.nonce)
        if first is None or first.packet.protocol != UDP or connection.state is ConnState.UNTRACKED:
            return None  # the connection that an untracked answer belongs to never hears of it
        return _Flow(
            first.packet, replace(connection, direction="original", state=ConnState.ESTABLISHED), self._number()
        )


def _decisive(seen: list[Seen]) -> Seen:
    for verdict in ("delivered", "sent", "rejected"):
        for each in seen:
            if each.verdict == verdict:
                return each
    return DROPPED


def _agree(said: Seen, seen: Seen, why: list[str]) -> bool:
    if said.verdict == "rejected" and seen.verdict == "rejected":
        return seen.how == said.how
    untraced = why == [UNTRACED]
    if seen == DROPPED and not untraced and BY_A_RULE not in why:
        return False
    if said.verdict == "rejected" and seen == DROPPED:
        # Its ICMP error or reset was filtered on its way out: then that was dropped too.
        return untraced or why.count(BY_A_RULE) > 1
    return said == seen


def _without(rules: Rules, refused: str, line: int) -> Rules:
    """The same without one line of the listing that was refused: the first whose line of that number is a rule."""
    for number, (tool, text) in enumerate(rules.restore):
        if tool.replace("-restore", "").split("-")[0] + "-" not in refused.replace("-restore", "-"):
            continue
        lines = text.split("\n")
        if line > len(lines) or lines[line - 1].startswith(("*", ":")):
            continue
        if lines[line - 1].startswith("-A "):
            kept = lines[: line - 1] + lines[line:]
        else:  # COMMIT: a user's chain has a target that a chain which leads to it may not have
            kept = [each for each in lines if not re.search(r"-[jg] U\d", each)]
        if kept != lines:
            return replace(
                rules, restore=(*rules.restore[:number], (tool, "\n".join(kept)), *rules.restore[number + 1 :])
            )
    raise AssertionError(f"{refused}\n{rules.spelled()}")


def shrink(judge: Judge, rules: Rules, flows: list[Packet], fails: Callable[[list[str]], bool]) -> str:
    """Leave out rules and flows as long as the disagreement stays."""
    worst = judge.judge(rules, flows)
    for flow in flows:
        again = judge.judge(rules, [flow])
        if fails(again):
            flows, worst = [flow], again
            break
    changed = True
    while changed:
        changed = False
        for candidate in _smaller(rules):
            if judge.load(candidate):
                continue
            again = judge.judge(candidate, flows)
            if fails(again):
                rules, worst, changed = candidate, again, True
                break
    return worst[0] if worst else "it does not happen again"


def _smaller(rules: Rules):
    lines = rules.nft.split("\n")
    for at, line in enumerate(lines):
        if line.startswith("  "):
            yield replace(rules, nft="\n".join(lines[:at] + lines[at + 1 :]))
    for number, (tool, text) in enumerate(rules.restore):
        parts = text.split("\n")
        for at, line in enumerate(parts):
            if line.startswith("-A "):
                changed = (tool, "\n".join(parts[:at] + parts[at + 1 :]))
                yield replace(rules, restore=(*rules.restore[:number], changed, *rules.restore[number + 1 :]))


_EMPTY = "".join(
    f"*{table}\n{''.join(f':{chain} ACCEPT [0:0]{chr(10)}' for chain in chains)}COMMIT\n"
    for table, chains in {
        "raw": ("PREROUTING", "OUTPUT"), "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT"),
    }.items()
)  # fmt: skip
