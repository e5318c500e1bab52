# SPDX-License-Identifier: Apache-2.0
"""What several [Peer] sections make of each other when WireGuard takes them one after the other.

wg sends each section with WGPEER_F_REPLACE_ALLOWEDIPS (src/config.c); the device creates a peer at its first section
and changes it at a later one (drivers/net/wireguard/netlink.c, set_peer). A prefix that one peer has moves to the
peer that names it later (allowedips.c). A peer with the device's own public key is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from wicketgate.config.model import Endpoint, IPNetwork, Peer
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey


@dataclass(slots=True)
class PeerSection:
    """One [Peer] section as it was read; `line` is its header's."""

    line: int
    name: str | None = None
    has_public_key: bool = False
    public_key: PublicKey | None = None
    public_key_line: int = 0
    preshared_key: PresharedKey | None = None
    allowed_ips: dict[IPNetwork, int] = field(default_factory=dict)  # prefix -> line
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """The peers in the order of their first sections, and where a secret stands in for a public key (line, key)."""

    peers: tuple[Peer, ...]
    exposed: tuple[tuple[int, str], ...]


def merge(sections: Iterable[PeerSection], private_key: PrivateKey | None, warn: Callable[[int, str], None]) -> Merged:
    """Play the sections as the device would.

    Args:
        sections: in the order of the file, each with its public key.
        private_key: the interface's.
        warn: takes a line and a text.
    """
    keyed = [(s.public_key, s) for s in sections if s.public_key is not None]
    secrets = {s.preshared_key.expose() for _, s in keyed if s.preshared_key is not None} - {bytes(32)}
    if private_key is not None and any(private_key.expose()):
        secrets.add(private_key.expose())
        own = private_key.public()
    else:
        own = None
    merged: dict[PublicKey, PeerSection] = {}
    owner: dict[IPNetwork, PublicKey] = {}
    exposed = []
    for key, section in keyed:
        if key.raw in secrets:
            exposed.append((section.public_key_line, "PublicKey"))
            continue
        if key == own:
            warn(section.line, "[Peer] the interface's own public key: WireGuard ignores this peer")
            continue
        peer = merged.get(key)
        if peer is None:
            peer = merged[key] = PeerSection(section.line, public_key=key)
        else:
            warn(
                section.line,
                f"[Peer] {key.short}... again: one peer with line {peer.line}, with the allowed-ips of this section alone",
            )
            for prefix in peer.allowed_ips:
                del owner[prefix]
            peer.allowed_ips = {}
        for prefix, line in section.allowed_ips.items():
            before = owner.get(prefix)
            if before is not None and before != key:
                warn(
                    line,
                    f"[Peer] AllowedIPs: {prefix} is also claimed in line {merged[before].allowed_ips.pop(prefix)}; the last one has it",
                )
            owner[prefix] = key
            peer.allowed_ips[prefix] = line
        peer.name = section.name or peer.name
        peer.preshared_key = section.preshared_key or peer.preshared_key
        peer.endpoint = section.endpoint or peer.endpoint
        if section.persistent_keepalive is not None:
            peer.persistent_keepalive = section.persistent_keepalive
    return Merged(
        tuple(
            Peer(key, p.preshared_key, tuple(p.allowed_ips), p.endpoint, p.persistent_keepalive, p.name)
            for key, p in merged.items()
        ),
        tuple(exposed),
    )
