# SPDX-License-Identifier: Apache-2.0
"""Changes on a live kernel: made, read back, spelled so that `ip` agrees, and taken back exactly."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from wicketgate.errors import KernelRefused
from wicketgate.kernel.changes import (
    AddAddress,
    AddRoute,
    AddRule,
    DeleteAddress,
    DeleteRoute,
    DeleteRule,
    SetDevconf,
    SetLink,
)
from wicketgate.kernel.device_changes import ConfigureDevice, CreateDevice, RemovePeer
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import LINK_ALIAS, ROUTE_PROTOCOL
from wicketgate.kernel.plan import Change, Plan, PlanFailed
from wicketgate.kernel.wg_fake import FakeWireGuard
from wicketgate.lab.host import Host
from wicketgate.netpath.snapshot import NextHop, Route, Rule
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

NewHost = Callable[..., Host]
_SEEN = (
    "ip -d rule",
    "ip -6 -d rule",
    "ip -d route show table all",
    "ip -6 -d route show table all",
    "ip -o addr",
    "ip -o link",
)


def state(host: Host) -> list[str]:
    """What iproute2 shows. Sorted: an interface that was down lists its addresses and routes in another order."""
    lines = ["\n".join(sorted(host.run(*command.split()).stdout.splitlines())) for command in _SEEN]
    lines.append(host.run("cat", "/proc/sys/net/ipv4/conf/e0/rp_filter").stdout)
    return lines


def settles_as(host: Host, before: list[str]) -> None:
    """The machine is as it was; carrier and what hangs on it come back a moment after `up`."""
    deadline = time.monotonic() + 10
    while (now := state(host)) != before:
        assert time.monotonic() < deadline, [pair for pair in zip(now, before, strict=True) if pair[0] != pair[1]]
        time.sleep(0.02)


@pytest.fixture
def pod(new_host: NewHost) -> Host:
    host = new_host("pod")
    # nodad: an address that is still tentative changes its line by itself.
    for command in (
        "ip link add e0 type veth peer name e1",
        "sysctl -qw net.ipv6.conf.e0.addr_gen_mode=1 net.ipv6.conf.e1.addr_gen_mode=1 net.ipv4.conf.e0.rp_filter=1",
        "ip link set e0 up",
        "ip link set e1 up",
        "ip addr add 10.0.0.2/24 dev e0",
        "ip addr add fd00::2/64 dev e0 nodad",
        "ip route add default via 10.0.0.1 dev e0",
    ):
        host.run(*command.split())
    return host


def on(host: Host, work: Callable[[Netlink], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        async with Netlink() as netlink:
            await work(netlink)

    host.acall(scenario)


def everything(netlink: Netlink) -> list[Change]:
    hop = (NextHop("e0"),)
    return [
        AddAddress(netlink, "e0", ip_interface("10.8.0.1/24")),
        AddAddress(netlink, "e0", ip_interface("fd08::1/64")),
        SetLink(netlink, "e0", mtu=1400, alias=LINK_ALIAS),
        SetDevconf(netlink, "e0", "rp_filter", 2),
        AddRoute(
            netlink, Route(ip_network("0.0.0.0/0"), table=51820, nexthops=hop, scope=253, protocol=ROUTE_PROTOCOL)
        ),
        AddRoute(netlink, Route(ip_network("fd09::/64"), nexthops=hop, metric=1024, protocol=ROUTE_PROTOCOL)),
        AddRule(netlink, Rule(4, 100, src=ip_network("10.0.0.2/32"), table=254, protocol=ROUTE_PROTOCOL)),
        AddRule(netlink, Rule(6, 100, src=ip_network("fd00::2/128"), table=254, protocol=ROUTE_PROTOCOL)),
        AddRule(
            netlink,
            Rule(4, 32701, fwmark=0xCA6C, fwmask=0xFFFFFFFF, invert=True, table=51820, protocol=ROUTE_PROTOCOL),
        ),
        DeleteAddress(netlink, "e0", ip_interface("10.0.0.2/24")),
        SetLink(netlink, "e1", up=False),
    ]


def test_everything_made_is_taken_back_exactly(pod: Host) -> None:
    """After undo iproute2 shows the same lines as before; routes that the kernel dropped with an address excepted."""
    before = state(pod)

    async def scenario(netlink: Netlink) -> None:
        # The address's removal takes the default route with it, as the kernel does: it is not part of this round.
        plan = Plan(change for change in everything(netlink) if not isinstance(change, DeleteAddress))
        await plan.apply()
        made = await asyncio.to_thread(lambda: state(pod))
        assert made != before
        assert "proto 87" in made[0]
        assert "alias wicketgate" in pod.run("ip", "link", "show", "e0").stdout
        assert pod.run("cat", "/proc/sys/net/ipv4/conf/e0/rp_filter").stdout == "2\n"
        await plan.apply()
        assert not any(entry.error for entry in await plan.undo())

    on(pod, scenario)
    settles_as(pod, before)


@pytest.mark.parametrize("failing", range(11))
def test_a_failure_after_any_number_of_changes_leaves_the_machine_as_it_was(failing: int, pod: Host) -> None:
    """The refused change is a rule that loops back; whatever was made before it is gone again."""
    before = state(pod)

    async def scenario(netlink: Netlink) -> None:
        changes = [change for change in everything(netlink) if not isinstance(change, DeleteAddress)][:failing]
        loop = AddRule(netlink, Rule(4, 200, action="goto", goto=100, protocol=ROUTE_PROTOCOL))
        with pytest.raises(PlanFailed) as caught:
            await Plan([*changes, loop]).apply()
        assert isinstance(caught.value.reason, KernelRefused)
        assert caught.value.reason.errno == errno.EINVAL

    on(pod, scenario)
    settles_as(pod, before)


@pytest.mark.parametrize("turns", [0, 1, 5, 20, 60, 150])
def test_a_plan_that_is_cancelled_leaves_all_or_nothing(turns: int, pod: Host) -> None:
    """Ctrl-C at some moment, also while the kernel is being asked."""
    before = state(pod)

    async def scenario(netlink: Netlink) -> None:
        plan = Plan(change for change in everything(netlink) if not isinstance(change, DeleteAddress))
        task = asyncio.ensure_future(plan.apply())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert plan.applied == ()

    on(pod, scenario)
    settles_as(pod, before)


def test_what_was_there_already_is_not_taken_back(pod: Host) -> None:
    """A rule, route, address and value that an earlier life (or a person) made stay when a plan is undone."""

    async def scenario(netlink: Netlink) -> None:
        await Plan(c for c in everything(netlink) if not isinstance(c, DeleteAddress)).apply()
        made = await asyncio.to_thread(lambda: state(pod))
        second = Plan(c for c in everything(netlink) if not isinstance(c, DeleteAddress))
        await second.apply()
        assert await asyncio.to_thread(lambda: state(pod)) == made
        await second.undo()
        assert await asyncio.to_thread(lambda: state(pod)) == made

    on(pod, scenario)


def test_what_goes_away_by_itself_is_no_failure_to_undo(pod: Host) -> None:
    """The interface is deleted under us: its addresses and routes are gone, and undo has nothing to complain about."""

    async def scenario(netlink: Netlink) -> None:
        plan = Plan(c for c in everything(netlink) if not isinstance(c, DeleteAddress))
        await plan.apply()
        await netlink.delete_link("e0")
        assert not any(entry.error for entry in await plan.undo())
        assert [rule for rule in await netlink.rules() if rule.protocol == ROUTE_PROTOCOL] == []

    on(pod, scenario)


def test_another_route_in_our_place_is_left_alone(pod: Host) -> None:
    """The default route of the uplink is not replaced, the error shows it; one of ours is replaced and put back."""

    async def scenario(netlink: Netlink) -> None:
        default = Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("e1"),), scope=253, protocol=ROUTE_PROTOCOL)
        with pytest.raises(KernelRefused, match=r"left alone: .*default via 10\.0\.0\.1 dev e0"):
            await AddRoute(netlink, default).apply()
        ours = Route(ip_network("10.9.0.0/16"), nexthops=(NextHop("e0"),), scope=253, protocol=ROUTE_PROTOCOL)
        moved = Route(
            ip_network("10.9.0.0/16"), nexthops=(NextHop("e0", ip_address("10.0.0.9")),), protocol=ROUTE_PROTOCOL
        )
        await AddRoute(netlink, ours).apply()
        change = AddRoute(netlink, moved)
        await change.apply()
        shown = await asyncio.to_thread(lambda: pod.run("ip", "route", "show", "10.9.0.0/16").stdout)
        assert "via 10.0.0.9" in shown
        await change.undo()
        shown = await asyncio.to_thread(lambda: pod.run("ip", "route", "show", "10.9.0.0/16").stdout)
        assert "via" not in shown
        assert "dev e0" in shown

    on(pod, scenario)


def test_deletions_are_undone_and_may_find_nothing(pod: Host) -> None:
    """Removing what is not there is no fault and is not undone; what was there comes back."""

    async def scenario(netlink: Netlink) -> None:
        rule = Rule(4, 100, src=ip_network("10.0.0.2/32"), table=254, protocol=ROUTE_PROTOCOL)
        route = Route(ip_network("10.9.0.0/16"), nexthops=(NextHop("e0"),), scope=253, protocol=ROUTE_PROTOCOL)
        address = ip_interface("10.8.0.1/24")
        await netlink.add_rule(rule)
        await netlink.add_route(route)
        await netlink.add_address("e0", address)
        before = await asyncio.to_thread(lambda: state(pod))
        plan = Plan(
            [
                DeleteRule(netlink, rule),
                DeleteRoute(netlink, route),
                DeleteAddress(netlink, "e0", address),
                DeleteRule(netlink, rule),
                DeleteRoute(netlink, route),
                DeleteAddress(netlink, "e0", address),
            ]
        )
        await plan.apply()
        assert await netlink.rules(4) == tuple(r for r in await netlink.rules(4) if r.protocol != ROUTE_PROTOCOL)
        assert not any(entry.error for entry in await plan.undo())
        assert await asyncio.to_thread(lambda: state(pod)) == before

    on(pod, scenario)


def test_the_spelled_lines_do_the_same_by_hand(pod: Host, new_host: NewHost) -> None:
    """A dry run's lines, typed into a shell in the same order, make the same machine."""
    before = state(pod)
    lines: list[str] = []

    async def scenario(netlink: Netlink) -> None:
        plan = Plan(c for c in everything(netlink) if not isinstance(c, DeleteAddress))
        lines.extend(plan.show())
        await plan.apply()

    on(pod, scenario)
    made = state(pod)
    hand = pod.run
    hand("ip", "link", "del", "e0")
    for family in ("-4", "-6"):
        while "proto 87" in hand("ip", family, "rule").stdout:
            hand("ip", family, "rule", "del", "protocol", "87")
    for command in (
        "ip link add e0 type veth peer name e1",
        "sysctl -qw net.ipv6.conf.e0.addr_gen_mode=1 net.ipv6.conf.e1.addr_gen_mode=1 net.ipv4.conf.e0.rp_filter=1",
        "ip link set e0 up",
        "ip link set e1 up",
        "ip addr add 10.0.0.2/24 dev e0",
        "ip addr add fd00::2/64 dev e0 nodad",
        "ip route add default via 10.0.0.1 dev e0",
    ):
        hand(*command.split())
    assert before[0] == state(pod)[0]
    for line in lines:
        hand("sh", "-c", line if " address add fd" not in line else f"{line} nodad")
    assert [_without_numbers(text) for text in state(pod)] == [_without_numbers(text) for text in made]


