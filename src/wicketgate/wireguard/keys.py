# SPDX-License-Identifier: Apache-2.0
"""Curve25519 keys and preshared keys (WireGuard paper, section 5.4). Secrets never show in a repr, str or error."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_LENGTH = 32  # bytes; Curve25519 point or scalar, and the preshared key


def _decode(text: str, what: str) -> bytes:
    # The value itself stays out of the message: a private key pasted on the wrong line must not reach a log.
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{what} is not base64 ({len(text)} characters read; a key is 44, ending in =)") from None
    if len(raw) != KEY_LENGTH or base64.b64encode(raw).decode() != text:
        raise ValueError(
            f"{what} does not decode to {KEY_LENGTH} bytes ({len(text)} characters read; a key is 44, ending in =)"
        )
    return raw


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A peer's name: 32 bytes, written as 44 characters of base64."""

    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64. Raises ValueError, without the value, when it is no key."""
        return cls(_decode(text, "public key"))

    def __str__(self) -> str:
        return base64.b64encode(self.raw).decode()

    @property
    def short(self) -> str:
        """The first eight characters, for people and metrics."""
        return str(self)[:8]


class _Secret:
    """Bytes that do not show."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LENGTH:
            raise ValueError(f"a key has {KEY_LENGTH} bytes, {len(raw)} were given")
        self._raw = bytes(raw)

    def expose(self) -> bytes:
        """The bytes, for the cipher and the device only."""
        return self._raw

    def expose_base64(self) -> str:
        """As a configuration file writes it."""
        return base64.b64encode(self._raw).decode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and secrets.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._raw))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not pickled")


class PrivateKey(_Secret):
    """A Curve25519 scalar."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64. Raises ValueError, without the value, when it is no key."""
        return cls(_decode(text, "private key"))

    @classmethod
    def generate(cls) -> Self:
        """A fresh key, clamped as `wg genkey` does."""
        raw = bytearray(secrets.token_bytes(KEY_LENGTH))
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        return cls(bytes(raw))

    def public(self) -> PublicKey:
        """The point that belongs to it."""
        return PublicKey(X25519PrivateKey.from_private_bytes(self._raw).public_key().public_bytes_raw())


class PresharedKey(_Secret):
    """The symmetric key mixed in by IKpsk2; all zero means none."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From base64. Raises ValueError, without the value, when it is no key."""
        return cls(_decode(text, "preshared key"))

    @classmethod
    def generate(cls) -> Self:
        """A fresh key, as `wg genpsk` does."""
        return cls(secrets.token_bytes(KEY_LENGTH))
