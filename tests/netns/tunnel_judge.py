# SPDX-License-Identifier: Apache-2.0
"""Random peers of a WireGuard device, with wireguard-go as judge: which peer gets a packet, whence its carrier leaves,
and whose source may come in.

Out: a peer that nobody answers for is still sent a handshake, by its endpoint's way and with the device's mark. Every
question gets peers of its own keys and ports, so that each handshake tells whose it is. In: a session with one real
peer outlives changes of the allowed-ips.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from random import Random

from netns.filter_stand import ETH_P_IP, ETH_P_IPV6, PACKET_OUTGOING, build, parse
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import Host, wire
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.journey import packet_of
from wicketgate.netpath.packet import UDP
from wicketgate.netpath.snapshot import PeerState, Snapshot, WireGuardState
from wicketgate.netpath.step import CryptokeyStep, PacketStep, Stage
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker
from wicketgate.wireguard.keys import PrivateKey

PATIENCE = 10.0
QUIET = 0.05  # seconds after the watched peer's handshake in which another one would have been seen
PORT = 51820
SO_MARK = 36
ALLOWED = (
    "0.0.0.0/0", "0.0.0.0/1", "10.20.0.0/16", "10.20.0.0/24", "10.20.1.0/24", "10.20.0.7/32", "10.20.1.7/32", "172.16.0.0/12",
    "::/0", "fd20::/16", "fd20::/64", "fd20:0:0:1::/64", "fd20::7/128", "fd20:0:0:1::7/128",
)  # fmt: skip
INNER = (
    "10.20.0.7",
    "10.20.0.9",
    "10.20.1.7",
    "10.20.9.9",
    "172.16.5.5",
    "203.0.113.9",
    "fd20::7",
    "fd20::9",
    "fd20:0:0:1::7",
    "fd20:9::9",
    "2001:db8::9",
)
ENDPOINTS = (
    "192.0.2.2",
    "192.0.2.9",
    "198.51.100.2",
    "198.51.100.9",
    "203.0.113.77",
    "2001:db8:1::2",
    "2001:db8:2::2",
    "2001:db8:9::9",
)
WATCHED = "10.99.99.99"
COMING_IN = len(INNER) + 1  # packets of one `come_in`
NEIGHBOURS = {
    "e0": ("192.0.2.2", "192.0.2.9", "2001:db8:1::2"),
    "e1": ("198.51.100.2", "198.51.100.9", "2001:db8:2::2"),
}
ROUTES = {
    "main": ["route add 10.20.0.0/16 dev wg0", "route add 172.16.0.0/12 dev wg0", "-6 route add fd20::/16 dev wg0"],
    "wg-quick": [
        f"{f} {line}" for f in ("-4", "-6") for line in (
            "route add default dev wg0 table 51820", "rule add not fwmark 51820 table 51820 pref 32765",
            "rule add table main suppress_prefixlength 0 pref 32764",
        )
    ],
    "mark to the other uplink": [
        "route add 10.20.0.0/16 dev wg0", "-6 route add fd20::/16 dev wg0", "rule add fwmark 51820 lookup 100 pref 100",
        "route add default via 198.51.100.2 dev e1 table 100", "-6 rule add fwmark 51820 lookup 100 pref 100",
        "-6 route add default via 2001:db8:2::2 dev e1 table 100",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Carrier:
    """A handshake as it was seen, or as the model has it."""

    oif: str
    destination: str
    port: int
    mark: int


class Judge:
    """A pod with two uplinks and a device, and a far host with the real peer."""

    def __init__(self, pod: Host, far: Host, chance: Random) -> None:
        self.pod, self.far, self.chance = pod, far, chance
        self.key, self.peer = PrivateKey.generate(), PrivateKey.generate()
        self._port = 1000
        for name in NEIGHBOURS:
            wire(pod, name, far, name)
        pod.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        far.run("sh", "-ec", "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
        self._batch(
            pod, "addr add 192.0.2.1/24 dev e0", "addr add 198.51.100.1/24 dev e1", "-6 addr add 2001:db8:1::1/64 dev e0 nodad",
            "-6 addr add 2001:db8:2::1/64 dev e1 nodad", "route add default via 192.0.2.2 dev e0",
            "-6 route add default via 2001:db8:1::2 dev e0",
        )  # fmt: skip
        self._batch(far, "addr add 192.0.2.2/24 dev e0", "addr add 198.51.100.2/24 dev e1")
        for at, (name, known) in enumerate(NEIGHBOURS.items()):
            mac = f"02:00:00:00:00:0{at + 1}"
            far.run("ip", "link", "set", name, "address", mac)
            lines = [f"neigh replace {each} lladdr {mac} dev {name} nud permanent" for each in known]
            self._batch(pod, *(f"-6 {line}" if ":" in line.split()[2] else line for line in lines))
        for host, name in ((pod, "wg0"), (far, "wgfar")):
            host.popen("wireguard-go", "-f", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + PATIENCE
            while host.run("wg", "show", name, check=False).returncode:
                assert time.monotonic() < deadline, "wireguard-go did not start"
        self._batch(pod, "addr add 10.20.0.1/32 dev wg0", "-6 addr add fd20::1/128 dev wg0 nodad", "link set wg0 up")
        self.tap, self.outs, self.inner = pod.call(self._sockets)
        self.raw = far.call(_raw)

    @staticmethod
    def _batch(host: Host, *lines: str) -> None:
        for family in ("-4", "-6"):
            mine = [line.removeprefix(f"{family} ") for line in lines if line.startswith("-6") == (family == "-6")]
            mine = [line.removeprefix("-4 ") for line in mine]
            host.run("ip", family, "-batch", "-", stdin="\n".join(mine) + "\n")

    @staticmethod
    def _sockets() -> tuple[socket.socket, dict[int, socket.socket], socket.socket]:
        taps = []
        for name in ("", "wg0"):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            made.setsockopt(socket.SOL_SOCKET, 75, 1)  # SO_RCVMARK
            made.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            if name:
                made.bind((name, 3))
            made.settimeout(0.02)
            taps.append(made)
        outs = {
            4: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            6: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        }
        return taps[0], outs, taps[1]

    def close(self) -> None:
        for each in (self.tap, self.inner, *self.outs.values(), *self.raw.values()):
            each.close()

    # Out

    def routes(self, name: str = "") -> Snapshot:
        """One of the ways to lead packets into the device; the snapshot without the device's own state."""
        chosen = ROUTES[name or self.chance.choice(sorted(ROUTES))]
        clear = [
            f"for f in -4 -6; do while ip $f rule del pref {pref} 2>/dev/null; do :; done; done"
            for pref in (100, 32764, 32765)
        ]
        clear += [
            f"for t in main 100 51820; do ip {f} route flush table $t dev wg0; ip {f} route flush table 100; done"
            for f in ("-4", "-6")
        ]
        self.pod.run("sh", "-c", "\n".join(f"({line}) 2>/dev/null" for line in clear), check=False)
        self._batch(self.pod, *chosen)
        return self.pod.acall(lambda: take_snapshot(firewall=False, sockets=False))

    def device(self) -> WireGuardState:
        """Random peers."""
        peers = []
        owners: dict[str, int] = {}
        count = self.chance.randint(1, 6)
        for at in range(count):
            for each in self.chance.sample(ALLOWED, self.chance.randint(1, 4)):
                owners[each] = at  # a prefix belongs to the last peer that claims it
        for at in range(count):
            endpoint = (ip_address(self.chance.choice(ENDPOINTS)), 0) if self.chance.random() < 0.85 else None
            allowed = tuple(ip_network(each) for each, owner in owners.items() if owner == at)
            peers.append(PeerState(_any_key(), endpoint, allowed))
        return self.state(peers, self.chance.choice((0, 51820, 51820)))

    def state(self, peers: list[PeerState], mark: int) -> WireGuardState:
        """These peers and the watched one."""
        watched = PeerState(_any_key(), (ip_address("192.0.2.2"), 0), (ip_network(f"{WATCHED}/32"),))
        return WireGuardState("wg0", "userspace", str(self.key.public()), PORT, mark, (*peers, watched))

    def configure(self, state: WireGuardState) -> None:
        """Load it."""
        lines = [
            "[Interface]",
            f"PrivateKey = {self.key.expose_base64()}",
            f"ListenPort = {PORT}",
            f"FwMark = {state.fwmark}",
        ]
        for peer in state.peers:
            lines += ["[Peer]", f"PublicKey = {peer.public_key}"]
            if peer.allowed_ips:
                lines.append(f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}")
            if peer.endpoint:
                host = f"[{peer.endpoint[0]}]" if peer.endpoint[0].version == 6 else peer.endpoint[0]
                lines.append(f"Endpoint = {host}:{peer.endpoint[1]}")
        self.pod.run("wg", "setconf", "wg0", "/dev/stdin", stdin="\n".join(lines) + "\n")

    def out(self, snapshot: Snapshot, state: WireGuardState | None = None, to: str = "") -> tuple[str | None, Trace]:
        """One packet of the pod's own, into peers made for it. What the two do not agree on, and what the model said.

        The kernel sends things of its own into the device too (multicast reports), so a disagreement counts when it stays.

        Args:
            snapshot: of the routes.
            state: the peers; keys and ports are made anew. None: random ones.
            to: where the packet goes; empty: to a random address.
        """
        state = state or self.device()
        destination = ip_address(to or self.chance.choice(INNER))
        unspecified = ip_address("0.0.0.0" if destination.version == 4 else "::")
        flow = Flow(unspecified, destination, "udp", 0, 9, uid=0, length=(28 if destination.version == 4 else 48) + 5)
        for _ in range(3):
            state = self._anew(state)
            said = Walker(replace(snapshot, wireguard=(state,))).trace(flow)
            if said.verdict is Verdict.UNKNOWN:
                return None, said
            self.configure(state)
            wanted = _carrier(said, state)
            seen = self._send(destination, state, wanted)
            if seen == wanted:
                return None, said
        peers = "\n".join(f"  {peer.endpoint} {', '.join(map(str, peer.allowed_ips))}" for peer in state.peers)
        return (
            f"to {destination}, fwmark {state.fwmark}: model {wanted} ({said.verdict} {said.code}), seen {seen}\n{peers}",
            said,
        )

    def _anew(self, state: WireGuardState) -> WireGuardState:
        """The same peers with keys and ports that were never used: none has sent a handshake yet."""
        peers = []
        for peer in state.peers:
            self._port += 1
            endpoint = (peer.endpoint[0], self._port) if peer.endpoint else None
            peers.append(replace(peer, public_key=_any_key(), endpoint=endpoint))
        return replace(state, peers=tuple(peers))

    def _send(self, destination, state: WireGuardState, wanted: Carrier | None) -> Carrier | None:
        ports = {peer.endpoint[1] for peer in state.peers[:-1] if peer.endpoint}
        watched = state.peers[-1].endpoint
        assert watched is not None
        for to in (str(destination), WATCHED):
            sock = self.outs[ip_address(to).version]
            if to == WATCHED:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wg0")
            try:
                sock.sendto(b"hello", (to, 9))
            except OSError:
                pass  # no way: the model's business
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
        found = None
        deadline = time.monotonic() + PATIENCE
        quiet = 0.0
        while time.monotonic() < deadline and not (quiet and time.monotonic() > quiet):
            try:
                data, ancillary, _, address = self.tap.recvmsg(2048, 256)
            except TimeoutError:
                continue
            if address[2] != PACKET_OUTGOING or address[1] not in (ETH_P_IP, ETH_P_IPV6) or address[0] in ("wg0", "lo"):
                continue
            parsed = parse(data)
            if parsed is None or parsed.ends.protocol != UDP or parsed.ends.source_port != PORT:
                continue
            if parsed.ends.destination_port == watched[1]:
                quiet = quiet or time.monotonic() + QUIET
            elif parsed.ends.destination_port in ports:
                mark = next(
                    (struct.unpack("I", d[:4])[0] for level, kind, d in ancillary if (level, kind) == (1, SO_MARK)), 0
                )
                found = Carrier(address[0], str(parsed.ends.destination), parsed.ends.destination_port, mark)
            if found and quiet and found == wanted:
                break
        assert quiet, "the watched peer's handshake was not seen"
        return found

    # In

    def session(self) -> None:
        """A real session with the far host's device."""
        self.routes()
        self.far.run(
            "wg", "set", "wgfar", "private-key", "/dev/stdin", "listen-port", "4000", "peer", str(self.key.public()), "allowed-ips",
            "0.0.0.0/0,::/0", "endpoint", f"192.0.2.1:{PORT}", stdin=self.peer.expose_base64(),
        )  # fmt: skip
        self._batch(self.far, "link set wgfar up", "addr add 10.20.5.5/32 dev wgfar", "route add 10.20.0.1/32 dev wgfar",
                    "-6 addr add fd20::5:5/128 dev wgfar nodad", "-6 route add fd20::1/128 dev wgfar")  # fmt: skip
        lines = ["[Interface]", f"PrivateKey = {self.key.expose_base64()}", f"ListenPort = {PORT}"]
        lines += ["[Peer]", f"PublicKey = {self.peer.public()}", f"AllowedIPs = {WATCHED}/32"]
        self.pod.run("wg", "setconf", "wg0", "/dev/stdin", stdin="\n".join(lines) + "\n")

    def come_in(self, number: int) -> list[str]:
        """Random allowed-ips of the real peer and another, and packets from everywhere. The disagreements."""
        owners = {each: self.chance.randrange(3) for each in ALLOWED}  # the third is nobody
        mine, other = ([ip_network(e) for e, owner in owners.items() if owner == at] for at in (0, 1))
        peers = (
            PeerState(str(self.peer.public()), None, (*mine, ip_network(f"{WATCHED}/32"))),
            PeerState(_any_key(), None, tuple(other)),
        )
        argv = ["wg", "set", "wg0"]
        for peer in peers:
            argv += ["peer", peer.public_key, "allowed-ips", ",".join(map(str, peer.allowed_ips)) or ""]
        self.pod.run(*argv)
        state = WireGuardState("wg0", "userspace", str(self.key.public()), PORT, 0, peers)
        snapshot = self.pod.acall(lambda: take_snapshot(firewall=False, sockets=False))
        walker = Walker(replace(snapshot, wireguard=(state,)))
        wrong, wanted, flows = [], {}, {}
        for at, source in enumerate((*INNER, WATCHED)):
            nonce = number * 100 + at + 1
            to = ip_address("10.20.0.1" if "." in source else "fd20::1")
            flow = Flow(ip_address(source), to, "udp", 40000, 9, iif="wg0", length=(28 if to.version == 4 else 48) + 4)
            flows[nonce] = flow
            # The model names the one peer that may send from there.
            may = [s.peer.public_key for s in walker.trace(flow).steps if isinstance(s, CryptokeyStep) and s.peer]
            wanted[nonce] = may == [peers[0].public_key]
            self.raw[to.version].sendto(build(packet_of(flow), nonce), (str(to), 0))
        seen = set()
        deadline = time.monotonic() + PATIENCE
        while max(flows) not in seen and time.monotonic() < deadline:
            try:
                data, _, _, address = self.inner.recvmsg(2048, 256)
            except TimeoutError:
                continue
            if address[2] != PACKET_OUTGOING and (parsed := parse(data)) is not None and parsed.nonce in flows:
                seen.add(parsed.nonce)
        assert max(flows) in seen, "the last packet, whose source is allowed, did not come in"
        for nonce, flow in flows.items():
            if wanted[nonce] != (nonce in seen):
                held = [f"{each} of {owner}" for each, owner in owners.items()]
                wrong.append(f"from {flow.source}: model {'in' if wanted[nonce] else 'dropped'}; {held}")
        removed = ["wg", "set", "wg0", "peer", peers[1].public_key, "remove"]
        self.pod.run(*removed)
        return wrong


def _carrier(said: Trace, state: WireGuardState) -> Carrier | None:
    """The outermost packet that leaves, of a tunnel."""
    steps = [s for s in said.steps if isinstance(s, PacketStep) and s.stage is Stage.EGRESS and s.layer]
    if not steps or said.verdict is not Verdict.FORWARDED or steps[-1].ends is None:
        return None
    ends = steps[-1].ends
    return Carrier(steps[-1].ifname, str(ends.destination), ends.destination_port, state.fwmark)


def _any_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def _raw() -> dict[int, socket.socket]:
    return {
        4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
    }
