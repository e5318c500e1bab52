# SPDX-License-Identifier: Apache-2.0
"""Source rules: one for every uplink address, always before what could capture a reply."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.gateway.pins import PIN_PRIORITY, is_ours, pin, pin_changes
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, RT_TABLE_MAIN, Rule

LOCAL = Rule(4, 0, table=RT_TABLE_LOCAL, protocol=2)
MAIN = Rule(4, 32766, table=RT_TABLE_MAIN, protocol=2)
POD = ip_address("10.0.0.5")


def wg_quick_adds(rules: list[Rule]) -> list[Rule]:
    """What `ip rule add` without a priority does, twice (fib_default_rule_pref): second rule's priority less one."""
    for extra in (
        Rule(4, 0, table=51820, invert=True, fwmark=51820, fwmask=0xFFFFFFFF),
        Rule(4, 0, table=RT_TABLE_MAIN, suppress_prefixlength=0),
    ):
        ordered = sorted(rules, key=lambda r: r.priority)
        priority = max(ordered[1].priority - 1, 0)
        rules = [*rules, replace(extra, priority=priority)]
    return rules


def applied(rules, addresses):
    """The rules after the changes."""
    change = pin_changes(rules, addresses)
    return [r for r in rules if r not in change.delete] + list(change.add)


def test_a_fresh_pod_gets_one_pin_and_then_nothing_more():
    """The second look finds nothing to do."""
    rules = applied([LOCAL, MAIN], [POD])
    assert [r for r in rules if is_ours(r)] == [pin(POD, PIN_PRIORITY)]
    assert not pin_changes(rules, [POD])


def test_rules_that_wg_quick_adds_after_us_do_not_stay_before_the_pin():
    """wg-quick started later takes lower numbers than ours; the pin moves before them, and back when they are gone."""
    rules = wg_quick_adds(applied([LOCAL, MAIN], [POD]))
    foreign = [r for r in rules if not is_ours(r) and r not in (LOCAL, MAIN)]
    assert min(r.priority for r in foreign) < PIN_PRIORITY
    rules = applied(rules, [POD])
    ours = [r for r in rules if is_ours(r)]
    assert len(ours) == 1
    assert ours[0].priority < min(r.priority for r in foreign)
    rules = applied([r for r in rules if r not in foreign], [POD])
    assert [r.priority for r in rules if is_ours(r)] == [PIN_PRIORITY]


def test_a_foreign_rule_at_priority_one_is_named_as_an_obstacle():
    """Where nothing can stand first it is said, and the pin is there all the same."""
    change = pin_changes([LOCAL, Rule(4, 1, table=7, fwmark=1, fwmask=1), MAIN], [POD])
    assert "priority 1" in change.obstacle
    assert change.add == (pin(POD, 1),)


def test_rules_for_what_comes_in_elsewhere_do_not_matter():
    """`iif wg0 ...` decides about forwarded packets only; the pin does not move for it."""
    assert not pin_changes([LOCAL, Rule(4, 5, table=7, iif="wg0"), pin(POD, PIN_PRIORITY), MAIN], [POD])


def test_an_address_that_left_takes_its_pin_along():
    """Pins of addresses that are gone are deleted, foreign source rules are not."""
    foreign = Rule(4, 95, table=RT_TABLE_MAIN, src=ip_network("10.9.9.9/32"), protocol=3)
    change = pin_changes([LOCAL, pin(ip_address("10.0.0.9"), PIN_PRIORITY), foreign, MAIN], [POD])
    assert change.delete == (pin(ip_address("10.0.0.9"), PIN_PRIORITY),)
    assert change.add == (pin(POD, PIN_PRIORITY),)


rules_strategy = st.lists(
    st.builds(
        Rule,
        family=st.sampled_from([4, 6]),
        priority=st.integers(0, 33000),
        table=st.sampled_from([RT_TABLE_MAIN, RT_TABLE_LOCAL, 51820]),
        fwmark=st.integers(0, 3),
        protocol=st.sampled_from([0, 3, ROUTE_PROTOCOL]),
        src=st.sampled_from([None, ip_network("10.0.0.5/32"), ip_network("10.0.0.9/32")]),
    ),
    max_size=8,
)


@given(rules_strategy, st.sets(st.sampled_from([POD, ip_address("10.0.0.6"), ip_address("2001:db8::5")])))
def test_changes_reach_a_fixed_point_and_touch_nothing_foreign(rules, addresses):
    """Applied once, there is nothing left to do; no foreign rule is ever deleted; every address has one pin."""
    change = pin_changes(rules, addresses)
    assert all(is_ours(r) for r in (*change.add, *change.delete))
    after = applied(rules, addresses)
    assert not pin_changes(after, addresses)
    for address in addresses:
        pins = [r for r in set(after) if is_ours(r) and r.src == ip_network(address) and r.table == RT_TABLE_MAIN]
        assert len(pins) == 1
