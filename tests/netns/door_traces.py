# SPDX-License-Identifier: Apache-2.0
"""A pod whose every trace is compared before and after, and doors in it. `net` and `pod` are fixtures to import."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from netns.door_stand import LONG_PATIENCE
from netns.pods import PodNet
from wicketgate.health.door import Door, DoorUnavailable
from wicketgate.kernel.netlink import Netlink

SRC = str(Path(__file__).parents[2] / "src")


@pytest.fixture(scope="module")
def net():
    with PodNet.create("bridge", "traces") as made:
        # Where foreign filters of these tests send packets: nobody is there.
        made.pod.run("ip", "link", "add", "sink", "up", "type", "veth", "peer", "name", "drain")
        made.pod.run("ip", "link", "set", "drain", "up")
        yield made


@pytest.fixture
def pod(net):
    """The pod as a test found it, and finds it again."""
    before = looks(net.pod)
    yield net.pod
    net.pod.run(
        "sh",
        "-c",
        "nft flush ruleset; tc qdisc del dev eth0 clsact 2>/dev/null; tc qdisc del dev eth0 ingress 2>/dev/null; true",
    )
    assert looks(net.pod) == before


def looks(pod, *, counts: bool = True) -> str:
    """All that the door could leave behind, without numbers that change by themselves."""
    script = (
        "tc -s qdisc show dev eth0; tc filter show dev eth0 egress; tc filter show dev eth0 ingress; nft list ruleset;"
        "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; ip link show eth0; ip addr show eth0"
    )
    text = pod.run("sh", "-c", script).stdout
    text = re.sub(r"Sent \d+ bytes \d+ pkt|expires \d+sec|metric \d+|(fh|key ht|index) \w+", "", text)
    return text if counts else re.sub(r"packets \d+ bytes \d+", "packets N", text)


def door(netlink: Netlink, **options) -> Door:
    defaults = {"uplink": "eth0", "addresses": (PodNet.pod4, PodNet.pod6), "tag": "wg0"}
    return Door(netlink, **(defaults | options))


async def echoes(made: Door, family: int = 4, patience: float = LONG_PATIENCE) -> bool:
    """Whether a stranger's datagram is answered by a socket of the pod."""
    loop = asyncio.get_running_loop()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.bind((str(made.pod(family)), 0))
        server.setblocking(False)
        with made.udp_socket(family, server.getsockname()[1]) as client:
            client.send(b"question")
            try:
                async with asyncio.timeout(patience):
                    data, sender = await loop.sock_recvfrom(server, 100)
                    await loop.sock_sendto(server, data, sender)
                    return await loop.sock_recv(client, 100) == b"question"
            except TimeoutError:
                return False


def in_pod(pod, function):
    """Run `function(netlink)` in the pod."""

    async def run():
        async with Netlink() as netlink:
            return await function(netlink)

    return pod.acall(run)


async def refused(netlink: Netlink, **options) -> str:
    """The reason why there is no door."""
    with pytest.raises(DoorUnavailable) as told:
        await door(netlink, **options).open()
    return str(told.value)
