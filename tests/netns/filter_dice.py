# SPDX-License-Identifier: Apache-2.0
"""What random rulesets are drawn from: addresses, ports, marks, all from one `random.Random`."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

SOURCES = {4: ("10.99.0.2", "10.99.0.77", "172.16.5.5", "172.16.9.1"), 6: ("fd99::2", "fd99::77", "fd72::5", "fd72::9")}
NEAR = {4: ("10.99.0.1", "10.99.0.11", "10.98.0.1"), 6: ("fd99::1", "fd99::11", "fd98::1")}
FAR = {4: ("10.98.0.2", "10.98.0.3", "203.0.113.5", "10.99.0.3"), 6: ("fd98::2", "fd98::3", "2001:db8::5", "fd99::3")}
PORTS = (53, 80, 81, 443, 8080, 9000, 51820)
PREFIXES = {
    4: ("10.99.0.0/24", "10.98.0.0/16", "172.16.0.0/20", "0.0.0.0/1", "10.0.0.0/8"),
    6: ("fd99::/64", "fd98::/16", "fd72::/64", "8000::/1", "fd00::/8"),
}


class Dice:
    def __init__(self, chance: Random) -> None:
        self.chance = chance

    def one(self, values):
        return values[self.chance.randrange(len(values))]

    def some(self, values, most=3):
        return sorted({str(self.one(values)) for _ in range(self.chance.randint(1, most))})

    def maybe(self, per_cent: int) -> bool:
        return self.chance.randrange(100) < per_cent

    def address(self, family: int) -> str:
        return self.one(SOURCES[family] + NEAR[family] + FAR[family])

    def mark(self) -> int:
        return self.one((0, 1, 2, 4, 5, 0x10, 0xFF, 0x100, 0x4000))

    def ordered(self, family: int, between: str) -> str:
        """A range of addresses."""
        first, last = sorted((self.address(family), self.address(family)), key=ip_address)
        return f"{first}{between}{last}" if first != last else first

    # nftables
