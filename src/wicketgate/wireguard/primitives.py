# SPDX-License-Identifier: Apache-2.0
"""The functions that the paper's section 5.4 is written in: Hash, Mac, Hmac, Kdf1-3, Dh, Aead, Xaead.

All are thin names for `hashlib` and `cryptography`; only HChaCha20 is put together here, because `cryptography`
offers raw ChaCha20 but no XChaCha20.
"""

from __future__ import annotations

import struct
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from wicketgate.wireguard.keys import PrivateKey, PublicKey

_BLOCK = 64  # bytes, BLAKE2s
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
NO_NONCE = bytes(12)  # every handshake key seals one message only, at counter 0


def hash_(*parts: bytes) -> bytes:
    """Hash: BLAKE2s, 32 bytes."""
    return blake2s(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """Mac: *keyed* BLAKE2s, 16 bytes."""
    return blake2s(data, key=key, digest_size=16).digest()


def hmac(key: bytes, data: bytes) -> bytes:
    """Hmac: HMAC over BLAKE2s (not keyed BLAKE2s), 32 bytes; keys of up to one block.

    Written out because it is half the price of `hmac.digest` for inputs this small.
    """
    block = key.ljust(_BLOCK, b"\0")
    return blake2s(block.translate(_OUTER) + blake2s(block.translate(_INNER) + data).digest()).digest()


def kdf1(key: bytes, data: bytes) -> bytes:
    """One output of HKDF."""
    return hmac(hmac(key, data), b"\x01")


def kdf2(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Two outputs of HKDF."""
    secret = hmac(key, data)
    first = hmac(secret, b"\x01")
    return first, hmac(secret, first + b"\x02")


def kdf3(key: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Three outputs of HKDF."""
    secret = hmac(key, data)
    first = hmac(secret, b"\x01")
    second = hmac(secret, first + b"\x02")
    return first, second, hmac(secret, second + b"\x03")


def seal(key: bytes, plaintext: bytes, associated: bytes, nonce: bytes = NO_NONCE) -> bytes:
    """Aead: ChaCha20-Poly1305 (RFC 8439)."""
    return ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, ciphertext: bytes, associated: bytes, nonce: bytes = NO_NONCE) -> bytes | None:
    """Aead the other way; None when the tag does not fit."""
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, associated)
    except InvalidTag:
        return None


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """HChaCha20 of draft-irtf-cfrg-xchacha-03, section 2.2: 32-byte key and 16-byte nonce to a 32-byte key.

    A ChaCha20 keystream block is the final state plus the initial one; HChaCha20 is the final state's first and last
    row alone. So the initial words are taken off again.
    """
    encryptor = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
    block = struct.unpack("<16I", encryptor.update(bytes(64)))
    initial = (*_SIGMA, *struct.unpack("<4I", nonce))
    final = (*block[:4], *block[12:])
    return struct.pack("<8I", *((word - start) & 0xFFFFFFFF for word, start in zip(final, initial, strict=True)))


def xseal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Xaead: XChaCha20-Poly1305 with a 24-byte nonce."""
    return seal(hchacha20(key, nonce[:16]), plaintext, associated, bytes(4) + nonce[16:])


def xunseal(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes | None:
    """Xaead the other way; None when the tag does not fit."""
    return unseal(hchacha20(key, nonce[:16]), ciphertext, associated, bytes(4) + nonce[16:])


class KeyPair:
    """A Curve25519 private key, ready for many Dh.

    Attributes:
        public: its point, 32 bytes.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: PrivateKey | None = None) -> None:
        """Take a key, or DH-Generate a fresh one."""
        if private is None:
            self._private = X25519PrivateKey.generate()
        else:
            self._private = X25519PrivateKey.from_private_bytes(private.expose())
        self.public = self._private.public_key().public_bytes_raw()

    def dh(self, point: bytes) -> bytes | None:
        """Dh; None for the points of small order, whose result says nothing (RFC 7748, section 6.1)."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(point))
        except ValueError:
            return None

    @property
    def public_key(self) -> PublicKey:
        """Its point as the name of a peer."""
        return PublicKey(self.public)
