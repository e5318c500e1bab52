# SPDX-License-Identifier: Apache-2.0
"""The four messages as they are on the wire (WireGuard paper, sections 5.4.2-5.4.7). Integers are little-endian.

Parsing never raises: what is not a message is None, and WireGuard answers it with silence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from wicketgate.wireguard.constants import MessageType

# struct initiation { u8 type = 1; u8 reserved[3]; u32 sender_index; u8 ephemeral[32]; u8 sealed_static[32 + 16];
#                     u8 sealed_timestamp[12 + 16]; u8 mac1[16]; u8 mac2[16]; };
_INITIATION = struct.Struct("<B3xI32s48s28s16s16s")
INITIATION_SIZE = 148

# struct response { u8 type = 2; u8 reserved[3]; u32 sender_index; u32 receiver_index; u8 ephemeral[32];
#                   u8 sealed_nothing[0 + 16]; u8 mac1[16]; u8 mac2[16]; };
_RESPONSE = struct.Struct("<B3xII32s16s16s16s")
RESPONSE_SIZE = 92

# struct cookie_reply { u8 type = 3; u8 reserved[3]; u32 receiver_index; u8 nonce[24]; u8 sealed_cookie[16 + 16]; };
_COOKIE_REPLY = struct.Struct("<B3xI24s32s")
COOKIE_REPLY_SIZE = 64

# struct transport { u8 type = 4; u8 reserved[3]; u32 receiver_index; u64 counter; u8 sealed_packet[]; };
_TRANSPORT = struct.Struct("<B3xIQ")
TRANSPORT_HEADER_SIZE = 16
KEEPALIVE_SIZE = 32  # a transport message with an empty packet; the smallest there is

NO_MAC = bytes(16)
_RESERVED = bytes(3)


def message_type(data: bytes) -> MessageType | None:
    """Which message this is by type, reserved bytes and length; None for anything else."""
    size = len(data)
    if size < KEEPALIVE_SIZE or data[1:4] != _RESERVED:
        return None
    kind = data[0]
    if kind == MessageType.TRANSPORT:
        return MessageType.TRANSPORT
    if kind == MessageType.INITIATION and size == INITIATION_SIZE:
        return MessageType.INITIATION
    if kind == MessageType.RESPONSE and size == RESPONSE_SIZE:
        return MessageType.RESPONSE
    if kind == MessageType.COOKIE_REPLY and size == COOKIE_REPLY_SIZE:
        return MessageType.COOKIE_REPLY
    return None


@dataclass(frozen=True, slots=True)
class Initiation:
    """First message: I am who, and this is when."""

    sender: int
    ephemeral: bytes
    sealed_static: bytes
    sealed_timestamp: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """From the wire."""
        if message_type(data) is not MessageType.INITIATION:
            return None
        return cls(*_INITIATION.unpack(data)[1:])

    def encode(self) -> bytes:
        """For the wire."""
        return _INITIATION.pack(
            MessageType.INITIATION,
            self.sender,
            self.ephemeral,
            self.sealed_static,
            self.sealed_timestamp,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """Second message: the other half of the handshake."""

    sender: int
    receiver: int
    ephemeral: bytes
    sealed_nothing: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """From the wire."""
        if message_type(data) is not MessageType.RESPONSE:
            return None
        return cls(*_RESPONSE.unpack(data)[1:])

    def encode(self) -> bytes:
        """For the wire."""
        return _RESPONSE.pack(
            MessageType.RESPONSE,
            self.sender,
            self.receiver,
            self.ephemeral,
            self.sealed_nothing,
            self.mac1,
            self.mac2,
        )


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Under load: come again with this cookie."""

    receiver: int
    nonce: bytes
    sealed_cookie: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """From the wire."""
        if message_type(data) is not MessageType.COOKIE_REPLY:
            return None
        return cls(*_COOKIE_REPLY.unpack(data)[1:])

    def encode(self) -> bytes:
        """For the wire."""
        return _COOKIE_REPLY.pack(MessageType.COOKIE_REPLY, self.receiver, self.nonce, self.sealed_cookie)


@dataclass(frozen=True, slots=True)
class Transport:
    """A sealed packet; an empty one is a keepalive."""

    receiver: int
    counter: int
    sealed_packet: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """From the wire."""
        if message_type(data) is not MessageType.TRANSPORT:
            return None
        _, receiver, counter = _TRANSPORT.unpack_from(data)
        return cls(receiver, counter, data[TRANSPORT_HEADER_SIZE:])

    def encode(self) -> bytes:
        """For the wire."""
        return _TRANSPORT.pack(MessageType.TRANSPORT, self.receiver, self.counter) + self.sealed_packet
