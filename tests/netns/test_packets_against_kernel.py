# SPDX-License-Identifier: Apache-2.0
"""Real packets into random rules, routes and settings: end, egress, next hop and drop reason are what the walk says."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from netns.drop_tap import DropTap, why_no_tap
from netns.filter_stand import on_one_cpu
from netns.packet_judge import Judge
from netpath_worlds import Ask, World, asks, open_worlds
from wicketgate.netpath.snapshot import NextHop, Route, Rule

FORWARDING = {"net.ipv4.conf.e0.forwarding": 1, "net.ipv4.conf.e1.forwarding": 1, "net.ipv6.conf.all.forwarding": 1}


def judged(new_host, check) -> Judge:
    """Run a check with a judge, traced where tracing can be had."""
    pod, far = new_host("packets"), new_host("far")
    made = []

    def inside() -> None:
        if why_no_tap():
            with Judge(far, None) as judge:
                check(judge)
        else:
            with DropTap() as tap, Judge(far, tap) as judge:
                check(judge)
        made.append(judge)

    pod.call(lambda: on_one_cpu(inside))
    return made[0]


def test_random_packets_end_as_the_model_says(new_host, capsys):
    """Delivered, forwarded to this next hop, or dropped for this reason: of more than a thousand packets, each one."""
    total = [0, 0]

    def check(judge: Judge) -> None:
        @seed(1)
        @settings(
            max_examples=90,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(open_worlds(), st.lists(asks(), min_size=40, max_size=60))
        def compare(world: World, questions: list[Ask]) -> None:
            problems, cases, unknown = judge.judge(world, questions)
            assert not problems, "\n".join((*problems, *world.commands(4), *world.commands(6), str(world.sysctls)))
            total[0] += cases
            total[1] += unknown

        compare()

    judge = judged(new_host, check)
    with capsys.disabled():
        print(
            f"\npackets against the kernel: {total[0]} cases, {total[1]} unknown; {why_no_tap() or 'with drop reasons'}"
        )
    assert total[0] > 1000
    assert total[1] < total[0] * 0.05
    assert {"forwarded", "delivered", "dropped rp-filter", "refused no-route"} <= set(judge.verdicts)


# Every disagreement that was ever found.


def from_wire(destination, source, iif="e0"):
    """A datagram that comes in."""
    return Ask(destination, source, iif, None, 0, 0, 17, 9000, 40000)


def out(text, gateway_device="e0"):
    """A route for `World.routes`."""
    return Route(ip_network(text), nexthops=(NextHop(gateway_device),), protocol=4)


REGRESSIONS = {
    "an IPv6 prefix on lo takes what it forwards": (
        World((("lo", ip_interface("fd00::1/64")),), (), (), FORWARDING),
        [from_wire("fd00::2", "fd00:9::9")],
        {"refused blackhole-route"},
    ),
    "IPv6 tells of no route also where nothing is forwarded": (
        World((("e0", ip_interface("fd00::1/64")),), (), (), {"net.ipv6.conf.all.forwarding": 0}),
        [from_wire("2001:db8::9", "fd00::7")],
        {"refused no-route"},
    ),
    "IPv6 tells of a prohibiting rule also where nothing is forwarded": (
        World(
            (("e0", ip_interface("fd00::1/64")),), (), (Rule(6, 50, action="prohibit", dst=ip_network("2001:db8::/32"), protocol=4),),
            {"net.ipv6.conf.all.forwarding": 0},
        ),
        [from_wire("2001:db8::9", "fd00::7")],
        {"refused blackhole-route"},
    ),
    "a link-local source goes back out by the interface it came in by": (
        World((), (out("2000::/3"),), (), FORWARDING), [from_wire("2001:4860::9", "fe80::7")], {"forwarded"}
    ),
    "a link-local source goes out by no other": (
        World((), (out("2000::/3", "e1"),), (), FORWARDING),
        [from_wire("2001:4860::9", "fe80::7")],
        {"refused martian-source"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_once_differed(new_host, name):
    """Each disagreement that was found, by its name: the model says this, and the kernel does it."""
    world, questions, verdicts = REGRESSIONS[name]

    def check(judge: Judge) -> None:
        problems, _, _ = judge.judge(world, questions)
        assert not problems

    assert set(judged(new_host, check).verdicts) == verdicts
