# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes for everything in wireguard/ that reads from the network: never an exception, never a change of
state. Time and number of examples are bounded.
"""

from __future__ import annotations

import random
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.budget import new_seed, seconds
from wicketgate.clock import FakeClock
from wicketgate.wireguard import packets
from wicketgate.wireguard.cookie import CookieJar, CookieMaker, MacVerdict
from wicketgate.wireguard.handshake import Identity, Initiator, Responder, ResponseVerdict
from wicketgate.wireguard.keys import PrivateKey
from wicketgate.wireguard.messages import CookieReply, Initiation, Response, Transport
from wicketgate.wireguard.packets import Segment
from wicketgate.wireguard.primitives import KeyPair
from wicketgate.wireguard.transport import Session

SECONDS = seconds(10.0)  # each
CLIENT, SERVER = KeyPair(PrivateKey(bytes(range(32)))), KeyPair(PrivateKey(bytes(range(32, 64))))
STAMP = bytes.fromhex("400000006553f10a00000000")


def mutations(seeds: list[bytes], rng: random.Random):
    """Seeds with bits flipped, bytes replaced, cut, repeated and joined, until the time is over."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            match rng.randrange(6):
                case 0 if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1 if data:
                    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
                case 2:
                    del data[rng.randrange(len(data) + 1) :]
                case 3:
                    data += rng.randbytes(rng.randrange(64))
                case 4 if data:
                    at = rng.randrange(len(data))
                    data[at:at] = data[: rng.randrange(32)]
                case 5:
                    other = rng.choice(seeds)
                    at = rng.randrange(len(other) + 1)
                    data[at:] = other[at:]
        yield bytes(data)


def test_messages_handshake_and_cookies():
    """No mutation of a true message breaks a reader, and only the untouched original opens."""
    clock = FakeClock()
    jar, maker = CookieJar(SERVER.public_key, clock), CookieMaker(SERVER.public_key, clock)
    ours, theirs = Initiator(Identity.between(CLIENT, SERVER.public_key), 7), Responder(SERVER)
    first = jar.sign(ours.create_initiation(STAMP).encode())
    parsed = Initiation.parse(first)
    assert parsed is not None
    assert theirs.consume_initiation(parsed) is not None
    made = theirs.create_response(9)
    assert made is not None
    second, session = made[0].encode(), made[1]
    seeds = [first, second, maker.reply(first, 7, b"source").encode(), session.seal(b"\x45" * 20), session.seal(b"")]
    receiver = Session(sending=bytes(32), receiving=bytes(32), local=7, remote=9)
    opened = 0
    seed = new_seed()
    print(f"WICKET_FUZZ_SEED={seed}")
    for data in mutations(seeds, random.Random(seed)):
        initiation = Initiation.parse(data)
        if initiation is not None:
            if maker.check(data, b"source") is not MacVerdict.INVALID:
                assert data[:132] == first[:132]
            if Responder(SERVER).consume_initiation(initiation) is not None:
                # The sender's index and the macs are not part of the Noise message.
                assert data[8:116] == first[8:116]
                opened += 1
        response = Response.parse(data)
        if response is not None and ours.consume_response(response)[0] is ResponseVerdict.ACCEPTED:
            assert data[8:60] == second[8:60]
            opened += 1
            ours = Initiator(Identity.between(CLIENT, SERVER.public_key), 7)
            ours.create_initiation(STAMP)  # from here no recorded response may open
        reply = CookieReply.parse(data)
        if reply is not None:
            jar.take(reply)
        transport = Transport.parse(data)
        if transport is not None:
            assert receiver.unseal(transport) is None
    assert opened, "the fuzzer never even tried a true message"


def test_packets():
    """No mutation of a packet breaks a parser, and what parses has ports, sizes and addresses in range."""
    a, b = packets.IPv4Address("10.0.0.1"), packets.IPv4Address("10.0.0.2")
    c, d = packets.IPv6Address("fd00::1"), packets.IPv6Address("fd00::2")
    seeds = [
        make
        for one, two in ((a, b), (c, d))
        for make in (
            packets.echo_request(one, two, 1, 2, b"payload"),
            packets.udp_datagram(one, 1, two, 2, b"payload"),
            packets.tcp_segment(one, two, Segment(1, 2, 3, 4, packets.SYN)),
        )
    ]
    parsed = 0
    seed = new_seed()
    print(f"WICKET_FUZZ_SEED={seed}")
    for data in mutations(seeds, random.Random(seed)):
        packet = packets.parse_ip(data)
        packets.quotes(data, seeds[0])
        packets.quotes(data, seeds[3])
        if packet is None:
            continue
        parsed += 1
        assert len(packet.payload) <= len(data)
        for parse in (packets.parse_echo, packets.parse_udp, packets.parse_tcp, packets.parse_unreachable):
            parse(packet)
    assert parsed


@given(st.binary(max_size=300))
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes(data: bytes):
    """No bytes at all make any parser raise."""
    for kind in (Initiation, Response, CookieReply, Transport):
        kind.parse(data)
    packet = packets.parse_ip(data)
    if packet is not None:
        packets.parse_echo(packet)
