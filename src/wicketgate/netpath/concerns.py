# SPDX-License-Identifier: Apache-2.0
"""Which flows matter here, found from the state itself.

Load balancer and kubelet to each TCP listener on an uplink, a client to the WireGuard port, a tunnel's client to the
outside, a pod to its cluster's DNS and API. What the state does not tell is left out and said in `Found.notes`: a pod whose gateway is 169.254.1.1 does
not know its node's address, so no kubelet can be played there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import (
    Address,
    Family,
    IPAddress,
    IPNetwork,
    ListeningSocket,
    Route,
    Snapshot,
    WireGuardState,
)
from wicketgate.netpath.wireguard import Cryptokey

# Documentation addresses (RFC 5737, RFC 3849): nobody's route is more specific than the default for them.
STRANGER: dict[Family, IPAddress] = {4: IPv4Address("203.0.113.9"), 6: IPv6Address("2001:db8:203::9")}
STRANGERS_PORT = 40000  # any that no rule is written for: a guess
HTTPS = 443
_DNS = 53
HEALTH_PORTS = (8080, 9000)  # `--health-port` and `--tcp-port` of the gateway
_MOST_NAMED = 10  # ports in a note
_MOST_OTHERS = 50  # other listeners' flows that are walked for side effects; a guess
FAMILIES: tuple[Family, ...] = (4, 6)


class Kind(StrEnum):
    """Who talks to whom."""

    BALANCER = "load balancer -> listener"
    KUBELET = "kubelet -> listener"
    CLIENT = "client -> WireGuard"
    EGRESS = "tunnel client -> outside"
    DNS = "pod -> DNS"
    API = "pod -> Kubernetes API"
    ASKED = "asked for"
    OWN = "this host's own traffic"  # only looked at for side effects


@dataclass(frozen=True, slots=True)
class Concern:
    """A flow, and why anybody cares."""

    kind: Kind
    flow: Flow

    def spelled(self) -> str:
        """`load balancer -> listener: tcp 203.0.113.9 -> 10.0.0.2:9000 by eth0`."""
        flow = self.flow
        by = f" by {flow.iif}" if flow.iif else ""
        far = endpoint(flow.destination, flow.destination_port)
        near = "this host" if flow.source.is_unspecified else str(flow.source)
        return f"{self.kind}: {flow.protocol} {near} -> {far}{by}"


@dataclass(frozen=True, slots=True)
class Found:
    """The flows that matter, those of other listeners, and what could not be played, in sentences.

    `others` are only looked at for side effects: a firewall may well mean to close those ports.
    """

    concerns: tuple[Concern, ...] = ()
    others: tuple[Concern, ...] = ()
    notes: tuple[str, ...] = field(default=())


def endpoint(address: IPAddress, port: int) -> str:
    """`10.0.0.2:9000`, `[2001:db8::1]:9000`; the address alone without a port."""
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def is_tunnel(snapshot: Snapshot, ifname: str) -> bool:
    """A WireGuard interface, or one that looks like a tunnel: tun is what userspace WireGuard uses."""
    if any(device.ifname == ifname for device in snapshot.wireguard):
        return True
    link = snapshot.link(ifname)
    return link is not None and link.kind in ("wireguard", "tun")


def uplinks(snapshot: Snapshot, family: Family) -> tuple[str, ...]:
    """Interfaces by which the world is reached: those with a default route, else those with a global address."""
    able = [
        link.name
        for link in snapshot.links
        if not link.loopback and not is_tunnel(snapshot, link.name) and global_addresses(snapshot, link.name, family)
    ]
    leading = {hop.oif for route in defaults(snapshot, family) for hop in route.nexthops}
    return tuple(name for name in able if name in leading) or tuple(able)


def defaults(snapshot: Snapshot, family: Family) -> tuple[Route, ...]:
    """Default routes of every table that do not lead into a tunnel."""
    return tuple(
        route
        for route in snapshot.routes
        if not route.dst.prefixlen  # first: there may be 100,000 others
        and route.family == family
        and route.type == "unicast"
        and not any(is_tunnel(snapshot, hop.oif) for hop in route.nexthops)
    )


def global_addresses(snapshot: Snapshot, ifname: str, family: Family) -> tuple[Address, ...]:
    """The interface's addresses that others can reach."""
    return tuple(
        each
        for each in snapshot.addresses
        if each.ifname == ifname and each.family == family and not each.ip.is_link_local and not each.ip.is_loopback
    )


