# SPDX-License-Identifier: Apache-2.0
"""The load balancer stand-in's probes on real packets: what they find, and how each failure is called."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from nlb_world import HEALTH, NET4, PORT, TargetHost, ask, build, reach, running, until
from wicketgate.lab.host import Host
from wicketgate.lab.nlb.control import LoadBalancer
from wicketgate.lab.nlb.settings import Checker, CheckSettings
from wicketgate.lab.nlb.target import Reason, State


@pytest.fixture
def world(new_host):
    made = build(new_host, NET4)
    yield made
    made.close()


def test_probes_come_from_every_checker_and_more_often_than_the_interval(world):
    """Each load balancer node probes on its own; Host is its address and the listener's port."""
    one, _ = world.pods
    one.good()
    checkers = tuple(Checker(ip_address(address), az) for address, az in zip(world.net.checkers, "ab", strict=True))
    check = replace(world.settings.check, interval=0.1, path="/healthz")

    async def twelve() -> bool:
        return len(one.heads) >= 12

    async def story():
        async with running(replace(world.settings, checkers=checkers, check=check), one.target):
            assert await until(twelve)
            # Two nodes that each keep the interval: together twice as many probes.
            assert one.sources.count(world.net.checkers[0]) >= 4
            assert one.sources.count(world.net.checkers[1]) >= 4
        for address, head in zip(one.sources, one.heads, strict=False):
            lines = head.decode().split("\r\n")
            assert lines[0] == "GET /healthz HTTP/1.1"
            assert f"Host: {address}:{PORT}" in lines

    world.run(story)


def test_one_blocked_zone_does_not_take_a_target_out(world):
    """Packets of one checker of three are dropped by the target: it stays healthy, and the status shows which fails."""
    one, _ = world.pods
    one.good()
    addresses = (*world.net.checkers, world.net.gateways[1])
    checkers = tuple(Checker(ip_address(address), az) for address, az in zip(addresses, "abc", strict=True))
    settings = replace(world.settings, checkers=checkers, check=replace(world.settings.check, timeout=0.2))

    async def story():
        one.host.run(
            "nft", "-f", "-",
            stdin=f"table ip t {{\nchain c {{\ntype filter hook input priority 0\nip saddr {addresses[0]} drop\n}}\n}}\n",
        )  # fmt: skip
        async with running(settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)

            async def many() -> bool:
                return (await balancer.status()).target(one.address).probes >= 60

            assert await until(many)
            said = (await balancer.status()).target(one.address)
            assert said.state is State.HEALTHY
            assert {str(probe.checker): probe.passed for probe in said.last} == {
                addresses[0]: False, addresses[1]: True, addresses[2]: True,
            }  # fmt: skip

    world.run(story)


def test_unused_zone_is_not_probed(world):
    """A target in a zone without a load balancer node is `unused`, is never probed and gets no flow."""
    one, two = world.pods
    one.good()
    two.good()

    async def story():
        stranger = replace(two.target, az="z")
        async with running(world.settings, one.target, stranger) as balancer:
            await reach(balancer, one, State.HEALTHY)
            said = (await balancer.status()).target(two.address)
            assert (said.state, said.reason) == (State.UNUSED, Reason.NOT_IN_USE)
            assert {await ask(world.flow(), world.net.vips[0]) for _ in range(20)} == {"one"}
            assert two.sources == []

    world.run(story)


async def verdict(balancer: LoadBalancer, pod: TargetHost) -> tuple[Reason | None, str]:
    await reach(balancer, pod, State.UNHEALTHY)
    said = (await balancer.status()).target(pod.address)
    return said.reason, said.description


def drop(host: Host, port: int) -> None:
    """The target's firewall swallows a TCP port."""
    rule = f"table ip d {{\nchain c {{\ntype filter hook input priority 0\ntcp dport {port} drop\n}}\n}}\n"
    host.run("nft", "-f", "-", stdin=rule)


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_refused_is_told_from_silence(world, protocol):
    """Nobody listens: FailedHealthChecks. A drop rule: Timeout. For both kinds of check."""
    one, two = world.pods
    check = replace(world.settings.check, protocol=protocol, timeout=0.2)

    async def story():
        drop(two.host, HEALTH)
        async with running(replace(world.settings, check=check), one.target, two.target) as balancer:
            reason, words = await verdict(balancer, one)
            assert reason is Reason.FAILED_HEALTH_CHECKS
            assert words == f"Health checks failed: {one.address}:{HEALTH}: Connection refused (ECONNREFUSED)"
            assert (await verdict(balancer, two))[0] is Reason.TIMEOUT

    world.run(story, listen=False)


@pytest.mark.parametrize(
    ("answer", "reason", "word"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Reason.RESPONSE_CODE_MISMATCH, "[503]"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Reason.RESPONSE_CODE_MISMATCH, "[404]"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Reason.FAILED_HEALTH_CHECKS, "not HTTP/1"),
        (b"HTTP/1.1 200 OK\r\n", Reason.FAILED_HEALTH_CHECKS, "closed"),
        (b"", Reason.FAILED_HEALTH_CHECKS, "closed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000, Reason.FAILED_HEALTH_CHECKS, "more than"),
    ],
    ids=["503", "404", "no-http", "half-a-head", "nothing", "endless-head"],
)
def test_bad_answers_are_failures(world, answer, reason, word):
    """A wrong code, another protocol, half an answer, none, and one without end each fail with their own words."""
    one, _ = world.pods
    one.answer = answer

    async def story():
        async with running(world.settings, one.target) as balancer:
            found, words = await verdict(balancer, one)
            assert found is reason
            assert word in words

    world.run(story)


def test_slow_answer_is_a_timeout(world):
    """A connection that is taken but never answered is Target.Timeout for HTTP, and fine for a TCP check."""
    one, _ = world.pods

    async def story():
        one.listen()  # the kernel completes connections; nobody accepts
        check = replace(world.settings.check, timeout=0.05)
        async with running(replace(world.settings, check=check), one.target) as balancer:
            assert (await verdict(balancer, one))[0] is Reason.TIMEOUT
        async with running(replace(world.settings, check=replace(check, protocol="tcp")), one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)

    world.run(story, listen=False)


def test_default_check_of_a_udp_listener_fails(world):
    """`traffic-port` is a TCP connect to the UDP port's number: refused, although UDP there works (fail-open)."""
    one, _ = world.pods
    check = CheckSettings(protocol="tcp", interval=0.03, timeout=1.0)

    async def story():
        async with running(replace(world.settings, check=check), one.target) as balancer:
            reason, words = await verdict(balancer, one)
            assert reason is Reason.FAILED_HEALTH_CHECKS
            assert f"{one.address}:{PORT}" in words
            assert await ask(world.flow(), world.net.vips[0]) == "one"

    world.run(story, listen=False)
