# SPDX-License-Identifier: Apache-2.0
"""The computed way and the kernel's own, point by point, and the first point at which they differ. Pure.

Both are brought to the same points: a packet enters a hook, leaves it, or is lost in it or behind it. Of each point
those facts are compared that both know. What the kernel cannot tell is no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from wicketgate.kernel.twin.nft_trace import Traced
from wicketgate.netpath.packet import Ends
from wicketgate.netpath.step import FilterStep, Stage, Step, TranslationStep
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict

ENTERS, LEAVES, LOST, BEHIND, NEVER, UNKNOWN = (
    "enters", "leaves", "is lost in", "is lost behind", "is not sent", "cannot be told",
)  # fmt: skip
# The kernel's drop reasons (include/net/dropreason-core.h) for the codes that mean the same.
_REASONS = MappingProxyType({"IP_RPFILTER": "rp-filter"})
_HIDDEN = ("rule", "code")
_State = tuple[Ends, int]


@dataclass(frozen=True, slots=True)
class Point:
    """A place on a packet's way.

    Attributes:
        kind: enters, leaves, is lost in, is lost behind a hook; is not sent, cannot be told.
        hook: of netfilter.
        facts: what is known of the packet there.
        by: what decided, in the words of the tool that lists it.
    """

    kind: str
    hook: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    by: str = ""

    def spelled(self) -> str:
        """`leaves prerouting, mark 0x1`."""
        words = " ".join(each for each in (self.kind, self.hook) if each)
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items() if name not in _HIDDEN)
        return f"{words}{f', {facts}' if facts else ''}{f': {self.by}' if self.by else ''}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One point of both ways; `same` is None where one of them does not tell."""

    computed: Point | None
    kernel: Point | None
    same: bool | None

    @property
    def named(self) -> Point:
        """The point itself; one of the two is there."""
        return self.computed or self.kernel or Point(UNKNOWN)


def computed_points(trace: Trace) -> tuple[Point, ...]:
    """The model's way."""
    steps = [each for each in trace.steps if not each.layer]
    visited = _visited(trace, steps)
    states = _states(trace, steps, visited)
    lost_in = trace.code.removesuffix("-drop") if trace.code.endswith("-drop") and not trace.egress else ""
    points: list[Point] = []
    for hook in visited:
        first, last = states[hook]
        came = {"iif": trace.packet.iif} if hook == "prerouting" and trace.packet.iif else {}
        points.append(Point(ENTERS, hook, {**came, **_facts(*first)}))
        if hook == lost_in:
            points.append(_culprit(trace, steps, hook))
            return tuple(points)
        if trace.verdict is Verdict.UNKNOWN and hook == visited[-1] and not trace.egress:
            break
        left = {"oif": trace.egress} if hook == "postrouting" and trace.egress else {}
        points.append(Point(LEAVES, hook, {**left, **_facts(*last)}))
    if trace.verdict is Verdict.UNKNOWN:
        points.append(Point(UNKNOWN, by=trace.reason))
    elif not visited:
        points.append(Point(NEVER, by=trace.object or trace.reason))
    elif visited[-1] not in ("input", "postrouting"):
        code = {"code": trace.code} if trace.code in _REASONS.values() else {}
        points.append(Point(BEHIND, visited[-1], code, trace.object or trace.reason))
    return tuple(points)


def _visited(trace: Trace, steps: Sequence[Step]) -> list[str]:
    """The hooks that it came to, in order."""
    stages = {str(each.stage) for each in steps}
    if trace.code.endswith("-drop"):
        stages.add(trace.code.removesuffix("-drop"))
    left = bool(trace.egress) or str(Stage.EGRESS) in stages or "postrouting" in stages
    if str(Stage.SOCKET_OUT) in stages:
        came = left or "output" in stages or str(Stage.REROUTING) in stages
        return [*(["output"] if came else []), *(["postrouting"] if left else [])]
    before = {str(Stage.INGRESS), str(Stage.TUNNEL_IN)}
    # ip6_rcv() looks at the source before any hook; ip_route_input() looks at IPv4's behind prerouting.
    early = trace.code in ("interface-missing", "interface-down", "source-not-allowed", "address-missing")
    if trace.packet.family == 6:
        early = early or (trace.code == "martian-source" and str(Stage.INPUT_ROUTING) not in stages)
    if early and not left and not stages - before - {str(Stage.SOURCE_CHECK)}:
        return []
    found = ["prerouting"]
    if "input" in stages or str(Stage.SOCKET_IN) in stages or trace.verdict is Verdict.DELIVERED:
        found.append("input")
    elif left or "forward" in stages:
        found += ["forward", *(["postrouting"] if left else [])]
    return found


