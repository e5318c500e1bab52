# SPDX-License-Identifier: Apache-2.0
"""The difference between the peers a device has and those it should have, so that untouched sessions survive."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from wicketgate.netpath.snapshot import PeerState
from wicketgate.wireguard.device import PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PublicKey


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What has to be done to a device's peers."""

    configure: tuple[PeerConfig, ...] = ()
    remove: tuple[PublicKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.configure or self.remove)


def peer_changes(
    have: Sequence[PeerState],
    want: Sequence[PeerConfig],
    *,
    removable: Collection[PublicKey],
    known_preshared: Mapping[PublicKey, PresharedKey | None] | None = None,
) -> PeerChange:
    """The least that turns one into the other.

    Args:
        have: the device's peers.
        want: the peers of the configuration. Their endpoint counts for a new peer only: a client that roamed keeps
            the endpoint it has.
        removable: keys that may go when they are not wanted: those of the last configuration and of old probes. A
            peer that somebody added by hand is nobody's to remove.
        known_preshared: the preshared keys last set; a device does not tell them.
    """
    present = {p.public_key: p for p in have}
    configure = []
    for peer in want:
        state = present.get(str(peer.public_key))
        if state is None:
            configure.append(peer)
            continue
        same_psk = state.has_preshared_key == (peer.preshared_key is not None) and (
            known_preshared is None or known_preshared.get(peer.public_key) == peer.preshared_key
        )
        same_allowed = set(state.allowed_ips) == set(peer.allowed_ips or ())
        same_keepalive = state.persistent_keepalive == (peer.persistent_keepalive or 0)
        if not (same_psk and same_allowed and same_keepalive):
            configure.append(
                PeerConfig(
                    public_key=peer.public_key,
                    preshared_key=peer.preshared_key if not same_psk else None,
                    clear_preshared_key=not same_psk and peer.preshared_key is None,
                    allowed_ips=peer.allowed_ips if not same_allowed else None,
                    persistent_keepalive=(peer.persistent_keepalive or 0) if not same_keepalive else None,
                    endpoint=None,
                )
            )
    wanted = {p.public_key for p in want}
    gone = tuple(sorted((k for k in removable if k not in wanted and str(k) in present), key=str))
    return PeerChange(tuple(configure), gone)
