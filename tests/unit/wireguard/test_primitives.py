# SPDX-License-Identifier: Apache-2.0
"""The functions of the paper against published vectors and the standard library."""

from __future__ import annotations

import hmac as stdlib_hmac

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.wireguard.primitives import hchacha20, hmac, kdf1, kdf2, kdf3, seal, unseal, xseal, xunseal


def test_hchacha20_vector():
    """The vector of draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    key = bytes(range(32))
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    assert hchacha20(key, nonce).hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


def test_xchacha20poly1305_vector():
    """The vector of draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen "
        b"would be it."
    )
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    sealed = xseal(key, nonce, plaintext, associated)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert xunseal(key, nonce, sealed, associated) == plaintext
    assert xunseal(key, nonce, sealed, b"") is None


@given(key=st.binary(max_size=64), data=st.binary(max_size=200))
def test_hmac_is_hmac(key: bytes, data: bytes):
    """The unrolled HMAC is the standard library's, for every key that the protocol uses (up to one block)."""
    assert hmac(key, data) == stdlib_hmac.digest(key, data, "blake2s")


@given(key=st.binary(min_size=32, max_size=32), data=st.binary(max_size=64))
def test_kdf_is_a_prefix(key: bytes, data: bytes):
    """Kdf1, Kdf2 and Kdf3 give the same first outputs, and no two outputs are equal."""
    three = kdf3(key, data)
    assert (kdf1(key, data),) == three[:1]
    assert kdf2(key, data) == three[:2]
    assert len(set(three)) == 3


def test_a_changed_seal_does_not_open():
    """One changed bit anywhere, or other associated data, is None."""
    key = bytes(32)
    sealed = seal(key, b"text", b"about")
    assert unseal(key, sealed, b"about") == b"text"
    assert unseal(key, sealed, b"other") is None
    assert unseal(key, sealed[:3], b"about") is None
    for position in range(len(sealed)):
        assert unseal(key, sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :], b"about") is None
