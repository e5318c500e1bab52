# SPDX-License-Identifier: Apache-2.0
"""The part of the namespace that the agent keeps in view."""

from __future__ import annotations

from dataclasses import dataclass

from wicketgate.gateway.uplinks import LiveUplink, find_uplinks
from wicketgate.kernel.netlink import Netlink
from wicketgate.netpath.snapshot import RT_TABLE_LOCAL, Address, Link, Route, Rule


@dataclass(frozen=True, slots=True)
class Live:
    """Links, addresses, routes and rules of one moment."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]

    def link(self, name: str) -> Link | None:
        """The interface of that name."""
        return next((link for link in self.links if link.name == name), None)

    def uplinks(self, tunnel: str) -> tuple[LiveUplink, ...]:
        """Every uplink beside a tunnel."""
        return find_uplinks(self.links, self.addresses, self.routes, tunnel=tunnel)


async def read_live(netlink: Netlink) -> Live:
    """Read it. Table local is left out: nothing here depends on it, and it is the longest."""
    links = await netlink.links()
    addresses = await netlink.addresses()
    routes = tuple(r for r in await netlink.routes() if r.table != RT_TABLE_LOCAL)
    return Live(links, addresses, routes, await netlink.rules())
