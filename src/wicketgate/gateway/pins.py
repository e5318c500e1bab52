# SPDX-License-Identifier: Apache-2.0
"""Strategy `pin`: what leaves with an uplink's address leaves by the uplink, whatever the tunnel has added.

`ip rule add from ADDR lookup main` is the one cure of the measured matrix that holds under every rp_filter and
src_valid_mark, since the reverse-path lookup of an arriving packet has ADDR as its source as well.

Where the rule stands matters. `ip rule add` without a priority takes the priority of the second rule less one
(fib_default_rule_pref in net/core/fib_rules.c), so a wg-quick that starts after us puts its rules before ours,
whatever number ours has. Hence the priority is computed from what is there, and computed again at every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, RT_TABLE_MAIN, Family, IPAddress, Rule

# Below the 32764 and 32765 of wg-quick and the 5210 of others, above the 98 to 101 that VPN clients give their own
# "inbound" rules; a guess at what people have, corrected by `place` wherever it is wrong.
PIN_PRIORITY = 90
_FIRST = 1  # 0 is the local table's


@dataclass(frozen=True, slots=True)
class RuleChange:
    """What has to be done to the policy rules."""

    add: tuple[Rule, ...] = ()
    delete: tuple[Rule, ...] = ()
    # why the pins cannot stand first, where they cannot
    obstacle: str = ""

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)


def is_ours(rule: Rule) -> bool:
    """Tagged with our protocol number: the only rules that are ever removed."""
    return rule.protocol == ROUTE_PROTOCOL


def pin(address: IPAddress, priority: int) -> Rule:
    """The rule for one uplink address."""
    return Rule(
        family=4 if address.version == 4 else 6,
        priority=priority,
        action="lookup",
        table=RT_TABLE_MAIN,
        src=ip_network(address),
        protocol=ROUTE_PROTOCOL,
    )


def _is_local_table(rule: Rule) -> bool:
    return rule.priority == 0 and rule.action == "lookup" and rule.table == RT_TABLE_LOCAL


def _could_capture(rule: Rule) -> bool:
    """Whether a foreign rule, standing first, could take a reply away from its uplink."""
    # `nop` and rules that only look at what comes in by an interface never decide about a local reply.
    return rule.action != "nop" and not (rule.iif and rule.iif != "lo")


def place(rules: Sequence[Rule], family: Family) -> tuple[int, str]:
    """The priority at which pins of a family come before every foreign rule that could capture a reply.

    Returns:
        The priority, and why it is not early enough where it cannot be.
    """
    foreign = [
        r.priority
        for r in rules
        if r.family == family and not is_ours(r) and not _is_local_table(r) and _could_capture(r)
    ]
    first = min(foreign, default=PIN_PRIORITY + 1)
    if first > PIN_PRIORITY:
        return PIN_PRIORITY, ""
    if first > _FIRST:
        return first - 1, ""
    return _FIRST, f"a foreign rule stands at priority {first}; nothing can be put before it"


def pin_changes(rules: Sequence[Rule], addresses: Iterable[IPAddress]) -> RuleChange:
    """What it takes to have exactly one pin for every address, each before the foreign rules.

    Additions are to be made before deletions, so that there is no moment without a pin.
    """
    wanted: list[Rule] = []
    obstacles = []
    by_family: dict[Family, list[IPAddress]] = {}
    for address in addresses:
        by_family.setdefault(4 if address.version == 4 else 6, []).append(address)
    for family, members in sorted(by_family.items()):
        priority, obstacle = place(rules, family)
        if obstacle:
            obstacles.append(f"IPv{family}: {obstacle}")
        wanted += [pin(address, priority) for address in members]
    have = [r for r in rules if is_ours(r) and is_pin(r)]
    return RuleChange(
        add=tuple(r for r in wanted if r not in have),
        delete=tuple(r for r in have if r not in wanted),
        obstacle="; ".join(obstacles),
    )


def is_pin(rule: Rule) -> bool:
    """Whether one of our rules is a pin (and not one of role exit's)."""
    # A rule with a destination is a door's.
    return (
        rule.src is not None and rule.dst is None and rule.table == RT_TABLE_MAIN and rule.suppress_prefixlength is None
    )
