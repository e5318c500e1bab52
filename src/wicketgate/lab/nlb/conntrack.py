# SPDX-License-Identifier: Apache-2.0
"""The flows of a load balancer as the kernel's connection tracking holds them: list them, forget them.

Flows are found by their conntrack mark, which names the load balancer and the target, so that nothing else in this
namespace is touched. `conntrack` (conntrack-tools) speaks netlink; its exit code 1 with "0 flow entries" means none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from wicketgate.errors import StateError, ToolMissing
from wicketgate.kernel.process import run
from wicketgate.lab.nlb.settings import Transport
from wicketgate.netpath.snapshot import IPAddress

_PAIR = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True, slots=True)
class TrackedFlow:
    """One entry.

    Attributes:
        protocol: `udp` or `tcp`.
        client: who began it.
        client_port: its source port.
        address: of the load balancer.
        port: of the listener.
        target: where the kernel sends it.
        target_port: the port there.
        mark: see `mark_of`.
        expires: whole seconds until it is forgotten if nothing more comes.
        packets: from the client, 0 without accounting.
        replies: from the target, 0 without accounting.
    """

    protocol: Transport
    client: IPAddress
    client_port: int
    address: IPAddress
    port: int
    target: IPAddress
    target_port: int
    mark: int
    expires: int
    packets: int = 0
    replies: int = 0


async def _conntrack(*arguments: str, fine: Sequence[int] = (0,)) -> str:
    """Run conntrack(8) and return what it printed.

    Raises:
        ToolMissing: it is not installed.
        StateError: it failed; with its own words.
    """
    argv = ["conntrack", *arguments]
    try:
        done = await run(argv)
    except ToolMissing as error:
        raise ToolMissing(f"{error}; Debian's package is conntrack") from None
    if done.code not in fine:
        raise StateError(f"{' '.join(argv)}: exit code {done.code}: {done.said}")
    return done.stdout


async def list_flows(family: str, mark: int, mask: int) -> tuple[TrackedFlow, ...]:
    """The entries of one family whose mark is `mark` under `mask`.

    Args:
        family: `ip` or `ip6`, as nft spells it.
        mark: the bits wanted.
        mask: the bits looked at.

    Raises:
        StateError: connection tracking could not be read.
    """
    text = await _conntrack("-L", "-f", _family(family), "-o", "extended", "-m", f"{mark:#x}/{mask:#x}")
    return tuple(flow for line in text.splitlines() if (flow := parse_line(line)) is not None)


async def forget(family: str, mark: int, mask: int = 0xFFFFFFFF) -> None:
    """Delete entries by mark: their next packet is a new flow's.

    Raises:
        StateError: the kernel or the tool refused.
    """
    await _conntrack("-D", "-f", _family(family), "-m", f"{mark:#x}/{mask:#x}", fine=(0, 1))


def parse_line(line: str) -> TrackedFlow | None:
    """Read one line of `conntrack -L -o extended`; None for protocols without a listener."""
    words = line.split()
    if len(words) < 6 or words[2] not in {"udp", "tcp"}:
        return None
    # Each direction has the same keys: the first src is the client's, the second the target's.
    pairs: dict[str, list[str]] = {}
    for key, value in _PAIR.findall(line):
        pairs.setdefault(key, []).append(value)
    packets = [int(n) for n in pairs.get("packets", ["0", "0"])]
    return TrackedFlow(
        protocol="udp" if words[2] == "udp" else "tcp",
        client=ip_address(pairs["src"][0]),
        client_port=int(pairs["sport"][0]),
        address=ip_address(pairs["dst"][0]),
        port=int(pairs["dport"][0]),
        target=ip_address(pairs["src"][1]),
        target_port=int(pairs["sport"][1]),
        mark=int(pairs.get("mark", ["0"])[0]),
        expires=int(words[4]),
        packets=packets[0],
        replies=packets[1],
    )


def _family(family: str) -> str:
    return "ipv4" if family == "ip" else "ipv6"
