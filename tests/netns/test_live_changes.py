# SPDX-License-Identifier: Apache-2.0
"""The lines that a live snapshot tells of changes: each once, and by whom where the kernel tells."""

from __future__ import annotations

import asyncio
import re
import sys

import pytest

from netns.live_stand import prepare, told
from wicketgate.kernel.live_snapshot import LiveSnapshot
from wicketgate.netpath.change import Action, What


@pytest.fixture
def host(new_host):
    """A host with e0 (10.0.0.1/24) and its other end e1, both up, and no duplicate address detection to wait for."""
    made = new_host("live")
    prepare(made)
    return made


def texts(changes):
    """Action and text of each."""
    return [(each.action, each.text) for each in changes]


def test_two_routes_of_one_prefix_go_each_for_itself(host):
    """IPv4 keeps a connected route for each interface. Of two that go in silence both are told, the newcomer as well."""

    async def main():
        async with LiveSnapshot(interval=3600) as live:
            await live.current()
            subscription = live.subscribe()
            host.run("sh", "-c", "ip address add 10.0.0.1/24 dev e1; ip link del e0")
            await live.current()
            words = "proto kernel scope link src 10.0.0.1"
            gone = [text for action, text in texts(subscription.pending()) if action is Action.REMOVED]
            assert f"10.0.0.0/24 dev e0 {words}" in gone
            assert f"10.0.0.0/24 dev e1 {words}" in gone

    host.acall(main)


def test_what_went_and_came_back_is_told_as_both(host):
    """The way down is silent, the way up is told: without the first line the second would make two routes of one."""

    async def main():
        async with LiveSnapshot(interval=3600) as live:
            await live.current()
            subscription = live.subscribe()
            host.run("sh", "-c", "ip link set e0 down; ip link set e0 up")
            await live.current()
            text = "10.0.0.0/24 dev e0 proto kernel scope link src 10.0.0.1"
            heard = [action for action, each in texts(subscription.pending()) if each == text]
            assert sorted(heard) == [Action.ADDED, Action.REMOVED]

    host.acall(main)


def test_one_more_way_of_an_ipv6_route_is_one_line(host):
    """The kernel tells the whole route with its ways, and nothing of the old one; a way that goes leaves the rest."""
    host.run("ip", "-6", "route", "add", "2001:db8:1::/64", "via", "fe80::1", "dev", "e0")

    def ours(subscription):
        return [each for each in subscription.pending() if each.text.startswith("2001:db8:1::/64")]

    async def main():
        async with LiveSnapshot(interval=3600) as live:
            await live.current()
            subscription = live.subscribe()
            host.run("ip", "-6", "route", "append", "2001:db8:1::/64", "via", "fe80::2", "dev", "e0")
            await live.current()
            (change,) = ours(subscription)
            assert change.action is Action.ADDED
            assert {str(hop.via) for hop in change.value.nexthops} == {"fe80::1", "fe80::2"}
            host.run("ip", "-6", "route", "del", "2001:db8:1::/64", "via", "fe80::2", "dev", "e0")
            await live.current()
            first, second = ours(subscription)
            assert texts([first]) == [(Action.REMOVED, "2001:db8:1::/64 via fe80::2 dev e0 metric 1024")]
            assert (second.action, second.told) == (Action.CHANGED, False)
            assert second.text.startswith("2001:db8:1::/64 via fe80::1 dev e0 metric 1024 (was ")

    host.acall(main)


def test_who_did_it_is_told_where_the_kernel_tells(host):
    """The process of an nftables transaction has its name; a netlink port is a process's when that process still holds it."""
    script = (
        "import sys\nfrom pyroute2 import IPRoute\n"
        "with IPRoute() as ipr:\n"
        "    ipr.rule('add', priority=321, table=7)\n"
        "    print('done', flush=True)\n    sys.stdin.read()\n"
    )

    async def main():
        async with LiveSnapshot(interval=3600) as live, asyncio.TaskGroup() as group:
            await live.current()
            subscription = live.subscribe()
            running = group.create_task(live.run())
            host.run("nft", "add", "table", "inet", "mine")
            (change,) = await told(subscription, lambda each: each.what is What.NFTABLES)
            assert re.fullmatch(r"nft\[\d+\]", change.who)
            child = host.popen(sys.executable, "-c", script, stdin=-1, stdout=-1, text=True)
            try:
                (change,) = await told(subscription, lambda each: each.what is What.RULE)
                assert change.text == "321: from all lookup 7"
                assert change.who.endswith(f"[{child.pid}]") or change.who.startswith("netlink port ")
            finally:
                child.communicate("")
            running.cancel()

    host.acall(main)
