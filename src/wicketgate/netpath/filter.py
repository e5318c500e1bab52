# SPDX-License-Identifier: Apache-2.0
"""The seam between the walk and netfilter: five hooks, each given the packet and its connection.

A filter is made for one snapshot and keeps no state between calls: what connection tracking learns goes back in
`HookResult.connection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from wicketgate.netpath.packet import Connection, Packet
from wicketgate.netpath.step import Hook, Step


class HookVerdict(StrEnum):
    """What a hook decides, all its tables and chains together."""

    ACCEPT = "accept"  # go on with `packet`
    DROP = "drop"  # silently gone
    REJECT = "reject"  # gone, and the sender is told (`reason` says how: "icmp-port-unreachable", "tcp-reset")
    UNKNOWN = "unknown"  # `reason` and `object` say what the model does not know


@dataclass(frozen=True, slots=True)
class HookResult:
    """What came out of a hook.

    Attributes:
        verdict: of the whole hook.
        packet: the packet as it goes on: addresses, ports, mark and TOS may be others.
        connection: as connection tracking knows it from here on.
        steps: what had an effect, in order. The walk stamps `direction` and `layer`; `stage` is the hook.
        object: the rule or policy that decided a drop, reject or unknown, as the user finds it; empty on accept.
        reason: why, as one clause; empty on accept.
        reroute: only at `output`: a chain that does so asks for the way again (ip_route_me_harder): nft `type route`
            and iptables' mangle OUTPUT when mark, addresses or TOS changed there, nat OUTPUT when the destination did.
            A mark that a `type filter` chain sets changes no way.
    """

    verdict: HookVerdict
    packet: Packet
    connection: Connection
    steps: tuple[Step, ...] = ()
    object: str = ""
    reason: str = ""
    reroute: bool = False


class Filter(Protocol):
    """Netfilter of one snapshot."""

    def hook(self, name: Hook, packet: Packet, connection: Connection) -> HookResult:
        """Run a hook's chains in the order of their priorities.

        Connection tracking and NAT run inside, at their own priorities: `prerouting` and `output` hand in a packet
        whose addresses NAT has not yet touched (a reply to a source-NATed flow arrives with the translated
        destination, and leaves the hook with the original one); `input` and `postrouting` are where the source side
        is translated.

        Args:
            name: prerouting (iif set), input (iif set), forward (iif and oif set), output (oif set), postrouting (oif
                set; iif too for a forwarded packet).
            packet: as it reaches the hook.
            connection: its connection, `state` and `direction` set for this packet.
        """
        ...


class NoFilter:
    """No netfilter at all: every hook lets every packet through. Also for "would it work without a firewall?"."""

    def hook(self, name: Hook, packet: Packet, connection: Connection) -> HookResult:  # noqa: ARG002 - the protocol's
        """Accept."""
        return HookResult(HookVerdict.ACCEPT, packet, connection)
