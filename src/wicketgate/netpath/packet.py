# SPDX-License-Identifier: Apache-2.0
"""A packet on its way, and the connection that connection tracking holds for it. Both immutable.

A stage that changes a packet gives back another one (`dataclasses.replace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.snapshot import Family, IPAddress

# /etc/protocols (IANA)
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

# TCP flags, the byte of RFC 9293 section 3.1
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80

# RFC 792 and RFC 4443
ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST = 0, 8
ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY = 128, 129


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as netfilter and routing see it.

    Attributes:
        source: the sender's address.
        destination: the receiver's address.
        protocol: IP protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6 ...
        source_port: of TCP, UDP, SCTP; 0 where the protocol has none.
        destination_port: as above.
        icmp_type: of ICMP and ICMPv6; None otherwise.
        icmp_code: as above, 0 otherwise.
        tcp_flags: the flags byte; SYN alone opens a connection. 0 for other protocols.
        mark: fwmark (skb->mark).
        iif: the interface it came in by; empty for a packet of this host on its way out.
        oif: the interface it leaves by; empty before it was routed, and for one that is delivered here.
        length: IP header and all behind it, in octets.
        tos: the TOS or traffic class byte.
        hop_limit: TTL or hop limit, as it arrives or is sent.
        uid: user of the sending socket; None where no socket sends it or its user is not known.
        gid: group of the sending socket; None as above.
        from_socket: a socket of this host sends it (`meta skuid`, `-m owner` have something to look at). A RST or an
            ICMP error of the kernel has none.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int = TCP
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int | None = None
    icmp_code: int = 0
    tcp_flags: int = 0
    mark: int = 0
    iif: str = ""
    oif: str = ""
    length: int = 60
    tos: int = 0
    hop_limit: int = 64
    uid: int | None = None
    gid: int | None = None
    from_socket: bool = False

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if self.destination.version == 4 else 6

    @property
    def ends(self) -> Ends:
        """Its addresses and ports."""
        return Ends(self.source, self.destination, self.protocol, self.source_port, self.destination_port)

    def with_ends(self, ends: Ends) -> Packet:
        """The same packet with other addresses and ports (NAT)."""
        return replaced(
            self,
            source=ends.source,
            destination=ends.destination,
            source_port=ends.source_port,
            destination_port=ends.destination_port,
        )

    def spelled(self) -> str:
        """`tcp 192.0.2.1:40000 -> 10.0.0.2:9000`, with the mark when it has one."""
        mark = f" mark {self.mark:#x}" if self.mark else ""
        return f"{self.ends.spelled()}{mark}"


@dataclass(frozen=True, slots=True)
class Ends:
    """Addresses and ports of one direction (struct nf_conntrack_tuple)."""

    source: IPAddress
    destination: IPAddress
    protocol: int = TCP
    source_port: int = 0
    destination_port: int = 0

    def turned(self) -> Ends:
        """The other direction."""
        return Ends(self.destination, self.source, self.protocol, self.destination_port, self.source_port)

    def spelled(self) -> str:
        """`tcp 192.0.2.1:40000 -> 10.0.0.2:9000`."""
        name = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}.get(self.protocol, f"protocol {self.protocol}")
        near, far = _end(self.source, self.source_port), _end(self.destination, self.destination_port)
        return f"{name} {near} -> {far}"


def _end(address: IPAddress, port: int) -> str:
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class ConnState(StrEnum):
    """What `ct state` says of the packet that is looked at."""

    NEW = "new"
    ESTABLISHED = "established"
    RELATED = "related"
    INVALID = "invalid"
    UNTRACKED = "untracked"


@dataclass(frozen=True, slots=True)
class Connection:
    """What connection tracking knows of the packet's connection.

    The walk begins a flow with a new connection; the filter sets NAT, mark and tracking on it and hands it back; the
    walk carries it to the reply, which has `direction` "reply" and `state` established. The filter turns addresses
    of later packets and of replies back from `original` and `answer`, at the priorities at which nf_nat does.

    Attributes:
        original: addresses and ports of the first packet as it came in, or as its socket sent it.
        answer: those a reply is expected with; differs from `original.turned()` where NAT is at work.
        state: `ct state` of the packet that is looked at.
        direction: which way that packet goes.
        mark: connmark (`ct mark`).
        zone: conntrack zone.
        source_nat: the source side was decided (IPS_SRC_NAT_DONE); nat chains are not asked again.
        destination_nat: the destination side was decided (IPS_DST_NAT_DONE).
        drawn: source NAT drew a port of this range by chance; `answer` then has the one that it was before.
    """

    original: Ends
    answer: Ends
    state: ConnState = ConnState.NEW
    direction: str = "original"  # or "reply"
    mark: int = 0
    zone: int = 0
    source_nat: bool = False
    destination_nat: bool = False
    drawn: tuple[int, int] | None = None

    @classmethod
    def opened_by(cls, packet: Packet) -> Connection:
        """A connection that this packet begins."""
        return cls(packet.ends, packet.ends.turned())

    def replying(self) -> Connection:
        """The same connection, seen by the first answer."""
        state = ConnState.ESTABLISHED if self.state in (ConnState.NEW, ConnState.RELATED) else self.state
        return replaced(self, direction="reply", state=state)
