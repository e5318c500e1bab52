# SPDX-License-Identifier: Apache-2.0
"""The model of rules, routes, source addresses and source checks, held against the kernel's own answers.

WICKETGATE_NETPATH_WORLDS=N asks about N random configurations in each test, with another seed on each run.
"""

from __future__ import annotations

import os
import time
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from netns.kernel_judge import Judge, Tally, model
from netpath_worlds import Ask, World, asks, worlds
from wicketgate.netpath.lookup import Refused, Unsure
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import NextHop, Route, Rule
from wicketgate.netpath.source_check import Blocked

ASKED = os.environ.get("WICKETGATE_NETPATH_WORLDS")
NO_SYSCTLS: dict[str, int] = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.e0.rp_filter": 0,
    "net.ipv4.conf.e0.forwarding": 1,
    "net.ipv6.conf.all.forwarding": 1,
}


def budget(small: int):
    """A few seeded configurations, or as many random ones as the environment asks for."""
    return settings(
        max_examples=int(ASKED or small),
        derandomize=not ASKED,
        database=None,
        deadline=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if ASKED else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def hold_against_kernel(host, *, rules: bool, small: int) -> tuple[Tally, set[str]]:
    """Random configurations and questions; fails at the first answer that differs and stays so."""
    tally, kinds = Tally(), set()

    def inside():
        with Judge(rules=rules) as judge:

            @budget(small)
            @given(worlds, st.lists(asks(), min_size=30, max_size=60))
            def check(world, questions):
                judge.apply(world)
                routing = Routing(judge.snapshot())
                for ask in questions:
                    problem, unknown = judge.disagreement(ask, routing)
                    assert problem is None, f"{ask}: {problem}"
                    tally.cases += 1
                    tally.unknown += bool(unknown)
                    tally.agreed += not unknown
                    kinds.add(_kind(model(routing, ask)))

            check()

    began = time.monotonic()
    host.call(inside)
    print(tally.line(time.monotonic() - began))
    return tally, kinds


def _kind(said) -> str:
    if isinstance(said, Blocked):
        return said.code
    if isinstance(said, Refused):
        return said.errno
    return "unknown" if isinstance(said, Unsure) else said.kind


@pytest.mark.timeout(0 if ASKED else 120)
def test_random_rules_and_routes_lead_where_the_kernel_says(new_host):
    """With rules of all kinds: egress, gateway, type, chosen source and errno are the kernel's; unknown below 1 %."""
    tally, kinds = hold_against_kernel(new_host("judge"), rules=True, small=40)
    assert tally.agreed + tally.unknown == tally.cases
    assert tally.unknown < tally.cases / 100
    assert tally.cases > 1000
    assert kinds >= {"local", "unicast", "ENETUNREACH", "EINVAL", "rp-filter", "martian-source", "forwarding-off"}


@pytest.mark.timeout(0 if ASKED else 120)
def test_a_namespace_without_rules_of_its_own_is_asked_as_such(new_host):
    """There IPv4 looks in local and main together; where that differs from one after the other, the model is unsure."""
    tally, kinds = hold_against_kernel(new_host("judge"), rules=False, small=15)
    assert tally.agreed + tally.unknown == tally.cases
    assert tally.unknown < tally.cases / 10
    assert kinds >= {"local", "unicast", "ENETUNREACH"}


# Every disagreement that was ever found.


def ask(destination, source=None, *, iif=None, oif=None, mark=0, uid=0, protocol=17):
    """A question."""
    return Ask(destination, source, iif, oif, mark, uid, protocol, 9000, 9000)


def world(*, addresses=(), routes=(), rules=(), sysctls=None):
    """A configuration."""
    return World(tuple(addresses), tuple(routes), tuple(rules), NO_SYSCTLS | (sysctls or {}))


def own(text):
    """An address for `World.addresses`."""
    return ip_interface(text)


RULE = Rule(4, 50, table=77, protocol=4)

REGRESSIONS = {
    "a foreign source is ENETUNREACH, not EINVAL": (
        world(addresses=[("e0", own("10.0.0.1/24"))], rules=[RULE]),
        ask("203.0.113.9", "10.9.9.9"),
    ),
    "a bound socket without a route takes a loopback address where route_localnet is set": (
        world(
            addresses=[("e1", own("192.0.2.1/30"))], rules=[RULE], sysctls={"net.ipv4.conf.all.route_localnet": 1}
        ),
        ask("192.0.2.9", oif="lo"),
    ),
    "a broadcast that comes in is delivered here": (
        world(addresses=[("e0", own("10.0.1.1/24")), ("e1", own("10.0.0.129/25"))], rules=[RULE]),
        ask("10.0.0.255", "10.0.3.3", iif="e0"),
    ),
    "a broadcast address is no source once the namespace had a rule": (
        world(
            addresses=[("e0", own("10.0.0.2/24"))], rules=[RULE], sysctls={"net.ipv4.conf.all.route_localnet": 1}
        ),
        ask("10.0.0.2", "10.0.0.255", iif="e0"),
    ),
    "source-specific routes hide the plain route of the same prefix from other sources": (
        world(
            routes=[
                Route(
                    ip_network("fd00:0:0:1::7/128"), src=ip_network("fd00::/64"), nexthops=(NextHop("e0"),),
                    metric=5, protocol=4,
                ),
                Route(ip_network("fd00:0:0:1::7/128"), nexthops=(NextHop("e0"),), metric=5, protocol=4),
            ],
        ),
        ask("fd00:0:0:1::7", "fe80::7"),
    ),
    "a group of nexthop objects minds no bound interface in IPv6": (
        world(
            addresses=[("e0", own("fd00::1/64"))],
            routes=[Route(ip_network("fd00:0:0:2::7/128"), nh_id=64, metric=5, protocol=4)],
        ),
        ask("fd00:0:0:2::7", oif="e0"),
    ),
    "a nexthop object that does not fit hides the shorter prefixes of its network address": (
        world(
            addresses=[("e0", own("10.0.0.1/24"))],
            rules=[RULE],
            routes=[
                Route(ip_network("0.0.0.0/1"), nh_id=1, protocol=4),
                Route(ip_network("0.0.0.0/0"), nh_id=2, protocol=4),
            ],
        ),
        ask("10.9.9.9", oif="e1"),
    ),
    "a nexthop object that does not fit hides the other routes of its prefix": (
        world(
            addresses=[("e0", own("10.0.0.1/24"))],
            rules=[RULE],
            routes=[
                Route(ip_network("10.9.0.0/16"), nh_id=1, protocol=4),
                Route(ip_network("10.9.0.0/16"), nexthops=(NextHop("e1"),), metric=5, scope=253, protocol=4),
                Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("e1", ip_address("10.0.1.2"), flags=4),), protocol=4),
            ],
        ),
        ask("10.9.9.9", oif="e1"),
    ),
    "a nexthop object that is a blackhole takes the packet of a bound socket too (IPv6)": (
        world(
            addresses=[("e1", own("fd00:0:0:1::2/128"))],
            rules=[RULE],
            routes=[Route(ip_network("fd00::/16"), type="blackhole", nh_id=63, metric=5, protocol=4)],
        ),
        ask("fd00:9::9", oif="e0"),
    ),
    "a loopback source and two ways of which one lets it out": (
        world(
            addresses=[("e0", own("10.0.0.1/24"))],
            rules=[RULE],
            routes=[Route(ip_network("10.9.0.0/16"), nh_id=4, protocol=4)],
            sysctls={"net.ipv4.conf.e1.route_localnet": 1},
        ),
        ask("10.9.9.9", "127.5.0.1"),
    ),
    "a local route of table main makes its addresses this host's while the tables are one": (
        world(routes=[Route(ip_network("10.0.0.0/8"), type="local", nexthops=(NextHop("e0"),), scope=254, protocol=4)]),
        ask("10.0.1.2", "10.9.9.9", oif="e2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_once_differed(new_host, name):
    """Each disagreement that was found, by its name: now the two agree, or the model says that it cannot know."""
    configuration, question = REGRESSIONS[name]
    host = new_host("judge")

    def inside():
        with Judge() as judge:
            judge.apply(configuration)
            problem, unknown = judge.disagreement(question, Routing(judge.snapshot()))
            assert problem is None
            return unknown

    unknown = host.call(inside)
    unsure = name.startswith(("a local route of table main", "a loopback source and two ways"))
    assert bool(unknown) == unsure, "an answer, and a doubt where there is one"


def test_the_default_route_of_a_pod_and_its_wireguard_rules(new_host):
    """wg-quick's two rules: an ordinary reply goes into the tunnel, a marked one and the pod's subnet do not."""
    rules = (
        Rule(4, 32764, table=254, suppress_prefixlength=0, protocol=4),
        Rule(4, 32765, table=51820, fwmark=0xCA6C, fwmask=0xFFFFFFFF, invert=True, protocol=4),
    )
    routes = (
        Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("e0", ip_address("10.0.0.2"), flags=4),), protocol=4),
        Route(ip_network("0.0.0.0/0"), table=51820, nexthops=(NextHop("e1"),), scope=253, protocol=4),
    )
    configuration = world(addresses=[("e0", own("10.0.0.1/24"))], routes=routes, rules=rules)
    host = new_host("judge")

    def inside():
        with Judge() as judge:
            judge.apply(configuration)
            routing = Routing(judge.snapshot())
            leaves = []
            for question in (
                ask("203.0.113.9", "10.0.0.1"),
                ask("203.0.113.9", "10.0.0.1", mark=0xCA6C),
                ask("10.0.0.7"),
            ):
                assert judge.disagreement(question, routing) == (None, "")
                leaves.append(model(routing, question).hops[0].oif)
            return leaves

    assert host.call(inside) == ["e1", "e0", "e0"]
