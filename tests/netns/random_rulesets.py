# SPDX-License-Identifier: Apache-2.0
"""Random nftables rulesets that the kernel takes, one after the other in a host of their own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from netns.filter_rules import Maker
from wicketgate.lab.host import Host


def with_wires(host: Host) -> Host:
    """The host with the interfaces that random rules name."""
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
    return host


def each_loaded(host: Host, rulesets: int) -> Iterator[None]:
    """Loads so many, the one before taken away."""
    loaded = 0
    for seed in count(1):
        if loaded == rulesets:
            return
        host.run("nft", "flush", "ruleset")
        if host.run("nft", "-f", "-", stdin=Maker(Random(seed)).nft(), check=False).returncode == 0:
            loaded += 1
            yield
