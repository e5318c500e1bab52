# SPDX-License-Identifier: Apache-2.0
"""Interfaces under others: VRFs, and the ports of bridges, bonds and teams.

What comes in by such an interface is handed to its master before the stack sees it (rx_handler of net/bridge, drivers/net/bonding),
or passes through the stack once more as the master's (vrf_l3_rcv in drivers/net/vrf.c).
"""

from __future__ import annotations

from collections.abc import Iterable

from wicketgate.netpath.lookup import Unsure
from wicketgate.netpath.snapshot import Link


class Masters:
    """Who is whose port.

    Args:
        links: of the namespace.
    """

    def __init__(self, links: Iterable[Link]) -> None:
        self._links = {link.name: link for link in links}
        self._by_index = {link.index: link for link in self._links.values()}
        self._domains: dict[str, tuple[str, ...]] = {}

    def of(self, ifname: str) -> Link | None:
        """The interface that this one is a port of."""
        link = self._links.get(ifname)
        return self._by_index.get(link.master) if link is not None and link.master else None

    def vrf(self, ifname: str) -> str:
        """The VRF that an interface is, or belongs to (l3mdev_master_ifindex_rcu); empty: none."""
        link = self._links.get(ifname)
        if link is not None and link.kind == "vrf":
            return link.name
        master = self.of(ifname)
        return master.name if master is not None and master.kind == "vrf" else ""

    def table(self, vrf: str) -> int:
        """Which table a VRF's packets ask; 0: it was not told."""
        link = self._links.get(vrf)
        return link.vrf_table if link is not None else 0

    def domain(self, ifname: str) -> tuple[str, ...]:
        """The interfaces from which one borrows an address, in the kernel's order (inet_select_addr, ipv6_dev_get_saddr).

        Those of its own layer 3 domain; in a VRF the VRF itself first, as `lo` is elsewhere.
        """
        vrf = self.vrf(ifname)
        if vrf not in self._domains:
            names = [name for name in self._links if self.vrf(name) == vrf]
            self._domains[vrf] = tuple(sorted(names, key=lambda name: name != vrf))
        return self._domains[vrf]

    def takes_in(self, ifname: str) -> Unsure | None:
        """Why a packet that comes in by this interface does not go the way that the model computes."""
        if vrf := self.vrf(ifname):
            return self._in_vrf(ifname, vrf)
        master = self.of(ifname)
        if master is None:
            return None
        words = (
            f"a port of {master.kind or 'the interface'} {master.name}: ask about packets that come in by {master.name}"
        )
        return Unsure(words, f"{ifname} master {master.name}")

    def takes_out(self, ifname: str) -> Unsure | None:
        """Why one that is sent from here by this interface does not (vrf_l3_out)."""
        vrf = self.vrf(ifname)
        return self._in_vrf(ifname, vrf) if vrf else None

    @staticmethod
    def _in_vrf(ifname: str, vrf: str) -> Unsure:
        return Unsure("ways through a VRF are not modelled", vrf if ifname == vrf else f"{ifname} master {vrf}")
