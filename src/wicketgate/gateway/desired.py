# SPDX-License-Identifier: Apache-2.0
"""What the machine should look like for a configuration: a pure function, so that it can be shown before it is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, ip_network

from wicketgate.config.model import Peer
from wicketgate.config.settings import Role
from wicketgate.config.wgquick import WgQuickConfig
from wicketgate.gateway import firewall
from wicketgate.gateway.uplinks import LiveUplink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Family, IPAddress, IPInterface, IPNetwork, NextHop, Route, Rule
from wicketgate.wireguard.device import DeviceConfig, PeerConfig

WIREGUARD_OVERHEAD = 80  # bytes: IPv6 header 40, UDP 8, transport header 16, tag 16 (wg-quick's set_mtu_up)
WIREGUARD_MTU = 1420  # 1500 - 80; an uplink of 9001 says nothing about the way beyond it
MINIMUM_MTU = 1280  # RFC 8200 section 5
EXIT_TABLE = 51820  # as wg-quick's first choice
# Role exit's two rules; wg-quick has the same pair without numbers. After every pin, before table main at 32766.
SUPPRESS_PRIORITY = 32700
TUNNEL_PRIORITY = 32701
_IPV6_METRIC = 1024  # what the kernel makes of no metric in IPv6 (IP6_RT_PRIO_USER)
_PIECE = 8  # a default is cut into pieces of at most /7; whole networks that people own are smaller. A guess.
_SCOPE_LINK = 253
_SCOPE_GLOBAL = 0

Endpoints = Mapping[str, tuple[IPv4Address | IPv6Address, int]]


@dataclass(frozen=True, slots=True)
class Desired:
    """The tunnel and what belongs to it.

    Attributes:
        ifname: the tunnel.
        role: server or exit.
        device: private key, port, fwmark and the peers of the configuration.
        addresses: of the tunnel.
        mtu: bytes.
        routes: through the tunnel, tagged as ours.
        rules: role exit's; pins are computed from the live uplinks.
        clients: networks behind the tunnel, without a default.
        nft: the table, as `nft -f -` takes it.
        warnings: what the user should know.
    """

    ifname: str
    role: Role
    device: DeviceConfig
    addresses: tuple[IPInterface, ...]
    mtu: int
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]
    clients: tuple[IPNetwork, ...]
    nft: str
    warnings: tuple[str, ...]


def desire(
    config: WgQuickConfig,
    *,
    ifname: str,
    role: Role,
    uplinks: Sequence[LiveUplink],
    endpoints: Endpoints | None = None,
    probe_addresses: Sequence[IPAddress] = (),
) -> Desired:
    """Compute the desired state.

    Args:
        config: the wg-quick file.
        ifname: the tunnel's name.
        role: see DESIGN section 4: a server never routes a default through the tunnel, whatever a peer claims.
        uplinks: for the MTU.
        endpoints: resolved endpoints by public key.
        probe_addresses: the probe peer's; they get a route where the tunnel's own networks do not cover them.
    """
    interface = config.interface
    warnings: list[str] = []
    whole = whole_internet(n for p in config.peers for n in p.allowed_ips)
    defaults = [p for p in config.peers if whole & set(p.allowed_ips)]
    if role is Role.SERVER:
        warnings += [
            f"peer {_title(p)} claims {_list(n for n in p.allowed_ips if n in whole)}: on a server this is nearly always a"
            " mistake; no default route is put into the tunnel (server-peer-claims-default)"
            for p in defaults
        ]
    elif not defaults:
        warnings.append("role exit, but no peer has 0.0.0.0/0 or ::/0 in AllowedIPs: there is no exit")
    if interface.dns:
        warnings.append("DNS is not applied: a pod's resolver belongs to Kubernetes (spec.dnsConfig)")

    table = EXIT_TABLE if interface.table in ("auto", "off") else int(interface.table)
    fwmark = interface.fwmark or (table if role is Role.EXIT and defaults and interface.table == "auto" else 0)
    routes = () if interface.table == "off" else tuple(_routes(config, ifname, role, table, probe_addresses))
    rules = (
        _exit_rules({n.version for n in whole}, table, fwmark)
        if role is Role.EXIT and interface.table == "auto"
        else ()
    )
    clients = tuple(
        dict.fromkeys(
            [i.network for i in interface.addresses]
            + [n for p in config.peers for n in p.allowed_ips if n not in whole]
            + [ip_network(a) for a in probe_addresses]
        )
    )
    return Desired(
        ifname=ifname,
        role=role,
        device=DeviceConfig(
            private_key=interface.private_key,
            listen_port=interface.listen_port,
            fwmark=fwmark,
            peers=tuple(_peer(p, endpoints or {}) for p in config.peers),
        ),
        addresses=interface.addresses,
        mtu=interface.mtu or tunnel_mtu(uplinks),
        routes=routes,
        rules=rules,
        clients=clients,
        nft=firewall.render(ifname, role=role, clients=clients),
        warnings=tuple(warnings),
    )


def whole_internet(networks: Iterable[IPNetwork]) -> frozenset[IPNetwork]:
    """The networks that are a default route: 0.0.0.0/0 and ::/0, and the pieces of one that was cut up.

    `0.0.0.0/1, 128.0.0.0/1` is how VPN clients hide a default from a routing table. In table main it would take every
    reply into the tunnel, pins or not, as they look there.
    """
    found: set[IPNetwork] = set()
    every = set(networks)
    for version in (4, 6):
        own: list[IPNetwork] = [n for n in every if n.version == version]
        pieces = [n for n in own if n.prefixlen < _PIECE]
        if any(n.prefixlen == 0 for n in collapse_addresses(pieces)):  # type: ignore[type-var]
            found.update(pieces if not any(n.prefixlen == 0 for n in own) else (n for n in pieces if n.prefixlen <= 1))
    return frozenset(found)


def tunnel_mtu(uplinks: Sequence[LiveUplink]) -> int:
    """The tunnel's MTU in bytes: the smallest uplink's less the overhead, at most 1420."""
    smallest = min((u.mtu for u in uplinks), default=1500)
    return max(MINIMUM_MTU, min(WIREGUARD_MTU, smallest - WIREGUARD_OVERHEAD))


def _title(peer: Peer) -> str:
    return f"{peer.name} ({peer.public_key.short})" if peer.name else peer.public_key.short


def _list(networks: object) -> str:
    return ", ".join(str(n) for n in networks)  # type: ignore[attr-defined]


def _peer(peer: Peer, endpoints: Endpoints) -> PeerConfig:
    return PeerConfig(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=endpoints.get(str(peer.public_key)),
        allowed_ips=peer.allowed_ips,
        persistent_keepalive=peer.persistent_keepalive or 0,
    )


def _routes(
    config: WgQuickConfig, ifname: str, role: Role, table: int, probe_addresses: Sequence[IPAddress]
) -> list[Route]:
    connected = [i.network for i in config.interface.addresses]
    claims = [n for p in config.peers for n in p.allowed_ips]
    whole = whole_internet(claims)
    wanted = claims + [ip_network(a) for a in probe_addresses]
    routes = []
    for network in dict.fromkeys(wanted):
        is_default = network in whole
        if is_default and role is Role.SERVER:
            continue
        own_table = is_default or config.interface.table != "auto"
        # The kernel's connected route is there already: the same check as wg-quick's add_route.
        if not own_table and any(c.version == network.version and network.subnet_of(c) for c in connected):  # type: ignore[arg-type]
            continue
        routes.append(
            Route(
                dst=network,
                table=table if own_table else RT_TABLE_MAIN,
                nexthops=(NextHop(oif=ifname),),
                metric=_IPV6_METRIC if network.version == 6 else 0,
                scope=_SCOPE_GLOBAL if network.version == 6 else _SCOPE_LINK,
                protocol=ROUTE_PROTOCOL,
            )
        )
    return routes


def _exit_rules(families: Collection[int], table: int, fwmark: int) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for version in sorted(families):
        family: Family = 4 if version == 4 else 6
        rules.append(
            Rule(family, SUPPRESS_PRIORITY, table=RT_TABLE_MAIN, suppress_prefixlength=0, protocol=ROUTE_PROTOCOL)
        )
        rules.append(
            Rule(
                family,
                TUNNEL_PRIORITY,
                table=table,
                invert=True,
                fwmark=fwmark,
                fwmask=0xFFFFFFFF,
                protocol=ROUTE_PROTOCOL,
            )
        )
    return tuple(rules)
