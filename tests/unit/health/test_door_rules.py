# SPDX-License-Identifier: Apache-2.0
"""The door's addresses, marks and rules."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest

from wicketgate.health import door_rules as rules

NETWORKS = {4: ip_network("192.0.2.0/24"), 6: ip_network("2001:db8::/32")}


@pytest.mark.parametrize("family", [4, 6])
def test_every_slot_has_addresses_of_its_own_that_exist_nowhere(family):
    """All addresses of all slots differ and lie in RFC 5737's and RFC 3849's documentation networks."""
    found = []
    for slot in range(rules.SLOTS):
        three = rules.trio(family, slot)
        found += [three.agent_peer, three.stranger, three.target]
    assert len(set(found)) == 3 * rules.SLOTS
    assert all(each in NETWORKS[family] for each in found)
    assert all(rules.is_reserved(each, family) for each in found)
    assert not rules.is_reserved(ip_address("10.0.0.1" if family == 4 else "fd00::1"), family)


def test_priorities_differ_and_fit():
    """No two doors and no two families share a filter priority, and tc takes them all (16 bits)."""
    found = [rules.priority(family, slot) for family in (4, 6) for slot in range(rules.SLOTS)]
    assert len(set(found)) == len(found)
    assert max(found) < 1 << 16


def test_a_cookie_says_whose_it_is():
    """It names us, the slot, who made the qdisc and, by checksum, the tunnel; others' cookies do not pass."""
    mark = rules.cookie("wg0", 3, made_clsact=True)
    assert len(mark) == 16
    assert rules.is_cookie(mark)
    assert rules.is_cookie(mark, "wg0")
    assert not rules.is_cookie(mark, "wg1")
    assert rules.cookie_slot(mark) == 3
    assert rules.cookie_made_clsact(mark)
    assert not rules.cookie_made_clsact(rules.cookie("wg0", 3, made_clsact=False))
    assert not rules.is_cookie(b"")
    assert not rules.is_cookie(b"x" * 16)


@pytest.mark.parametrize("tag", ["wg0", "wg-quick.1", "a=b+c", 'we"ird'])
def test_table_names_are_spelled_for_nft_and_found_again(tag):
    """Whatever an interface is called, its table can be spelled and recognised; a longer name is not mistaken for it."""
    name = rules.table_name(tag, "eth0.100")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    assert rules.is_table(name, tag, None)
    assert rules.is_table(name, tag, "eth0.100")
    assert not rules.is_table(name, tag, "eth0")
    assert not rules.is_table(rules.table_name(tag + "0", "eth0"), tag, None)


@pytest.mark.parametrize(
    ("name", "fine"), [("eth0", True), ("eth0.100", True), ("a*", False), ('a"b', False), ("", False)]
)
def test_names_that_mean_something_else_to_nft_are_refused(name, fine):
    """A trailing asterisk is a wildcard, a quote ends the string."""
    assert rules.spellable(name) is fine


@pytest.mark.parametrize("family", [4, 6])
def test_every_stage_is_counted_once_declared(family):
    """Each counter that a rule names is declared, each declared one is used, and by one form of the table alone."""
    where = (family, "wg0", "eth0", 0, [ip_address("10.0.0.1" if family == 4 else "fd00::1")])
    standing, counting = rules.table_script(*where), rules.count_script(*where)
    assert all(f"counter {stage} {{" in standing for stage in rules.STAGES)
    named = re.findall(r'counter name "(\w+)"', standing + counting)
    assert sorted(named) == sorted([*rules.STAGES, "agent_left"])  # agent_left has two rules


@pytest.mark.parametrize("family", [4, 6])
def test_what_stands_all_the_time_is_three_chains(family):
    """Output, postrouting and prerouting, and none on the forwarding path alone; a foreign packet meets one rule."""
    text = rules.table_script(family, "wg0", "eth0", 0, [ip_address("10.0.0.1" if family == 4 else "fd00::1")])
    assert sorted(re.findall(r"hook (\w+)", text)) == ["output", "postrouting", "prerouting"]
    for chain in re.findall(r"chain [\w-]+ \{\n(.*?)\n\t\}", text, re.DOTALL):
        _hook, *lines = chain.splitlines()
        assert len(lines) == 1 or re.fullmatch(r"\s*ip6? daddr != \S+ accept", lines[0])


def test_what_counts_can_be_removed_again():
    """Each chain that `count_script` adds is one that `uncount_script` removes, and none of those that stand."""
    where = (4, "wg0", "eth0")
    added = re.findall(r"chain ([\w-]+) \{", rules.count_script(*where, 0, [ip_address("10.0.0.1")]))
    removed = re.findall(r"delete chain ip \S+ (\S+)", rules.uncount_script(*where))
    standing = re.findall(r"chain ([\w-]+) \{", rules.table_script(*where, 0, [ip_address("10.0.0.1")]))
    assert sorted(added) == sorted(removed)
    assert not set(added) & set(standing)
