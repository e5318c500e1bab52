# SPDX-License-Identifier: Apache-2.0
"""What a wg-quick file says, as values. Nothing here shows a key in its repr (wg(8), wg-quick(8))."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Literal, TypeAlias

from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network
Table: TypeAlias = Literal["auto", "off"] | int

DEFAULTS: tuple[IPNetwork, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer is reached: an address (IPv6 without brackets, a zone after %) or a host name, and a UDP port."""

    host: str
    port: int

    @property
    def address(self) -> IPAddress | None:
        """The address, or None when `host` is a name that has to be resolved (again and again: it may move)."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Interface:
    """The [Interface] section.

    Attributes:
        addresses: as they are given to the interface; an address without a length has /32 or /128.
        listen_port: UDP; 0 or None = the kernel chooses.
        private_key: None when the file has none (a PostUp may set it).
        mtu: bytes; None = find out.
        dns: servers.
        dns_search: search domains, from the same key.
        table: where routes go; "auto" is wg-quick's default, "off" adds none.
        fwmark: of the encrypted packets; 0 = off, None = not said.
        pre_up, post_up, pre_down, post_down: shell snippets in order, `%i` left in. They may quote secrets, so they
            stay out of the repr.
        save_config: the running state is written back when the interface goes down.
    """

    addresses: tuple[IPInterface, ...] = ()
    listen_port: int | None = None
    private_key: PrivateKey | None = None
    mtu: int | None = None
    dns: tuple[IPAddress, ...] = ()
    dns_search: tuple[str, ...] = ()
    table: Table = "auto"
    fwmark: int | None = None
    pre_up: tuple[str, ...] = field(default=(), repr=False)
    post_up: tuple[str, ...] = field(default=(), repr=False)
    pre_down: tuple[str, ...] = field(default=(), repr=False)
    post_down: tuple[str, ...] = field(default=(), repr=False)
    save_config: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer.

    Attributes:
        allowed_ips: masked, as the kernel keeps them, each prefix with one peer only.
        persistent_keepalive: seconds; 0 = off, None = not said (off too).
        name: for people, from a comment (see `names`); not part of what WireGuard knows.
    """

    public_key: PublicKey
    preshared_key: PresharedKey | None = None
    allowed_ips: tuple[IPNetwork, ...] = ()
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """The name, or the first characters of the key."""
        return self.name or self.public_key.short

    @property
    def claims_default(self) -> bool:
        """Whether it claims all of IPv4 or all of IPv6."""
        return any(default in self.allowed_ips for default in DEFAULTS)
