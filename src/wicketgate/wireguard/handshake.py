# SPDX-License-Identifier: Apache-2.0
"""The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, both roles, without I/O (WireGuard paper, 5.4.2 and 5.4.3).

The paper's names are kept: C is the chaining key, H the hash of all that was said, E an ephemeral key, S a static
one, Q the preshared key; i is the initiator, r the responder. A message that does not open changes nothing: the next
one is judged as if it had never come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from wicketgate.wireguard.constants import CONSTRUCTION, IDENTIFIER
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey
from wicketgate.wireguard.messages import Initiation, Response
from wicketgate.wireguard.primitives import KeyPair, hash_, kdf1, kdf2, kdf3, seal, unseal
from wicketgate.wireguard.transport import Session

_C0 = hash_(CONSTRUCTION)
_H0 = hash_(_C0, IDENTIFIER)
_NO_PSK = bytes(32)


class HandshakeState(Enum):
    """How far a handshake is."""

    START = auto()
    INITIATION_CREATED = auto()  # initiator
    INITIATION_CONSUMED = auto()  # responder
    RESPONSE_CREATED = auto()  # responder: done
    RESPONSE_CONSUMED = auto()  # initiator: done


class ResponseVerdict(Enum):
    """What a response turned out to be."""

    ACCEPTED = auto()
    NOT_OURS = auto()  # another index, or nothing that a Diffie-Hellman can use
    # Index and keys may be right, the sealed empty payload is not: the preshared keys differ. (A server answers
    # although its preshared key is another: only this field proves that both are the same.)
    NOT_OPENED = auto()


class WrongState(RuntimeError):  # noqa: N818 - a slip of the programmer, not of the peer
    """A step out of its order."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to one peer: static keys, with the Dh of the two static keys done once.

    Attributes:
        own: our static key.
        peer: the other's static public key.
        static_static: Dh of the two.
        psk: Q, 32 bytes.
    """

    own: KeyPair
    peer: PublicKey
    static_static: bytes = field(repr=False)
    psk: bytes = field(repr=False)

    @classmethod
    def between(cls, own: KeyPair, peer: PublicKey, preshared_key: PresharedKey | None = None) -> Identity:
        """Make it. Raises ValueError when the peer's key is a point of small order."""
        static_static = own.dh(peer.raw)
        if static_static is None:
            raise ValueError("the peer's public key is a point of small order, which no private key has")
        return cls(own, peer, static_static, preshared_key.expose() if preshared_key else _NO_PSK)


class Initiator:
    """The side that speaks first. One object is one handshake, and so one ephemeral key."""

    __slots__ = ("C", "H", "_E", "_identity", "index", "state")

    def __init__(self, identity: Identity, index: int, ephemeral: PrivateKey | None = None) -> None:
        """Begin.

        Args:
            identity: the static keys.
            index: our index, 32 bits, fresh for every handshake.
            ephemeral: for recorded vectors only; otherwise generated.
        """
        self._identity = identity
        self._E = KeyPair(ephemeral)
        self.index = index
        self.C = _C0
        self.H = hash_(_H0, identity.peer.raw)
        self.state = HandshakeState.START

    def create_initiation(self, timestamp: bytes) -> Initiation:
        """Section 5.4.2. The macs stay empty.

        Args:
            timestamp: TAI64N, greater than in any initiation before.
        """
        if self.state is not HandshakeState.START:
            raise WrongState(f"an initiation is created once, and this handshake is at {self.state.name}")
        identity = self._identity
        ephemeral_static = self._E.dh(identity.peer.raw)
        if ephemeral_static is None:
            raise ValueError("the peer's public key is a point of small order")  # Identity.between has refused it
        c = kdf1(_C0, self._E.public)
        h = hash_(self.H, self._E.public)
        c, k = kdf2(c, ephemeral_static)
        sealed_static = seal(k, identity.own.public, h)
        h = hash_(h, sealed_static)
        c, k = kdf2(c, identity.static_static)
        sealed_timestamp = seal(k, timestamp, h)
        self.C, self.H = c, hash_(h, sealed_timestamp)
        self.state = HandshakeState.INITIATION_CREATED
        return Initiation(self.index, self._E.public, sealed_static, sealed_timestamp)

    def consume_response(self, message: Response, now: float = 0.0) -> tuple[ResponseVerdict, Session | None]:
        """Section 5.4.3, read; and 5.4.5, the transport keys.

        Args:
            message: the response; its mac1 was checked.
            now: becomes the session's `established`.
        """
        if self.state is not HandshakeState.INITIATION_CREATED:
            raise WrongState(f"a response is read after an initiation, and this handshake is at {self.state.name}")
        if message.receiver != self.index:
            return ResponseVerdict.NOT_OURS, None
        ephemeral_ephemeral = self._E.dh(message.ephemeral)
        static_ephemeral = self._identity.own.dh(message.ephemeral)
        if ephemeral_ephemeral is None or static_ephemeral is None:
            return ResponseVerdict.NOT_OURS, None
        c = kdf1(self.C, message.ephemeral)
        h = hash_(self.H, message.ephemeral)
        c = kdf1(c, ephemeral_ephemeral)
        c = kdf1(c, static_ephemeral)
        c, tau, k = kdf3(c, self._identity.psk)
        h = hash_(h, tau)
        if unseal(k, message.sealed_nothing, h) != b"":
            return ResponseVerdict.NOT_OPENED, None
        self.C, self.H = c, hash_(h, message.sealed_nothing)
        self.state = HandshakeState.RESPONSE_CONSUMED
        sending, receiving = kdf2(c, b"")
        return ResponseVerdict.ACCEPTED, Session(
            sending=sending, receiving=receiving, local=self.index, remote=message.sender, established=now
        )