def _without_numbers(text: str) -> list[str]:
    """Without interface numbers, hardware addresses and the order in which addresses are listed."""
    kept = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0].endswith(":") and words[0][:-1].isdigit() and "priority" not in line and len(words) > 2:
            words = words[1:] if words[1].startswith(("e0", "e1", "lo")) else words
        kept.append(" ".join(word for word in words if ":" not in word or not _is_mac(word)))
    return sorted(kept)


def _is_mac(word: str) -> bool:
    parts = word.split(":")
    return len(parts) == 6 and all(len(part) == 2 for part in parts)


async def _populated() -> tuple[FakeWireGuard, PrivateKey, list[PeerConfig]]:
    backend, private = FakeWireGuard(), PrivateKey.generate()
    peers = [
        PeerConfig(
            PrivateKey.generate().public(),
            PresharedKey.generate(),
            (ip_address("192.0.2.1"), 5),
            (ip_network(f"10.{n}.0.0/16"),),
            25,
        )
        for n in range(3)
    ]
    await backend.create("wg0")
    await backend.configure("wg0", DeviceConfig(private, 51820, 7, tuple(peers)))
    return backend, private, peers


async def test_a_configuration_is_taken_back_to_the_last_network() -> None:
    """Keys, port, mark, preshared keys, endpoints, and networks that another peer had before."""
    backend, private, peers = await _populated()
    before = await backend.get("wg0")
    secrets = await backend.preshared_keys("wg0")
    new = PrivateKey.generate().public()
    change = ConfigureDevice(
        backend,
        "wg0",
        DeviceConfig(
            PrivateKey.generate(),
            1,
            0,
            (
                # The newcomer takes a network of the second peer; the first loses everything it had.
                PeerConfig(new, allowed_ips=(ip_network("10.1.0.0/16"),)),
                PeerConfig(peers[0].public_key, allowed_ips=(), clear_preshared_key=True, persistent_keepalive=0),
            ),
        ),
    )
    assert private.expose_base64() not in change.spelled
    assert "private-key (hidden)" in change.spelled
    await change.apply()
    assert await backend.get("wg0") != before
    await RemovePeer(backend, "wg0", PrivateKey.generate().public()).apply()
    removal = RemovePeer(backend, "wg0", peers[2].public_key)
    await removal.apply()
    await removal.undo()
    await change.undo()
    after = await backend.get("wg0")
    assert (after.public_key, after.listen_port, after.fwmark) == (before.public_key, 51820, 7)
    assert {peer.public_key: peer for peer in after.peers} == {peer.public_key: peer for peer in before.peers}
    assert await backend.preshared_keys("wg0") == secrets
    assert await backend.private_key("wg0") == private


def test_a_device_that_was_made_is_removed_and_one_taken_over_stays(new_host: NewHost) -> None:
    """A failed plan ends with the device it made; it never ends one that ran before."""

    async def scenario(netlink: Netlink) -> None:
        backend = FakeWireGuard()
        await backend.create("old")
        for name in ("old", "new"):
            change = CreateDevice(backend, netlink, name)
            await change.apply()
            await change.undo()
        assert (await backend.get("old")).ifname == "old"
        assert await backend.create("new") is True

    on(new_host("pod"), scenario)


async def test_no_secret_is_in_a_spelled_line() -> None:
    """Nor in hexadecimal, nor in base64."""
    private, psk = PrivateKey.generate(), PresharedKey.generate()
    config = DeviceConfig(private, peers=(PeerConfig(PrivateKey.generate().public(), psk),))
    spelled = ConfigureDevice(FakeWireGuard(), "wg0", config).spelled
    for secret in (private, psk):
        assert secret.expose_base64() not in spelled
        assert secret.expose().hex() not in spelled
    assert spelled.count("(hidden)") == 2
