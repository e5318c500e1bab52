# SPDX-License-Identifier: Apache-2.0
"""Our spelling held against iproute2 itself: what we print is what it prints, and what it takes gives the same rule."""

from __future__ import annotations

import asyncio
import shlex
from ipaddress import ip_address, ip_network

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from netpath_values import kernel_rules
from wicketgate.kernel.netlink import Netlink
from wicketgate.netpath.snapshot import NextHop, Route, Rule
from wicketgate.netpath.spelling import list_rule, route_command, rule_command

EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Tables that /etc/iproute2/rt_tables may name are left to the other tests.
batches = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        *(
            kernel_rules(priority=100 + i, table=st.integers(256, 2**32 - 1) | st.sampled_from((253, 254, 255)))
            for i in range(n)
        )
    )
)


def batch(host, commands):
    """Run commands one after the other, each by a program of its own.

    Not by `ip -batch`: iproute2 remembers a protocol's last name and last number apart from each other (rtnl_rtprot_a2n),
    so that in one batch `protocol boot`, `protocol 87`, `protocol boot` gives the third rule the number 87.
    """
    if commands:
        host.run("sh", "-e", "-s", stdin="\n".join(shlex.join(c.split()) for c in commands) + "\n")


def ours(host):
    """The rules of a test as the adapter reads them."""

    async def main():
        async with Netlink() as netlink:
            return tuple(rule for rule in await netlink.rules() if 100 <= rule.priority < 1000)

    return host.acall(main)


def test_random_rules_go_through_iproute2_unchanged(new_host):
    """For random rules: our command fed to `ip` gives the decoded rule we meant, and `ip rule` prints our line."""
    host = new_host("spelling")

    @given(batches)
    @EXAMPLES
    def check(rules):
        try:
            batch(host, [rule_command("add", rule) for rule in rules])
            assert sorted(ours(host), key=repr) == sorted(rules, key=repr)
            for family in (4, 6):
                printed = host.run("ip", f"-{family}", "rule").stdout.splitlines()
                lines = [line for line in printed if 100 <= int(line.split(":")[0]) < 1000]
                mine = sorted((r for r in rules if r.family == family), key=lambda r: r.priority)
                assert lines == [list_rule(rule) for rule in mine]
            batch(host, [rule_command("del", rule) for rule in rules])
            assert ours(host) == ()
        finally:
            leftover = ours(host)
            batch(host, [rule_command("del", rule) for rule in leftover])

    check()


def test_random_rules_go_through_netlink_unchanged(new_host):
    """The same rules written and removed by the adapter; read-back refuses whatever came out otherwise."""
    host = new_host("rules")

    @given(batches)
    @EXAMPLES
    def check(rules):
        async def main():
            async with Netlink() as netlink:
                before = await netlink.rules()
                for rule in rules:
                    await netlink.add_rule(rule)
                for rule in rules:
                    await netlink.delete_rule(rule)
                assert await netlink.rules() == before

        host.acall(main)

    check()


def test_rules_with_names_and_places_of_their_own(new_host):
    """tos, goto to a rule that is there, and the l3mdev-free defaults of every kernel."""
    host = new_host("spelling")
    rules = (Rule(4, 200, table=254, tos=0x10), Rule(4, 201, action="goto", goto=300), Rule(4, 300, action="nop"))
    batch(host, [rule_command("add", rule) for rule in rules])
    assert ours(host) == rules
    printed = host.run("ip", "rule").stdout.splitlines()
    assert "201:\tfrom all goto 300" in printed
    assert "32766:\tfrom all lookup main" in printed


ROUTES = (
    Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("e0", ip_address("10.0.0.2")),), protocol=87),
    Route(ip_network("0.0.0.0/0"), table=51820, nexthops=(NextHop("e1"),), protocol=3, scope=253),
    Route(ip_network("10.1.0.0/16"), nexthops=(NextHop("e0", ip_address("169.254.1.1"), flags=4),), metric=7, protocol=4),
    Route(ip_network("10.2.0.0/16"), table=70000, nexthops=(NextHop("e0", ip_address("10.0.0.3"), 3), NextHop("e1")), protocol=87),
    Route(ip_network("10.3.0.0/16"), nexthops=(NextHop("e0"),), prefsrc=ip_address("10.0.0.1"), protocol=87, tos=0x10),
    Route(ip_network("10.4.0.0/16"), nexthops=(NextHop("e0", ip_address("fd00::9")),), protocol=87, metrics={"mtu": "lock 1300", "advmss": "1200", "initcwnd": "20"}),
    Route(ip_network("10.5.0.0/16"), type="blackhole", protocol=87),
    Route(ip_network("10.6.0.7/32"), type="throw", table=9, protocol=87),
    Route(ip_network("::/0"), nexthops=(NextHop("e0", ip_address("fd00::2")),), protocol=87, metric=5),
    Route(ip_network("fd01::/64"), table=51820, nexthops=(NextHop("e1"),), protocol=87, metric=9),
    Route(ip_network("fd03::/64"), src=ip_network("fd00::/64"), nexthops=(NextHop("e0", ip_address("fd00::2")),), protocol=87, metric=8),
)  # fmt: skip


def test_route_commands_give_the_routes_they_spell(new_host):
    """Each route's command, typed into `ip`, gives that very route; its `del` removes it."""
    host = new_host("routes")
    host.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for command in (
        "addr add 10.0.0.1/24 dev e0",
        "addr add fd00::1/64 dev e0 nodad",
        "link set e0 up",
        "link set e1 up",
    ):
        host.run("ip", *command.split())

    async def main():
        async with Netlink() as netlink, asyncio.timeout(30):
            batch(host, [route_command("add", route) for route in ROUTES])
            found = [r for r in await netlink.routes() if r.protocol != 2]  # 2 = the kernel's own
            assert [r for r in ROUTES if r not in found] == []
            assert len(found) == len(ROUTES)
            batch(host, [route_command("del", route) for route in ROUTES])
            assert [r for r in await netlink.routes() if r.protocol != 2] == []

    host.acall(main)
