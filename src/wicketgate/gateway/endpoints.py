# SPDX-License-Identifier: Apache-2.0
"""Endpoints that are host names: resolved at the start, and again when a peer has been silent for a while.

Resolved by `getent ahosts`, a process of its own: the C library's resolver blocks, and the agent has no threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from wicketgate.config.model import Peer
from wicketgate.errors import WicketError
from wicketgate.kernel.process import run
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import PeerState

_log = get_logger("endpoints")

Address = tuple[IPv4Address | IPv6Address, int]
RESOLVE_TIMEOUT = 5.0  # seconds; the C library's own default for one server
# Programs at once: a dead name server must not add up its time-outs peer by peer. A guess.
_AT_ONCE = 8
# REJECT_AFTER_TIME 180 s less the rekey time of 45 s: as reresolve-dns.sh of wireguard-tools does.
SILENT_AFTER = 135.0


async def resolve(peers: Iterable[Peer]) -> dict[str, Address]:
    """Where the peers are reached now, by public key; those that cannot be resolved are missing, and said."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(peer: Peer) -> tuple[str, Address | None]:
        assert peer.endpoint is not None
        if peer.endpoint.address is not None:
            return str(peer.public_key), (peer.endpoint.address, peer.endpoint.port)
        async with turns:
            try:
                done = await run(["getent", "ahosts", peer.endpoint.host], timeout=RESOLVE_TIMEOUT)
                return str(peer.public_key), (ip_address(done.stdout.split()[0]), peer.endpoint.port)
            except (WicketError, IndexError, ValueError):
                _log.warning("endpoint cannot be resolved; it is tried again", peer=peer.label, host=peer.endpoint.host)
                return str(peer.public_key), None

    answers = await asyncio.gather(*(one(peer) for peer in peers if peer.endpoint is not None))
    return {key: where for key, where in answers if where is not None}


def silent(peer: Peer, state: PeerState | None, now: float) -> bool:
    """Whether a named endpoint should be looked up again: no handshake for a while, or never.

    Args:
        peer: of the configuration.
        state: of the device.
        now: wall clock, seconds.
    """
    if peer.endpoint is None or peer.endpoint.address is not None:
        return False
    return state is None or state.endpoint is None or now - state.latest_handshake > SILENT_AFTER
