# SPDX-License-Identifier: Apache-2.0
"""A twin equals its original: random rules, routes and firewalls, and rule sets of well-known software, are rebuilt.

WICKETGATE_TWINS=N rebuilds about N random places of each kind, with another seed on each run.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from netns.filter_judge import Judge as FilterJudge
from netns.filter_rules import Maker
from netns.filter_stand import FilterStand
from netns.kernel_judge import Judge
from netns.test_netfilter_corpus import FILES, load
from netns.twins import lacking
from netpath_worlds import worlds
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.snapshot import Snapshot

ASKED = os.environ.get("WICKETGATE_TWINS")
_LATER = "invalid gateway|Gateway can not be a local address|No route to host"
_HIDDEN = "nft lists no family before `reject with tcp reset`"  # a fault of nft's listing, named and not rebuilt


def settled(read) -> Snapshot:
    """What `read` gives once no address is tentative: the kernel's duplicate address detection has ended."""
    deadline = time.monotonic() + 10
    while True:
        snapshot = read()
        if not any(each.family == 6 and each.flags & 0x40 for each in snapshot.addresses):
            return snapshot
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reads_back(new_host, text: str) -> bool:
    """Whether nft's own listing, loaded again, is listed the same: it has rules that it prints as others."""
    host = new_host("again")
    for name in ("up0", "far0"):
        host.run("ip", "link", "add", name, "type", "dummy")
    host.run("nft", "-f", "-", stdin=text)
    return bool(host.run("nft", "-s", "list", "ruleset").stdout == strip_counters(text))


def strip_counters(text: str) -> str:
    return re.sub(r"counter packets \d+ bytes \d+", "counter", text)


@pytest.mark.timeout(60 + 2 * int(ASKED or 0))
def test_random_rules_and_routes_are_rebuilt(new_host):
    """Addresses, routes of all types, nexthop objects, rules and settings of random worlds read back the same."""
    count = 0

    def inside():
        with Judge() as judge:

            @settings(
                max_examples=int(ASKED or 10), derandomize=not ASKED, database=None, deadline=None,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(worlds)
            def check(world):
                nonlocal count
                judge.apply(world)
                snapshot = settled(judge.snapshot)
                left = lacking(replace(snapshot, unread=()))
                # A gateway that became a local address later is named: the kernel takes it in that order only.
                assert left == () or re.search(_LATER, left[0]), left
                count += not left

            check()

    new_host("worlds").call(inside)
    assert count


@pytest.mark.timeout(60 + 2 * int(ASKED or 0))
def test_random_firewalls_are_rebuilt(new_host):
    """nftables, iptables-nft and legacy iptables of both families, all at once, read back the same."""
    pod, near = new_host("pod"), new_host("near")
    stand = FilterStand(pod, near)
    try:
        judge = FilterJudge(stand)
        chance = Random(None if ASKED else 4)
        for _ in range(int(ASKED or 8)):
            judge.settle(Maker(Random(chance.getrandbits(64))).rules())
            snapshot = settled(lambda: pod.acall(take_snapshot))
            left = [each for each in lacking(snapshot) if _HIDDEN not in each]
            assert left == [] or not reads_back(new_host, snapshot.firewall.nft_text), left
    finally:
        stand.close()


@pytest.mark.parametrize("name", FILES)
def test_rule_sets_of_well_known_software_are_rebuilt(new_host, name):
    """What kube-proxy, Docker, Calico, Tailscale, gluetun and wg-quick write."""
    host = new_host("corpus")
    host.run("ip", "address", "add", "192.0.2.10/24", "dev", "lo")
    load(host, name)
    assert lacking(host.acall(take_snapshot)) == ()
