# SPDX-License-Identifier: Apache-2.0
"""Real packets into random rules, routes and settings: their end, egress, next hop and the kernel's drop reason.

Frames are written to the far ends of the pod's wires. What it forwards is seen by the MAC of the next hop, each of
which has its own; what it takes itself, by raw sockets; why it drops, by `DropTap`, where there is one.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Self

from netns.drop_tap import DropTap
from netns.filter_stand import ETH_P_IP, ETH_P_IPV6, ETH_P_SENTINEL, PACKET_OUTGOING, build, parse
from netns.kernel_judge import Judge as RouteJudge
from netpath_worlds import DEVICES, HOSTS, MARKS, Ask, World
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import Host
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.journey import packet_of
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

NEIGHBOURS = [ip_address(host) for family in (4, 6) for host in HOSTS[family]]
NAMES = {UDP: "udp", TCP: "tcp", ICMP: "icmp", ICMPV6: "icmp"}
LISTENING = ((socket.SOCK_DGRAM, 9000), (socket.SOCK_STREAM, 9000), (socket.SOCK_STREAM, 80))


def mac_of(device: str, neighbour: object) -> str:
    """The MAC of a neighbour on a wire."""
    if device not in DEVICES or neighbour not in NEIGHBOURS:
        return "no neighbour"
    return f"02:00:00:01:0{DEVICES.index(device)}:{NEIGHBOURS.index(neighbour):02x}"


def mac_for(mark: int) -> bytes:
    """The sender's MAC, which a rule turns into a mark."""
    return bytes((2, 0)) + struct.pack("!I", mark)


# What the kernel may name as its reason, by the model's code and the family (ip_rcv_finish_core, ip_error, ip_forward,
# ip6_rcv_core, ip6_pkt_drop, ip6_forward, dst_discard, __udp4_lib_rcv, tcp_v4_rcv and their IPv6 kin).
REASONS = {
    ("rp-filter", 4): {"IP_RPFILTER"},
    ("martian-source", 4): {"IP_INVALID_SOURCE", "IP_LOCAL_SOURCE", "IP_LOCALNET"},
    ("martian-destination", 4): {"IP_INVALID_DEST", "IP_LOCALNET"},
    ("martian-source", 6): {"IP_INHDR", "IP_INADDRERRORS"},
    ("martian-destination", 6): {"IP_INHDR"},
    ("forwarding-off", 4): {"IP_INADDRERRORS"},
    ("forwarding-off", 6): {"IP_INADDRERRORS"},
    ("no-route", 4): {"IP_INNOROUTES"},
    ("no-route", 6): {"IP_INNOROUTES"},
    ("blackhole-route", 4): {"NOT_SPECIFIED", "IP_INNOROUTES"},
    ("blackhole-route", 6): {"NOT_SPECIFIED", "IP_INNOROUTES"},
    ("interface-down", 4): {"QDISC_DROP"},
    ("interface-down", 6): {"QDISC_DROP"},
    ("no-listener", 4): {"NO_SOCKET"},
    ("no-listener", 6): {"NO_SOCKET"},
    ("listener-wrong-address", 4): {"NO_SOCKET"},
    ("listener-wrong-address", 6): {"NO_SOCKET"},
}

# Linux 6.14 gave the refusals of fib_validate_source() and ip_route_input_slow() their names; before, only rp_filter's has one.
_RELEASE = re.match(r"(\d+)\.(\d+)", os.uname().release)
assert _RELEASE is not None
if tuple(map(int, _RELEASE.groups())) < (6, 14):
    for code in ("martian-source", "martian-destination"):
        REASONS[code, 4] |= {"NOT_SPECIFIED"}


@dataclass
class Fate:
    """What became of a packet."""

    delivered: bool = False
    sent: set[tuple[str, str]] = field(default_factory=set)  # interface and MAC of the next hop
    told: str = ""  # an ICMP error or reset about it was seen
    reasons: list[str] = field(default_factory=list)

    def spelled(self) -> str:
        parts = ["delivered" if self.delivered else "", *(f"sent by {oif} to {mac}" for oif, mac in self.sent)]
        parts += [
            f"told by {self.told}" if self.told else "",
            f"dropped: {', '.join(self.reasons)}" if self.reasons else "",
        ]
        return ", ".join(part for part in parts if part) or "nothing seen"