def find(snapshot: Snapshot) -> Found:
    """The flows that matter in this place."""
    notes: list[str] = []
    concerns: dict[Concern, None] = {}  # a set that keeps its order
    for family in FAMILIES:
        for name in uplinks(snapshot, family):
            for address in global_addresses(snapshot, name, family)[:1]:
                concerns |= dict.fromkeys(_to_listeners(snapshot, name, address.ip, family, notes))
                concerns |= dict.fromkeys(_to_wireguard(snapshot, name, address.ip, family))
        if uplinks(snapshot, family):
            concerns |= dict.fromkeys(_egress(snapshot, family))
            concerns |= dict.fromkeys(_cluster(snapshot, family))
    listeners = {concern for concern in concerns if concern.kind in (Kind.BALANCER, Kind.KUBELET)}
    health = {concern for concern in listeners if concern.flow.destination_port in HEALTH_PORTS}
    others = listeners - health if health else set()
    if not listeners:
        notes.append("no TCP listener was found on an uplink; --to ADDRESS:PORT/tcp names one")
    if others:
        ports = ", ".join(str(port) for port in sorted({each.flow.destination_port for each in others})[:_MOST_NAMED])
        notes.append(f"not examined: TCP listeners on {ports}; --to ADDRESS:PORT/tcp examines one")
    return Found(
        tuple(each for each in concerns if each not in others),
        tuple(each for each in concerns if each in others)[:_MOST_OTHERS],
        tuple(dict.fromkeys(notes)),
    )


def own_traffic(snapshot: Snapshot) -> tuple[Concern, ...]:
    """What this host sends itself: to the outside, and to a neighbour in its own subnet."""
    concerns = []
    for family in FAMILIES:
        nobody = type(STRANGER[family])(0)
        for name in uplinks(snapshot, family):
            targets = [STRANGER[family]]
            for address in global_addresses(snapshot, name, family)[:1]:
                neighbour = neighbour_of(address)
                targets += [neighbour] if neighbour is not None else []
            for target in targets:
                flow = Flow(nobody, target, "tcp", STRANGERS_PORT, HTTPS, uid=0)
                concerns.append(Concern(Kind.OWN, flow))
    return tuple(concerns)


def neighbour_of(address: Address) -> IPAddress | None:
    """Some other address of the same subnet; None for a host prefix."""
    network = address.interface.network
    if network.num_addresses < 4:
        return None
    for step in (1, 2, 3):
        other = network.network_address + step
        if other != address.ip:
            return other
    return None


def _to_listeners(
    snapshot: Snapshot, ifname: str, address: IPAddress, family: Family, notes: list[str]
) -> Iterator[Concern]:
    ports: dict[int, None] = {}
    for socket in snapshot.sockets:
        if socket.protocol != "tcp":
            continue
        if _reachable(socket, ifname, address):
            ports[socket.port] = None
        elif socket.port in HEALTH_PORTS and socket.address.is_loopback:
            notes.append(f"port {socket.port} listens on {socket.address} alone: no load balancer reaches it")
    node = _gateway(snapshot, ifname, family)
    if ports and (node is None or node.is_link_local):
        known = "unknown" if node is None else f"{node}, which is not the address its packets come from"
        notes.append(f"IPv{family}: kubelet's probes are not played: the gateway of {ifname} is {known}")
        node = None
    for port in sorted(ports, key=lambda each: (each not in HEALTH_PORTS, each)):
        yield Concern(Kind.BALANCER, Flow(STRANGER[family], address, "tcp", STRANGERS_PORT, port, iif=ifname))
        if node is not None:
            yield Concern(Kind.KUBELET, Flow(node, address, "tcp", STRANGERS_PORT, port, iif=ifname))


def _reachable(socket: ListeningSocket, ifname: str, address: IPAddress) -> bool:
    """It listens where a packet to that address may come: the model says whether it takes it."""
    if socket.bound_device and socket.bound_device != ifname:
        return False
    if socket.address.version == address.version:
        return socket.address.is_unspecified or socket.address == address
    # A dual-stack listener takes IPv4 too; whether this one does (IPV6_V6ONLY) may not have been told.
    if isinstance(socket.address, IPv6Address) and not socket.v6only:
        return socket.address.is_unspecified or socket.address.ipv4_mapped == address
    return False


def _gateway(snapshot: Snapshot, ifname: str, family: Family) -> IPAddress | None:
    for route in defaults(snapshot, family):
        for hop in route.nexthops:
            if hop.oif == ifname and hop.via is not None and hop.via.version == family:
                return hop.via
    return None


