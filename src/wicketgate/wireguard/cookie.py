# SPDX-License-Identifier: Apache-2.0
"""Macs and cookies: who may cost a loaded server a Diffie-Hellman (WireGuard paper, sections 5.3, 5.4.4 and 5.4.7).

mac1 shows that the sender knows the receiver's public key; without it there is silence. A server under load answers a
valid mac1 with a cookie, bound to the sender's address and port, and wants the next message to carry mac2, keyed with
that cookie.
"""

from __future__ import annotations

import secrets
from enum import Enum, auto

from wicketgate.clock import Clock
from wicketgate.wireguard.constants import COOKIE_LIFE, COOKIE_SECRET_LIFE, LABEL_COOKIE, LABEL_MAC1
from wicketgate.wireguard.keys import PublicKey
from wicketgate.wireguard.messages import NO_MAC, CookieReply
from wicketgate.wireguard.primitives import hash_, mac, xseal, xunseal

MAC_SIZE = 16  # bytes; mac1 and mac2 are the last two fields of an initiation and of a response
MAC1_END = -MAC_SIZE
MAC1_START = -2 * MAC_SIZE


class Mac1Check:
    """Whether a message knows whom it is for: the cheap first look at everything that comes in."""

    def __init__(self, own: PublicKey) -> None:
        self._key = hash_(LABEL_MAC1, own.raw)

    def fits(self, message: bytes) -> bool:
        """Judge an initiation or response."""
        return secrets.compare_digest(message[MAC1_START:MAC1_END], mac(self._key, message[:MAC1_START]))


class CookieJar:
    """The sender's side: puts both macs on a message, and keeps the cookie that a loaded receiver sent."""

    def __init__(self, receiver: PublicKey, clock: Clock) -> None:
        self._mac1_key = hash_(LABEL_MAC1, receiver.raw)
        self._cookie_key = hash_(LABEL_COOKIE, receiver.raw)
        self._clock = clock
        self._cookie: bytes | None = None
        self._got = 0.0
        self._last_mac1: bytes | None = None

    def sign(self, message: bytes) -> bytes:
        """The message, whose macs are still empty, with mac1 and, when there is a fresh cookie, mac2."""
        body = message[:MAC1_START]
        mac1 = mac(self._mac1_key, body)
        self._last_mac1 = mac1
        signed = body + mac1
        if self._cookie is not None and self._clock.monotonic() - self._got >= COOKIE_LIFE:
            self._cookie = None
        return signed + (NO_MAC if self._cookie is None else mac(self._cookie, signed))

    def take(self, reply: CookieReply) -> bool:
        """Keep the cookie of a reply; False when it does not answer the last message that was signed."""
        if self._last_mac1 is None:
            return False
        cookie = xunseal(self._cookie_key, reply.nonce, reply.sealed_cookie, self._last_mac1)
        if cookie is None:
            return False
        self._last_mac1 = None  # one reply a message: a repeated one says nothing new
        self._cookie = cookie
        self._got = self._clock.monotonic()
        return True

    def forget(self) -> None:
        """Drop the cookie: it is bound to an address and port that are no longer used."""
        self._cookie = None
        self._last_mac1 = None


class MacVerdict(Enum):
    """What the macs of a message show."""

    INVALID = auto()  # silence
    MAC1 = auto()  # knows our public key; under load: send a cookie
    MAC2 = auto()  # and receives at the address it sends from; under load: go on


class CookieMaker:
    """The receiver's side: checks macs and makes cookie replies."""

    def __init__(self, own: PublicKey, clock: Clock) -> None:
        self._mac1 = Mac1Check(own)
        self._cookie_key = hash_(LABEL_COOKIE, own.raw)
        self._clock = clock
        self._secret = secrets.token_bytes(32)  # R_m
        self._made = clock.monotonic()

    def check(self, message: bytes, source: bytes) -> MacVerdict:
        """Judge an initiation or response.

        Args:
            message: as received.
            source: the sender's address and port, in any encoding that is always the same.
        """
        if not self._mac1.fits(message):
            return MacVerdict.INVALID
        if secrets.compare_digest(message[MAC1_END:], mac(self._cookie(source), message[:MAC1_END])):
            return MacVerdict.MAC2
        return MacVerdict.MAC1

    def reply(self, message: bytes, sender: int, source: bytes) -> CookieReply:
        """The cookie reply to a message with a valid mac1; `sender` is the index it carries."""
        nonce = secrets.token_bytes(24)
        sealed = xseal(self._cookie_key, nonce, self._cookie(source), message[MAC1_START:MAC1_END])
        return CookieReply(sender, nonce, sealed)

    def _cookie(self, source: bytes) -> bytes:
        now = self._clock.monotonic()
        if now - self._made >= COOKIE_SECRET_LIFE:
            self._secret = secrets.token_bytes(32)
            self._made = now
        return mac(self._secret, source)
