# SPDX-License-Identifier: Apache-2.0
"""The live snapshot: as true as a fresh one after any change, every change told once, and nothing done unasked."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_network
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings

from netns.live_stand import prepare, told
from netns.random_changes import BURSTS
from wicketgate.kernel import live_snapshot
from wicketgate.kernel.live_snapshot import LiveSnapshot
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.change import RESTLESS, Action, What, lasting
from wicketgate.netpath.snapshot import Firewall

MOVING = re.compile(r"^#.*$|\[\d+:\d+\]|packets \d+ bytes \d+|\"packets\": \d+, \"bytes\": \d+", re.MULTILINE)


@pytest.fixture
def host(new_host):
    """A host with e0 (10.0.0.1/24) and its other end e1, both up, and no duplicate address detection to wait for."""
    made = new_host("live")
    prepare(made)
    return made


def comparable(snapshot):
    """A snapshot without its time, counters and the dates that iptables-save prints."""
    texts = {
        name: None if (text := getattr(snapshot.firewall, name)) is None else MOVING.sub("", text)
        for name in Firewall.__slots__
    }
    sysctls = {name: value for name, value in snapshot.sysctls.items() if name not in RESTLESS}
    return replace(
        snapshot,
        taken_at=0.0,
        firewall=Firewall(**texts),
        sysctls=MappingProxyType(sysctls),
        unread=tuple(sorted(snapshot.unread, key=str)),
    )


async def same_as_fresh(live) -> None:
    """What is current stands between two fresh snapshots; where those are one, it is the same."""
    deadline = time.monotonic() + 20
    while True:
        before = comparable(await take_snapshot())
        current = comparable(await live.current())
        after = comparable(await take_snapshot())
        if before == after:
            for name in before.__slots__:
                assert getattr(current, name) == getattr(before, name), name
            return
        assert time.monotonic() < deadline, "the place does not stand still"


class Books:
    """What a listener knows who was told every change and nothing else."""

    def __init__(self, snapshot) -> None:
        self.links = {link.index: link for link in snapshot.links}
        self.addresses = {(each.ifindex, each.interface) for each in snapshot.addresses}
        self.counted = Counter(snapshot.rules) + Counter(map(lasting, snapshot.routes))

    def enter(self, change) -> None:
        """Take a change over."""
        gone = change.action is Action.REMOVED
        value = change.value
        if change.what is What.LINK:
            self.links.pop(value.index, None)
            if not gone:
                self.links[value.index] = value
        elif change.what is What.ADDRESS:
            key = (value.ifindex, value.interface)
            (self.addresses.discard if gone else self.addresses.add)(key)
        elif change.what in (What.RULE, What.ROUTE):
            if change.before is not None:
                self.counted[change.before] -= 1
            self.counted[value] += -1 if gone else 1

    def check(self, snapshot) -> None:
        """It is the truth."""
        assert set(self.links.values()) == set(snapshot.links)
        assert self.addresses == {(each.ifindex, each.interface) for each in snapshot.addresses}
        truth = Counter(snapshot.rules) + Counter(map(lasting, snapshot.routes))
        assert +self.counted == truth
        assert not -self.counted


@pytest.mark.slow
@pytest.mark.parametrize("listening", [False, True], ids=["unheard", "heard"])
def test_it_is_as_true_as_a_fresh_one(new_host, listening):
    """After random changes of every kind, in bursts, what is current equals what is read afresh, part for part.

    Whoever subscribed was told of every link, address, rule and route that came and went, each once: with these alone
    he arrives at the same state.
    """

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(bursts=BURSTS)
    def property_(bursts):
        with new_host("random") as host:
            prepare(host)

            async def main():
                async with LiveSnapshot(interval=0.2) as live, asyncio.TaskGroup() as group:
                    await same_as_fresh(live)
                    books = Books(await live.current())
                    subscription = live.subscribe() if listening else None
                    running = group.create_task(live.run())
                    for burst in bursts:
                        host.run("sh", "-c", "; ".join(f"{command} 2>/dev/null" for command in burst) + "; true")
                        await asyncio.sleep(0)
                        await same_as_fresh(live)
                        if subscription is not None:
                            for change in subscription.pending():
                                books.enter(change)
                            books.check(live.latest)
                    running.cancel()

            host.acall(main)

    property_()


# Single promises


def test_a_change_before_the_question_is_in_the_answer(host):
    """No turn of the loop lies between the end of the command and the question."""

    async def main():
        async with LiveSnapshot() as live:
            first = await live.current()
            for number in range(20):
                host.run("ip", "rule", "add", "pref", str(100 + number), "lookup", "7")
                assert len((await live.current()).rules) == len(first.rules) + number + 1

    host.acall(main)


def test_parts_that_did_not_change_are_the_same_objects(host):
    """And their generations stand; a change moves the generation of its own part alone."""
    host.run("nft", "add", "table", "inet", "mine")

    async def main():
        async with LiveSnapshot() as live:
            first = await live.current()
            generation = live.generation
            second = await live.current()
            assert live.generation == generation
            for name in ("links", "addresses", "routes", "rules", "sockets", "wireguard", "firewall", "unread"):
                assert getattr(second, name) is getattr(first, name), name
            host.run("ip", "rule", "add", "pref", "100", "lookup", "7")
            third = await live.current()
            assert third.rules is not second.rules
            assert third.routes is second.routes
            assert third.firewall is second.firewall
            assert live.generation.routing > generation.routing
            assert live.generation.firewall == generation.firewall
            generation = live.generation
            host.run("nft", "add", "chain", "inet", "mine", "c")
            await live.current()
            assert live.generation == replace(generation, firewall=generation.firewall + 1)

    host.acall(main)


def test_no_program_is_run_unless_the_firewall_changed_and_somebody_asks(host, monkeypatch):
    """A commit alone runs nothing; ten questions list once; legacy iptables is compared without a program."""
    runs = []
    real = live_snapshot.read_firewall

    async def counted():
        runs.append(1)
        return await real()

    monkeypatch.setattr(live_snapshot, "read_firewall", counted)

    async def main():
        async with LiveSnapshot() as live, asyncio.TaskGroup() as group:
            running = group.create_task(live.run())
            host.run("nft", "add", "table", "inet", "mine")
            await asyncio.sleep(0)
            assert runs == []
            for _ in range(10):
                assert "table inet mine" in (await live.current()).firewall.nft_text
            assert len(runs) == 1
            host.run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
            assert len(runs) == 1
            assert "-A INPUT -j ACCEPT" in (await live.current()).firewall.iptables_legacy
            assert len(runs) == 2
            host.run("ip", "route", "add", "10.9.0.0/16", "dev", "e0")
            host.run("ping", "-c1", "-W1", "10.0.0.1")  # counters move
            await live.current()
            assert len(runs) == 2
            running.cancel()

    host.acall(main)


def test_what_goes_in_silence_is_told_all_the_same(host):
    """The kernel flushes IPv4 routes with their interface without a word: they are found at once, and said to be found."""
    host.run("ip", "route", "add", "default", "via", "10.0.0.2", "dev", "e0")

    async def main():
        async with LiveSnapshot(interval=3600) as live, asyncio.TaskGroup() as group:
            await live.current()
            subscription = live.subscribe()
            running = group.create_task(live.run())
            host.run("ip", "link", "set", "e0", "down")
            found = await told(subscription, lambda each: each.text == "default via 10.0.0.2 dev e0")
            assert (found[-1].what, found[-1].action, found[-1].told) == (What.ROUTE, Action.REMOVED, False)
            assert any(each.text == "e0 down (was up)" and each.told for each in found)
            running.cancel()

    host.acall(main)


@pytest.mark.parametrize(
    "name", ["net.ipv4.conf.e0.src_valid_mark", "net.ipv4.ip_forward", "net.ipv6.conf.e0.accept_ra"]
)
def test_a_setting_is_heard_of_at_once(host, name):
    """Written by anybody who uses the same /proc, also one for which the kernel has no netlink event; nothing is polled."""
    before = host.run("sysctl", "-n", name).stdout.strip()
    value = "0" if before == "1" else "1"

    async def main():
        async with LiveSnapshot(interval=3600) as live, asyncio.TaskGroup() as group:
            await live.current()
            subscription = live.subscribe()
            running = group.create_task(live.run())
            host.run("sysctl", "-qw", f"{name}={value}")
            await told(subscription, lambda each: each.text == f"{name} = {value} (was {before})")
            running.cancel()

    host.acall(main)


def test_legacy_iptables_is_heard_of_at_once(host):
    """By its lock, though it sends no event."""

    async def main():
        async with LiveSnapshot(interval=3600) as live, asyncio.TaskGroup() as group:
            await live.current()
            subscription = live.subscribe()
            running = group.create_task(live.run())
            host.run("iptables-legacy", "-w", "-A", "FORWARD", "-s", "10.9.0.0/16", "-j", "DROP")
            found = await told(subscription, lambda each: each.what is What.IPTABLES)
            assert found[-1].text == "iptables-legacy -A FORWARD -s 10.9.0.0/16 -j DROP"
            running.cancel()

    host.acall(main)


def test_what_no_event_tells_is_found_within_the_interval(host, monkeypatch):
    """Without inotify: settings that no netlink event tells of are looked at."""
    monkeypatch.setattr("wicketgate.kernel.ears.Inotify.add", lambda *_: False)

    async def main():
        async with LiveSnapshot(interval=0.05) as live, asyncio.TaskGroup() as group:
            await live.current()
            subscription = live.subscribe()
            running = group.create_task(live.run())
            host.run("sysctl", "-qw", "net.ipv4.conf.e0.src_valid_mark=1")
            await told(subscription, lambda each: each.text == "net.ipv4.conf.e0.src_valid_mark = 1 (was 0)")
            running.cancel()

    host.acall(main)


@pytest.mark.parametrize("listening", [False, True], ids=["unheard", "heard"])
def test_an_overflow_is_said_and_everything_read_again(host, listening):
    """Events that the kernel dropped: a listener is told so, then of every difference; what is current is the truth."""
    flood = "".join(f"route add 10.9.{n >> 6}.{(n & 63) * 4}/32 dev e0\n" for n in range(300))

    async def main():
        async with LiveSnapshot(interval=3600, receive_buffer=1 << 12) as live, asyncio.TaskGroup() as group:
            first = await live.current()
            subscription = live.subscribe() if listening else None
            running = group.create_task(live.run())
            host.run("ip", "-batch", "-", stdin=flood)  # the loop stands still meanwhile, on purpose
            await same_as_fresh(live)
            assert len((await live.current()).routes) == len(first.routes) + 300
            if subscription is not None:
                changes = subscription.pending()
                assert sum(each.what is What.RESYNC for each in changes) == 1
                added = Counter(each.value.dst for each in changes if each.what is What.ROUTE)
                assert set(added.values()) == {1}
                assert len(added) == 300
                assert ip_network("10.9.0.0/32") in added
            # And events are heard again.
            host.run("ip", "rule", "add", "pref", "100", "lookup", "7")
            await same_as_fresh(live)
            running.cancel()

    host.acall(main)


def test_a_flood_does_not_hold_the_answer_up(host, monkeypatch):
    """Events that come faster than they can be taken: an answer all the same, which says that it may be none."""
    monkeypatch.setattr(live_snapshot, "MOST_BATCHES", 3)

    async def main():
        async with LiveSnapshot() as live:
            first = await live.current()
            assert not first.changed_while_read
            real = live._ears.drain
            monkeypatch.setattr(live._ears, "drain", lambda: real() and False)
            assert (await live.current()).changed_while_read
            monkeypatch.setattr(live._ears, "drain", real)
            assert not (await live.current()).changed_while_read

    host.acall(main)


def test_a_listener_that_does_not_listen_is_told_what_it_lost(host):
    """A subscription is bounded, and says how much did not fit."""
    rules = "".join(f"rule add pref {n} lookup 7\n" for n in range(1000, 1200))

    async def main():
        async with LiveSnapshot(interval=3600) as live:
            await live.current()
            subscription = live.subscribe()
            subscription._longest = 50
            host.run("ip", "-batch", "-", stdin=rules)
            await live.current()
            changes = subscription.pending()
            assert len(changes) == 51
            assert changes[-1].what is What.RESYNC
            assert changes[-1].text.startswith("150 changes were not kept")

    host.acall(main)


def test_without_rights_what_can_be_read_is_kept_current(host):
    """No capability: links, routes and rules live on; the firewall is told as unread, and stays so without a stir."""
    script = (
        "import asyncio, sys\n"
        "from wicketgate.kernel.live_snapshot import LiveSnapshot\n"
        "async def main():\n"
        "    async with LiveSnapshot() as live:\n"
        "        first = await live.current()\n"
        "        print(len(first.rules), flush=True)\n"
        "        sys.stdin.readline()\n"
        "        second = await live.current()\n"
        "        print(len(second.rules), second.firewall.nft_json, any('nft' in u.what for u in second.unread))\n"
        "asyncio.run(main())\n"
    )
    child = host.popen(
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script,
        stdin=-1, stdout=-1, text=True,
    )  # fmt: skip
    try:
        before = int(child.stdout.readline())
        host.run("ip", "rule", "add", "pref", "100", "lookup", "7")
        out, _ = child.communicate("\n", timeout=20)
        assert out.split() == [str(before + 1), "None", "True"]
    finally:
        child.kill()
        child.wait()


def test_the_end_ends_the_listeners(host):
    """Iterations end when the live snapshot is closed, and nothing stays open."""

    async def main():
        async with LiveSnapshot() as live:
            await live.current()
            subscription = live.subscribe()
            waiting = asyncio.create_task(told(subscription, lambda each: False))
            await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="ended"):
            await waiting

    host.acall(main)
