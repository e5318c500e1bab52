# SPDX-License-Identifier: Apache-2.0
"""A packet and its answer: the answer is sent by what took the packet, or comes back by where it left."""

from __future__ import annotations

from ipaddress import ip_address

from wicketgate.netpath.filter import Filter
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.lookup import LOOPBACK
from wicketgate.netpath.packet import (
    ACK,
    ICMP,
    ICMP_ECHO_REPLY,
    ICMPV6,
    ICMPV6_ECHO_REPLY,
    SYN,
    TCP,
    UDP,
    Packet,
)
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.snapshot import IPAddress, Snapshot
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

_ANY: dict[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
_NOBODY = ("no-listener", "listener-wrong-address")


def round_trip(snapshot: Snapshot, flow: Flow, netfilter: Filter | None = None) -> tuple[Trace, Trace | None]:
    """A flow's first packet and the answer to it. For many flows of one snapshot use `there_and_back`.

    Returns:
        The forward trace, and the reply's; None when nothing takes the packet and so nothing answers.
    """
    return there_and_back(Walker(snapshot, netfilter), flow)


def there_and_back(walker: Walker, flow: Flow) -> tuple[Trace, Trace | None]:
    """As `round_trip`."""
    forward = walker.trace(flow)
    if forward.verdict is Verdict.FORWARDED and not forward.branches:
        return forward, _comes_back(walker, forward)
    if forward.verdict is Verdict.DELIVERED or forward.code in _NOBODY:
        return forward, _answered(walker, forward)
    return forward, None


def _comes_back(walker: Walker, forward: Trace) -> Trace:
    """The far end answers to the address it saw, and the answer comes in by the interface the packet left by."""
    answer = replaced(_turned(forward.packet), iif=forward.egress, oif="", mark=0, uid=None, from_socket=False)
    connection = forward.connection.replying()
    if forward.flow.iif is None:
        return _taken_back(walker.walk(forward.flow, answer, connection, direction="reply"), forward)
    return _judged(walker, walker.walk(forward.flow, answer, connection, direction="reply"), forward)


def _taken_back(reply: Trace, forward: Trace) -> Trace:
    """The asking socket is no listening one: what is routed here and not filtered reaches it."""
    if reply.code in _NOBODY and reply.packet.ends == forward.connection.original.turned():
        return replaced(reply, verdict=Verdict.DELIVERED, reason="the asking socket takes it", code="", object="")
    return reply


def _answered(walker: Walker, forward: Trace) -> Trace:
    """This host answers: a socket, a WireGuard device, or the kernel (echo reply, RST, port unreachable)."""
    packet, snapshot = forward.packet, walker.snapshot
    settings = walker.routing.settings
    reflect = settings.number(f"net.ipv{packet.family}.fwmark_reflect", 0)
    answer = replaced(_turned(packet), iif="", oif="", mark=packet.mark if reflect else 0, uid=0, from_socket=False)
    connection = forward.connection.replying()
    device = ""
    if forward.device is not None:
        answer = replaced(answer, mark=forward.device.fwmark, from_socket=True)
        if forward.device.backend == "userspace":
            answer = replaced(answer, uid=forward.socket.uid if forward.socket is not None else None)
    elif forward.socket is not None:
        socket, device = forward.socket, forward.socket.bound_device
        if socket.mark is None and any(rule.fwmask for rule in snapshot.rules):
            return _unsure(forward, answer, "the socket's mark was not told, and rules select by mark")
        mark = socket.mark or 0
        if not mark and packet.protocol == TCP and settings.number("net.ipv4.tcp_fwmark_accept", 0):
            mark = packet.mark  # inet_request_mark()
        answer = replaced(answer, mark=mark, uid=socket.uid, from_socket=True)
    if packet.protocol == TCP and packet.family == 6 and not device and packet.source.is_link_local:
        device = packet.iif  # "So that link locals have meaning": tcp_v6_init_req()
    if forward.code in _NOBODY and packet.protocol == UDP:
        six = packet.family == 6
        answer = replaced(
            answer, protocol=ICMPV6 if six else ICMP, icmp_type=1 if six else 3, icmp_code=4 if six else 3,
            source_port=0, destination_port=0,
        )  # fmt: skip
    if packet.iif == LOOPBACK and forward.flow.iif is None:
        return _taken_back(walker.walk(forward.flow, answer, connection, device=device, direction="reply"), forward)
    reply = _judged(walker, walker.walk(forward.flow, answer, connection, device=device, direction="reply"), forward)
    program = forward.device.backend == "userspace" if forward.device is not None else forward.socket is not None
    if program and not device and packet.protocol == UDP and packet.iif and reply.verdict is not Verdict.UNKNOWN:
        # A program may name the interface that it was asked by in IP_PKTINFO or IPV6_PKTINFO; wireguard-go does
        # (conn/sticky_linux.go), and what a program does cannot be read. Of IPv4 that binds the lookup, of IPv6 not.
        named = walker.walk(forward.flow, answer, connection, device=packet.iif, named=True, direction="reply")
        named = _judged(walker, named, forward)
        if named.works is not reply.works:
            why = named.reason if reply.works else reply.reason
            unless = "if" if reply.works else "unless"
            words = f"{why}, {unless} the program names the interface that it was asked by, as wireguard-go does"
            return _unsure(forward, answer, words)
    if program and packet.protocol == UDP and reply.code == "blackhole-route" and "blackhole" in reply.object:
        # EINVAL: wireguard-go takes the source that it names for a stale one, and sends again without (conn/, Send4 and Send6).
        anonymous = replaced(answer, source=_ANY[packet.family])
        again = _judged(walker, walker.walk(forward.flow, anonymous, connection, direction="reply"), forward)
        if again.works:
            words = f"{reply.reason}, unless the program then sends without naming its source, as wireguard-go does"
            return _unsure(forward, answer, words)
    return reply


def _unsure(forward: Trace, answer: Packet, reason: str) -> Trace:
    return replaced(
        forward, direction="reply", verdict=Verdict.UNKNOWN, reason=reason, packet=answer, code="", steps=(),
        object=forward.object,
    )  # fmt: skip


def _turned(packet: Packet) -> Packet:
    flags = {TCP: SYN | ACK}.get(packet.protocol, 0)
    kinds = {ICMP: ICMP_ECHO_REPLY, ICMPV6: ICMPV6_ECHO_REPLY}
    turned = packet.with_ends(packet.ends.turned())
    return replaced(turned, tcp_flags=flags, icmp_type=kinds.get(packet.protocol), hop_limit=64)


def _judged(walker: Walker, reply: Trace, forward: Trace) -> Trace:
    """A reply that leaves must leave by the interface the packet came in by."""
    came = forward.flow.iif
    if came is None or not reply.egress or reply.egress == came:
        return reply
    into_tunnel = walker.tunnel(reply.egress)
    code = "reply-into-tunnel" if into_tunnel else "reply-wrong-uplink"
    where = f"into the tunnel {reply.egress}" if into_tunnel else f"by {reply.egress}"
    return replaced(
        reply,
        verdict=Verdict.MISROUTED,
        reason=f"the packet came in by {came}, and its answer goes {where}",
        code=code,
        object=reply.decided_by(),
    )
