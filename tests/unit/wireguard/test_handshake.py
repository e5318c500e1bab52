# SPDX-License-Identifier: Apache-2.0
"""The Noise handshake: our two roles against each other, against a recorded transcript, and against noiseprotocol."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from wicketgate.wireguard.constants import CONSTRUCTION, IDENTIFIER
from wicketgate.wireguard.handshake import HandshakeState, Identity, Initiator, Responder, ResponseVerdict, WrongState
from wicketgate.wireguard.keys import PresharedKey, PrivateKey
from wicketgate.wireguard.messages import Initiation, Response, Transport
from wicketgate.wireguard.primitives import KeyPair

STAMP = bytes.fromhex("400000006553f10a00000000")
CLIENT = PrivateKey(bytes(range(32)))
SERVER = PrivateKey(bytes(range(32, 64)))
EPHEMERAL_I = PrivateKey(bytes(range(64, 96)))
EPHEMERAL_R = PrivateKey(bytes(range(96, 128)))
PSK = PresharedKey(bytes(range(128, 160)))


def initiator(psk: PresharedKey | None = PSK) -> Initiator:
    return Initiator(Identity.between(KeyPair(CLIENT), SERVER.public(), psk), 0x11223344, EPHEMERAL_I)


def test_both_roles_agree_step_by_step():
    """Chaining key and hash of both sides are equal after each message, and the session keys fit crosswise."""
    ours, theirs = initiator(), Responder(KeyPair(SERVER))
    assert (ours.C, ours.H) == (theirs.C, theirs.H)
    first = ours.create_initiation(STAMP)
    assert ours.state is HandshakeState.INITIATION_CREATED
    assert theirs.consume_initiation(first) == CLIENT.public()
    assert theirs.state is HandshakeState.INITIATION_CONSUMED
    assert theirs.timestamp == STAMP
    assert (ours.C, ours.H) == (theirs.C, theirs.H)
    answer = theirs.create_response(0x55667788, PSK)
    assert answer is not None
    second, server_session = answer
    verdict, session = ours.consume_response(second)
    assert verdict is ResponseVerdict.ACCEPTED
    assert session is not None
    assert (ours.state, theirs.state) == (HandshakeState.RESPONSE_CONSUMED, HandshakeState.RESPONSE_CREATED)
    assert (ours.C, ours.H) == (theirs.C, theirs.H)
    assert (session.local, session.remote) == (server_session.remote, server_session.local) == (0x11223344, 0x55667788)
    for sender, receiver in ((session, server_session), (server_session, session)):
        sealed = Transport.parse(sender.seal(b"\x45 a packet"))
        assert sealed is not None
        assert receiver.unseal(sealed) == b"\x45 a packet" + bytes(6)
        assert receiver.unseal(sealed) is None  # a replay


def test_recorded_transcript():
    """With fixed keys every byte is as recorded: neither a refactoring nor a library may change the wire."""
    ours, theirs = initiator(), Responder(KeyPair(SERVER))
    first = ours.create_initiation(STAMP)
    assert theirs.consume_initiation(first) is not None
    answer = theirs.create_response(0x55667788, PSK, EPHEMERAL_R)
    assert answer is not None
    assert first.encode().hex() == RECORDED_INITIATION
    assert answer[0].encode().hex() == RECORDED_RESPONSE
    assert ours.consume_response(answer[0])[0] is ResponseVerdict.ACCEPTED
    assert ours.C.hex() == RECORDED_CHAINING_KEY
    assert ours.H.hex() == RECORDED_HASH


def oracle(*, initiating: bool, psk: PresharedKey) -> NoiseConnection:
    noise = NoiseConnection.from_name(CONSTRUCTION)
    noise.set_as_initiator() if initiating else noise.set_as_responder()
    noise.set_prologue(IDENTIFIER)
    noise.set_psks(psk=psk.expose())
    own = CLIENT if initiating else SERVER
    noise.set_keypair_from_private_bytes(Keypair.STATIC, own.expose())
    if initiating:
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, SERVER.public().raw)
    noise.start_handshake()
    return noise


def test_noiseprotocol_answers_our_initiation():
    """An independent Noise implementation as responder reads our initiation and agrees on the transport keys."""
    noise, ours = oracle(initiating=False, psk=PSK), initiator()
    first = ours.create_initiation(STAMP)
    assert bytes(noise.read_message(first.ephemeral + first.sealed_static + first.sealed_timestamp)) == STAMP
    answer = bytes(noise.write_message(b""))
    verdict, session = ours.consume_response(Response(7, 0x11223344, answer[:32], answer[32:]))
    assert verdict is ResponseVerdict.ACCEPTED
    assert session is not None
    assert bytes(noise.decrypt(session.seal(b"")[16:])) == b""
    assert session.unseal(Transport(0x11223344, 0, bytes(noise.encrypt(b"\x45")))) == b"\x45"
    assert noise.get_handshake_hash() == ours.H


def test_noiseprotocol_initiates_to_us():
    """The same with our responder."""
    noise, ours = oracle(initiating=True, psk=PSK), Responder(KeyPair(SERVER))
    first = bytes(noise.write_message(STAMP))
    assert ours.consume_initiation(Initiation(9, first[:32], first[32:80], first[80:])) == CLIENT.public()
    assert ours.timestamp == STAMP
    answer = ours.create_response(5, PSK)
    assert answer is not None
    response, session = answer
    assert bytes(noise.read_message(response.ephemeral + response.sealed_nothing)) == b""
    assert bytes(noise.decrypt(session.seal(b"")[16:])) == b""
    assert session.unseal(Transport(5, 0, bytes(noise.encrypt(b"\x45")))) == b"\x45"
    assert noise.get_handshake_hash() == ours.H


@pytest.mark.parametrize(("ours_psk", "theirs_psk"), [(PSK, None), (None, PSK), (PSK, PresharedKey(bytes(31) + b"1"))])
def test_wrong_preshared_key_is_seen_last(ours_psk: PresharedKey | None, theirs_psk: PresharedKey | None):
    """The responder cannot know; the initiator sees it in the sealed payload, and its state is as before."""
    ours, theirs = initiator(ours_psk), Responder(KeyPair(SERVER))
    assert theirs.consume_initiation(ours.create_initiation(STAMP)) is not None
    before = (ours.C, ours.H, ours.state)
    answer = theirs.create_response(1, theirs_psk)
    assert answer is not None
    assert ours.consume_response(answer[0]) == (ResponseVerdict.NOT_OPENED, None)
    assert (ours.C, ours.H, ours.state) == before


def test_a_forged_response_does_not_spoil_the_true_one():
    """After any number of wrong responses the right one is still accepted."""
    ours, theirs = initiator(), Responder(KeyPair(SERVER))
    assert theirs.consume_initiation(ours.create_initiation(STAMP)) is not None
    answer = theirs.create_response(1, PSK)
    assert answer is not None
    true = answer[0]
    assert ours.consume_response(Response(1, 99, true.ephemeral, true.sealed_nothing))[0] is ResponseVerdict.NOT_OURS
    assert ours.consume_response(Response(1, true.receiver, bytes(32), bytes(16)))[0] is ResponseVerdict.NOT_OURS
    garbage = Response(1, true.receiver, KeyPair().public, bytes(16))
    assert ours.consume_response(garbage)[0] is ResponseVerdict.NOT_OPENED
    assert ours.consume_response(true)[0] is ResponseVerdict.ACCEPTED


def test_wrong_server_key_and_changed_bits_do_not_open():
    """An initiation for another server, or one with any part changed, is nothing to a responder."""
    message = initiator().create_initiation(STAMP).encode()
    assert Responder(KeyPair()).consume_initiation(Initiation.parse(message)) is None  # type: ignore[arg-type]
    for position in (8, 39, 40, 87, 88, 115):
        changed = Initiation.parse(message[:position] + bytes([message[position] ^ 1]) + message[position + 1 :])
        assert changed is not None
        assert Responder(KeyPair(SERVER)).consume_initiation(changed) is None


def test_steps_have_an_order():
    """A step out of its order is a programmer's slip and is said at once."""
    ours, theirs = initiator(), Responder(KeyPair(SERVER))
    with pytest.raises(WrongState, match="START"):
        ours.consume_response(Response(0, 0, bytes(32), bytes(16)))
    with pytest.raises(WrongState, match="START"):
        theirs.create_response(1)
    first = ours.create_initiation(STAMP)
    with pytest.raises(WrongState, match="INITIATION_CREATED"):
        ours.create_initiation(STAMP)
    theirs.consume_initiation(first)
    with pytest.raises(WrongState, match="INITIATION_CONSUMED"):
        theirs.consume_initiation(first)