class Judge(RouteJudge):
    """The kernel of one namespace, whose wires end in another. Everything runs in the calling thread, inside the first."""

    def __init__(self, far: Host, tap: DropTap | None) -> None:
        super().__init__()
        self.far = far
        self.tap = tap
        self.verdicts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.untold = 0  # refusals of which nothing was seen
        self._nonce = 0

    def __enter__(self) -> Self:
        super().__enter__()
        for number, name in enumerate(DEVICES):
            refused = self._batch(4, [f"link set p{number} netns {self.far.pid}"])
            lines = [f"link set {name} address 02:00:00:00:0{number}:01"]
            assert not (refused + self._batch(4, lines)), refused
        self.far.run(
            "sh", "-ec", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; for n in 0 1 2; do ip link set p$n up; done"
        )
        marks = ", ".join(f"{mac_for(mark).hex(':')} : {mark:#x}" for mark in sorted(set(MARKS)))
        text = (
            "table inet marks {\n chain in { type filter hook prerouting priority -300; policy accept;\n"
            f"  meta mark set ether saddr map {{ {marks} }}\n }}\n}}\n"
        )
        subprocess.run(["nft", "-f", "-"], input=text, text=True, timeout=60, check=True)
        for name, value in {
            "net/ipv4/icmp_ratelimit": 0, "net/ipv6/icmp/ratelimit": 0, "net/ipv4/icmp_msgs_per_sec": 1000000,
            "net/ipv4/icmp_msgs_burst": 1000000,
            # Half-open connections outlive their world, and what early demux finds for one is not forwarded (found with seed 51).
            "net/ipv4/ip_early_demux": 0,
        }.items():  # fmt: skip
            with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
                file.write(str(value))
        self._sockets()
        self.taken = self.runner.run(take_snapshot(firewall=False)).sockets
        return self

    def _sockets(self) -> None:
        self.open = []
        for kind, port in LISTENING:
            made = socket.socket(socket.AF_INET6, kind)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind(("::", port))
            if kind == socket.SOCK_STREAM:
                made.listen(4096)
            self.open.append(made)
        self.tapped = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.raw = [socket.socket(socket.AF_INET, socket.SOCK_RAW, number) for number in (UDP, TCP, ICMP)]
        self.raw += [socket.socket(socket.AF_INET6, socket.SOCK_RAW, number) for number in (UDP, TCP, ICMPV6)]
        for each in (self.tapped, *self.raw):
            each.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            each.setblocking(False)
        self.into = {name: self.far.call(lambda end=f"p{n}": _sender(end)) for n, name in enumerate(DEVICES)}

    def __exit__(self, *error: object) -> None:
        for each in (*self.open, self.tapped, *self.raw, *self.into.values()):
            each.close()
        super().__exit__(*error)

    def _carrier(self, *, up: bool) -> list[str]:
        self.far.run("ip", "link", "set", "p2", "up" if up else "down")
        return []

    def apply(self, world: World) -> None:
        super().apply(world)
        # IPv4's neighbours go with an interface's last address (arp_ifdown).
        for family in (4, 6):
            known = [n for n in NEIGHBOURS if n.version == family and not n.is_loopback]
            lines = [f"neigh replace {n} lladdr {mac_of(d, n)} dev {d} nud permanent" for d in DEVICES for n in known]
            assert not (refused := self._batch(family, lines)), refused

    def snapshot(self) -> Snapshot:
        made = super().snapshot()
        unread = tuple(each for each in made.unread if each.what != "sockets")
        return replace(made, sockets=self.taken, unread=unread)

    def judge(self, world: World, asks: list[Ask]) -> tuple[list[str], int, int]:
        """Apply, send, compare.

        Some things the kernel settles on its own time, so a disagreement counts when it stays with a fresh snapshot.

        Returns:
            The disagreements, how many cases there were, and how many the model calls unknown.
        """
        self.apply(world)
        asks = list(dict.fromkeys(ask for ask in asks if ask.iif is not None and (world.carrier or ask.iif != "e2")))
        problems: dict[Ask, str] = {}
        unknown, left = 0, asks
        for attempt in range(3):
            if attempt:
                # What an earlier world's routes left in a nexthop object's cache of IPv6 goes with its routes.
                self.apply(world)
            walker = Walker(self.snapshot())
            said = {ask: walker.trace(flow_of(ask)) for ask in left}
            fates = self.send(left)
            problems = {
                ask: problem for ask in left if (problem := differs(said[ask], fates[ask], traced=self.tap is not None))
            }
            if left is asks:
                unknown = sum(trace.verdict is Verdict.UNKNOWN for trace in said.values())
                self._count(said, fates)
            left = list(problems)
            if not left:
                break
        return [f"{ask}: {problem}" for ask, problem in problems.items()], len(asks), unknown

    def _count(self, said: dict[Ask, Trace], fates: dict[Ask, Fate]) -> None:
        for ask, trace in said.items():
            self.verdicts[f"{trace.verdict} {trace.code}".strip()] += 1
            if trace.verdict is Verdict.UNKNOWN:
                self.unknown[trace.reason] += 1
            self.untold += trace.verdict is Verdict.REFUSED and not fates[ask].told
            for reason in fates[ask].reasons[:1]:
                self.reasons[f"{trace.code or trace.verdict}: {reason} (IPv{trace.packet.family})"] += 1

    def send(self, asks: list[Ask]) -> dict[Ask, Fate]:
        """All of them into the pod, and what became of each."""
        fates: dict[int, Fate] = {}
        by_nonce: dict[int, Ask] = {}
        for ask in asks:
            self._nonce += 1
            by_nonce[self._nonce] = ask
            fates[self._nonce] = Fate()
            packet = replace(packet_of(flow_of(ask)), hop_limit=64)
            kind = ETH_P_IP if packet.family == 4 else ETH_P_IPV6
            to = bytes((2, 0, 0, 0, DEVICES.index(ask.iif), 1))
            frame = to + mac_for(ask.mark) + struct.pack("!H", kind) + build(packet, self._nonce)
            if self.tap is not None:
                self.tap.mark(self._nonce)
            self.into[ask.iif].send(frame)
        if self.tap is not None:
            self.tap.mark(0)
        self._collect(fates)
        if self.tap is not None:
            for nonce, reasons in self.tap.read().items():
                if nonce in fates:
                    fates[nonce].reasons = reasons
        return {by_nonce[nonce]: fate for nonce, fate in fates.items()}

    def _collect(self, fates: dict[int, Fate]) -> None:
        self._nonce += 1
        mark = struct.pack("!I", self._nonce)
        self.into["e0"].send(
            bytes((2, 0, 0, 0, 0, 1)) + mac_for(0) + struct.pack("!H", ETH_P_SENTINEL) + mark.ljust(50, b"\0")
        )
        self.tapped.settimeout(20)
        while True:
            data, (ifname, protocol, kind, *_) = self.tapped.recvfrom(2048)
            if protocol == ETH_P_SENTINEL and data[14:18] == mark:
                break
            if kind != PACKET_OUTGOING or protocol not in (ETH_P_IP, ETH_P_IPV6):
                continue
            parsed = parse(data[14:])
            if parsed is None or parsed.nonce not in fates:
                continue
            if parsed.error:
                fates[parsed.nonce].told = f"{parsed.error} {parsed.ends.spelled()}"
            elif parsed.flags & 16 == 0 and not _answer(data[14:]):
                fates[parsed.nonce].sent.add((ifname, data[:6].hex(":")))
        for each in self.raw:
            for data, address in _drain(each):
                if each.family == socket.AF_INET6:
                    head = bytes((0x60, 0, 0, 0, 0, 0, each.proto, 0))
                    ends = ip_address(address[0].split("%")[0]).packed + bytes(16)
                    parsed = parse(head + ends + data)
                else:
                    parsed = parse(data)
                if parsed is not None and parsed.nonce in fates:
                    if parsed.error:
                        fates[parsed.nonce].told = f"{parsed.error} {parsed.ends.spelled()}"
                    else:
                        fates[parsed.nonce].delivered = True


