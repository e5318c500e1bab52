# SPDX-License-Identifier: Apache-2.0
"""WireGuard's own routing: a packet's peer by destination on the way out, by source on the way in (allowedips.c)."""

from __future__ import annotations

from ipaddress import IPv4Address

from wicketgate.netpath.packet import UDP, Packet
from wicketgate.netpath.snapshot import IPAddress, IPNetwork, PeerState, WireGuardState

# message_data's header is 16 octets and its tag another 16 (noise.h); the inner packet is padded to a multiple of 16.
_OVERHEAD, _PADDING = 32, 16
_UDP, _IPV4, _IPV6 = 8, 20, 40


class Cryptokey:
    """The allowed-ips of one device, as longest prefixes."""

    def __init__(self, state: WireGuardState) -> None:
        self.state = state
        self._by_length: dict[tuple[int, int], dict[int, tuple[IPNetwork, PeerState]]] = {}
        for peer in state.peers:
            for network in peer.allowed_ips:
                length = self._by_length.setdefault((network.version, network.prefixlen), {})
                # A prefix belongs to one peer at a time: the last to claim it.
                length[int(network.network_address)] = (network, peer)
        self._lengths = sorted(self._by_length, reverse=True)

    def peer_of(self, address: IPAddress) -> tuple[IPNetwork, PeerState] | None:
        """The peer whose allowed-ips hold the address in their longest prefix."""
        for version, length in self._lengths:
            if version == address.version:
                shift = address.max_prefixlen - length
                found = self._by_length[version, length].get(int(address) >> shift << shift)
                if found is not None:
                    return found
        return None


def outer_length(inner: int, endpoint: IPAddress, mtu: int) -> int:
    """Octets of the UDP packet that carries an inner one.

    Args:
        inner: length of the inner packet.
        endpoint: of the peer.
        mtu: of the WireGuard interface: padding does not go beyond it (calculate_skb_padding in send.c).
    """
    padded = min(-(-inner // _PADDING) * _PADDING, max(mtu, inner))
    return padded + _OVERHEAD + _UDP + (_IPV4 if isinstance(endpoint, IPv4Address) else _IPV6)


def carrier_of(
    state: WireGuardState, endpoint: tuple[IPAddress, int], packet: Packet, *, uid: int | None, mtu: int
) -> Packet:
    """The UDP packet that carries an encrypted one; its source is left to routing (unspecified)."""
    address, port = endpoint
    return Packet(
        source=type(address)(0),
        destination=address,
        protocol=UDP,
        source_port=state.listen_port,
        destination_port=port,
        mark=state.fwmark,
        length=outer_length(packet.length, address, mtu),
        tos=packet.tos & 0x03,  # ip_tunnel_ecn_encap with a TOS of 0
        uid=uid,
        from_socket=True,
    )


def spell_peer(state: WireGuardState, peer: PeerState) -> str:
    """`wg0 peer kA1=...`, short enough for a line."""
    return f"{state.ifname} peer {peer.public_key}"
