# SPDX-License-Identifier: Apache-2.0
"""The few packets that the synthetic client sends and understands: IPv4 and IPv6 with ICMP echo, UDP, TCP SYN.

Parsing never raises: what is cut short, fragmented, of another protocol or has a wrong checksum is None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58  # IANA protocol numbers
_HOP_LIMIT = 64  # RFC 1700's recommended default, as most hosts have it

# struct iphdr { u8 version_ihl; u8 tos; be16 length; be16 id; be16 fragment; u8 ttl; u8 protocol; be16 checksum;
#                be32 source; be32 destination; };  RFC 791, section 3.1
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
# struct ipv6hdr { be32 version_class_flow; be16 payload_length; u8 next_header; u8 hop_limit;
#                  u8 source[16]; u8 destination[16]; };  RFC 8200, section 3
_IPV6 = struct.Struct("!IHBB16s16s")
# struct icmphdr { u8 type; u8 code; be16 checksum; be16 id; be16 sequence; };  RFC 792, RFC 4443
_ICMP = struct.Struct("!BBHHH")
_UDP = struct.Struct("!HHHH")  # source, destination, length, checksum; RFC 768
# struct tcphdr { be16 source, destination; be32 sequence, acknowledgement; u8 offset, flags; be16 window, checksum,
#                 urgent; };  RFC 9293, section 3.1
_TCP = struct.Struct("!HHIIBBHHH")

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_MSS_OPTION = struct.pack("!BBH", 2, 4, 1220)  # RFC 9293, section 3.7.1; 1280 (least IPv6 MTU) less two headers

_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_UNREACHABLE = {4: 3, 6: 1}
_MORE_OR_OFFSET = 0x3FFF  # of the IPv4 fragment field


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071): a sum in ones' complement is the number itself modulo 2^16 - 1."""
    if len(data) % 2:
        data += b"\0"
    return ~(int.from_bytes(data) % 0xFFFF) & 0xFFFF


def _sums_to_zero(data: bytes) -> bool:
    # Over data that holds its own checksum; both zeros of ones' complement are the same number modulo 2^16 - 1.
    return int.from_bytes(data + b"\0" if len(data) % 2 else data) % 0xFFFF == 0


def _pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    # RFC 9293 section 3.1 and RFC 8200 section 8.1; both sum to the same.
    return source + destination + struct.pack("!II", length, protocol)


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet as far as it matters here."""

    source: IPAddress
    destination: IPAddress
    protocol: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """An ICMP echo request or reply."""

    request: bool
    identifier: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram."""

    source_port: int
    destination_port: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment's header."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int


@dataclass(frozen=True, slots=True)
class Unreachable:
    """An ICMP destination unreachable, with the head of the packet that it is about."""

    code: int
    about: bytes


