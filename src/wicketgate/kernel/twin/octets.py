# SPDX-License-Identifier: Apache-2.0
"""The packets that go into a twin and are known again when they come out, whatever NAT has made of their addresses.

Each carries a number: TCP as its sequence number (a SYN-ACK or RST acknowledges it plus one), UDP and ICMP echo as the
beginning of their payload. What the kernel sends may not carry its checksum yet (it is left to the card), so none is
looked at here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from wicketgate.netpath.packet import ACK, ICMP, ICMPV6, RST, SYN, TCP, UDP, Ends
from wicketgate.netpath.snapshot import IPAddress
from wicketgate.wireguard import packets

ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0800, 0x0806, 0x86DD  # linux/if_ether.h
ETH_P_FENCE = 0x88B5  # IEEE Std 802 local experimental
_TAG = b"wicket twin "
_PAYLOAD = struct.Struct("!12sI")
_UNREACHABLE = {4: 3, 6: 1}
_ECHOES = {0: False, 8: True, 128: True, 129: False}  # type -> is it a request


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet of ours, or one about it, as it leaves by an interface.

    Attributes:
        ifname: the interface.
        ends: addresses and ports.
        number: ours.
        kind: `packet`, `reset`, or `icmp-TYPE-CODE` for an error about it.
        answer: a SYN-ACK, an echo reply; of UDP the ends tell.
        mark: fwmark, where the kernel tells it.
    """

    ifname: str
    ends: Ends
    number: int
    kind: str = "packet"
    answer: bool = False
    mark: int = 0


def build(ends: Ends, number: int, *, answer: bool = False, length: int = 0, tos: int = 0) -> bytes:
    """A packet with this number.

    Args:
        ends: addresses, ports, protocol.
        number: 32 bits.
        answer: a SYN-ACK that acknowledges the number, an echo reply.
        length: of the whole; UDP and ICMP are filled up to it.
        tos: the TOS or traffic class byte.
    """
    source, destination = ends.source, ends.destination
    header = 20 if source.version == 4 else 40
    payload = _PAYLOAD.pack(_TAG, number)
    payload += bytes(max(0, length - header - 8 - len(payload)))
    if ends.protocol == TCP:
        segment = (
            packets.Segment(ends.source_port, ends.destination_port, 1, (number + 1) & 0xFFFFFFFF, SYN | ACK)
            if answer
            else packets.Segment(ends.source_port, ends.destination_port, number, 0, SYN)
        )
        made = packets.tcp_segment(source, destination, segment)
    elif ends.protocol == UDP:
        made = packets.udp_datagram(source, ends.source_port, destination, ends.destination_port, payload)
    else:
        made = packets.echo_request(source, destination, number & 0xFFFF, 1, payload)
        if answer:
            made = _as_reply(made, header)
    return _with_tos(made, tos) if tos else made


def reset(ends: Ends, number: int) -> bytes:
    """The RST that ends what our SYN began."""
    segment = packets.Segment(ends.source_port, ends.destination_port, (number + 1) & 0xFFFFFFFF, 0, RST)
    return packets.tcp_segment(ends.source, ends.destination, segment)


def _as_reply(request: bytes, header: int) -> bytes:
    kind = 0 if request[header] == 8 else 129
    # RFC 1624: the sum changes by what the word of type and code changes.
    total = int.from_bytes(request[header + 2 : header + 4]) ^ 0xFFFF
    total += (kind << 8) - (request[header] << 8)
    total %= 0xFFFF
    return request[:header] + bytes((kind, 0)) + (total ^ 0xFFFF).to_bytes(2) + request[header + 4 :]


def _with_tos(packet: bytes, tos: int) -> bytes:
    if packet[0] >> 4 == 6:
        return (int.from_bytes(packet[:4]) | tos << 20).to_bytes(4) + packet[4:]
    head = packet[:1] + bytes((tos,)) + packet[2:10] + b"\0\0" + packet[12:20]
    return head[:10] + packets.checksum(head).to_bytes(2) + head[12:] + packet[20:]


def sighting(data: bytes, ifname: str, mark: int = 0) -> Sighting | None:
    """Read an IP packet; None when it is none of ours, nor about one."""
    found = _read(data)
    if found is None:
        return None
    ends, number, kind, answer = found
    return Sighting(ifname, ends, number, kind, answer, mark)


