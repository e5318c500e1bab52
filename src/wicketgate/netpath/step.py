# SPDX-License-Identifier: Apache-2.0
"""One thing that happened to a packet: where, by which object as a person would find it, with what effect."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

from wicketgate.netpath.packet import Ends
from wicketgate.netpath.snapshot import ListeningSocket, NextHop, PeerState, Route, Rule

Direction = Literal["forward", "reply"]
Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]


class Stage(StrEnum):
    """Where in the kernel a step takes place. The netfilter hooks carry their own names."""

    INGRESS = "ingress"  # the packet comes in by an interface
    SOCKET_OUT = "socket-out"  # a socket, or the kernel, sends it
    PREROUTING = "prerouting"
    INPUT_ROUTING = "input-routing"  # ip_route_input, ip6_route_input
    SOURCE_CHECK = "source-check"  # fib_validate_source: rp_filter, martians
    INPUT = "input"
    SOCKET_IN = "socket-in"
    FORWARDING = "forwarding"
    FORWARD = "forward"
    OUTPUT_ROUTING = "output-routing"  # ip_route_output, ip6_route_output
    OUTPUT = "output"
    REROUTING = "rerouting"  # ip_route_me_harder, after OUTPUT changed the mark or an address
    POSTROUTING = "postrouting"
    NEIGHBOUR = "neighbour"
    TUNNEL_OUT = "tunnel-out"  # WireGuard encrypts
    TUNNEL_IN = "tunnel-in"  # WireGuard decrypted
    EGRESS = "egress"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What every step has.

    Attributes:
        stage: where.
        object: the rule, route, sysctl or socket in the spelling of the tool that lists it.
        effect: what it did to the packet, as a clause: "lookup main finds nothing".
        direction: of the packet in the conversation that is traced.
        layer: 0 for the packet itself, 1 for the outer packet that carries it in a tunnel, and so on.
    """

    kind: ClassVar[str] = ""
    stage: Stage
    object: str
    effect: str
    direction: Direction = "forward"
    layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketStep(_Step):
    """The packet as it enters, or leaves, the namespace."""

    kind: ClassVar[str] = "packet"
    ifname: str = ""
    ends: Ends | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleStep(_Step):
    """A policy rule whose selector matched."""

    kind: ClassVar[str] = "rule"
    rule: Rule | None = None
    taken: bool = False  # its action decided


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStep(_Step):
    """A route that a lookup found."""

    kind: ClassVar[str] = "route"
    route: Route | None = None
    nexthop: NextHop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckStep(_Step):
    """A setting or an invariant that lets the packet on or does not: rp_filter, forwarding, link state, MTU."""

    kind: ClassVar[str] = "check"
    passed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterStep(_Step):
    """A netfilter rule, policy or chain that had an effect. `object` is the rule as `nft` or `iptables-save` has it."""

    kind: ClassVar[str] = "filter"
    family: str = ""  # ip ip6 inet; or iptables, ip6tables, iptables-legacy ...
    table: str = ""
    chain: str = ""
    priority: int = 0
    handle: int = 0  # nft's, 0 = none
    verdict: str = ""  # accept drop reject jump return continue ..., as the rule says it


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationStep(_Step):
    """NAT gave the packet other addresses or ports, or a rule another mark."""

    kind: ClassVar[str] = "translation"
    before: Ends | None = None
    after: Ends | None = None
    mark_before: int = 0
    mark_after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketStep(_Step):
    """The socket that takes the packet, or one that nearly did."""

    kind: ClassVar[str] = "socket"
    socket: ListeningSocket | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CryptokeyStep(_Step):
    """A WireGuard peer chosen by destination, or checked by source."""

    kind: ClassVar[str] = "cryptokey"
    ifname: str = ""
    peer: PeerState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownStep(_Step):
    """Something that the model does not know; `effect` says why."""

    kind: ClassVar[str] = "unknown"


Step = (
    PacketStep
    | RuleStep
    | RouteStep
    | CheckStep
    | FilterStep
    | TranslationStep
    | SocketStep
    | CryptokeyStep
    | UnknownStep
)


def step_line(step: Step) -> dict[str, Any]:
    """The step in the doctor's JSON: direction, stage, object, effect, and its kind."""
    return {
        "direction": step.direction,
        "stage": str(step.stage),
        "object": step.object,
        "effect": step.effect,
        "kind": step.kind,
    } | ({"layer": step.layer} if step.layer else {})
