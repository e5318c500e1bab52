# SPDX-License-Identifier: Apache-2.0
"""What a network namespace looked like at one moment. Immutable; filled by `kernel`, asked by everybody above.

Names are the kernel's. A number that iproute2 prints as a name (protocol, scope, table) is kept as a number; spelling
is the business of `netpath.spelling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType
from typing import Literal

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

Family = Literal[4, 6]

# linux/rtnetlink.h
RT_TABLE_UNSPEC = 0
RT_TABLE_DEFAULT = 253
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255

NO_MAP: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface (RTM_NEWLINK)."""

    index: int
    name: str
    kind: str = ""  # IFLA_INFO_KIND: veth, tun, wireguard, bridge ...; empty for physical and loopback
    mtu: int = 1500
    up: bool = False  # IFF_UP
    lower_up: bool = False  # IFF_LOWER_UP, carrier
    loopback: bool = False
    pointopoint: bool = False
    master: int = 0  # ifindex, 0 = none
    mac: str = ""
    alias: str = ""  # IFLA_IFALIAS
    group: int = 0
    vrf_table: int = 0  # IFLA_VRF_TABLE; 0 = no VRF, or not told


@dataclass(frozen=True, slots=True)
class Address:
    """An address on an interface (RTM_NEWADDR)."""

    ifname: str
    ifindex: int
    interface: IPInterface  # address with prefix length
    scope: int = 0  # 0 global, 253 link, 254 host
    flags: int = 0  # IFA_F_*
    peer: IPAddress | None = None
    protocol: int = 0  # IFA_PROTO

    @property
    def ip(self) -> IPAddress:
        """The address alone."""
        return self.interface.ip

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.interface.version == 4 else 6


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way of a route (struct rtnexthop)."""

    oif: str = ""
    via: IPAddress | None = None
    weight: int = 1
    flags: int = 0  # RTNH_F_*: 1 dead, 4 onlink, 16 linkdown


@dataclass(frozen=True, slots=True)
class Route:
    """A route (RTM_NEWROUTE). The default route has a `dst` of prefix length 0."""

    dst: IPNetwork
    table: int = RT_TABLE_MAIN
    type: str = "unicast"  # unicast local broadcast multicast blackhole unreachable prohibit throw anycast
    nexthops: tuple[NextHop, ...] = ()
    prefsrc: IPAddress | None = None
    metric: int = 0  # RTA_PRIORITY
    scope: int = 0
    protocol: int = 0
    tos: int = 0
    src: IPNetwork | None = None  # source-specific routes (IPv6 subtrees)
    nh_id: int = 0  # nexthop object
    # mtu, advmss ...; compared, but left out of the hash: a mapping has none
    metrics: Mapping[str, str] = field(default_factory=lambda: NO_MAP, hash=False)
    unknown: tuple[str, ...] = ()  # attributes that could not be named: no verdict may rest on this route

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.dst.version == 4 else 6

    @property
    def oif(self) -> str:
        """The interface of a single-path route; empty when there is none or several."""
        return self.nexthops[0].oif if len(self.nexthops) == 1 else ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule (RTM_NEWRULE)."""

    family: Family
    priority: int
    action: str = "lookup"  # lookup goto nop blackhole unreachable prohibit
    table: int = 0
    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    iif: str = ""
    oif: str = ""
    fwmark: int = 0
    fwmask: int = 0  # 0 = the rule has no mark selector
    tos: int = 0
    ipproto: int = 0
    sport: tuple[int, int] | None = None
    dport: tuple[int, int] | None = None
    uid_range: tuple[int, int] | None = None
    invert: bool = False  # `not`
    suppress_prefixlength: int | None = None
    suppress_ifgroup: int | None = None
    goto: int = 0
    l3mdev: bool = False
    protocol: int = 0  # who put it there (FRA_PROTOCOL)
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour entry (RTM_NEWNEIGH)."""

    ifname: str
    ip: IPAddress
    mac: str = ""
    state: int = 0  # NUD_*


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A listening TCP socket or a bound UDP socket (inet_diag)."""

    protocol: Literal["tcp", "udp"]
    family: Family
    address: IPAddress
    port: int
    bound_device: str = ""  # SO_BINDTODEVICE
    v6only: bool | None = None  # None where it was not told
    uid: int = 0
    inode: int = 0
    mark: int | None = None  # SO_MARK; told only to CAP_NET_ADMIN


@dataclass(frozen=True, slots=True)
class PeerState:
    """A WireGuard peer as the device tells it. The public key is base64."""

    public_key: str
    endpoint: tuple[IPAddress, int] | None = None
    allowed_ips: tuple[IPNetwork, ...] = ()
    latest_handshake: float = 0.0  # seconds since the epoch; 0 = never
    rx_bytes: int = 0
    tx_bytes: int = 0
    persistent_keepalive: int = 0  # seconds; 0 = off
    has_preshared_key: bool = False


@dataclass(frozen=True, slots=True)
class WireGuardState:
    """A WireGuard device. Private and preshared keys never enter a snapshot."""

    ifname: str
    backend: Literal["kernel", "userspace"]
    public_key: str = ""  # base64; empty = no private key set
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[PeerState, ...] = ()


@dataclass(frozen=True, slots=True)
class Firewall:
    """Listings as the tools print them; None = not read, and `Snapshot.unread` says why.

    nft's may lack the tables that iptables_nft and ip6tables_nft print in full.
    """

    nft_json: str | None = None  # nft -j list ruleset
    nft_text: str | None = None  # nft list ruleset
    iptables_nft: str | None = None  # iptables-nft-save -c
    ip6tables_nft: str | None = None
    iptables_legacy: str | None = None
    ip6tables_legacy: str | None = None
    ipset: str | None = None  # ipset save; None also where no rule asks for a set


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pod was told of its cluster, by its resolv.conf and environment."""

    resolvers: tuple[IPAddress, ...] = ()
    cluster_domain: bool = False  # resolv.conf searches a domain of services: kubelet wrote it
    api: tuple[IPAddress, int] | None = None  # the Kubernetes API's address and port


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be read, and why. No verdict may rest on it."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A network namespace at one moment."""

    taken_at: float  # seconds since the epoch
    kernel_release: str = ""
    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    # dotted names as sysctl(8) prints them: net.ipv4.conf.eth0.rp_filter -> "1"
    sysctls: Mapping[str, str] = field(default_factory=lambda: NO_MAP, hash=False)
    sockets: tuple[ListeningSocket, ...] = ()
    wireguard: tuple[WireGuardState, ...] = ()
    firewall: Firewall = field(default_factory=Firewall)
    surroundings: Surroundings = field(default_factory=Surroundings)
    unread: tuple[Unread, ...] = ()
    changed_while_read: bool = False

    def link(self, name: str) -> Link | None:
        """The interface of that name."""
        return next((link for link in self.links if link.name == name), None)
