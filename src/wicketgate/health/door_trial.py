# SPDX-License-Identifier: Apache-2.0
"""Before a door is trusted: do the agent's own packets, which no client ever sends, get through this firewall?

A stranger's packet and its answer must meet every rule there is; that is what the door is for. The agent's half (it to
M, M's answer to it) is scaffolding, and a rule that drops it would show a red that no client sees. Two sockets of our
own try both directions; the door's counters tell where a packet stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from wicketgate.errors import StateError
from wicketgate.health.door_rules import Trio
from wicketgate.health.door_sockets import bound_socket
from wicketgate.netpath.snapshot import IPAddress

# Both directions take well under a millisecond; this is for a pod that its CPU limit holds up. Neighbour discovery may
# take longer: the trial is then undecided, which costs nothing.
_PATIENCE = 0.15  # seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """How the agent's half fared.

    Attributes:
        passed: M's answer reached the agent.
        dropped: it came in again and was dropped on the way to the agent's socket.
        kept_in: what the agent sent was dropped before it reached the uplink.
        strayed: a packet left by the uplink and was not turned round.
    """

    passed: bool = False
    dropped: bool = False
    kept_in: bool = False
    strayed: bool = False


def lost(before: Mapping[str, int], after: Mapping[str, int], entered: str, left: str) -> bool:
    """Whether a packet that passed one stage since then has not passed the other."""
    return after.get(entered, 0) - before.get(entered, 0) > after.get(left, 0) - before.get(left, 0)


def strayed(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether since then a packet left by the uplink and was not turned round."""
    return lost(before, after, "agent_left", "arrived") or lost(before, after, "reply_left", "reply_back")


def judged(before: Mapping[str, int], after: Mapping[str, int], *, passed: bool) -> Trial:
    """What the counters of a trial say."""
    if passed:
        return Trial(passed=True)
    return Trial(
        dropped=lost(before, after, "reply_back", "answered"),
        kept_in=lost(before, after, "agent_sent", "agent_left"),
        strayed=strayed(before, after),
    )


async def send_both_ways(uplink: str, pod: IPAddress, three: Trio) -> bool:
    """Agent to M, then pod to S; whether the latter reached the agent as M's answer."""
    loop = asyncio.get_running_loop()
    try:
        # Ports first, connections later: each has to know the other's.
        with (
            bound_socket(uplink, pod, socket.SOCK_DGRAM) as agent,
            bound_socket(uplink, pod, socket.SOCK_DGRAM) as server,
        ):
            agent.connect((str(three.agent_peer), server.getsockname()[1]))
            server.connect((str(three.stranger), agent.getsockname()[1]))
            # A rule that drops on output says EPERM; one that rejects says ECONNREFUSED: the counters know it as well.
            with contextlib.suppress(OSError):
                agent.send(b"wicketgate")
            with contextlib.suppress(OSError):
                server.send(b"wicketgate")
            try:
                async with asyncio.timeout(_PATIENCE):
                    await loop.sock_recv(agent, 64)
            except TimeoutError:
                return False
            return True
    except (OSError, StateError):
        return False  # no route: as broken for clients as for us