class Responder:
    """The side that answers: who is calling is only known once the initiation is open."""

    __slots__ = ("C", "H", "_S", "_ephemeral_i", "_remote", "peer", "state", "timestamp")

    def __init__(self, own: KeyPair) -> None:
        self._S = own
        self.C = _C0
        self.H = hash_(_H0, own.public)
        self._ephemeral_i = b""
        self._remote = 0
        self.peer: PublicKey | None = None
        self.timestamp = b""
        self.state = HandshakeState.START

    def consume_initiation(self, message: Initiation) -> PublicKey | None:
        """Section 5.4.2, read: the static key of who calls, None when it does not open.

        The caller judges whether it knows that key and whether `timestamp` is greater than the peer's last.
        """
        if self.state is not HandshakeState.START:
            raise WrongState(f"an initiation is read once, and this handshake is at {self.state.name}")
        static_ephemeral = self._S.dh(message.ephemeral)
        if static_ephemeral is None:
            return None
        c = kdf1(_C0, message.ephemeral)
        h = hash_(self.H, message.ephemeral)
        c, k = kdf2(c, static_ephemeral)
        static_i = unseal(k, message.sealed_static, h)
        if static_i is None:
            return None
        static_static = self._S.dh(static_i)
        if static_static is None:
            return None
        h = hash_(h, message.sealed_static)
        c, k = kdf2(c, static_static)
        timestamp = unseal(k, message.sealed_timestamp, h)
        if timestamp is None:
            return None
        self.C, self.H = c, hash_(h, message.sealed_timestamp)
        self._ephemeral_i = message.ephemeral
        self._remote = message.sender
        self.peer = PublicKey(static_i)
        self.timestamp = timestamp
        self.state = HandshakeState.INITIATION_CONSUMED
        return self.peer

    def create_response(
        self,
        index: int,
        preshared_key: PresharedKey | None = None,
        ephemeral: PrivateKey | None = None,
        now: float = 0.0,
    ) -> tuple[Response, Session] | None:
        """Section 5.4.3. The macs stay empty; None when the caller's keys are points of small order.

        Args:
            index: our index, 32 bits, fresh for every handshake.
            preshared_key: Q of this peer.
            ephemeral: for recorded vectors only; otherwise generated.
            now: becomes the session's `established`.
        """
        if self.state is not HandshakeState.INITIATION_CONSUMED or self.peer is None:
            raise WrongState(f"a response is created after an initiation, and this handshake is at {self.state.name}")
        pair = KeyPair(ephemeral)
        ephemeral_ephemeral = pair.dh(self._ephemeral_i)
        ephemeral_static = pair.dh(self.peer.raw)
        if ephemeral_ephemeral is None or ephemeral_static is None:
            return None
        c = kdf1(self.C, pair.public)
        h = hash_(self.H, pair.public)
        c = kdf1(c, ephemeral_ephemeral)
        c = kdf1(c, ephemeral_static)
        c, tau, k = kdf3(c, preshared_key.expose() if preshared_key else _NO_PSK)
        h = hash_(h, tau)
        sealed_nothing = seal(k, b"", h)
        self.C, self.H = c, hash_(h, sealed_nothing)
        self.state = HandshakeState.RESPONSE_CREATED
        receiving, sending = kdf2(c, b"")
        response = Response(index, self._remote, pair.public, sealed_nothing)
        return response, Session(
            sending=sending, receiving=receiving, local=index, remote=self._remote, established=now
        )
