# SPDX-License-Identifier: Apache-2.0
"""A flow: the 5-tuple plus where it enters."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a conversation.

    Attributes:
        source: the sender's address; the unspecified one (0.0.0.0, ::) lets the kernel choose, for a local sender.
        destination: the receiver's address.
        protocol: `tcp`, `udp` or `icmp` (ICMPv6 for IPv6 addresses).
        source_port: 0 where the protocol has none.
        destination_port: 0 where the protocol has none.
        iif: the interface it enters by; None when a local socket sends it.
        mark: fwmark of the packet or of the sending socket.
        uid: user of the sending socket, where one is known.
        device: the interface that the sending socket is bound to (SO_BINDTODEVICE); empty for none.
        tos: the TOS or traffic class byte.
        length: IP header and all behind it, in octets; 60 is a SYN with its usual options.
    """

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: str = "tcp"
    source_port: int = 0
    destination_port: int = 0
    iif: str | None = None
    mark: int = 0
    uid: int | None = None
    device: str = ""
    tos: int = 0
    length: int = 60

    def reply(self) -> Flow:
        """The answer as the local host sends it."""
        return Flow(
            source=self.destination,
            destination=self.source,
            protocol=self.protocol,
            source_port=self.destination_port,
            destination_port=self.source_port,
        )
