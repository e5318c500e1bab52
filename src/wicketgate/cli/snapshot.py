# SPDX-License-Identifier: Apache-2.0
"""`wicket snapshot`: the network state as JSON, for people, bug reports and the other commands."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from wicketgate.cli.place import collect_seldom
from wicketgate.kernel.namespace import enter, uapi_dir_of
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.kernel.surroundings import surroundings_of
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.netpath.codec import to_json


def snapshot(*, netns: str | None = None, firewall: bool = True, sockets: bool = True) -> int:
    """Print links, addresses, routes, rules, sysctls, sockets, WireGuard devices and firewall listings as JSON.

    What could not be read is in `unread`, with the reason. Private and preshared keys never are in it.

    Args:
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        firewall: list nftables and iptables too.
        sockets: list listening sockets too.
    """
    collect_seldom()
    around = surroundings_of(netns)
    uapi_dir = UAPI_DIR
    if netns is not None:
        uapi_dir = uapi_dir_of(netns) or UAPI_DIR
        enter(netns)  # the main thread, for good: this process looks and ends
    taken = asyncio.run(take_snapshot(firewall=firewall, sockets=sockets, uapi_dir=uapi_dir))
    sys.stdout.write(to_json(replace(taken, surroundings=around)))
    return 0
