# SPDX-License-Identifier: Apache-2.0
"""Taking a door away: ours by its cookie and its table's name, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from wicketgate.errors import KernelRefused
from wicketgate.health import door_rules as rules
from wicketgate.kernel import nft
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.kernel.tc import EGRESS, INGRESS, TrafficControl
from wicketgate.netpath.snapshot import Family, IPAddress, Rule

_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


async def remove_filters(
    tc: TrafficControl, index: int, ifname: str, tag: str, *, made_clsact: bool = False, keep_clsact: bool = False
) -> int:
    """Remove a tag's filters, and the qdisc that was made for them when nobody else uses it by now.

    Args:
        tc: open.
        index: the interface.
        ifname: its name, for errors.
        tag: whose door.
        made_clsact: the qdisc was made for this door, even if no filter of it is left to say so.
        keep_clsact: leave the qdisc: the caller hangs filters there at once.

    Returns:
        How many filters there were.
    """
    count = 0
    for each in await tc.filters(index):
        if rules.is_cookie(each.cookie, tag):
            made_clsact = made_clsact or rules.cookie_made_clsact(each.cookie)
            with gone():
                await tc.delete_filter(each, ifname)
                count += 1
    if made_clsact and not keep_clsact and not await tc.filters(index, EGRESS) and not await tc.filters(index, INGRESS):
        with gone():
            await tc.delete_clsact(index, ifname)
    return count


async def remove_tables(tag: str, uplink: str | None) -> int:
    """Remove a tag's tables, of one uplink or of all.

    Returns:
        How many there were.
    """
    mine = [(family, name) for family, name in await nft.nft_tables() if rules.is_table(name, tag, uplink)]
    if mine:
        await nft.nft_apply(rules.delete_script(mine))
    return len(mine)


async def remove_rules(netlink: Netlink, pods: set[IPAddress] | None, *, among: set[IPAddress]) -> int:
    """Remove policy rules that were made for the agent's half.

    Args:
        netlink: open.
        pods: only those from these addresses; None = all.
        among: only those to these of our reserved addresses.
    """
    count = 0
    for rule in await netlink.rules(4):
        if is_ours(rule) and rule.dst is not None and rule.dst.network_address in among:
            if pods is not None and (rule.src is None or rule.src.network_address not in pods):
                continue
            with gone():
                await netlink.delete_rule(rule)
                count += 1
    return count


def is_ours(rule: Rule) -> bool:
    """A rule for the agent's half of a door: tagged, and to one of the reserved addresses."""
    family: Family = rule.family
    return (
        rule.protocol == ROUTE_PROTOCOL
        and rule.dst is not None
        and rule.dst.prefixlen == rule.dst.max_prefixlen
        and rules.is_reserved(rule.dst.network_address, family)
    )


async def leftovers(netlink: Netlink, tag: str, uplink: str | None = None, *, keep_clsact: bool = False) -> int:
    """Remove what killed predecessors of this tag left on an uplink, or on all; with `keep_clsact` not the qdisc.

    Returns:
        How many filters, tables and rules there were.

    Raises:
        StateError: no netlink, or no right.
    """
    count = 0
    slots: set[int] = set()
    live: set[int] = set()
    async with TrafficControl() as tc:
        for index in sorted({each.ifindex for each in await tc.qdiscs() if each.at_the_door}):
            name = _name(index)
            for each in await tc.filters(index):
                if rules.is_cookie(each.cookie):
                    mine = rules.is_cookie(each.cookie, tag) and uplink in (None, name)
                    (slots if mine else live).add(rules.cookie_slot(each.cookie))
            if name and uplink in (None, name):
                count += await remove_filters(tc, index, name, tag, keep_clsact=keep_clsact)
    count += await remove_tables(tag, uplink)
    if slots - live:
        count += await remove_rules(netlink, None, among={rules.trio(4, slot).agent_peer for slot in slots - live})
    return count


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """What is gone already is as good as removed."""
    try:
        yield
    except KernelRefused as error:
        if error.errno not in _GONE:
            raise


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