def _to_wireguard(snapshot: Snapshot, ifname: str, address: IPAddress, family: Family) -> Iterator[Concern]:
    for device in snapshot.wireguard:
        if device.listen_port:
            flow = Flow(STRANGER[family], address, "udp", STRANGERS_PORT, device.listen_port, iif=ifname, length=176)
            yield Concern(Kind.CLIENT, flow)  # 148 octets of handshake initiation, UDP and IP headers


def _egress(snapshot: Snapshot, family: Family) -> Iterator[Concern]:
    for device in snapshot.wireguard:
        client = client_address(snapshot, device, family)
        if client is not None:
            flow = Flow(client, STRANGER[family], "tcp", STRANGERS_PORT, HTTPS, iif=device.ifname)
            yield Concern(Kind.EGRESS, flow)


def _cluster(snapshot: Snapshot, family: Family) -> Iterator[Concern]:
    """What a pod asks of its cluster; outside of one nothing is known of what a host asks."""
    around = snapshot.surroundings
    nobody = type(STRANGER[family])(0)
    if around.cluster_domain:
        for resolver in around.resolvers:
            if resolver.version == family and not resolver.is_loopback:
                yield Concern(Kind.DNS, Flow(nobody, resolver, "udp", STRANGERS_PORT, _DNS, uid=0))
    if around.api is not None and around.api[0].version == family and not around.api[0].is_loopback:
        yield Concern(Kind.API, Flow(nobody, around.api[0], "tcp", STRANGERS_PORT, around.api[1], uid=0))


def client_address(snapshot: Snapshot, device: WireGuardState, family: Family) -> IPAddress | None:
    """An address that a client of this device sends from; None when it does not look like a server.

    A server lists its clients as host prefixes. A peer that claims a network or everything may as well be the exit of
    a client, for whom nothing is forwarded and nothing need be.
    """
    own = {each.ip for each in snapshot.addresses}
    for peer in device.peers:
        for network in peer.allowed_ips:
            host = network.prefixlen == network.max_prefixlen
            if network.version == family and host and network.network_address not in own:
                return network.network_address
    return None


def with_senders_endpoints(snapshot: Snapshot, concerns: Iterable[Concern]) -> Snapshot:
    """The snapshot as it is while these flows run: a peer whose packet came in has the endpoint it came from.

    WireGuard learns it from each authenticated packet (wg_socket_set_peer_endpoint_from_skb).
    """
    family: Family = 4 if uplinks(snapshot, 4) else 6
    senders = {(each.flow.iif, each.flow.source) for each in concerns}
    devices = []
    for device in snapshot.wireguard:
        sources = [source for iif, source in senders if iif == device.ifname]
        sending = {found[1].public_key for each in sources if (found := Cryptokey(device).peer_of(each)) is not None}
        peers = tuple(
            replace(peer, endpoint=(STRANGER[family], STRANGERS_PORT))
            if peer.endpoint is None and peer.public_key in sending
            else peer
            for peer in device.peers
        )
        devices.append(replace(device, peers=peers))
    return replace(snapshot, wireguard=tuple(devices))


def connected(snapshot: Snapshot, ifname: str, address: IPAddress) -> IPNetwork | None:
    """The interface's own subnet, when the address is in it and the subnet is more than one address."""
    for each in snapshot.addresses:
        network = each.interface.network
        if each.ifname == ifname and network.num_addresses > 1 and address in network:
            return network
    return None


def arrives_by(snapshot: Snapshot, source: IPAddress, destination: IPAddress) -> str | None:
    """The interface by which a packet with these addresses comes in; None when this host sends it."""
    if source.is_unspecified or any(each.ip == source for each in snapshot.addresses):
        return None
    best: tuple[int, str] = (0, "")
    for device in snapshot.wireguard:
        for peer in device.peers:
            for network in peer.allowed_ips:
                if network.version == source.version and source in network and network.prefixlen > best[0]:
                    best = (network.prefixlen, device.ifname)
    for address in snapshot.addresses:
        network = address.interface.network
        if network.version == source.version and source in network and network.prefixlen > best[0]:
            best = (network.prefixlen, address.ifname)
    if best[1]:
        return best[1]
    family: Family = 4 if source.version == 4 else 6
    names = uplinks(snapshot, family)
    for each in snapshot.addresses:
        if each.ip == destination and each.ifname in names:
            return each.ifname
    return names[0] if names else None


def stranger_to(destination: IPAddress) -> IPAddress:
    """Somebody elsewhere, of the destination's family."""
    return STRANGER[4 if destination.version == 4 else 6]
