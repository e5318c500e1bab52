# SPDX-License-Identifier: Apache-2.0
"""A packet's whole way and its end."""

from __future__ import annotations

from dataclasses import dataclass

from wicketgate.netpath.flow import Flow
from wicketgate.netpath.lookup import route_line, rule_line
from wicketgate.netpath.packet import Connection, Packet
from wicketgate.netpath.snapshot import IPAddress, ListeningSocket, Route, Rule, WireGuardState
from wicketgate.netpath.step import Direction, Step
from wicketgate.netpath.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Trace:
    """What becomes of a packet.

    Attributes:
        flow: what was asked.
        direction: forward or reply.
        verdict: the end.
        reason: one clause.
        code: cause code (DESIGN section 6); empty when it works, or when the model does not know.
        object: what decided, as the user finds it: a rule, route, setting or socket.
        steps: in order.
        packet: as it ended: addresses after NAT, mark, `iif`, `oif`.
        egress: the interface it left by; empty when it did not. `lo` is never an egress.
        via: the gateway; None for none.
        carrier: the interface that the outermost packet left by, when `egress` is a tunnel.
        rule: the policy rule that chose the way out.
        route: the route it followed out.
        connection: what connection tracking knows at the end; a reply begins with it.
        socket: the socket that took it, or sent it.
        device: the WireGuard device that took it.
        branches: one trace for each next hop where only a hash decides between several.
    """

    flow: Flow
    direction: Direction
    verdict: Verdict
    reason: str
    packet: Packet
    connection: Connection
    code: str = ""
    object: str = ""
    steps: tuple[Step, ...] = ()
    egress: str = ""
    via: IPAddress | None = None
    carrier: str = ""
    rule: Rule | None = None
    route: Route | None = None
    socket: ListeningSocket | None = None
    device: WireGuardState | None = None
    branches: tuple[Trace, ...] = ()

    @property
    def works(self) -> bool:
        """It got where it should, as far as this host decides."""
        return self.verdict.works

    def decided_by(self) -> str:
        """The rule that chose the way out when somebody put it there, else the route."""
        ordinary = self.rule is None or (self.rule.priority in (0, 32766, 32767) and self.rule.protocol == 2)
        if not ordinary and self.rule is not None:
            return rule_line(self.rule)
        return route_line(self.route) if self.route is not None else ""
