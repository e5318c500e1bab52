# SPDX-License-Identifier: Apache-2.0
"""Events: complete, decoded, told apart from our own changes, and never lost in silence."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from wicketgate.kernel.events import Change, Event, EventStream, Kind, Resync
from wicketgate.kernel.netlink import Netlink
from wicketgate.netpath.snapshot import NextHop, Route, Rule

RULE = Rule(4, 100, table=254, src=ip_network("192.0.2.1"), protocol=87)


@pytest.fixture
def host(new_host):
    """A host with e0 and e1, both up."""
    made = new_host("events")
    made.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    made.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    for command in ("link set e0 up", "link set e1 up"):
        made.run("ip", *command.split())
    return made


async def next_where(events, wanted):
    """The next event that fits."""
    async with asyncio.timeout(20):
        async for event in events:
            if wanted(event):
                return event
    raise AssertionError("the stream ended")


def test_every_change_is_told_with_its_values(host):
    """Links, addresses, routes and rules, added and removed, decoded as dumps are."""

    async def main():
        async with Netlink() as netlink, EventStream() as events:
            interface = ip_interface("10.0.0.1/24")
            route = Route(ip_network("10.5.0.0/16"), nexthops=(NextHop("e0", ip_address("10.0.0.2")),), protocol=87)
            await netlink.add_link("v0", "veth", peer="v1")
            await netlink.add_address("e0", interface)
            await netlink.add_route(route)
            await netlink.add_rule(RULE)
            await netlink.add_rule(Rule(6, 5, table=7))
            await netlink.delete_rule(RULE)
            await netlink.delete_route(route)
            await netlink.delete_address("e0", interface)
            await netlink.set_link("e0", mtu=1300)
            await netlink.delete_link("v0")
            told = events.pending()
        seen = {(e.kind, e.change, getattr(e.value, "name", None) or getattr(e.value, "dst", None)) for e in told}
        assert {
            (Kind.LINK, Change.ADDED, "v0"),
            (Kind.LINK, Change.ADDED, "v1"),
            (Kind.LINK, Change.CHANGED, "e0"),
            (Kind.LINK, Change.REMOVED, "v0"),
            (Kind.ROUTE, Change.ADDED, route.dst),
            (Kind.ROUTE, Change.REMOVED, route.dst),
        } <= seen
        rules = [(e.change, e.value) for e in told if e.kind is Kind.RULE]
        assert rules == [(Change.ADDED, RULE), (Change.ADDED, Rule(6, 5, table=7)), (Change.REMOVED, RULE)]
        addresses = [(e.change, e.value.ifname, e.value.interface) for e in told if e.kind is Kind.ADDRESS]
        assert addresses == [(Change.ADDED, "e0", interface), (Change.REMOVED, "e0", interface)]
        (added,) = [e.value for e in told if e.kind is Kind.ROUTE and e.value.dst == route.dst and e.change == "added"]
        assert added.nexthops == route.nexthops

    host.acall(main)


def test_a_replaced_route_is_one_change(host):
    """`ip route replace` is told as changed, with the new value."""

    async def main():
        async with EventStream(kinds={Kind.ROUTE}) as events:
            host.run("ip", "route", "add", "10.5.0.0/16", "dev", "e0")
            host.run("ip", "route", "replace", "10.5.0.0/16", "dev", "e1")
            told = [(e.change, e.value.oif) for e in events.pending()]
        assert told == [(Change.ADDED, "e0"), (Change.CHANGED, "e1")]

    host.acall(main)


def test_our_own_changes_are_told_apart(host):
    """`own` is by who asked (the netlink port), not by how the thing is tagged."""

    async def main():
        async with Netlink() as netlink, EventStream(own_ports=lambda: (netlink.port,)) as events:
            await netlink.add_rule(RULE)
            host.run("ip", "rule", "del", "pref", "100")
            first, second = [e for e in events.pending() if e.kind is Kind.RULE]
            assert (first.change, first.own) == (Change.ADDED, True)
            assert (second.change, second.own, second.value.protocol) == (Change.REMOVED, False, 87)

    host.acall(main)


def test_only_what_was_asked_for_is_told(host):
    """Kinds are chosen in the kernel, the rest by a function; neighbours come when they are asked for."""

    async def main():
        chosen = EventStream(
            kinds={Kind.RULE, Kind.NEIGHBOUR}, only=lambda e: e.kind is not Kind.RULE or e.value.family == 4
        )
        async with Netlink() as netlink, EventStream() as default, chosen:
            await netlink.add_rule(RULE)
            await netlink.add_rule(Rule(6, 5, table=7))
            await netlink.set_link("e0", mtu=1300)
            host.run("ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:09", "dev", "e1", "nud", "permanent")
            told = chosen.pending()
            assert [e.kind for e in told] == [Kind.RULE, Kind.NEIGHBOUR]
            assert (told[1].value.ip, told[1].value.ifname) == (ip_address("10.0.0.9"), "e1")
            assert Kind.NEIGHBOUR not in {e.kind for e in default.pending()}

    host.acall(main)


def test_a_removed_interface_still_has_its_name_in_what_goes_with_it(host):
    """Names are remembered: when the address is told as gone, the interface is gone already. Renames are followed."""
    host.run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    host.run("ip", "addr", "add", "10.7.0.1/24", "dev", "x0")

    async def main():
        async with EventStream(kinds={Kind.ADDRESS}) as events:
            host.run("ip", "link", "set", "x0", "name", "y0")
            host.run("ip", "link", "del", "y0")
            gone = [e.value.ifname for e in events.pending() if e.change is Change.REMOVED]
            assert gone == ["y0"]

    host.acall(main)


def test_ipv4_routes_vanish_with_their_interface_without_an_event(host):
    """The kernel's trap that listeners must know: only the link's own event tells that its routes are gone."""
    host.run("ip", "route", "add", "10.5.0.0/16", "dev", "e0")

    async def main():
        async with Netlink() as netlink, EventStream() as events:
            host.run("ip", "link", "set", "e0", "down")
            assert not [r for r in await netlink.routes(4) if r.dst == ip_network("10.5.0.0/16")]
            told = events.pending()
            assert not [e for e in told if e.kind is Kind.ROUTE and e.value.dst == ip_network("10.5.0.0/16")]
            assert [e for e in told if e.kind is Kind.LINK and e.value.name == "e0" and not e.value.up]

    host.acall(main)


def test_an_event_wakes_the_listener(host):
    """Whoever waits is woken by the event itself; nothing is polled."""

    async def main():
        async with EventStream(kinds={Kind.RULE}) as events:
            waiting = asyncio.create_task(next_where(events, lambda e: isinstance(e, Event)))
            await asyncio.sleep(0)
            async with Netlink() as netlink:
                await netlink.add_rule(RULE)
            event = await waiting
            assert event.value == RULE

    host.acall(main)


@pytest.mark.parametrize("receive_buffer", [1 << 12, None], ids=["small", "default"])
def test_an_overflow_is_told_and_survived(host, receive_buffer):
    """A blocked loop and thousands of changes: first a Resync, then, on a fresh socket, every later event."""
    amount = 200 if receive_buffer else 12_000
    flood = "".join(f"route add 10.{n >> 14}.{(n >> 6) & 255}.{(n & 63) * 4}/32 dev e0\n" for n in range(amount))
    options = {"receive_buffer": receive_buffer} if receive_buffer else {}

    async def main():
        async with Netlink() as netlink, EventStream(**options) as events:
            host.run("ip", "-batch", "-", stdin=flood)  # the loop stands still meanwhile, on purpose
            first = await asyncio.wait_for(anext(events), 20)
            assert first == Resync(1)
            assert len(await netlink.routes(4, 254)) >= amount  # what a listener does now
            await netlink.add_rule(RULE)
            told = await next_where(events, lambda e: True)
            assert (told.kind, told.value) == (Kind.RULE, RULE)
            # And once more: a second overflow is counted on.
            host.run("ip", "-batch", "-", stdin=flood.replace("add", "del"))
            assert await next_where(events, lambda e: isinstance(e, Resync)) == Resync(2)
            await netlink.delete_rule(RULE)
            told = await next_where(events, lambda e: True)
            assert (told.change, told.value) == (Change.REMOVED, RULE)

    host.acall(main)


def test_a_listener_that_keeps_up_loses_nothing(host):
    """5,000 changes while the stream is being read: each is told, in order, and there is no Resync."""
    flood = "".join(f"rule add pref {n} lookup 7\n" for n in range(1000, 6000))

    async def main():
        async with EventStream(kinds={Kind.RULE}) as events:
            batch = host.popen("ip", "-batch", "-", stdin=-1, text=True)
            batch.stdin.write(flood)
            batch.stdin.close()
            told = []
            async with asyncio.timeout(60):
                while len(told) < 5000:
                    told.append(await anext(events))
            assert batch.wait(timeout=20) == 0
        assert [e.value.priority for e in told] == list(range(1000, 6000))

    host.acall(main)


def test_a_closed_stream_ends():
    """Iteration after the context ends at once instead of hanging."""

    async def main():
        async with EventStream() as events:
            pass
        async for _ in events:
            raise AssertionError("an event from a closed stream")
        assert events.pending() == ()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_events_need_no_right(host):
    """A listener with no capability hears as much."""
    import sys

    script = (
        "import asyncio\n"
        "from wicketgate.kernel.events import EventStream\n"
        "async def main():\n"
        "    async with EventStream() as events:\n"
        "        print('ready', flush=True)\n"
        "        print((await anext(events)).value.priority)\n"
        "asyncio.run(main())\n"
    )
    child = host.popen(
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script, stdout=-1, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        host.run("ip", "rule", "add", "pref", "4711", "lookup", "7")
        assert child.stdout.readline() == "4711\n"
        assert child.wait(timeout=20) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
