# SPDX-License-Identifier: Apache-2.0
"""The load balancer stand-in on real packets: who gets a flow, and when it moves."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from nlb_world import DEADLINE, HEALTH, NET4, NET6, PORT, SILENCE, ask, build, reach, running, until
from wicketgate.errors import InputError, StateError
from wicketgate.lab.nlb.control import LoadBalancer
from wicketgate.lab.nlb.settings import Checker, Listener, Target
from wicketgate.lab.nlb.target import Reason, State


@pytest.fixture
def world(new_host):
    made = build(new_host, NET4)
    yield made
    made.close()


@pytest.fixture
def world6(new_host):
    made = build(new_host, NET6)
    yield made
    made.close()


def test_client_address_is_preserved(world):
    """The target sees the client's own address and port, and the client sees the load balancer's as the sender."""
    one, _ = world.pods
    one.good()

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sock = world.flow()
            assert await ask(sock, world.net.vips[0]) == "one"
            assert one.seen == [sock.getsockname()]

    world.run(story)


def test_client_address_is_preserved_in_ipv6(world6):
    """The same with IPv6."""
    one, _ = world6.pods
    one.good()

    async def story():
        async with running(world6.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sock = world6.flow()
            assert await ask(sock, world6.net.vips[0]) == "one"
            assert one.seen == [sock.getsockname()[:2]]
            flows = (await balancer.status()).flows
            assert [(str(f.client), f.client_port, str(f.target)) for f in flows] == [
                (world6.net.client, sock.getsockname()[1], one.address)
            ]

    world6.run(story)


def test_traffic_flows_after_the_first_success_and_not_before(world):
    """Nothing reaches an `initial` target; one single success of a threshold of ten puts it in service."""
    one, _ = world.pods
    settings = replace(
        world.settings, check=replace(world.settings.check, healthy_threshold=10, unhealthy_threshold=10)
    )

    async def story():
        sock = world.flow()
        async with running(replace(settings, check=replace(settings.check, interval=0.5)), one.target) as balancer:
            # The first probe failed with 503; the target is still `initial` and gets nothing.
            assert await until(lambda: probes(balancer, 1))
            await reach(balancer, one, State.INITIAL)
            assert await ask(sock, world.net.vips[0], timeout=SILENCE) == ""
            assert one.seen == []
            one.good()
            await reach(balancer, one, State.HEALTHY)
            said = (await balancer.status()).target(one.address)
            assert said.last[0].passed
            assert said.probes == len(one.sources)
            assert await ask(sock, world.net.vips[0]) == "one"

    async def probes(balancer: LoadBalancer, count: int) -> bool:
        return (await balancer.status()).target(one.address).probes >= count

    world.run(story)


def test_initial_target_gets_nothing_beside_a_healthy_one(world):
    """While one target is healthy, not one of fifty flows goes to a target that has not passed yet."""
    one, two = world.pods
    one.good()
    slow = replace(world.settings.check, unhealthy_threshold=10, interval=1.0)

    async def story():
        async with running(replace(world.settings, check=slow), one.target, two.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            answers = [await ask(world.flow(), world.net.vips[0]) for _ in range(50)]
            assert balancer.state(two.target) is State.INITIAL
            assert set(answers) == {"one"}

    world.run(story)


def test_flows_are_spread_by_their_five_tuple_and_stick(world):
    """Forty flows reach both targets; each flow's later packets all reach the target of its first."""
    one, two = world.pods
    one.good()
    two.good()

    async def story():
        async with running(world.settings, one.target, two.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            await reach(balancer, two, State.HEALTHY)
            flows = [world.flow() for _ in range(40)]
            first = [await ask(flow, world.net.vips[0], b"1") for flow in flows]
            assert set(first) == {"one", "two"}
            assert min(first.count("one"), first.count("two")) >= 5  # 2^-40 * sum C(40,k<5): one in five million
            for word in (b"2", b"3"):
                assert [await ask(flow, world.net.vips[0], word) for flow in flows] == first
            status = await balancer.status()
            assert (status.target(one.address).flows, status.target(two.address).flows) == (
                first.count("one"),
                first.count("two"),
            )

    world.run(story)


def test_new_targets_move_no_flow(world):
    """A target that joins, and one that fails and returns, do not move the flows of the target that serves on."""
    one, two = world.pods
    one.good()

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            flows = [world.flow() for _ in range(20)]
            assert {await ask(flow, world.net.vips[0]) for flow in flows} == {"one"}
            two.good()
            await balancer.register(two.target)
            await reach(balancer, two, State.HEALTHY)
            assert {await ask(flow, world.net.vips[0]) for flow in flows} == {"one"}
            two.bad()
            await reach(balancer, two, State.UNHEALTHY)
            assert {await ask(flow, world.net.vips[0]) for flow in flows} == {"one"}
            two.good()
            await reach(balancer, two, State.HEALTHY)
            assert {await ask(flow, world.net.vips[0]) for flow in flows} == {"one"}

    world.run(story)


def test_replacing_the_table_loses_nothing(world):
    """While targets come and go, an old flow loses no packet and every new flow is served at once."""
    one, two = world.pods
    one.good()

    async def story():
        stop = asyncio.Event()
        old, answers = world.flow(), []

        async def traffic():
            while not stop.is_set():
                answers.append(await ask(old, world.net.vips[0], b"%d" % len(answers)))
                answers.append(await ask(world.flow(), world.net.vips[0]))

        async with running(replace(world.settings, deregistration_delay=0.0), one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sending = asyncio.create_task(traffic())
            for _ in range(3):
                await balancer.register(two.target)
                two.good()
                await reach(balancer, two, State.HEALTHY)
                two.bad()
                await balancer.deregister(two.target)
                await reach(balancer, two, None)
            stop.set()
            await sending
        assert len(answers) > 10
        assert set(answers[0::2]) == {"one"}
        # A new flow may meet `two`, also while it drains: the echo answers all the same. Silence is a loss.
        assert set(answers[1::2]) <= {"one", "two"}

    world.run(story)


def test_unhealthy_targets_flows_move_at_the_next_packet(world):
    """The flows of a target that turned unhealthy go to the other with their next packet, from the same client port."""
    one, two = world.pods
    one.good()
    two.good()

    async def story():
        async with running(world.settings, one.target, two.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            await reach(balancer, two, State.HEALTHY)
            flows = [world.flow() for _ in range(24)]
            before = [await ask(flow, world.net.vips[0], b"1") for flow in flows]
            assert "one" in before
            one.bad()
            await reach(balancer, one, State.UNHEALTHY)
            assert (await balancer.status()).target(one.address).reason is Reason.RESPONSE_CODE_MISMATCH
            two.seen.clear()
            assert {await ask(flow, world.net.vips[0], b"2") for flow in flows} == {"two"}
            assert two.seen == [flow.getsockname() for flow in flows]
            one.good()
            await reach(balancer, one, State.HEALTHY)
            # Healthy again: it gets new flows, and none of the old ones back.
            assert {await ask(flow, world.net.vips[0], b"3") for flow in flows} == {"two"}
            assert "one" in {await ask(world.flow(), world.net.vips[0]) for _ in range(24)}

    world.run(story)


def test_a_late_answer_does_not_get_in_the_moved_flows_way(world):
    """What an evicted target still sends is dropped: the client never sees the target's own address, and its next
    packet keeps its port even if it goes back to that very target.
    """
    one, _ = world.pods
    one.good()

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sock = world.flow()
            assert await ask(sock, world.net.vips[0]) == "one"
            one.bad()
            await reach(balancer, one, State.UNHEALTHY)  # the only target: fail-open, but its flow is forgotten
            assert (await balancer.status()).flows == ()
            one.udp.sendto(b"late", sock.getsockname())
            one.seen.clear()
            assert await ask(sock, world.net.vips[0]) == "one"
            assert one.seen == [sock.getsockname()]
            assert len((await balancer.status()).flows) == 1

    world.run(story)


def test_all_unhealthy_fails_open(world):
    """With no healthy target all registered ones serve; once one is healthy, all flows go there at the next packet."""
    one, two = world.pods

    async def story():
        async with running(world.settings, one.target, two.target) as balancer:
            await reach(balancer, one, State.UNHEALTHY)
            await reach(balancer, two, State.UNHEALTHY)
            status = await balancer.status()
            assert status.fail_open
            assert [target.serving for target in status.targets] == [True, True]
            flows = [world.flow() for _ in range(40)]
            assert {await ask(flow, world.net.vips[0], b"1") for flow in flows} == {"one", "two"}
            two.good()
            await reach(balancer, two, State.HEALTHY)
            assert {await ask(flow, world.net.vips[0], b"2") for flow in flows} == {"two"}
            status = await balancer.status()
            assert not status.fail_open
            assert [target.serving for target in status.targets] == [False, True]

    world.run(story)


def test_empty_group_is_silent(world):
    """Without targets nothing answers: no datagram, no ICMP error, no TCP reset; nor does a ping."""
    settings = replace(world.settings, listeners=(Listener("udp", PORT), Listener("tcp", 9000, HEALTH)))

    async def story():
        async with running(settings):
            sock = world.flow()
            sock.connect((world.net.vips[0], PORT))
            sock.send(b"?")
            client = world.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            world.sockets.append(client)
            client.setblocking(False)
            connecting = asyncio.create_task(asyncio.get_running_loop().sock_connect(client, (world.net.vips[0], 9000)))
            done, _ = await asyncio.wait({connecting}, timeout=SILENCE)
            assert not done, "a reset or an answer came"
            connecting.cancel()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            assert world.client.run("ping", "-c1", "-W0.2", world.net.vips[0], check=False).returncode == 1
            assert world.client.run("ping", "-c1", "-W5", world.net.gateways[0]).returncode == 0

    world.run(story)


def test_draining_target_keeps_its_flows_until_the_delay_ends(world):
    """A deregistered healthy target answers its flows and gets no new one; when the delay ends its flows move."""
    one, two = world.pods
    one.good()
    two.good()

    async def story():
        async with running(replace(world.settings, deregistration_delay=2.0), one.target, two.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            await reach(balancer, two, State.HEALTHY)
            flows = [world.flow() for _ in range(30)]
            before = [await ask(flow, world.net.vips[0], b"1") for flow in flows]
            assert "one" in before
            await balancer.deregister(one.target)
            assert await balancer.wait_for(lambda b: b.state(one.target) is State.DRAINING, DEADLINE)
            assert [await ask(flow, world.net.vips[0], b"2") for flow in flows] == before
            assert {await ask(world.flow(), world.net.vips[0]) for _ in range(12)} == {"two"}
            drained = (await balancer.status()).target(one.address)
            assert (drained.state, drained.reason) == (State.DRAINING, Reason.DEREGISTRATION_IN_PROGRESS)
            assert drained.flows == before.count("one")
            await reach(balancer, one, None)
            assert {await ask(flow, world.net.vips[0], b"3") for flow in flows} == {"two"}
            # Nor is it probed any more.
            probed, others = len(one.sources), len(two.sources)

            async def five_rounds() -> bool:
                return len(two.sources) >= others + 5

            assert await until(five_rounds)
            assert len(one.sources) == probed

    world.run(story)


def test_flows_outlive_the_delay_without_connection_termination(world):
    """With connection termination off a flow stays at its target after the delay, as long as it is not idle."""
    one, two = world.pods
    one.good()
    settings = replace(world.settings, deregistration_delay=0.1, connection_termination=False)

    async def story():
        async with running(settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sock = world.flow()
            assert await ask(sock, world.net.vips[0], b"1") == "one"
            two.good()
            await balancer.register(two.target)
            await reach(balancer, two, State.HEALTHY)
            await balancer.deregister(one.target)
            await reach(balancer, one, None)
            assert await ask(sock, world.net.vips[0], b"2") == "one"
            assert await ask(world.flow(), world.net.vips[0]) == "two"

    world.run(story)


def test_last_target_drains_alone(world):
    """A draining target that is the only one keeps its flow, and a new flow finds nobody."""
    one, _ = world.pods
    one.good()

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            old = world.flow()
            assert await ask(old, world.net.vips[0]) == "one"
            await balancer.deregister(one.target)
            await reach(balancer, one, State.DRAINING)
            assert await ask(old, world.net.vips[0], b"2") == "one"
            assert await ask(world.flow(), world.net.vips[0], timeout=SILENCE) == ""
            # Registered again before the delay ended: it starts anew, from `initial`.
            await balancer.register(one.target)
            await reach(balancer, one, State.HEALTHY)
            assert await ask(old, world.net.vips[0], b"3") == "one"

    world.run(story)


def test_unhealthy_target_loses_its_flows_when_deregistered(world):
    """Made unhealthy first, a target keeps nothing: deregistering it is silent at once."""
    one, _ = world.pods

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.UNHEALTHY)
            sock = world.flow()
            assert await ask(sock, world.net.vips[0]) == "one"
            await balancer.deregister(one.target)
            await reach(balancer, one, State.DRAINING)
            assert await ask(sock, world.net.vips[0], timeout=SILENCE) == ""

    world.run(story)


def test_idle_flow_is_a_new_one(world):
    """A flow is forgotten after the idle time, and not while packets come; the default is the real 120 s."""
    one, _ = world.pods
    one.good()

    async def flows(balancer: LoadBalancer) -> int:
        return len((await balancer.status()).flows)

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            for word in (b"1", b"2", b"3"):  # from the third packet on conntrack calls it a stream
                assert await ask(world.sockets[0] if world.sockets else world.flow(), world.net.vips[0], word) == "one"
                assert 110 <= (await balancer.status()).flows[0].expires <= 120
        async with running(replace(world.settings, udp_idle=2), one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            sock = world.flow()
            assert await ask(sock, world.net.vips[0]) == "one"
            assert await flows(balancer) == 1

            async def forgotten() -> bool:
                return await flows(balancer) == 0

            assert await until(forgotten)
            # A flow of more than two seconds is a stream to conntrack, with an idle time of its own.
            assert world.nlb.run("sysctl", "-n", "net.netfilter.nf_conntrack_udp_timeout_stream").stdout == "2\n"
            assert await ask(sock, world.net.vips[0], b"2") == "one"
            assert await flows(balancer) == 1

    world.run(story)


def test_tcp_listener_with_its_own_target_port(world):
    """A TCP listener forwards a connection to the port it names, from the client's own address."""
    one, _ = world.pods
    one.good()
    settings = replace(world.settings, listeners=(Listener("udp", PORT), Listener("tcp", 9000, HEALTH)))

    async def story():
        loop = asyncio.get_running_loop()
        async with running(settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            client = world.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            world.sockets.append(client)
            client.setblocking(False)
            await loop.sock_connect(client, (world.net.vips[0], 9000))
            await loop.sock_sendall(client, b"GET / HTTP/1.0\r\n\r\n")
            assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 200")
            assert world.net.client in one.sources
            assert [flow.protocol for flow in (await balancer.status()).flows] == ["tcp"]

    world.run(story)


def test_nothing_is_left_behind(world):
    """When it ends the kernel holds no table and no entry of it, and another's table is untouched."""
    one, _ = world.pods
    one.good()
    world.nlb.run("nft", "add table ip other")

    async def story():
        async with running(world.settings, one.target) as balancer:
            await reach(balancer, one, State.HEALTHY)
            assert await ask(world.flow(), world.net.vips[0]) == "one"
            assert "wicketgate-nlb-nlb" in world.nlb.run("nft", "list", "tables").stdout

    world.run(story)
    assert world.nlb.run("nft", "list", "ruleset").stdout.split() == ["table", "ip", "other", "{", "}"]
    assert "dport=51820" not in world.nlb.run("conntrack", "-L").stdout


def test_two_balancers_share_a_host(world):
    """Two load balancers of one host, each with its own address, do not touch each other's flows."""
    one, two = world.pods
    one.good()
    two.good()
    first = world.settings
    second = replace(first, name="second", addresses=(ip_address(world.net.vips[1]),))

    async def story():
        async with running(first, one.target) as a:
            await reach(a, one, State.HEALTHY)
            here = world.flow()
            async with running(second, two.target) as b:
                await reach(b, two, State.HEALTHY)
                assert await ask(here, world.net.vips[0]) == "one"
                assert await ask(world.flow(), world.net.vips[1]) == "two"
                assert len((await a.status()).flows) == len((await b.status()).flows) == 1
            assert len((await a.status()).flows) == 1
            assert await ask(here, world.net.vips[0], b"2") == "one"

    world.run(story)


def test_missing_checker_address_is_said(world):
    """A checker address that the host does not have stops the start with its name: no target is blamed for it."""

    async def story():
        settings = replace(world.settings, checkers=(Checker(ip_address("10.77.0.1")),))
        with pytest.raises(StateError, match=r"checker 10\.77\.0\.1"):
            async with running(settings):
                pass
        async with running(world.settings) as balancer:
            with pytest.raises(InputError, match="not registered"):
                await balancer.deregister(world.pods[0].target)
            with pytest.raises(InputError, match="IPv6"):
                await balancer.register(Target.parse("[fd00::1]:1"))

    world.run(story)
