# SPDX-License-Identifier: Apache-2.0
"""Chains that tell where a probe's packet was lost: put up, read, and removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from wicketgate.errors import StateError
from wicketgate.health import door_rules as rules
from wicketgate.kernel import nft
from wicketgate.kernel.process import run
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Family, IPAddress

_log = get_logger("door")


@asynccontextmanager
async def counting(family: Family, tag: str, uplink: str, slot: int, pods: Sequence[IPAddress]) -> AsyncIterator[None]:
    """A door's table counts at every stage as long as this lasts; what stands in it goes on undisturbed.

    Args: as `door_rules.count_script`.

    Raises:
        StateError: the chains cannot be put up: no table, no right.
    """
    await nft.nft_apply(rules.count_script(family, tag, uplink, slot, pods))
    try:
        yield
    finally:
        try:
            await nft.nft_apply(rules.uncount_script(family, tag, uplink))
        except StateError as error:
            # Somebody has flushed or removed the table meanwhile, which `Door.verify` sees.
            _log.debug("the door's counting chains are gone already", uplink=uplink, error=str(error))


async def read_counters(family: Family, table: str) -> Mapping[str, int]:
    """Packets of a table's named counters.

    Raises:
        StateError: they cannot be read.
    """
    words = ["nft", "-j", "list", "counters", "table", "ip" if family == 4 else "ip6", table]
    done = await run(words)
    if done.code != 0:
        raise StateError(f"{' '.join(words)}: {done.said}")
    entries = [each["counter"] for each in nft.parse_listing(done.stdout) if "counter" in each]
    return {str(each["name"]): int(each["packets"]) for each in entries}
