# SPDX-License-Identifier: Apache-2.0
"""A host with two wires, and a way to talk to its kernel."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.lab.host import Host
from wicketgate.netpath.snapshot import Rule

FULL = 0xFFFFFFFF
RULES = [
    Rule(4, 32765, table=51820, invert=True, fwmark=51820, fwmask=FULL),
    Rule(4, 32764, table=254, suppress_prefixlength=0),
    Rule(4, 100, table=254, src=ip_network("192.0.2.1"), protocol=ROUTE_PROTOCOL),
    Rule(4, 101, table=300, fwmark=0x100, fwmask=0xF00, iif="e0", oif="lo"),
    Rule(4, 102, table=254, ipproto=6, sport=(9000, 9000), dport=(80, 90), uid_range=(0, 1000)),
    Rule(4, 103, action="goto", goto=400),
    Rule(4, 104, action="blackhole", dst=ip_network("198.51.100.0/24")),
    Rule(4, 105, table=254, tos=0x10),
    Rule(4, 106, table=254, suppress_ifgroup=5),
    Rule(4, 107, action="nop"),
    Rule(4, 0, table=4000000000),
    Rule(6, 100, table=254, src=ip_network("fd00::1"), protocol=ROUTE_PROTOCOL),
    Rule(6, 101, action="prohibit", dst=ip_network("2001:db8::/32")),
]


def wired(new_host) -> Host:
    """A host with e0 (10.0.0.1/24, fd00::1/64, gateway-able) and e1, both up."""
    made = new_host("netlink")
    made.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for command in (
        "addr add 10.0.0.1/24 dev e0",
        "addr add fd00::1/64 dev e0 nodad",
        "link set e0 up",
        "link set e1 up",
    ):
        made.run("ip", *command.split())
    return made


def on(host, function):
    """Run `function(netlink)` in the host."""

    async def main():
        async with asyncio.timeout(60), Netlink() as netlink:
            return await function(netlink)

    return host.acall(main)
