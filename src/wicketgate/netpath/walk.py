# SPDX-License-Identifier: Apache-2.0
"""The order of things: what a packet meets between coming in, or being sent, and its end.

In: (WireGuard's source check) -> prerouting -> routing with the source check -> input -> socket,
or forwarding -> forward -> postrouting -> out. Out of a socket: routing -> output -> routing again where a chain asks
for it -> postrouting -> out; to ourselves it goes on at prerouting on `lo`. Out of a WireGuard interface: the peer,
and then the encrypted packet from a socket of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from wicketgate.netpath import sockets
from wicketgate.netpath.filter import Filter, HookVerdict, NoFilter
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.journey import Journey, blocked_end, packet_of, question_of, refusal, rule_steps, way_steps
from wicketgate.netpath.lookup import LOOPBACK, Refused, Unsure, route_line
from wicketgate.netpath.packet import (
    ICMP,
    ICMPV6,
    TCP,
    Connection,
    Packet,
)
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.routing import Routing, Way, nowhere6
from wicketgate.netpath.settings import NotTold
from wicketgate.netpath.snapshot import IPAddress, NextHop, Snapshot, WireGuardState
from wicketgate.netpath.source_check import Blocked, arrives6, input4
from wicketgate.netpath.step import (
    CheckStep,
    CryptokeyStep,
    Direction,
    Hook,
    PacketStep,
    SocketStep,
    Stage,
)
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.wireguard import Cryptokey, carrier_of, spell_peer

_LAYERS = 4  # tunnels in tunnels; the kernel's own limit for recursion on transmit is 8 (XMIT_RECURSION_LIMIT)


class Walker:
    """One snapshot, ready for many flows.

    Args:
        snapshot: the namespace.
        netfilter: its firewall; without one, every hook accepts.
        routing: of the same snapshot, where it is made already.
    """

    def __init__(self, snapshot: Snapshot, netfilter: Filter | None = None, *, routing: Routing | None = None) -> None:
        self.snapshot = snapshot
        self.routing = routing or Routing(snapshot)
        self.netfilter: Filter = netfilter or NoFilter()
        self._links = {link.name: link for link in snapshot.links}
        self._cryptokeys = {state.ifname: Cryptokey(state) for state in snapshot.wireguard}

    def tunnel(self, ifname: str) -> bool:
        """A WireGuard interface."""
        return ifname in self._cryptokeys

    # Entrances

    def trace(self, flow: Flow) -> Trace:
        """The way of a flow's first packet: sent by a local socket, or come in by `flow.iif`."""
        packet = packet_of(flow)
        return self.walk(flow, packet, Connection.opened_by(packet), device=flow.device)

    def walk(
        self,
        flow: Flow,
        packet: Packet,
        connection: Connection,
        *,
        device: str = "",
        named: bool = False,
        direction: Direction = "forward",
    ) -> Trace:
        """The way of any packet: it comes in when it has an `iif`, and is sent from here when not.

        Args:
            flow: it belongs to.
            packet: as it comes in, or is sent.
            connection: as connection tracking knows it.
            device: that the sending socket is bound to (SO_BINDTODEVICE).
            named: not bound: the program names `device` for this packet alone (IP_PKTINFO, IPV6_PKTINFO).
            direction: of the packet in the conversation.
        """
        journey = Journey(flow, direction, packet, connection, device=device, named=named)
        try:
            return self._arrive(journey) if packet.iif else self._send(journey)
        except NotTold as lack:
            return journey.unknown(Stage.INPUT_ROUTING if packet.iif else Stage.OUTPUT_ROUTING, lack.unsure)

    # In

    def _arrive(self, journey: Journey) -> Trace:
        packet = journey.packet
        journey = journey.add(
            PacketStep(
                stage=Stage.INGRESS,
                object=packet.iif,
                effect=f"{packet.spelled()} comes in",
                ifname=packet.iif,
                ends=packet.ends,
            )
        )
        link = self._links.get(packet.iif)
        if link is None:
            return journey.end(
                Verdict.DROPPED, f"there is no interface {packet.iif}", code="interface-missing", object_=packet.iif
            )
        if not link.up:
            return journey.end(Verdict.DROPPED, f"{packet.iif} is down", code="interface-down", object_=packet.iif)
        if (elsewhere := self.routing.masters.takes_in(packet.iif)) is not None:
            return journey.unknown(Stage.INGRESS, elsewhere)
        if self.tunnel(packet.iif):
            journey, ended = self._decrypted(journey)
            if ended is not None:
                return ended
        if isinstance(packet.source, IPv6Address) and isinstance(packet.destination, IPv6Address):
            if self.routing.settings.number(f"net.ipv6.conf.{packet.iif.replace('.', '/')}.disable_ipv6", 0):
                return journey.end(
                    Verdict.DROPPED,
                    f"IPv6 is off on {packet.iif}",
                    code="address-missing",
                    object_=f"net.ipv6.conf.{packet.iif}.disable_ipv6 = 1",
                )
            blocked = arrives6(packet.source, packet.destination, loopback=link.loopback)
            if blocked is not None:
                return blocked_end(journey, blocked)
        journey, ended = self._hook(journey, "prerouting")
        return ended or self._route_in(journey)

    def _decrypted(self, journey: Journey) -> tuple[Journey, Trace | None]:
        packet = journey.packet
        cryptokey = self._cryptokeys[packet.iif]
        found = cryptokey.peer_of(packet.source)
        if found is None:
            words = f"no peer of {packet.iif} may send from {packet.source}"
            step = CryptokeyStep(stage=Stage.TUNNEL_IN, object=packet.iif, effect=words, ifname=packet.iif)
            journey = journey.add(step)
            return journey, journey.end(
                Verdict.DROPPED, words, code="source-not-allowed", object_=f"{packet.iif} allowed-ips"
            )
        network, peer = found
        words = f"{packet.source} is within its allowed-ips {network}"
        return journey.add(
            CryptokeyStep(
                stage=Stage.TUNNEL_IN,
                object=spell_peer(cryptokey.state, peer),
                effect=words,
                ifname=packet.iif,
                peer=peer,
            )
        ), None

    def _route_in(self, journey: Journey) -> Trace:
        packet = journey.packet
        question = question_of(packet, iif=packet.iif, uid=0)
        passed = None
        if packet.family == 4:
            way, passed = input4(self.routing, question)
        else:
            way = self.routing.input6(question)
        if isinstance(way, Unsure):
            return journey.unknown(Stage.INPUT_ROUTING, way)
        if isinstance(way, Blocked):
            return blocked_end(journey, way)
        if isinstance(way, Refused):
            return self._no_way_in(journey, way)
        if (refused := nowhere6(way)) is not None:
            return self._no_way_in(journey, refused)
        journey = replaced(journey.add(*way_steps(Stage.INPUT_ROUTING, way)), way=way)
        if passed is not None:
            journey = journey.add(CheckStep(stage=Stage.SOURCE_CHECK, object=passed.object, effect=passed.effect))
        if way.kind == "local":
            return self._deliver(journey)
        if way.kind != "unicast":
            return journey.unknown(
                Stage.INPUT_ROUTING, Unsure(f"{way.kind} packets are not modelled", str(packet.destination))
            )
        return self._forward(journey, way)

    def _no_way_in(self, journey: Journey, refused: Refused) -> Trace:
        journey = journey.add(*rule_steps(Stage.INPUT_ROUTING, refused.trail))
        code, words = refusal(refused, journey.packet)
        iif = journey.packet.iif
        # ip_error() is silent on an interface that does not forward, ip6_pkt_drop() is not; a blackhole is everywhere.
        told = refused.errno != "EINVAL" and (journey.packet.family == 6 or self.routing.settings.forwards(4, iif))
        verdict = Verdict.REFUSED if told else Verdict.DROPPED
        return journey.end(verdict, words, code=code, object_=refused.object or str(journey.packet.destination))

    def _deliver(self, journey: Journey) -> Trace:
        journey, ended = self._hook(journey, "input")
        if ended is not None:
            return ended
        packet = journey.packet
        taker = sockets.receiver(self.snapshot, packet)
        if isinstance(taker, Unsure):
            return journey.unknown(Stage.SOCKET_IN, taker)
        if isinstance(taker, sockets.Nobody):
            silent = packet.protocol in (ICMP, ICMPV6)
            journey = journey.add(
                SocketStep(stage=Stage.SOCKET_IN, object=taker.object, effect=taker.reason, socket=taker.near)
            )
            verdict = Verdict.DROPPED if silent else Verdict.REFUSED
            return journey.end(verdict, taker.reason, code=taker.code, object_=taker.object)
        journey = journey.add(
            SocketStep(stage=Stage.SOCKET_IN, object=taker.by, effect="takes the packet", socket=taker.socket)
        )
        done = journey.end(Verdict.DELIVERED, f"{taker.by} takes it", object_=taker.by)
        return replaced(done, socket=taker.socket, device=taker.device)

    def _forward(self, journey: Journey, way: Way) -> Trace:
        packet = journey.packet
        settings = self.routing.settings
        if not settings.forwards(packet.family, packet.iif):
            name = settings.forwarding_spelled(packet.family, packet.iif)
            return blocked_end(
                journey, Blocked("forwarding-off", name, f"{packet.destination} is not here, and nothing is forwarded")
            )
        journey = journey.add(CheckStep(stage=Stage.FORWARDING, object=f"forwarding on {packet.iif}", effect="is on"))
        if packet.hop_limit <= 1:
            return journey.end(
                Verdict.REFUSED, "its hop limit is used up", code="ttl-exceeded", object_=f"ttl {packet.hop_limit}"
            )
        journey = replaced(journey, packet=replaced(packet, hop_limit=packet.hop_limit - 1))

        def on(branch: Journey, hop: NextHop) -> Trace:
            stays = self._source_stays(branch, hop)
            if stays is not None:
                return stays
            too_large = self._too_large(branch, hop)
            if too_large is not None:
                return too_large
            branch, ended = self._hook(branch, "forward")
            if ended is not None:
                return ended
            branch, ended = self._hook(branch, "postrouting")
            return ended or self._leave(branch, hop)

        return self._each(journey, way.hops, on)

    def _source_stays(self, journey: Journey, hop: NextHop) -> Trace | None:
        """ip6_forward() lets such sources back out by the interface they came in by, and by no other."""
        source = journey.packet.source
        if source.version == 4 or hop.oif == journey.packet.iif:
            return None
        if source.is_link_local:
            verdict, words = Verdict.REFUSED, "a link-local source stays on its link"
        elif source.is_unspecified:
            verdict, words = Verdict.DROPPED, "the unspecified address is no sender"
        else:
            return None
        return journey.end(verdict, words, code="martian-source", object_=f"source {source}")

    def _too_large(self, journey: Journey, hop: NextHop) -> Trace | None:
        packet, link = journey.packet, self._links.get(hop.oif)
        if link is None or packet.length <= link.mtu:
            return None
        if packet.family == 4 and packet.protocol != TCP:
            return None  # without the DF bit it is fragmented; only TCP is known to set it
        words = f"{packet.length} octets do not fit the MTU {link.mtu} of {hop.oif}"
        return journey.end(Verdict.REFUSED, words, code="mtu-too-large", object_=f"{hop.oif} mtu {link.mtu}")

    # Out

    def _send(self, journey: Journey) -> Trace:
        packet = journey.packet
        sender = (
            "a socket" + (f" bound to {journey.device}" if journey.device else "")
            if packet.from_socket
            else "the kernel"
        )
        journey = journey.add(
            PacketStep(stage=Stage.SOCKET_OUT, object=sender, effect=f"sends {packet.spelled()}", ends=packet.ends)
        )
        way = self._way_out(journey)
        if not isinstance(way, Way):
            return self._no_way_out(journey, way, Stage.OUTPUT_ROUTING)
        journey = replaced(journey.add(*way_steps(Stage.OUTPUT_ROUTING, way)), way=way)
        if packet.source.is_unspecified:
            if way.source is None:
                return journey.unknown(
                    Stage.OUTPUT_ROUTING, Unsure("no source address could be chosen", str(packet.destination))
                )
            packet = replaced(packet, source=way.source)
            journey = replaced(journey, packet=packet, connection=Connection.opened_by(packet))
        return self._each(journey, way.hops, self._sent)

    def _way_out(self, journey: Journey) -> Way | Refused | Unsure:
        packet = journey.packet
        source = None if packet.source.is_unspecified else packet.source
        return self.routing.output(
            replaced(
                question_of(packet, iif=LOOPBACK, uid=packet.uid),
                source=source,
                oif=journey.device,
                strict=bool(journey.device) and not journey.named,
            )
        )

    def _sent(self, journey: Journey, hop: NextHop) -> Trace:
        before = journey.packet
        journey, ended, reroute = self._hook_and_route(journey)
        if ended is not None:
            return ended
        if not reroute:
            return self._after_output(journey, hop)
        if journey.named:
            journey = replaced(journey, device="", named=False)  # ip_route_me_harder knows the socket's alone
        way = self._way_out(journey)
        if not isinstance(way, Way):
            return self._no_way_out(journey, way, Stage.REROUTING)
        words = f"mark {before.mark:#x} -> {journey.packet.mark:#x}, the way is asked again"
        journey = journey.add(CheckStep(stage=Stage.REROUTING, object="netfilter output", effect=words))
        journey = replaced(journey.add(*way_steps(Stage.REROUTING, way)), way=way)
        return self._each(journey, way.hops, self._after_output)

    def _after_output(self, journey: Journey, hop: NextHop) -> Trace:
        if (elsewhere := self.routing.masters.takes_out(hop.oif)) is not None:
            return journey.unknown(Stage.OUTPUT_ROUTING, elsewhere)
        if journey.way is not None and (refused := nowhere6(journey.way)) is not None:
            return self._no_way_out(journey, refused, Stage.OUTPUT_ROUTING)
        journey, ended = self._hook(replaced(journey, packet=replaced(journey.packet, oif=hop.oif)), "postrouting")
        if ended is not None:
            return ended
        if hop.oif != LOOPBACK:
            return self._leave(journey, hop)
        return self._come_back(journey)

    def _come_back(self, journey: Journey) -> Trace:
        """Over `lo`. The packet keeps its route unless prerouting gives it another destination."""
        before = replaced(journey.packet, iif=LOOPBACK, oif="", from_socket=False)
        journey, ended = self._hook(replaced(journey, packet=before), "prerouting")
        if ended is not None:
            return ended
        return self._deliver(journey) if journey.packet.destination == before.destination else self._route_in(journey)

    def _no_way_out(self, journey: Journey, refused: Refused | Unsure, stage: Stage) -> Trace:
        if isinstance(refused, Unsure):
            return journey.unknown(stage, refused)
        journey = journey.add(*rule_steps(stage, refused.trail))
        code, words = refusal(refused, journey.packet)
        if journey.direction == "reply" and code == "no-route":
            code = "reply-unroutable"
        # A sender learns of it by an errno; nobody tells the one who waits for a reply.
        told = journey.direction == "forward" and not journey.layer
        verdict = Verdict.REFUSED if told else Verdict.DROPPED
        return journey.end(verdict, words, code=code, object_=refused.object or str(journey.packet.destination))

    # The wire

    def _leave(self, journey: Journey, hop: NextHop) -> Trace:
        link = self._links.get(hop.oif)
        if link is None:
            return journey.end(
                Verdict.DROPPED, f"there is no interface {hop.oif}", code="interface-missing", object_=hop.oif
            )
        journey = replaced(journey, packet=replaced(journey.packet, oif=hop.oif))
        if not link.up or not link.lower_up:
            words = f"{hop.oif} is down" if not link.up else f"{hop.oif} has no carrier"
            return replaced(journey.end(Verdict.DROPPED, words, code="interface-down", object_=hop.oif), egress=hop.oif)
        if journey.way is not None and journey.way.route is None and not link.pointopoint and not self.tunnel(hop.oif):
            words = f"no route: a socket bound to {hop.oif} looks for {journey.packet.destination} on the wire, and who answers there is not known"
            return replaced(
                journey.unknown(Stage.NEIGHBOUR, Unsure(words, hop.oif)),
                code="reply-unroutable" if journey.direction == "reply" else "",
                egress=hop.oif,
            )
        via = f" via {hop.via}" if hop.via is not None else ""
        journey = journey.add(
            PacketStep(
                stage=Stage.EGRESS,
                object=hop.oif,
                effect=f"{journey.packet.spelled()} leaves by {hop.oif}{via}",
                ifname=hop.oif,
                ends=journey.packet.ends,
            )
        )
        if self.tunnel(hop.oif):
            return self._encrypt(journey, hop)
        return replaced(journey.end(Verdict.FORWARDED, f"leaves by {hop.oif}{via}"), egress=hop.oif, via=hop.via)

    def _encrypt(self, journey: Journey, hop: NextHop) -> Trace:
        cryptokey = self._cryptokeys[hop.oif]
        packet = journey.packet

        def lost(at: Journey, code: str, object_: str, words: str) -> Trace:
            return replaced(at.end(Verdict.DROPPED, words, code=code, object_=object_), egress=hop.oif)

        found = cryptokey.peer_of(packet.destination)
        if found is None:
            return lost(
                journey,
                "no-peer-for-destination",
                f"{hop.oif} allowed-ips",
                f"no peer of {hop.oif} has {packet.destination} in its allowed-ips",
            )
        network, peer = found
        line = spell_peer(cryptokey.state, peer)
        journey = journey.add(
            CryptokeyStep(
                stage=Stage.TUNNEL_OUT,
                object=line,
                effect=f"{packet.destination} is within its allowed-ips {network}",
                ifname=hop.oif,
                peer=peer,
            )
        )
        if peer.endpoint is None:
            return lost(journey, "peer-without-endpoint", line, "the peer has no endpoint yet")
        # The driver refuses what is routed into itself (ELOOP in socket.c); wireguard-go encrypts it for the next peer.
        tunnel = hop.oif if cryptokey.state.backend == "kernel" else line
        if tunnel in journey.tunnels or len(journey.tunnels) >= _LAYERS:
            return lost(journey, "tunnel-loop", hop.oif, f"what {hop.oif} encrypts is routed into {hop.oif} again")
        outer = self._send(self._carrier(journey, cryptokey.state, peer.endpoint, hop.oif, tunnel))
        done = replaced(journey, steps=outer.steps)
        if outer.verdict is not Verdict.FORWARDED:
            reason = f"its carrier, {outer.packet.ends.spelled()}: {outer.reason}"
            verdict = outer.verdict if outer.verdict is not Verdict.DELIVERED else Verdict.FORWARDED
            ended = done.end(verdict, reason, code=outer.code, object_=outer.object)
            return replaced(ended, egress=hop.oif, carrier=outer.carrier or outer.egress, branches=outer.branches)
        reason = f"leaves by {hop.oif}, carried by {outer.carrier or outer.egress}"
        return replaced(done.end(Verdict.FORWARDED, reason), egress=hop.oif, carrier=outer.carrier or outer.egress)

    def _carrier(
        self, journey: Journey, state: WireGuardState, endpoint: tuple[IPAddress, int], ifname: str, tunnel: str
    ) -> Journey:
        owner = next(
            (s.uid for s in self.snapshot.sockets if s.protocol == "udp" and s.port == state.listen_port), None
        )
        link = self._links[ifname]
        uid = 0 if state.backend == "kernel" else owner
        outer = carrier_of(state, endpoint, journey.packet, uid=uid, mtu=link.mtu)
        return replaced(
            journey, packet=outer, connection=Connection.opened_by(outer), layer=journey.layer + 1, device="",
            tunnels=(*journey.tunnels, tunnel), way=None,
        )  # fmt: skip

    # Hooks and branches

    def _hook(self, journey: Journey, name: Hook) -> tuple[Journey, Trace | None]:
        journey, ended, _ = self._run_hook(journey, name)
        return journey, ended

    def _hook_and_route(self, journey: Journey) -> tuple[Journey, Trace | None, bool]:
        return self._run_hook(journey, "output")

    def _run_hook(self, journey: Journey, name: Hook) -> tuple[Journey, Trace | None, bool]:
        result = self.netfilter.hook(name, journey.packet, journey.connection)
        journey = replaced(journey, packet=result.packet, connection=result.connection).add(*result.steps)
        if result.verdict is HookVerdict.ACCEPT:
            return journey, None, result.reroute
        if result.verdict is HookVerdict.UNKNOWN:
            return journey, journey.unknown(Stage(name), Unsure(result.reason, result.object)), False
        verdict = Verdict.DROPPED if result.verdict is HookVerdict.DROP else Verdict.REFUSED
        return journey, journey.end(verdict, result.reason, code=f"{name}-drop", object_=result.object), False

    def _each(self, journey: Journey, hops: Sequence[NextHop], go_on: Callable[[Journey, NextHop], Trace]) -> Trace:
        """Go on by every way that a hash may choose. Ways that end alike are one."""
        ways: dict[tuple[str, IPAddress | None], NextHop] = {}
        for hop in hops:
            ways.setdefault((hop.oif, hop.via), hop)
        branches = tuple(
            go_on(
                replaced(
                    journey,
                    packet=replaced(journey.packet, oif="" if hop.oif == LOOPBACK and journey.packet.iif else hop.oif),
                ),
                hop,
            )
            for hop in ways.values()
        )
        if len(branches) == 1:
            return branches[0]
        ends = {(branch.verdict, branch.code, branch.egress if branch.works else "") for branch in branches}
        if len(ends) == 1:
            return replaced(branches[0], branches=branches)
        where = route_line(journey.way.route) if journey.way is not None and journey.way.route is not None else ""
        words = f"a hash chooses between {', '.join(dict.fromkeys(oif for oif, _ in ways))}: " + "; ".join(
            dict.fromkeys(b.reason for b in branches)
        )
        return replaced(journey.unknown(Stage.OUTPUT_ROUTING, Unsure(words, where)), branches=branches)


def trace(snapshot: Snapshot, flow: Flow, netfilter: Filter | None = None) -> Trace:
    """The way of a flow's first packet. For many flows of one snapshot make one `Walker`."""
    return Walker(snapshot, netfilter).trace(flow)
