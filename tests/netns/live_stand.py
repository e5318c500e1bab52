# SPDX-License-Identifier: Apache-2.0
"""A host whose live snapshot is looked at."""

from __future__ import annotations

import asyncio


def prepare(host) -> None:
    """Two interfaces, joined."""
    host.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
    host.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for command in ("addr add 10.0.0.1/24 dev e0", "link set e0 up", "link set e1 up"):
        host.run("ip", *command.split())


async def told(subscription, wanted, *, within=20.0):
    """The changes up to the first that fits."""
    found = []
    async with asyncio.timeout(within):
        async for change in subscription:
            found.append(change)
            if wanted(change):
                return found
    raise AssertionError("the subscription ended")
