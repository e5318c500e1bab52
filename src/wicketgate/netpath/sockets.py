# SPDX-License-Identifier: Apache-2.0
"""Who takes a packet that is delivered here (__inet_lookup_listener, __udp4_lib_lookup and their IPv6 kin)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from wicketgate.netpath.lookup import Unsure
from wicketgate.netpath.packet import ICMP, ICMP_ECHO_REQUEST, ICMPV6, ICMPV6_ECHO_REQUEST, TCP, UDP, Packet
from wicketgate.netpath.snapshot import ListeningSocket, Snapshot, WireGuardState

_NAMES = {TCP: "tcp", UDP: "udp"}


@dataclass(frozen=True, slots=True)
class Taken:
    """Something takes it: a socket, a WireGuard device, or the kernel itself (ICMP)."""

    by: str
    socket: ListeningSocket | None = None
    device: WireGuardState | None = None


@dataclass(frozen=True, slots=True)
class Nobody:
    """Nothing takes it.

    Attributes:
        code: no-listener or listener-wrong-address.
        near: a socket of that port that does not fit.
    """

    code: str
    object: str
    reason: str
    near: ListeningSocket | None = None


def spell_socket(socket: ListeningSocket) -> str:
    """`tcp 10.0.0.1%eth0:9000`, the way ss(8) writes local addresses."""
    address = f"[{socket.address}]" if socket.address.version == 6 else str(socket.address)
    if socket.address.is_unspecified and socket.family == 6 and socket.v6only is False:
        address = "*"
    device = f"%{socket.bound_device}" if socket.bound_device else ""
    return f"{socket.protocol} {address}{device}:{socket.port}"


def receiver(snapshot: Snapshot, packet: Packet) -> Taken | Nobody | Unsure:
    """Who takes a packet that was routed to this host; `packet.iif` is where it came in (`lo` for our own)."""
    if packet.protocol in (ICMP, ICMPV6):
        return _icmp(snapshot, packet)
    name = _NAMES.get(packet.protocol)
    if name is None:
        return Unsure("who takes packets of this protocol is not modelled", f"protocol {packet.protocol}")
    listening = [s for s in snapshot.sockets if s.protocol == name and s.port == packet.destination_port]
    fitting = [(s, fit) for s in listening if (fit := _fits(s, packet)) is not False]
    best = max(fitting, key=lambda each: _score(each[0]), default=None)
    if best is not None:
        doubt = _doubt(snapshot, best[0], best[1])
        return doubt or Taken(spell_socket(best[0]), best[0], _wireguard(snapshot, packet))
    device = _wireguard(snapshot, packet)
    if device is not None:
        return Taken(f"wireguard {device.ifname}, port {device.listen_port}", None, device)
    for unread in snapshot.unread:
        if unread.what in ("sockets", f"sockets: {name}"):
            return Unsure(f"sockets were not read: {unread.why}", f"{name} port {packet.destination_port}")
    if listening:
        words = f"{packet.destination} on {packet.iif} is not what it listens on"
        return Nobody("listener-wrong-address", spell_socket(listening[0]), words, listening[0])
    return Nobody("no-listener", f"{name} port {packet.destination_port}", "nothing listens on the port")


def _fits(socket: ListeningSocket, packet: Packet) -> bool | None:
    """Whether the socket may take it; None = it depends on what was not told."""
    if socket.bound_device and socket.bound_device != packet.iif:
        return False
    if socket.family == packet.family:
        return socket.address.is_unspecified or socket.address == packet.destination
    if packet.family == 6:
        return False
    assert isinstance(socket.address, IPv6Address)
    if socket.address.ipv4_mapped is not None:
        return socket.address.ipv4_mapped == packet.destination or int(socket.address.ipv4_mapped) == 0
    if not socket.address.is_unspecified or socket.v6only:
        return False
    return None if socket.v6only is None else True


def _score(socket: ListeningSocket) -> tuple[bool, bool, bool]:
    """An address beats none (it is looked up first), then a device, then the packet's own family (compute_score)."""
    specific = not socket.address.is_unspecified
    return specific, bool(socket.bound_device), socket.family == 4


def _doubt(snapshot: Snapshot, socket: ListeningSocket, fit: bool | None) -> Unsure | None:
    if fit is None:
        return Unsure("whether the socket takes IPv4 too (IPV6_V6ONLY) was not told", spell_socket(socket))
    for unread in snapshot.unread:
        if unread.what.startswith("sockets: bound device"):
            return Unsure(
                f"whether the socket is bound to a device could not be read: {unread.why}", spell_socket(socket)
            )
    return None


def _wireguard(snapshot: Snapshot, packet: Packet) -> WireGuardState | None:
    if packet.protocol != UDP:
        return None
    for device in snapshot.wireguard:
        link = snapshot.link(device.ifname)
        if device.listen_port == packet.destination_port and (link is None or link.up):
            return device
    return None


def _icmp(snapshot: Snapshot, packet: Packet) -> Taken | Nobody | Unsure:
    if packet.protocol == ICMP and packet.icmp_type == ICMP_ECHO_REQUEST:
        name = "net.ipv4.icmp_echo_ignore_all"
        if snapshot.sysctls.get(name, "0") != "0":
            return Nobody("input-drop", f"{name} = 1", "echo requests are not answered")
        return Taken("the kernel answers echo requests")
    if packet.protocol == ICMPV6 and packet.icmp_type == ICMPV6_ECHO_REQUEST:
        return Taken("the kernel answers echo requests")
    return Taken("the kernel takes ICMP")
