# SPDX-License-Identifier: Apache-2.0
"""Policy rules: which table is asked (fib_rules_lookup() in net/core/fib_rules.c)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from wicketgate.netpath.fib import LEGACY_TOS_MASK
from wicketgate.netpath.lookup import ACTION_ERRORS, Answer, Asked, Found, Question, Refused, Unsure, rule_line, untold
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.snapshot import RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN, Rule
from wicketgate.netpath.spelling import table_name

_DSCP_MASK = 0xFC
_DEFAULTS4 = (
    Rule(4, 0, table=RT_TABLE_LOCAL),
    Rule(4, 32766, table=RT_TABLE_MAIN),
    Rule(4, 32767, table=RT_TABLE_DEFAULT),
)
_DEFAULTS6 = (Rule(6, 0, table=RT_TABLE_LOCAL), Rule(6, 32766, table=RT_TABLE_MAIN))

TableLookup = Callable[[int, Question], Answer | None]


def are_defaults(rules: Iterable[Rule]) -> bool:
    """These are the rules that a new namespace has, and no others."""
    plain = tuple(replaced(rule, protocol=0) for rule in rules)
    return plain in (_DEFAULTS4, _DEFAULTS6)


def matches(rule: Rule, question: Question, *, vrf: str = "") -> bool | None:
    """Whether the rule's selector takes the packet; None = the model does not know (fib_rule_match).

    Args:
        rule: asked.
        question: about the packet.
        vrf: the VRF that the packet is of (l3mdev_update_flow); empty: none.
    """
    said = _selector(rule, question, vrf=vrf)
    if said is None or not rule.invert:
        return said
    # Under `not`, what is unknown may change the action of a rule that certainly matches.
    return None if rule.unknown else not said


def _selector(rule: Rule, question: Question, *, vrf: str) -> bool | None:
    if rule.iif and rule.iif != question.iif:
        return False
    if rule.oif and rule.oif != question.oif:
        return False
    if (rule.fwmark ^ question.mark) & rule.fwmask:
        return False
    if rule.l3mdev and not vrf:
        return False
    if rule.dst is not None and question.destination not in rule.dst:
        return False
    if rule.src is not None and rule.src.prefixlen and not _from(rule, question):
        return False
    mask = LEGACY_TOS_MASK if question.family == 4 else _DSCP_MASK
    if rule.tos and rule.tos != question.tos & mask:
        return False
    if rule.ipproto and rule.ipproto != question.protocol:
        return False
    if rule.sport is not None and not rule.sport[0] <= question.source_port <= rule.sport[1]:
        return False
    if rule.dport is not None and not rule.dport[0] <= question.destination_port <= rule.dport[1]:
        return False
    if rule.uid_range is not None:
        if question.uid is None:
            return None
        if not rule.uid_range[0] <= question.uid <= rule.uid_range[1]:
            return False
    return None if rule.unknown else True


def _from(rule: Rule, question: Question) -> bool:
    assert rule.src is not None
    if question.source is not None:
        return question.source in rule.src
    # IPv4 compares an address that is not yet chosen as 0.0.0.0; IPv6 knows that there is none.
    return question.family == 4 and not int(rule.src.network_address)


class Rules:
    """The rules of one family.

    Args:
        rules: as the kernel lists them.
        table: asks a table.
        group: an interface's group, for suppress_ifgroup; None where it is not known.
        vrf: the VRF that an interface is or belongs to; empty: none.
        vrf_table: of a VRF; 0 where it is not known.
        object_lengths: prefix lengths of the IPv6 routes that lead by nexthop objects.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        table: TableLookup,
        group: Callable[[str], int | None],
        *,
        vrf: Callable[[str], str] = lambda _: "",
        vrf_table: Callable[[str], int] = lambda _: 0,
        object_lengths: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._rules = tuple(sorted(rules, key=lambda rule: rule.priority))  # stable, as rules of one priority stand
        self._table = table
        self._group = group
        self._vrf = vrf
        self._vrf_table = vrf_table
        self._object_lengths = object_lengths
        self._targets: dict[int, int] = {}
        for position, rule in enumerate(self._rules):
            self._targets.setdefault(rule.priority, position)

    def lookup(self, question: Question) -> Answer:
        """Ask the rules in order until one has an answer."""
        trail: list[Asked] = []
        position = 0
        # l3mdev_update_flow(): the interface that the sender is bound to decides, if there is one; a VRF itself is then no
        # interface any more that a rule or route could ask for
        vrf = self._vrf(question.oif or question.iif)
        if vrf and question.oif == vrf:
            question = replaced(question, oif="", prefer="", strict=False)
        while position < len(self._rules):
            rule = self._rules[position]
            position += 1
            match = matches(rule, question, vrf=vrf)
            if match is None and (missing := untold(rule.unknown)) is not None:
                return replaced(missing, trail=tuple(trail))
            if match is None:
                return Unsure(self._why_unsure(rule, question), rule_line(rule), tuple(trail))
            if not match or rule.action == "nop":
                continue
            if rule.action == "goto":
                target = self._targets.get(rule.goto)
                trail.append(Asked(rule, f"goes on at {rule.goto}" if target is not None else "its target is missing"))
                position = target if target is not None and target >= position else position
                continue
            if rule.action in ACTION_ERRORS:
                trail.append(Asked(rule, "refuses"))
                return Refused(ACTION_ERRORS[rule.action], rule_line(rule), rule=rule, trail=tuple(trail))
            if rule.action != "lookup":
                return Unsure(f"rules with {rule.action} are not known to the model", rule_line(rule), tuple(trail))
            table = self._vrf_table(vrf) if rule.l3mdev else rule.table
            if rule.l3mdev and not table:
                return Unsure(f"which table {vrf or 'a VRF'} has is not known", rule_line(rule), tuple(trail))
            answer = self._ask(rule, table, question, trail)
            if answer is not None:
                return answer
        return Refused("ENETUNREACH", trail=tuple(trail))

    def _ask(self, rule: Rule, table: int, question: Question, trail: list[Asked]) -> Answer | None:
        answer = self._table(table, question)
        name = table_name(table)
        if answer is None:
            trail.append(Asked(rule, f"table {name} has no route"))
            return None
        if isinstance(answer, Unsure):
            return replaced(answer, trail=tuple(trail))
        if isinstance(answer, Refused):
            if answer.errno == "EAGAIN":
                trail.append(Asked(rule, f"{answer.object} in table {name} says: ask the next rule"))
                return None
            trail.append(Asked(rule, f"finds {answer.object}"))
            return replaced(answer, rule=rule, trail=tuple(trail))
        if rule.suppress_prefixlength is not None and self._length_unsure(rule.suppress_prefixlength, answer):
            words = (
                "suppress_prefixlength looks at the length of whichever route was first to use the nexthop object on the "
                "processor that asks"
            )
            return Unsure(words, rule_line(rule), tuple(trail))
        if rule.suppress_prefixlength is not None and answer.route.dst.prefixlen <= rule.suppress_prefixlength:
            words = f"suppress_prefixlength {rule.suppress_prefixlength} passes over {answer.route.dst} of table {name}"
            trail.append(Asked(rule, words))
            return None
        if rule.suppress_ifgroup is not None:
            suppressed = self._suppressed(rule.suppress_ifgroup, answer)
            if suppressed is None:
                return Unsure("next hops of different interface groups, and a hash decides", rule_line(rule))
            if suppressed:
                trail.append(Asked(rule, f"suppress_ifgroup {rule.suppress_ifgroup} passes over {answer.route.dst}"))
                return None
        trail.append(Asked(rule, f"finds {answer.route.dst} in table {name}"))
        return replaced(answer, rule=rule, trail=tuple(trail))

    def _length_unsure(self, most: int, found: Found) -> bool:
        """IPv6 keeps one struct rt6_info a processor with a nexthop (fib6_nh.rt6i_pcpu), which routes by nexthop objects
        share: fib6_rule_suppress() may see another route's prefix. Seen on 6.18.
        """
        if found.route.family == 4 or not found.route.nh_id:
            return False
        return len({length <= most for length in (found.route.dst.prefixlen, *self._object_lengths())}) > 1

    def _suppressed(self, group: int, found: Found) -> bool | None:
        # fib4_rule_suppress() looks at the route's first next hop, fib6_rule_suppress() at the one the hash took.
        if found.route.family == 4:
            hops = found.route.nexthops[:1]
        else:
            local = found.route.type in ("local", "anycast")
            hops = () if local else found.hops
            if local:
                return self._group("lo") == group
        said = {self._group(hop.oif) == group for hop in hops}
        return None if len(said) > 1 else said == {True}

    @staticmethod
    def _why_unsure(rule: Rule, question: Question) -> str:
        if rule.unknown:
            return f"the rule carries {', '.join(rule.unknown)}, which the model does not know"
        assert question.uid is None
        return "the rule selects by user, and the sender's is not known"