def ip_packet(source: IPAddress, destination: IPAddress, protocol: int, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet.

    Raises:
        ValueError: the addresses are of two families.
    """
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are addresses of two families")
    if source.version == 6:
        return _IPV6.pack(6 << 28, len(payload), protocol, _HOP_LIMIT, source.packed, destination.packed) + payload
    fields = (0x45, 0, 20 + len(payload), 0, 0x4000, _HOP_LIMIT, protocol)
    ends = (source.packed, destination.packed)
    return _IPV4.pack(*fields, checksum(_IPV4.pack(*fields, 0, *ends)), *ends) + payload


def echo_request(source: IPAddress, destination: IPAddress, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP or ICMPv6 echo request."""
    kind = _ECHO_REQUEST[source.version]
    head = _ICMP.pack(kind, 0, 0, identifier, sequence)
    if source.version == 4:
        total = checksum(head + payload)
        return ip_packet(source, destination, ICMP, _ICMP.pack(kind, 0, total, identifier, sequence) + payload)
    pseudo = _pseudo_header(source.packed, destination.packed, ICMPV6, len(head) + len(payload))
    total = checksum(pseudo + head + payload)
    return ip_packet(source, destination, ICMPV6, _ICMP.pack(kind, 0, total, identifier, sequence) + payload)


def udp_datagram(source: IPAddress, source_port: int, destination: IPAddress, port: int, payload: bytes) -> bytes:
    """A UDP datagram."""
    length = _UDP.size + len(payload)
    pseudo = _pseudo_header(source.packed, destination.packed, UDP, length)
    # A checksum of zero means none (RFC 768), so it is sent as its other form.
    total = checksum(pseudo + _UDP.pack(source_port, port, length, 0) + payload) or 0xFFFF
    return ip_packet(source, destination, UDP, _UDP.pack(source_port, port, length, total) + payload)


def tcp_segment(source: IPAddress, destination: IPAddress, segment: Segment, *, window: int = 64240) -> bytes:
    """A TCP segment without data; a SYN carries an MSS option. `window`: bytes, Linux's usual first offer."""
    options = _MSS_OPTION if segment.flags & SYN else b""
    head = (
        segment.source_port,
        segment.destination_port,
        segment.sequence,
        segment.acknowledgement,
        (_TCP.size + len(options)) // 4 << 4,
        segment.flags,
        window,
    )
    pseudo = _pseudo_header(source.packed, destination.packed, TCP, _TCP.size + len(options))
    total = checksum(pseudo + _TCP.pack(*head, 0, 0) + options)
    return ip_packet(source, destination, TCP, _TCP.pack(*head, total, 0) + options)


def parse_ip(data: bytes) -> Packet | None:
    """From a decrypted transport message: padding after the packet is cut off."""
    if not data:
        return None
    version = data[0] >> 4
    if version == 4 and len(data) >= _IPV4.size:
        first, _, length, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(data)
        header = (first & 15) * 4
        if header < _IPV4.size or not header <= length <= len(data):
            return None
        if fragment & _MORE_OR_OFFSET or not _sums_to_zero(data[:header]):
            return None
        return Packet(IPv4Address(source), IPv4Address(destination), protocol, data[header:length])
    if version == 6 and len(data) >= _IPV6.size:
        _, length, protocol, _, source, destination = _IPV6.unpack_from(data)
        end = _IPV6.size + length
        if end > len(data):
            return None
        return Packet(IPv6Address(source), IPv6Address(destination), protocol, data[_IPV6.size : end])
    return None


def _fits(packet: Packet, payload: bytes) -> bool:
    pseudo = _pseudo_header(packet.source.packed, packet.destination.packed, packet.protocol, len(payload))
    return _sums_to_zero(pseudo + payload)


def _icmp(packet: Packet) -> bool:
    if len(packet.payload) < _ICMP.size:
        return False
    if packet.source.version == 4:
        return packet.protocol == ICMP and _sums_to_zero(packet.payload)
    return packet.protocol == ICMPV6 and _fits(packet, packet.payload)


def parse_echo(packet: Packet) -> Echo | None:
    """An echo request or reply."""
    if not _icmp(packet):
        return None
    kind, code, _, identifier, sequence = _ICMP.unpack_from(packet.payload)
    version = packet.source.version
    if code != 0 or kind not in {_ECHO_REQUEST[version], _ECHO_REPLY[version]}:
        return None
    return Echo(kind == _ECHO_REQUEST[version], identifier, sequence, packet.payload[_ICMP.size :])


def parse_unreachable(packet: Packet) -> Unreachable | None:
    """A destination unreachable."""
    if not _icmp(packet) or packet.payload[0] != _UNREACHABLE[packet.source.version]:
        return None
    return Unreachable(packet.payload[1], packet.payload[_ICMP.size :])


def quotes(about: bytes, request: bytes) -> bool:
    """Whether an ICMP error is about this packet.

    At least the IP header and eight bytes are quoted (RFC 792). Routers change the hop limit and checksums on the
    way, so only protocol, addresses and ports (of an echo: identifier and sequence) are compared.
    """
    if request[0] >> 4 == 4:
        header, protocol, ends = _IPV4.size, 9, slice(12, 20)
    else:
        header, protocol, ends = _IPV6.size, 6, slice(8, 40)
    if len(about) < header + 8 or about[0] != request[0] or about[protocol] != request[protocol]:
        return False
    is_echo = request[protocol] in {ICMP, ICMPV6}
    named = slice(header + 4, header + 8) if is_echo else slice(header, header + 4)
    return about[ends] == request[ends] and about[named] == request[named]


def parse_udp(packet: Packet) -> Datagram | None:
    """A UDP datagram. A missing checksum is allowed in IPv4 only (RFC 8200, section 8.1)."""
    if packet.protocol != UDP or len(packet.payload) < _UDP.size:
        return None
    source_port, port, length, total = _UDP.unpack_from(packet.payload)
    if not _UDP.size <= length <= len(packet.payload):
        return None
    whole = packet.payload[:length]
    if total == 0:
        if packet.source.version == 6:
            return None
    elif not _fits(packet, whole):
        return None
    return Datagram(source_port, port, whole[_UDP.size :])


def parse_tcp(packet: Packet) -> Segment | None:
    """A TCP segment's header."""
    if packet.protocol != TCP or len(packet.payload) < _TCP.size or not _fits(packet, packet.payload):
        return None
    source_port, port, sequence, acknowledgement, offset, flags, *_ = _TCP.unpack_from(packet.payload)
    if not _TCP.size <= (offset >> 4) * 4 <= len(packet.payload):
        return None
    return Segment(source_port, port, sequence, acknowledgement, flags)
