# SPDX-License-Identifier: Apache-2.0
"""Packets: what is built parses to the same; what is broken is None."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.wireguard import packets
from wicketgate.wireguard.packets import Datagram, Echo, Packet, Segment

pairs = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)), st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6))
)
ports = st.integers(0, 65535)
words = st.integers(0, 2**32 - 1)


def reference_checksum(data: bytes) -> int:
    """RFC 1071, section 4.1, word for word."""
    total = 0
    for position in range(0, len(data) - 1, 2):
        total += data[position] << 8 | data[position + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=100))
def test_checksum_is_rfc_1071(data: bytes):
    """The modulo trick is the sum of the RFC; only for all zeros and for sums of 0xffff do both zeros mix."""
    assert packets.checksum(data) % 0xFFFF == reference_checksum(data) % 0xFFFF
    if data:
        even = data + bytes(len(data) % 2)
        with_sum = even + packets.checksum(data).to_bytes(2)
        assert reference_checksum(with_sum) in {0, 0xFFFF}


@given(pairs, ports, ports, st.binary(max_size=80), st.binary(max_size=16))
def test_echo_round_trip(pair, identifier: int, sequence: int, payload: bytes, padding: bytes):
    """An echo request parses to what was asked, whatever padding follows the packet."""
    source, destination = pair
    packet = packets.parse_ip(packets.echo_request(source, destination, identifier, sequence, payload) + padding)
    assert packet is not None
    assert (packet.source, packet.destination) == pair
    assert packets.parse_echo(packet) == Echo(True, identifier, sequence, payload)
    assert packets.parse_udp(packet) is packets.parse_tcp(packet) is packets.parse_unreachable(packet) is None


@given(pairs, ports, ports, st.binary(max_size=80))
def test_udp_round_trip(pair, source_port: int, port: int, payload: bytes):
    """So does a UDP datagram."""
    packet = packets.parse_ip(packets.udp_datagram(pair[0], source_port, pair[1], port, payload))
    assert packet is not None
    assert packets.parse_udp(packet) == Datagram(source_port, port, payload)
    assert packet.payload[6:8] != b"\0\0"


@given(pairs, st.builds(Segment, ports, ports, words, words, st.integers(0, 63)))
def test_tcp_round_trip(pair, segment: Segment):
    """So does a TCP segment."""
    packet = packets.parse_ip(packets.tcp_segment(*pair, segment))
    assert packet is not None
    assert packets.parse_tcp(packet) == segment


@given(st.binary(max_size=120))
def test_garbage_is_none(data: bytes):
    """No bytes make a parser raise."""
    packet = packets.parse_ip(data)
    if packet is not None:
        for parse in (packets.parse_echo, packets.parse_udp, packets.parse_tcp, packets.parse_unreachable):
            parse(packet)


@given(pairs, st.sampled_from([packets.ICMP, packets.ICMPV6, packets.UDP, packets.TCP]), st.binary(max_size=60))
def test_garbage_inside_is_none(pair, protocol: int, payload: bytes):
    """Nor do any bytes behind a valid IP header."""
    packet = Packet(*pair, protocol, payload)
    for parse in (packets.parse_echo, packets.parse_udp, packets.parse_tcp, packets.parse_unreachable):
        parse(packet)


@given(pairs, st.data())
def test_a_changed_bit_is_seen(pair, data):
    """One flipped bit in an ICMP, UDP or TCP payload is a wrong checksum, so None."""
    make = data.draw(st.sampled_from(["echo", "udp", "tcp"]))
    built = {
        "echo": lambda: packets.echo_request(*pair, 1, 2, b"payload"),
        "udp": lambda: packets.udp_datagram(pair[0], 1, pair[1], 2, b"payload"),
        "tcp": lambda: packets.tcp_segment(*pair, Segment(1, 2, 3, 4, packets.SYN)),
    }[make]()
    packet = packets.parse_ip(built)
    assert packet is not None
    bit = data.draw(st.integers(0, len(packet.payload) * 8 - 1))
    payload = bytearray(packet.payload)
    payload[bit // 8] ^= 1 << bit % 8
    changed = Packet(packet.source, packet.destination, packet.protocol, bytes(payload))
    assert {"echo": packets.parse_echo, "udp": packets.parse_udp, "tcp": packets.parse_tcp}[make](changed) is None


def test_known_packet():
    """The IPv4 header checksum of the well-known example (RFC 1071 style, 192.168.0.1 to 192.168.0.199)."""
    header = bytes.fromhex("450000730000400040110000c0a80001c0a800c7")
    assert packets.checksum(header) == 0xB861


def test_fragments_and_families():
    """Fragments are not for us, and one packet has one family."""
    built = bytearray(packets.echo_request(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 1, 1, b""))
    built[6:8] = b"\x20\x00"
    built[10:12] = b"\0\0"
    built[10:12] = packets.checksum(bytes(built[:20])).to_bytes(2)
    assert packets.parse_ip(bytes(built)) is None
    with pytest.raises(ValueError, match="two families"):
        packets.ip_packet(IPv4Address("10.0.0.1"), IPv6Address("::1"), 17, b"")


@pytest.mark.parametrize(("source", "destination"), [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")])
def test_icmp_errors_are_matched_to_their_packet(source: str, destination: str):
    """An unreachable that quotes our packet after a router changed its hop limit is ours; another one is not."""
    a, b = ip_address(source), ip_address(destination)
    request = packets.echo_request(a, b, 77, 1, b"payload")
    quoted = bytearray(request)
    quoted[8 if a.version == 4 else 7] -= 1
    if a.version == 4:
        quoted[10:12] = b"\x12\x34"
    assert packets.quotes(bytes(quoted), request)
    assert packets.quotes(bytes(quoted[: len(request) - 7]), request)
    assert not packets.quotes(packets.echo_request(a, b, 77, 2, b"payload"), request)
    assert not packets.quotes(packets.udp_datagram(a, 1, b, 2, b""), request)
    assert not packets.quotes(b"", request)
    assert socket.inet_pton(socket.AF_INET if a.version == 4 else socket.AF_INET6, source) == a.packed
