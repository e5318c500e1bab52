# SPDX-License-Identifier: Apache-2.0
"""Role exit stands and falls with the peer that takes the default: is it alive?

WireGuard says nothing on its own account, but a peer that gets data answers within KEEPALIVE_TIMEOUT (10 s), with a
keepalive if nothing else. So a datagram to nobody is sent through the tunnel when the peer has been silent for a
while, and what comes back is counted. A handshake alone would stay young for three minutes after the peer's death.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from wicketgate.clock import Clock
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Family, PeerState

_log = get_logger("exit")

STIR_AFTER = 5.0  # seconds of silence; REKEY_TIMEOUT: an unanswered handshake is tried again after as long
# Seconds: KEEPALIVE_TIMEOUT 10 s, and one lost keepalive more, and the stir.
DEAD_AFTER = 30.0
_DEFAULT = 1  # a default, or half of one
_DISCARD = 9  # RFC 863
# RFC 5737 and RFC 3849: nobody.
_NOBODY: dict[Family, str] = {4: "192.0.2.3", 6: "2001:db8::3"}


def stir(ifname: str, family: Family) -> None:
    """One datagram to nobody through the tunnel: WireGuard shakes hands when there is something to send."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        with socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode())
            sock.sendto(b"\0", (_NOBODY[family], _DISCARD))
    except OSError as error:
        _log.debug("could not stir the exit peer", error=str(error))


class ExitWatch:
    """Watches the peers that take a default.

    Args:
        ifname: the tunnel.
        clock: the time.
        stir: sends something; replaced in tests.
    """

    def __init__(self, ifname: str, clock: Clock, stir: Callable[[str, Family], None] = stir) -> None:
        self._ifname = ifname
        self._clock = clock
        self._stir = stir
        # By public key: bytes received so far, and when they last grew (monotonic seconds).
        self._received: dict[str, tuple[int, float]] = {}
        self._stirred = float("-inf")

    def check(self, peers: Sequence[PeerState]) -> CheckResult:
        """Look at the device's peers as they are now."""
        at = self._clock.monotonic()
        exits = [p for p in peers if any(n.prefixlen <= _DEFAULT for n in p.allowed_ips)]
        if not exits:
            words = "no peer takes 0.0.0.0/0 or ::/0"
            return CheckResult("exit", State.FAIL, words, cause=Cause.NO_PEER_FOR_DESTINATION, at=at)
        if all(p.endpoint is None for p in exits):
            words = "the exit peer has no endpoint"
            return CheckResult("exit", State.FAIL, words, cause=Cause.PEER_WITHOUT_ENDPOINT, at=at)
        for peer in exits:
            before = self._received.get(peer.public_key)
            # At first sight what was received may be old; only growth counts, and a new device counts from zero.
            if before is None:
                self._received[peer.public_key] = (peer.rx_bytes, float("-inf"))
            elif peer.rx_bytes > before[0]:
                self._received[peer.public_key] = (peer.rx_bytes, at)
            elif peer.rx_bytes < before[0]:
                self._received[peer.public_key] = (peer.rx_bytes, before[1])
        last = max(self._received[p.public_key][1] for p in exits)
        if at - last > STIR_AFTER and at - self._stirred > STIR_AFTER:
            self._stirred = at
            for family in sorted({_family(p) for p in exits}):
                self._stir(self._ifname, family)
        shaken = any(p.latest_handshake for p in exits)
        if shaken and at - last <= DEAD_AFTER:
            return CheckResult("exit", State.PASS, f"the exit peer was heard {at - last:.0f} s ago", at=at)
        if not shaken:
            words = "the exit peer never shook hands"
        elif last == float("-inf"):
            words = "the exit peer has not been heard since the start"
        else:
            words = f"the exit peer has been silent for {at - last:.0f} s, although it was sent something"
        return CheckResult("exit", State.FAIL, words, cause=Cause.EGRESS_UNREACHABLE, at=at)


def _family(peer: PeerState) -> Family:
    return 4 if any(n.prefixlen <= _DEFAULT and n.version == 4 for n in peer.allowed_ips) else 6
