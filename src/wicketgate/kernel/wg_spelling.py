# SPDX-License-Identifier: Apache-2.0
"""WireGuard settings as wg(8) takes them, with every secret hidden. Pure, no I/O."""

from __future__ import annotations

from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PublicKey

HIDDEN = "(hidden)"  # wg takes secrets from files only; a file's name would be a lie here


def spell_peer(peer: PeerConfig) -> str:
    """`peer KEY preshared-key (hidden) endpoint [fd00::1]:51820 persistent-keepalive 25 allowed-ips 10.0.0.2/32`."""
    words = ["peer", str(peer.public_key)]
    if peer.clear_preshared_key:
        words += ["preshared-key", "/dev/null"]
    elif peer.preshared_key is not None:
        words += ["preshared-key", HIDDEN]
    if peer.endpoint is not None:
        address, port = peer.endpoint
        words += ["endpoint", f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"]
    if peer.persistent_keepalive is not None:
        words += ["persistent-keepalive", str(peer.persistent_keepalive) if peer.persistent_keepalive else "off"]
    if peer.allowed_ips is not None:
        words += ["allowed-ips", ",".join(map(str, peer.allowed_ips)) or "''"]
    return " ".join(words)


def spell_set(ifname: str, config: DeviceConfig) -> str:
    """`wg set wg0 listen-port 51820 fwmark 0xca6c private-key (hidden) peer ...`, in wg's order."""
    words = ["wg", "set", ifname]
    if config.listen_port is not None:
        words += ["listen-port", str(config.listen_port)]
    if config.fwmark is not None:
        words += ["fwmark", f"{config.fwmark:#x}" if config.fwmark else "off"]
    if config.private_key is not None:
        words += ["private-key", HIDDEN]
    words += [spell_peer(peer) for peer in config.peers]
    return " ".join(words)


def spell_remove_peer(ifname: str, public_key: PublicKey) -> str:
    """`wg set wg0 peer KEY remove`."""
    return f"wg set {ifname} peer {public_key} remove"