def _read(data: bytes, *, quoted: bool = False) -> tuple[Ends, int, str, bool] | None:
    if len(data) < 20:
        return None
    if data[0] >> 4 == 4:
        header, protocol, source, destination = (data[0] & 15) * 4, data[9], data[12:16], data[16:20]
    elif data[0] >> 4 == 6 and len(data) >= 40:
        header, protocol, source, destination = 40, data[6], data[8:24], data[24:40]
    else:
        return None
    upper = data[header:]
    near, far = ip_address(source), ip_address(destination)
    if protocol == TCP and len(upper) >= 8:
        sport, dport, sequence = struct.unpack_from("!HHI", upper)
        ends = Ends(near, far, TCP, sport, dport)
        if quoted or len(upper) < 14:
            return ends, sequence, "packet", False
        acknowledged, _, flags = struct.unpack_from("!IBB", upper, 8)
        kind = "reset" if flags & RST else "packet"
        return ends, (acknowledged - 1) & 0xFFFFFFFF if flags & ACK else sequence, kind, bool(flags & ACK)
    if protocol == UDP and len(upper) >= 8 + _PAYLOAD.size:
        tag, number = _PAYLOAD.unpack_from(upper, 8)
        sport, dport = struct.unpack_from("!HH", upper)
        return (Ends(near, far, UDP, sport, dport), number, "packet", False) if tag == _TAG else None
    if protocol in (ICMP, ICMPV6) and len(upper) >= 8:
        return _icmp(Ends(near, far, protocol), upper)
    return None


def _icmp(ends: Ends, upper: bytes) -> tuple[Ends, int, str, bool] | None:
    kind, code = upper[0], upper[1]
    if kind == _UNREACHABLE[ends.source.version]:
        about = _read(upper[8:], quoted=True)
        return None if about is None else (ends, about[1], f"icmp-{kind}-{code}", False)
    if kind in _ECHOES and len(upper) >= 8 + _PAYLOAD.size:
        tag, number = _PAYLOAD.unpack_from(upper, 8)
        return (ends, number, "packet", not _ECHOES[kind]) if tag == _TAG else None
    return None


def tagged(payload: bytes) -> int | None:
    """The number in a datagram's payload."""
    if len(payload) < _PAYLOAD.size:
        return None
    tag, number = _PAYLOAD.unpack_from(payload)
    return int(number) if tag == _TAG else None


def payload_of(number: int, length: int = 0) -> bytes:
    """A datagram's payload with this number."""
    return _PAYLOAD.pack(_TAG, number).ljust(length, b"\0")


def frame(to: bytes, sender: bytes, ethertype: int, data: bytes) -> bytes:
    """An Ethernet frame."""
    return to + sender + struct.pack("!H", ethertype) + data


def ethertype_of(packet: bytes) -> int:
    """Of an IP packet."""
    return ETH_P_IP if packet[0] >> 4 == 4 else ETH_P_IPV6


# struct arphdr { be16 hardware, protocol; u8 lengths[2]; be16 operation; u8 sha[6], spa[4], target_mac[6], tpa[4]; }; RFC 826
_ARP = struct.Struct("!HHBBH6s4s6s4s")


def neighbour_answer(data: bytes, mac: bytes) -> tuple[bytes, IPAddress] | None:
    """The frame that answers an ARP request or a neighbour solicitation with this MAC, and who was asked for.

    Everybody is at home: what is sent to an address shall leave, and where it goes is what is watched. None for any
    other frame.
    """
    if len(data) < 14:
        return None
    asker, ethertype = data[6:12], int.from_bytes(data[12:14])
    if ethertype == ETH_P_ARP and len(data) >= 14 + _ARP.size:
        *_, operation, sha, spa, _, tpa = _ARP.unpack_from(data, 14)
        if operation != 1 or spa in (tpa, bytes(4)):  # an announcement or a probe asks nobody
            return None
        answer = _ARP.pack(1, ETH_P_IP, 6, 4, 2, mac, tpa, sha, spa)
        return frame(asker, mac, ETH_P_ARP, answer), IPv4Address(tpa)
    if ethertype == ETH_P_IPV6 and len(data) >= 14 + 40 + 24 and data[14 + 6] == ICMPV6 and data[54] == 135:
        asking, target = IPv6Address(data[22:38]), IPv6Address(data[62:78])
        if asking.is_unspecified:
            return None  # duplicate address detection
        # RFC 4861, section 4.4: flags solicited and override; option 2 is the target's link-layer address.
        body = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + target.packed + b"\x02\x01" + mac
        pseudo = target.packed + asking.packed + struct.pack("!II", len(body), ICMPV6)
        body = body[:2] + packets.checksum(pseudo + body).to_bytes(2) + body[4:]
        head = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + target.packed + asking.packed
        return frame(asker, mac, ETH_P_IPV6, head + body), target
    return None


def ends_of(
    source: IPAddress, destination: IPAddress, protocol: str, source_port: int = 0, destination_port: int = 0
) -> Ends:
    """Ends from a flow's words."""
    numbers = {"tcp": TCP, "udp": UDP, "icmp": ICMP if isinstance(destination, IPv4Address) else ICMPV6}
    return Ends(source, destination, numbers[protocol], source_port, destination_port)
