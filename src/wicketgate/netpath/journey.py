# SPDX-License-Identifier: Apache-2.0
"""A packet under way, with all that happened to it so far; and how its steps are worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wicketgate.netpath.flow import Flow
from wicketgate.netpath.lookup import Asked, Question, Refused, Unsure, route_line, rule_line
from wicketgate.netpath.packet import (
    ICMP,
    ICMP_ECHO_REQUEST,
    ICMPV6,
    ICMPV6_ECHO_REQUEST,
    SYN,
    TCP,
    UDP,
    Connection,
    Packet,
)
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.routing import Way
from wicketgate.netpath.source_check import Blocked
from wicketgate.netpath.step import CheckStep, Direction, RouteStep, RuleStep, Stage, Step, UnknownStep
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict

_NUMBERS = {"tcp": TCP, "udp": UDP}


@dataclass(frozen=True, slots=True)
class Journey:
    """A packet under way, with all that happened to it."""

    flow: Flow
    direction: Direction
    packet: Packet
    connection: Connection
    steps: tuple[Step, ...] = ()
    layer: int = 0
    device: str = ""  # the sending socket's SO_BINDTODEVICE
    named: bool = False  # not bound: the program names `device` for this packet alone
    tunnels: tuple[str, ...] = ()  # WireGuard interfaces (of userspace ones, peers) that it is inside of
    way: Way | None = None

    def add(self, *steps: Step) -> Journey:
        """More happened."""
        direction, layer = self.direction, self.layer
        stamped = tuple(
            step
            if step.direction == direction and step.layer == layer
            else replaced(step, direction=direction, layer=layer)
            for step in steps
        )
        return replaced(self, steps=self.steps + stamped)

    def end(self, verdict: Verdict, reason: str, *, code: str = "", object_: str = "") -> Trace:
        """The end of the way."""
        way = self.way
        return Trace(
            flow=self.flow,
            direction=self.direction,
            verdict=verdict,
            reason=reason,
            packet=self.packet,
            connection=self.connection,
            code=code,
            object=object_,
            steps=self.steps,
            rule=way.rule if way else None,
            route=way.route if way else None,
        )

    def unknown(self, stage: Stage, unsure: Unsure) -> Trace:
        """The model does not know how it goes on."""
        stopped = self.add(
            *rule_steps(stage, unsure.trail), UnknownStep(stage=stage, object=unsure.object, effect=unsure.reason)
        )
        return stopped.end(Verdict.UNKNOWN, unsure.reason, object_=unsure.object)


def packet_of(flow: Flow) -> Packet:
    """The first packet of a flow: a SYN, a datagram, an echo request."""
    six = flow.destination.version == 6
    echo = flow.protocol == "icmp"
    return Packet(
        source=flow.source,
        destination=flow.destination,
        protocol=(ICMPV6 if six else ICMP) if echo else _NUMBERS[flow.protocol],
        source_port=flow.source_port,
        destination_port=flow.destination_port,
        icmp_type=(ICMPV6_ECHO_REQUEST if six else ICMP_ECHO_REQUEST) if echo else None,
        tcp_flags=SYN if flow.protocol == "tcp" else 0,
        mark=flow.mark,
        iif=flow.iif or "",
        length=flow.length,
        tos=flow.tos,
        uid=flow.uid if flow.iif is None else None,
        from_socket=flow.iif is None,
    )


def question_of(packet: Packet, *, iif: str, uid: int | None) -> Question:
    """What routing looks at."""
    return Question(
        packet.destination,
        packet.source,
        iif=iif,
        mark=packet.mark,
        uid=uid,
        protocol=packet.protocol,
        source_port=packet.source_port,
        destination_port=packet.destination_port,
        tos=packet.tos,
    )


def rule_steps(stage: Stage, trail: Sequence[Asked]) -> tuple[RuleStep, ...]:
    """The rules that matched."""
    return tuple(
        RuleStep(stage=stage, object=rule_line(asked.rule), effect=asked.outcome, rule=asked.rule) for asked in trail
    )


def way_steps(stage: Stage, way: Way) -> tuple[Step, ...]:
    """The rules that matched, and the route."""
    rules = rule_steps(stage, way.trail)
    if rules and way.route is not None:
        rules = (*rules[:-1], replaced(rules[-1], taken=True))
    if way.route is None:
        return (
            *rules,
            RouteStep(
                stage=stage, object="no route", effect=f"the socket's interface {way.hops[0].oif} is taken all the same"
            ),
        )
    effect = (
        "is delivered here"
        if way.kind == "local"
        else f"leads out by {' or '.join(dict.fromkeys(h.oif for h in way.hops))}"
    )
    return (
        *rules,
        RouteStep(stage=stage, object=route_line(way.route), effect=effect, route=way.route, nexthop=way.hops[0]),
    )


def blocked_end(journey: Journey, blocked: Blocked) -> Trace:
    """The end of a packet that a check took."""
    stage = Stage.FORWARDING if blocked.code == "forwarding-off" else Stage.SOURCE_CHECK
    stopped = journey.add(CheckStep(stage=stage, object=blocked.object, effect=blocked.reason, passed=False))
    return stopped.end(Verdict.DROPPED, blocked.reason, code=blocked.code, object_=blocked.object)


def refusal(refused: Refused, packet: Packet) -> tuple[str, str]:
    """Cause code and clause of a way that was refused."""
    if (refused.rule is not None and not refused.rule.table) or refused.route is not None:
        return "blackhole-route", f"{refused.object} refuses {packet.destination}"
    if refused.object:
        return "no-route", refused.object
    return "no-route", f"no route leads to {packet.destination}"