def _states(trace: Trace, steps: Sequence[Step], visited: Sequence[str]) -> dict[str, tuple[_State, _State]]:
    """Addresses and mark as the packet enters and leaves each hook: reckoned back from its end."""
    ends, mark = trace.packet.ends, trace.packet.mark
    after: list[_State] = []
    for step in reversed(steps):
        after.append((ends, mark))
        if isinstance(step, TranslationStep):
            ends = step.before or ends
            mark = step.mark_before if step.mark_before != step.mark_after else mark
    after.append((ends, mark))
    after.reverse()  # after[n] is the state before step n, and after step n - 1
    found: dict[str, tuple[_State, _State]] = {}
    now = after[0]
    for hook in visited:
        at = [number for number, step in enumerate(steps) if step.stage == hook]
        found[hook] = (after[at[0]], after[at[-1] + 1]) if at else (now, now)
        now = found[hook][1]
    return found


def _facts(ends: Ends, mark: int) -> dict[str, str]:
    return {"packet": ends.spelled(), "mark": f"{mark:#x}" if mark else "0"}


def _culprit(trace: Trace, steps: Sequence[Step], hook: str) -> Point:
    step = next((each for each in reversed(steps) if isinstance(each, FilterStep) and each.stage == hook), None)
    rule = {}
    if step is not None and step.handle and step.family in ("ip", "ip6", "inet"):
        rule = {"rule": f"{step.family} {step.table} {step.chain} {step.handle}"}
    return Point(LOST, hook, rule, trace.object or trace.reason)


def kernel_points(
    words: Sequence[Traced], name_of: Callable[[int], str] = str, reasons: Sequence[str] = ()
) -> tuple[Point, ...]:
    """The kernel's way.

    Args:
        words: nftables' about one packet, in order.
        name_of: an interface's name by its index.
        reasons: for which packets were thrown away meanwhile; the last one is looked at when nftables did not.
    """
    if not words:
        return (Point(NEVER),)
    reason = reasons[-1] if reasons else ""
    told = f"drop reason {reason}" if reason else ""
    points: list[Point] = []
    inside = ""
    for each in words:
        hook, _, end = each.chain.partition("_") if each.ours else ("", "", "")
        if end == "first" and hook != inside:
            inside = hook
            points.append(Point(ENTERS, hook, _told(words, each, name_of)))
        elif end and hook != inside:
            continue  # a chain's end has two words
        elif end == "first":
            continue  # the rule's word was the first, this is the policy's
        elif end == "last":
            inside = ""
            points.append(Point(LEAVES, hook, _told(words, each, name_of)))
        elif each.verdict == "drop":
            rule = {"rule": f"{each.family} {each.table} {each.chain} {each.handle}"} if each.handle else {}
            text = f"{each.text} (table {each.family} {each.table} chain {each.chain})" if each.handle else each.text
            points.append(Point(LOST, each.hook or inside, rule, text))
            return tuple(points)
    if inside:
        nobody = "no rule of nftables; it is iptables-legacy's, or not a rule's"
        points.append(Point(LOST, inside, {}, f"{nobody}; {told}" if told else nobody))
    elif points and points[-1].hook not in ("input", "postrouting"):
        code = {"code": _REASONS[reason]} if reason in _REASONS else {}
        points.append(Point(BEHIND, points[-1].hook, code, told))
    return tuple(points)


def _told(words: Sequence[Traced], word: Traced, name_of: Callable[[int], str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    # A chain's first word has addresses and interfaces, its last one the mark.
    same = [each for each in words if (each.table, each.chain, each.number) == (word.table, word.chain, word.number)]
    if word.iif and word.chain.startswith("prerouting"):
        facts["iif"] = name_of(word.iif)
    if word.oif and word.chain == "postrouting_last":
        facts["oif"] = name_of(word.oif)
    if word.ends is not None:
        facts["packet"] = word.ends.spelled()
    mark = same[-1].mark if same else word.mark
    return facts | {"mark": f"{mark:#x}" if mark else "0"}


def compare(computed: Sequence[Point], kernel: Sequence[Point]) -> tuple[Compared, ...]:
    """Point by point, up to the first difference and what follows it on either side."""
    found: list[Compared] = []
    apart = False
    for at in range(max(len(computed), len(kernel))):
        ours = computed[at] if at < len(computed) else None
        theirs = kernel[at] if at < len(kernel) else None
        if apart:
            found.append(Compared(ours, theirs, None))
            continue
        if ours is not None and ours.kind == UNKNOWN:
            found.append(Compared(ours, theirs, None))
            apart = True
            continue
        same = ours is not None and theirs is not None and _alike(ours, theirs)
        found.append(Compared(ours, theirs, same))
        apart = not same
    return tuple(found)


def _alike(ours: Point, theirs: Point) -> bool:
    if (ours.kind, ours.hook) != (theirs.kind, theirs.hook):
        return False
    return all(theirs.facts.get(name, value) == value for name, value in ours.facts.items())


def first_difference(points: Sequence[Compared]) -> Compared | None:
    """Where they part."""
    return next((each for each in points if each.same is False), None)
