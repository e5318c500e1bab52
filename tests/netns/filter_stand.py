# SPDX-License-Identifier: Apache-2.0
"""A pod with two interfaces, into which frames are put and whose every decision is seen in it.

`up0` and `far0` lead to a host without addresses, which answers nothing: frames are written to its ends of the
wires. What the pod sends, with its final mark, is read from a packet socket in the pod; what it delivers to itself,
from raw sockets. A frame of an unused ethertype behind the others tells when all are handled: everything runs on one
CPU, whose backlog is a queue.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import Host, wire
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP, Ends, Packet
from wicketgate.netpath.snapshot import IPAddress, Snapshot

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, ETH_P_SENTINEL = 3, 0x0800, 0x86DD, 0x88B5  # 88B5: IEEE local experimental
PACKET_OUTGOING = 4
SO_RCVMARK = 75  # Linux 5.19
SO_MARK = 36
LOCAL = ("10.99.0.1", "10.99.0.11", "10.98.0.1", "fd99::1", "fd99::11", "fd98::1")
MAC = {"up0": "02:00:00:00:99:01", "far0": "02:00:00:00:98:01"}
NEAR_MAC = {"up0": "02:00:00:00:99:02", "far0": "02:00:00:00:98:02"}


@dataclass(frozen=True)
class Seen:
    """What became of a packet."""

    verdict: str  # delivered, sent, rejected, dropped
    ends: Ends | None = None
    mark: int = 0
    oif: str = ""
    how: str = ""

    def spelled(self) -> str:
        parts = [self.verdict, self.oif, self.ends.spelled() if self.ends else "", f"mark {self.mark:#x}", self.how]
        return " ".join(part for part in parts if part)


DROPPED = Seen("dropped")


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def build(packet: Packet, nonce: int) -> bytes:
    """The packet in octets. The nonce is the payload; of TCP, the sequence number."""
    source, destination = packet.source.packed, packet.destination.packed
    if packet.protocol == UDP:
        upper = struct.pack("!HHHHI", packet.source_port, packet.destination_port, 12, 0, nonce)
        at = 6
    elif packet.protocol == TCP:
        sequence, ack = (0, nonce + 1) if packet.tcp_flags & 16 and packet.tcp_flags & 2 else (nonce, 0)
        upper = struct.pack(
            "!HHIIBBHHH", packet.source_port, packet.destination_port, sequence & 0xFFFFFFFF, ack & 0xFFFFFFFF,
            0x50, packet.tcp_flags, 8192, 0, 0,
        )  # fmt: skip
        at = 16
    else:
        upper = struct.pack("!BBHHHI", packet.icmp_type or 0, packet.icmp_code, 0, nonce & 0xFFFF, nonce >> 16, nonce)
        at = 2
    if packet.family == 4:
        pseudo = (
            b""
            if packet.protocol == ICMP
            else source + destination + struct.pack("!BBH", 0, packet.protocol, len(upper))
        )
    else:
        pseudo = source + destination + struct.pack("!IHBB", len(upper), 0, 0, packet.protocol)
    total = checksum(pseudo + upper) or 0xFFFF
    upper = upper[:at] + struct.pack("!H", total) + upper[at + 2 :]
    if packet.family == 6:
        head = struct.pack("!IHBB", 6 << 28 | packet.tos << 20, len(upper), packet.protocol, packet.hop_limit)
        return head + source + destination + upper
    head = struct.pack("!BBHHHBBH", 0x45, packet.tos, 20 + len(upper), 0, 0x4000, packet.hop_limit, packet.protocol, 0)
    head += source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + upper


@dataclass
class Parsed:
    ends: Ends
    nonce: int | None
    error: str = ""  # how an ICMP error or a RST tells it
    flags: int = 0


def parse(data: bytes) -> Parsed | None:
    """Addresses, ports and nonce of a packet; of an ICMP error, the nonce of the packet it is about."""
    version = data[0] >> 4
    if version == 4:
        protocol, source, destination, upper = data[9], data[12:16], data[16:20], data[(data[0] & 15) * 4 :]
    else:
        protocol, source, destination, upper = data[6], data[8:24], data[24:40], data[40:]
    a, b = ip_address(source), ip_address(destination)
    if protocol == UDP and len(upper) >= 12:
        sport, dport, _, _, nonce = struct.unpack("!HHHHI", upper[:12])
        return Parsed(Ends(a, b, UDP, sport, dport), nonce)
    if protocol == TCP and len(upper) >= 8:
        sport, dport, sequence = struct.unpack("!HHI", upper[:8])
        if len(upper) < 14:
            return Parsed(Ends(a, b, TCP, sport, dport), sequence)
        ack, _, flags = struct.unpack("!IBB", upper[8:14])
        # A reset that answers what had an ACK begins where that said (RFC 9293, 3.10.7.1).
        nonce = (ack - 1) & 0xFFFFFFFF if flags & 16 else (sequence - bool(flags & 4)) & 0xFFFFFFFF
        return Parsed(Ends(a, b, TCP, sport, dport), nonce, "tcp-reset" if flags & 4 else "", flags)
    if protocol in (ICMP, ICMPV6) and len(upper) >= 12:
        kind, code = upper[0], upper[1]
        if (protocol, kind) in ((ICMP, 3), (ICMPV6, 1)):
            inner = parse(upper[8:]) if len(upper) > 28 else None
            if inner and inner.error:  # about a reset that told of a rejection
                return None
            return Parsed(
                Ends(a, b, protocol), inner.nonce if inner else None, f"icmp{'v6' if version == 6 else ''}/{code}"
            )
        if kind in (0, 8, 128, 129):
            return Parsed(Ends(a, b, protocol), struct.unpack("!I", upper[8:12])[0])
    return None


_CODES = {
    "icmp-net-unreachable": "icmp/0", "icmp-host-unreachable": "icmp/1", "icmp-proto-unreachable": "icmp/2",
    "icmp-prot-unreachable": "icmp/2", "icmp-port-unreachable": "icmp/3", "icmp-net-prohibited": "icmp/9",
    "icmp-host-prohibited": "icmp/10", "icmp-admin-prohibited": "icmp/13", "icmpv6-no-route": "icmpv6/0",
    "icmpv6-admin-prohibited": "icmpv6/1", "icmpv6-adm-prohibited": "icmpv6/1", "icmpv6-addr-unreachable": "icmpv6/3",
    "icmpv6-port-unreachable": "icmpv6/4", "icmpv6-policy-fail": "icmpv6/5", "icmpv6-reject-route": "icmpv6/6",
    "tcp-reset": "tcp-reset",
}  # fmt: skip


def told(how: str) -> str:
    """How a rejection named so looks on the wire."""
    return _CODES[how]


@dataclass
class FilterStand:
    """The pod and what looks into it."""

    pod: Host
    near: Host
    tap: socket.socket = field(init=False)
    raw: list[socket.socket] = field(init=False, default_factory=list)
    into: dict[str, socket.socket] = field(init=False, default_factory=dict)
    conntrack: socket.socket = field(init=False)
    out4: socket.socket = field(init=False)
    out6: socket.socket = field(init=False)
    sentinels: int = 0
    listening: dict[tuple[int, int], socket.socket] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        pod, near = self.pod, self.near
        for name in MAC:
            wire(pod, name, near, name)
        near.run("sh", "-c", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        script = [
            "for s in net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 "
            "net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.icmp_ratelimit=0 "
            "net.ipv6.icmp.ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=1000000 "
            "net.ipv4.conf.all.accept_local=1 net.netfilter.nf_conntrack_max=1000000; do sysctl -qw $s 2>/dev/null || true; done",
        ]
        for name, mac in MAC.items():
            script += [
                f"ip link set {name} address {mac}",
                f"sysctl -qw net.ipv4.conf.{name}.rp_filter=0 net.ipv4.conf.{name}.send_redirects=0",
            ]
        for address, name in zip(LOCAL, ("up0", "up0", "far0") * 2, strict=True):
            script.append(
                f"ip addr add {address}/{24 if '.' in address else 64} dev {name} {'nodad' if ':' in address else ''}"
            )
        script += [
            "ip route add default via 10.98.0.2",
            "ip -6 route add default via fd98::2",
            "ip route add 172.16.0.0/16 via 10.99.0.2",
            "ip -6 route add fd72::/64 via fd99::2",
        ]
        for net, name in (("10.99.0", "up0"), ("10.98.0", "far0")):
            script += [
                f"ip neigh add {net}.{n} lladdr {NEAR_MAC[name]} dev {name} nud permanent"
                for n in (1, 2, 3, 5, 9, 11, 77)
            ]
        for net, name in (("fd99", "up0"), ("fd98", "far0")):
            script += [
                f"ip neigh add {net}::{n} lladdr {NEAR_MAC[name]} dev {name} nud permanent"
                for n in (1, 2, 3, 5, 9, 11, 77)
            ]
        pod.run("sh", "-ec", "\n".join(script))
        pod.call(self._sockets)
        near.call(self._senders)

    def _sockets(self) -> None:
        self.tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.raw = [socket.socket(socket.AF_INET, socket.SOCK_RAW, number) for number in (UDP, TCP, ICMP)] + [
            socket.socket(socket.AF_INET6, socket.SOCK_RAW, number) for number in (UDP, TCP, ICMPV6)
        ]
        for each in (self.tap, *self.raw):
            each.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
            each.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            each.setblocking(False)
        for each in self.raw[3:]:
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self.conntrack = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
        self.out4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.out6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def _senders(self) -> None:
        for name in MAC:
            self.into[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.into[name].bind((name, 0))

    def close(self) -> None:
        self.deafen()
        for each in (self.tap, *self.raw, *self.into.values(), self.conntrack, self.out4, self.out6):
            each.close()

    def listen(self, family: int, port: int) -> None:
        """Have a UDP socket on this port, so that what comes to it is answered by no ICMP error.

        Such an error is one more packet of the connection: it meets the rules of OUTPUT and POSTROUTING, and may change
        the connection's mark.
        """
        if (family, port) not in self.listening:
            kind = socket.AF_INET if family == 4 else socket.AF_INET6
            self.listening[family, port] = self.pod.call(lambda: _udp(kind, port))

    def deafen(self) -> None:
        """Close what `listen` opened."""
        for each in self.listening.values():
            each.close()
        self.listening.clear()

    def forget_connections(self) -> None:
        """Empty the conntrack table (IPCTNL_MSG_CT_DELETE without attributes)."""
        message = struct.pack("=IHHII", 20, 1 << 8 | 2, 1 | 4, 1, 0) + struct.pack("=BBH", 0, 0, 0)
        self.conntrack.send(message)
        error = struct.unpack("=i", self.conntrack.recv(4096)[16:20])[0]
        assert error in (0, -2), error

    def snapshot(self) -> Snapshot:
        return self.pod.acall(lambda: take_snapshot(sockets=False))

    def send(self, packet: Packet, nonce: int) -> bool:
        """Into the pod by `packet.iif`, or from a socket in it. False: the socket was refused by a rule at once."""
        data = build(packet, nonce)
        if packet.iif:
            ethertype = ETH_P_IP if packet.family == 4 else ETH_P_IPV6
            header = bytes.fromhex((MAC[packet.iif] + NEAR_MAC[packet.iif]).replace(":", ""))
            self.into[packet.iif].send(header + struct.pack("!H", ethertype) + data)
            return True
        out = self.out4 if packet.family == 4 else self.out6
        out.setsockopt(socket.SOL_SOCKET, SO_MARK, packet.mark)
        try:
            out.sendto(data, (str(packet.destination), 0))
        except OSError:  # EPERM, EACCES ...: dropped on its way
            return False
        return True

    def collect(self) -> dict[int, list[Seen]]:
        """Everything that became of the packets sent so far, by nonce."""
        self.sentinels += 1
        wanted = set()
        for name, sender in self.into.items():
            mark = struct.pack("!I", self.sentinels) + name.encode()
            wanted.add(mark)
            header = bytes.fromhex((MAC[name] + NEAR_MAC[name]).replace(":", ""))
            sender.send(header + struct.pack("!H", ETH_P_SENTINEL) + mark.ljust(50, b"\0"))
        found: dict[int, list[Seen]] = {}
        self.tap.settimeout(20)
        while wanted:
            data, ancillary, _, address = self.tap.recvmsg(2048, 256)
            ifname, protocol, kind = address[0], address[1], address[2]
            if protocol == ETH_P_SENTINEL:
                wanted.discard(data[14:].rstrip(b"\0"))
            elif kind == PACKET_OUTGOING and protocol in (ETH_P_IP, ETH_P_IPV6):
                self._sent(found, data[14:], _mark(ancillary), ifname)
        for each in self.raw:
            for data, mark, pair in _drain(each):
                self._delivered(found, data, mark, pair, each.proto)
        return found

    def _sent(self, found: dict[int, list[Seen]], data: bytes, mark: int, ifname: str) -> None:
        parsed = parse(data)
        if parsed is None or parsed.nonce is None:
            return
        if not parsed.error and ifname == "lo":
            return
        seen = Seen("rejected", how=parsed.error) if parsed.error else Seen("sent", parsed.ends, mark, ifname)
        found.setdefault(parsed.nonce, []).append(seen)

    def _delivered(
        self,
        found: dict[int, list[Seen]],
        data: bytes,
        mark: int,
        pair: tuple[IPAddress, IPAddress] | None,
        protocol: int,
    ) -> None:
        if pair is not None:
            data = bytes((0x60, 0, 0, 0, 0, 0, protocol, 0)) + pair[0].packed + pair[1].packed + data
        parsed = parse(data)
        if parsed is not None and parsed.nonce is not None and not parsed.error:
            found.setdefault(parsed.nonce, []).append(Seen("delivered", parsed.ends, mark))


def _udp(kind: socket.AddressFamily, port: int) -> socket.socket:
    made = socket.socket(kind, socket.SOCK_DGRAM)
    if kind == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("", port))
    return made


def _mark(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_MARK):
            return int(struct.unpack("I", data[:4])[0])
    return 0


def _drain(sock: socket.socket) -> Iterator[tuple[bytes, int, tuple[IPAddress, IPAddress] | None]]:
    while True:
        try:
            data, ancillary, _, address = sock.recvmsg(2048, 256)
        except BlockingIOError:
            return
        pair = None
        if sock.family == socket.AF_INET6:
            here = next(
                d for level, kind, d in ancillary if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
            )
            pair = ip_address(address[0].split("%")[0]), ip_address(here[:16])
        yield data, _mark(ancillary), pair


def on_one_cpu(function: Callable[[], None]) -> None:
    """Run it on one CPU: then the kernel handles frames in the order in which they were sent."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before) if os.getpid() % 2 else max(before)})
    try:
        function()
    finally:
        os.sched_setaffinity(0, before)
