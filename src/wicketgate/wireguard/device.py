# SPDX-License-Identifier: Apache-2.0
"""What a WireGuard device should be: the values that kernel netlink and UAPI both take (wg(8), uapi/wireguard.h)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer's settings; None leaves a value as it is."""

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    endpoint: tuple[IPv4Address | IPv6Address, int] | None = None
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] | None = None  # replaces the list
    persistent_keepalive: int | None = None  # seconds; 0 = off
    clear_preshared_key: bool = False


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device's settings; None leaves a value as it is. Peers are added or changed, never removed, by this."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None  # 0 = any
    fwmark: int | None = None  # 0 = off
    peers: tuple[PeerConfig, ...] = ()