def test_points_of_small_order_are_refused():
    """A peer's key that no private key has is refused when it is given, not at the first handshake."""
    for point in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(ValueError, match="small order"):
            Identity.between(KeyPair(), type(SERVER.public())(point))


def test_no_secret_in_a_repr():
    """Neither the preshared key nor what was derived from the private key shows."""
    identity = Identity.between(KeyPair(CLIENT), SERVER.public(), PSK)
    assert repr(PSK.expose()) not in repr(identity)
    assert repr(identity.static_static) not in repr(identity)


@given(ephemeral=st.binary(min_size=32, max_size=32), sealed=st.binary(min_size=48, max_size=48))
@settings(max_examples=50, deadline=None)
def test_random_initiations_are_silence(ephemeral: bytes, sealed: bytes):
    """Whatever comes, a responder answers with None and stays ready."""
    theirs = Responder(KeyPair(SERVER))
    assert theirs.consume_initiation(Initiation(1, ephemeral, sealed, bytes(28))) is None
    assert theirs.state is HandshakeState.START


RECORDED_INITIATION = (
    "010000004433221179a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51af0225eb421886af8"
    "f54fb31289d49dcd82b0f6f3279d40d7cff913fece0c64ad226eef3320755b393b72f16842c8d7ee78a74e937e3f2a82"
    "8ff4ecc11547a9c7d1ee1b22fedf3178ecbaddb300000000000000000000000000000000000000000000000000000000"
    "00000000"
)
RECORDED_RESPONSE = (
    "020000008877665544332211675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f5656f683"
    "cf4eca2baff0b0af3d5ad1370000000000000000000000000000000000000000000000000000000000000000"
)
RECORDED_CHAINING_KEY = "31f8d19c2fc0571784aa27e8029c387d5656419453d8e82ae66031aa1b197836"
RECORDED_HASH = "936de72569779d9c9f2bb8b46e0f93f73802c820b5b32f458f362d4de6735b07"
