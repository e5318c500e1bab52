# SPDX-License-Identifier: Apache-2.0
"""Sealed packets and the messages that carry them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.wireguard.constants import REJECT_AFTER_MESSAGES, MessageType
from wicketgate.wireguard.messages import CookieReply, Initiation, Response, Transport, message_type
from wicketgate.wireguard.transport import Session


def pair() -> tuple[Session, Session]:
    one, two = bytes(32), b"\x01" * 32
    return Session(sending=one, receiving=two, local=1, remote=2), Session(
        sending=two, receiving=one, local=2, remote=1
    )


def parsed(data: bytes) -> Transport:
    message = Transport.parse(data)
    assert message is not None
    return message


@given(st.binary(max_size=100))
def test_padding_and_counters(packet: bytes):
    """Packets are padded to 16 bytes, counters run from zero, a keepalive has 32 bytes."""
    ours, theirs = pair()
    for counter in range(3):
        data = ours.seal(packet)
        assert len(data) % 16 == 0
        assert len(data) == 32 + (len(packet) + 15) // 16 * 16
        assert parsed(data).counter == counter
        assert theirs.unseal(parsed(data)) == packet + bytes(-len(packet) % 16)
        assert theirs.unseal(parsed(data)) is None


def test_out_of_order_and_foreign():
    """Order does not matter; another index, another key, or a changed counter does."""
    ours, theirs = pair()
    messages = [parsed(ours.seal(bytes([number]) * 16)) for number in range(5)]
    for number in (4, 0, 2, 1, 3):
        assert theirs.unseal(messages[number]) == bytes([number]) * 16
    assert ours.unseal(messages[0]) is None
    fresh = parsed(ours.seal(b""))
    assert theirs.unseal(Transport(3, fresh.counter, fresh.sealed_packet)) is None
    assert theirs.unseal(Transport(2, fresh.counter + 1, fresh.sealed_packet)) is None
    assert theirs.unseal(Transport(2, fresh.counter, b"")) is None
    assert theirs.unseal(fresh) == b""


def test_the_last_counter():
    """A keypair ends before its counter can repeat."""
    ours, _ = pair()
    ours.sent = REJECT_AFTER_MESSAGES - 1
    ours.seal(b"")
    with pytest.raises(OverflowError, match="handshake"):
        ours.seal(b"")


@given(st.binary(max_size=200))
def test_garbage_is_no_message(data: bytes):
    """No bytes make the parsers raise, and at most one takes them."""
    taken = [kind for kind in (Initiation, Response, CookieReply, Transport) if kind.parse(data) is not None]
    assert len(taken) == (message_type(data) is not None)


@pytest.mark.parametrize(
    ("message", "size", "kind"),
    [
        (Initiation(1, b"e" * 32, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16), 148, MessageType.INITIATION),
        (Response(1, 2, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16), 92, MessageType.RESPONSE),
        (CookieReply(1, b"n" * 24, b"c" * 32), 64, MessageType.COOKIE_REPLY),
        (Transport(1, 2**63, b"p" * 32), 48, MessageType.TRANSPORT),
    ],
)
def test_messages_round_trip(message, size: int, kind: MessageType):
    """Each message has the paper's size and parses to itself; other lengths and reserved bytes are nothing."""
    data = message.encode()
    assert len(data) == size
    assert message_type(data) is kind
    assert type(message).parse(data) == message
    assert message_type(data[:1] + b"\x01" + data[2:]) is None
    if kind is not MessageType.TRANSPORT:
        assert message_type(data + b"\0") is None
        assert message_type(data[:-1]) is None