def flow_of(ask: Ask) -> Flow:
    """The flow of a question about a packet that comes in."""
    assert ask.source is not None
    length = (20 if "." in ask.destination else 40) + {TCP: 20}.get(ask.protocol, 12)
    return Flow(
        ip_address(ask.source), ip_address(ask.destination), NAMES[ask.protocol], ask.source_port, ask.destination_port,
        iif=ask.iif, mark=ask.mark, length=length,
    )  # fmt: skip


def differs(said: Trace, fate: Fate, *, traced: bool) -> str | None:
    """What model and kernel do not agree on; None when they agree or the model does not know."""
    words = f"the model says {said.verdict} {said.code} {said.egress} ({said.reason}), the kernel: {fate.spelled()}"
    if said.verdict is Verdict.UNKNOWN:
        return None
    taken = said.verdict is Verdict.DELIVERED or said.code in ("no-listener", "listener-wrong-address")
    if fate.delivered != taken:
        return words
    if said.verdict is Verdict.FORWARDED:
        hops = [said, *said.branches]
        wanted = {(hop.egress, mac_of(hop.egress, hop.via or hop.packet.destination)) for hop in hops}
        return None if fate.sent and fate.sent <= wanted else words
    if fate.sent or (said.verdict is Verdict.DROPPED and fate.told):
        return words
    if not traced:
        return None
    if said.verdict is Verdict.DELIVERED:
        return words if "NO_SOCKET" in fate.reasons and said.flow.protocol == "udp" else None
    wanted = REASONS.get((said.code, said.packet.family))
    return None if wanted and wanted & set(fate.reasons) else f"{words}; not one of {wanted}"


def _answer(data: bytes) -> bool:
    """An echo reply of the pod's own."""
    return (data[9], data[20]) == (ICMP, 0) if data[0] >> 4 == 4 else (data[6], data[40]) == (ICMPV6, 129)


def _sender(name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.bind((name, 0))
    return made


def _drain(sock: socket.socket):
    while True:
        try:
            yield sock.recvfrom(2048)
        except BlockingIOError:
            return
