# SPDX-License-Identifier: Apache-2.0
"""The one vocabulary of causes that health answers, metrics, events and the doctor share.

Codes are stable and kebab-case: alerts and runbooks are written against them. Each has a page in docs/causes/.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class Cause(StrEnum):
    """Why something does not work. `sentence` says it to a person."""

    NO_LISTENER = "no-listener"
    LISTENER_WRONG_ADDRESS = "listener-wrong-address"
    INTERFACE_MISSING = "interface-missing"
    INTERFACE_DOWN = "interface-down"
    ADDRESS_MISSING = "address-missing"
    PORT_MISMATCH = "port-mismatch"
    REPLY_INTO_TUNNEL = "reply-into-tunnel"
    REPLY_UNROUTABLE = "reply-unroutable"
    REPLY_WRONG_UPLINK = "reply-wrong-uplink"
    LOCAL_SUBNET_CAPTURED = "local-subnet-captured"
    RP_FILTER = "rp-filter"
    MARTIAN_SOURCE = "martian-source"
    INPUT_DROP = "input-drop"
    OUTPUT_DROP = "output-drop"
    FORWARD_DROP = "forward-drop"
    PREROUTING_DROP = "prerouting-drop"
    POSTROUTING_DROP = "postrouting-drop"
    DNAT_ELSEWHERE = "dnat-elsewhere"
    FORWARDING_OFF = "forwarding-off"
    MASQUERADE_MISSING = "masquerade-missing"
    BLACKHOLE_ROUTE = "blackhole-route"
    MARK_LOST = "mark-lost"
    OWN_TRAFFIC_CAPTURED = "own-traffic-captured"
    NO_PEER_FOR_DESTINATION = "no-peer-for-destination"
    SOURCE_NOT_ALLOWED = "source-not-allowed"
    PEER_WITHOUT_ENDPOINT = "peer-without-endpoint"
    SERVER_PEER_CLAIMS_DEFAULT = "server-peer-claims-default"
    KEY_MISMATCH = "key-mismatch"
    HANDSHAKE_SILENT = "handshake-silent"
    TUNNEL_SILENT = "tunnel-silent"
    EGRESS_UNREACHABLE = "egress-unreachable"
    MTU_TOO_LARGE = "mtu-too-large"
    CONNTRACK_FULL = "conntrack-full"
    TTL_EXCEEDED = "ttl-exceeded"
    MARTIAN_DESTINATION = "martian-destination"
    TUNNEL_LOOP = "tunnel-loop"
    AGENT_DRAINING = "agent-draining"
    AGENT_STARTING = "agent-starting"
    STATE_UNREADABLE = "state-unreadable"

    @property
    def sentence(self) -> str:
        """One sentence for a person."""
        return SENTENCES[self]


SENTENCES = MappingProxyType(
    {
        Cause.NO_LISTENER: "Nothing listens on the port.",
        Cause.LISTENER_WRONG_ADDRESS: "Something listens on the port, but on another address or interface.",
        Cause.INTERFACE_MISSING: "The interface does not exist.",
        Cause.INTERFACE_DOWN: "The interface exists, but is down.",
        Cause.ADDRESS_MISSING: "The interface lacks the address that it should have.",
        Cause.PORT_MISMATCH: "The WireGuard device listens on another UDP port than the one clients use.",
        Cause.REPLY_INTO_TUNNEL: "Replies to the caller are routed into the tunnel instead of back out of the uplink.",
        Cause.REPLY_UNROUTABLE: "No route leads back to the caller.",
        Cause.REPLY_WRONG_UPLINK: "Replies to the caller leave by another uplink than the request came in by.",
        Cause.LOCAL_SUBNET_CAPTURED: "Traffic for the pod's own subnet is routed into the tunnel.",
        Cause.RP_FILTER: "The reverse-path filter (rp_filter) drops the request: its answer would leave elsewhere.",
        Cause.MARTIAN_SOURCE: "The kernel refuses the packet's source address as impossible on that interface.",
        Cause.INPUT_DROP: "A firewall rule drops the packet on its way to the local socket.",
        Cause.OUTPUT_DROP: "A firewall rule drops the answer as it leaves the local socket.",
        Cause.FORWARD_DROP: "A firewall rule drops the forwarded packet.",
        Cause.PREROUTING_DROP: "A firewall rule drops the packet before it is routed.",
        Cause.POSTROUTING_DROP: "A firewall rule drops the packet just before it leaves.",
        Cause.DNAT_ELSEWHERE: "A NAT rule sends the packet to another destination.",
        Cause.FORWARDING_OFF: "The kernel does not forward packets between these interfaces (ip_forward or forwarding is 0).",
        Cause.MASQUERADE_MISSING: "Tunnel clients leave with their tunnel address, so nobody outside can answer them.",
        Cause.BLACKHOLE_ROUTE: "A blackhole, unreachable or prohibit route or rule takes the packet.",
        Cause.MARK_LOST: "The answer does not carry the firewall mark that its routing depends on.",
        Cause.OWN_TRAFFIC_CAPTURED: "What the pod asks of its cluster goes into the tunnel.",
        Cause.NO_PEER_FOR_DESTINATION: "No peer's AllowedIPs cover the destination.",
        Cause.SOURCE_NOT_ALLOWED: "The peer's AllowedIPs do not cover the packet's source address.",
        Cause.PEER_WITHOUT_ENDPOINT: "The peer has no endpoint yet, so nothing can be sent to it.",
        Cause.SERVER_PEER_CLAIMS_DEFAULT: "A peer claims the default route (0.0.0.0/0 or ::/0) on a server.",
        Cause.KEY_MISMATCH: "A key or preshared key is not the one the other side has.",
        Cause.HANDSHAKE_SILENT: "A WireGuard handshake on the UDP port gets no answer.",
        Cause.TUNNEL_SILENT: "The handshake works, but a packet through the tunnel gets no answer.",
        Cause.EGRESS_UNREACHABLE: "Tunnel clients do not reach the outside and back.",
        Cause.MTU_TOO_LARGE: "Packets are larger than the path carries once they are encrypted.",
        Cause.TTL_EXCEEDED: "The packet has been forwarded too often; its TTL or hop limit is used up.",
        Cause.MARTIAN_DESTINATION: "The packet's destination is one that no packet from outside may have.",
        Cause.TUNNEL_LOOP: "The tunnel's own packets are routed into the tunnel again.",
        Cause.CONNTRACK_FULL: "The connection-tracking table is full, so new flows are dropped.",
        Cause.AGENT_DRAINING: "The agent is shutting down and asks the load balancer to send clients elsewhere.",
        Cause.AGENT_STARTING: "The agent has not yet seen every check pass once.",
        Cause.STATE_UNREADABLE: "What is needed for a verdict could not be read, or is too old; unknown is not healthy.",
    }
)
