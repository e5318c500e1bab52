# SPDX-License-Identifier: Apache-2.0
"""Transport data: sealed packets under the keys of a finished handshake (WireGuard paper, sections 5.4.5, 5.4.6)."""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wicketgate.wireguard.constants import PADDING, REJECT_AFTER_MESSAGES, MessageType
from wicketgate.wireguard.messages import Transport
from wicketgate.wireguard.replay import ReplayWindow

_HEADER = struct.Struct("<B3xIQ")
_NONCE = struct.Struct("<4xQ")


class Session:
    """A keypair: one key to send, one to receive, a counter for each.

    Attributes:
        local: our index; messages to us carry it.
        remote: the other side's index.
        established: when the handshake ended, monotonic seconds; the owner of the session gives it a meaning.
        sent: messages sealed so far, the next counter.
    """

    __slots__ = ("_receiving", "_sending", "_window", "established", "local", "remote", "sent")

    def __init__(self, *, sending: bytes, receiving: bytes, local: int, remote: int, established: float = 0.0) -> None:
        self._sending = ChaCha20Poly1305(sending)
        self._receiving = ChaCha20Poly1305(receiving)
        self._window = ReplayWindow()
        self.local = local
        self.remote = remote
        self.established = established
        self.sent = 0

    def seal(self, packet: bytes) -> bytes:
        """A transport message that carries an IP packet, padded with zeros to 16 bytes; b"" is a keepalive.

        Raises:
            OverflowError: the keypair has sealed as many messages as it may.
        """
        counter = self.sent
        if counter >= REJECT_AFTER_MESSAGES:
            raise OverflowError("this keypair has sealed all the messages it may; a new handshake is due")
        self.sent = counter + 1
        padded = packet + bytes(-len(packet) % PADDING)
        return _HEADER.pack(MessageType.TRANSPORT, self.remote, counter) + self._sending.encrypt(
            _NONCE.pack(counter), padded, b""
        )

    def unseal(self, message: Transport) -> bytes | None:
        """The packet, with its padding (its own length field says where it ends).

        None when it is another session's, was changed, or came before.
        """
        if message.receiver != self.local or message.counter >= REJECT_AFTER_MESSAGES:
            return None
        try:
            packet = self._receiving.decrypt(_NONCE.pack(message.counter), message.sealed_packet, b"")
        except InvalidTag:
            return None
        return packet if self._window.accept(message.counter) else None
