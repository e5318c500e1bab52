# SPDX-License-Identifier: Apache-2.0
"""One twin: built, asked with real packets, changed by commands, read back."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from wicketgate.clock import SystemClock
from wicketgate.errors import StateError
from wicketgate.kernel import sysctl
from wicketgate.kernel.listings import read_firewall
from wicketgate.kernel.namespace import CLONE_NEWNET
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.process import Completed, run
from wicketgate.kernel.sockets import listening_sockets
from wicketgate.kernel.twin import nft_trace, octets, readback, rebuild, walls
from wicketgate.kernel.twin.half_open import close_silently, forget, half_open
from wicketgate.kernel.twin.listeners import Listeners, counters, owned_socket
from wicketgate.kernel.twin.octets import Sighting
from wicketgate.kernel.twin.room import Netns, unshare
from wicketgate.kernel.twin.wires import Wires, to_one_cpu
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.packet import TCP, UDP, Ends
from wicketgate.netpath.snapshot import IPAddress, ListeningSocket, Snapshot

# Beyond these a twin takes longer than anybody waits; guesses.
_MOST_LINKS, _MOST_ROUTES, _MOST_SOCKETS, _MOST_TEXT = 128, 5000, 1000, 1 << 20
_SECONDS = 10.0  # for one command
_FIRST_NUMBER, _STEP = 0x20000000, 0x01000193
_SO_MARK = 36
_PROGRAMS = re.compile(r"ip|nft|sysctl|ip6?tables(-nft|-legacy)?")


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a packet, as the kernel shows it.

    Attributes:
        left: what left by an interface, in order.
        taken: the local socket that took it; empty for none, or for the kernel itself.
        counted: what the kernel counted meanwhile.
        traced: its way through nftables, where it was asked for.
        connected: a local sender got its answer.
        refused: a local sender was told an error at once: errno.
    """

    left: tuple[Sighting, ...]
    taken: str = ""
    counted: frozenset[str] = frozenset()
    traced: tuple[nft_trace.Traced, ...] = ()
    connected: bool = False
    refused: int = 0


@dataclass(slots=True)
class Twin:
    """A twin of one snapshot, in the namespace of the calling thread, which is new and empty."""

    snapshot: Snapshot
    lacking: tuple[str, ...] = ()
    _wires: Wires = field(init=False)
    _listeners: Listeners = field(default_factory=Listeners)
    _number: int = _FIRST_NUMBER
    _tracing: nft_trace.Tracing | None = None
    _rules: nft_trace.Rules | None = None
    _sender: socket.socket | None = None

    def build(self) -> None:
        """Build it; what it lacks is in `lacking`.

        Raises:
            StateError: it cannot be built at all.
        """
        os.environ.update(walls.ENVIRONMENT)
        to_one_cpu()
        self._small_enough()
        home = Netns()
        far = Netns.another()
        self._wires = Wires(home, far)
        snapshot = self.snapshot
        lacking = [f"not read: {each.what}" for each in snapshot.unread if not _spared(snapshot, each.what)]
        lacking += rebuild.make_links(snapshot, self._wires, f"/proc/{_outer_pid()}/fd/{far.descriptor}")
        lacking += rebuild.set_sysctls(snapshot)
        rebuild.links_up(snapshot)
        lacking += rebuild.add_addresses(snapshot)
        lacking += rebuild.set_sysctls(snapshot)
        complaints = rebuild.make_rules_and_routes(snapshot)
        lacking += walls.load(snapshot.firewall)
        for each in snapshot.sockets:
            try:
                self._listeners.listen(each)
            except StateError as error:
                lacking.append(str(error))
        if self._listeners.unowned and self._owners_matter():
            lacking.append("the owners of the sockets: a user namespace has one user")
        different = readback.differences(snapshot, self.look())
        self.lacking = tuple(dict.fromkeys([*lacking, *(complaints if different else ()), *different]))

    def lacks(self, version: int) -> tuple[str, ...]:
        """What it lacks that packets of this family may depend on."""
        other = f"IPv{10 - version}: "
        return tuple(each for each in self.lacking if not each.startswith(other))

    def _small_enough(self) -> None:
        snapshot = self.snapshot
        firewall = snapshot.firewall
        text = sum(len(each or "") for each in (firewall.nft_text, firewall.iptables_nft, firewall.ip6tables_nft,
                                                firewall.iptables_legacy, firewall.ip6tables_legacy, firewall.ipset))  # fmt: skip
        for what, count, most in (
            ("interfaces", len(snapshot.links), _MOST_LINKS),
            ("routes", len(snapshot.routes), _MOST_ROUTES),
            ("sockets", len(snapshot.sockets), _MOST_SOCKETS),
            ("characters of firewall listings", text, _MOST_TEXT),
        ):
            if count > most:
                raise StateError(f"{count} {what} are too many for it (more than {most})")

    def _owners_matter(self) -> bool:
        firewall = self.snapshot.firewall
        return any(rule.uid_range for rule in self.snapshot.rules) or any(
            re.search(r"\b(skuid|skgid|uid-owner|gid-owner)\b", text or "")
            for text in (firewall.nft_text, firewall.iptables_nft, firewall.ip6tables_nft, firewall.iptables_legacy,
                         firewall.ip6tables_legacy)
        )  # fmt: skip

    def look(self) -> Snapshot:
        """The twin as it is now, without its tunnels' peers."""

        async def read() -> Snapshot:
            listing = asyncio.ensure_future(read_firewall())
            async with Netlink() as netlink:
                links = await netlink.links()
                parts = (await netlink.addresses(), await netlink.routes(), await netlink.rules())
                sockets = await listening_sockets()
                values = sysctl.read_all(link.name for link in self.snapshot.links)
            firewall, unread = await listing
            return Snapshot(
                SystemClock().wall(), links=links, addresses=parts[0], routes=parts[1], rules=parts[2], sysctls=values,
                sockets=sockets, firewall=firewall, unread=unread,
            )  # fmt: skip

        return asyncio.run(read())

    # Packets

    def send(self, flow: Flow) -> tuple[Seen, int]:
        """Send a flow's first packet; what became of it and of an answer of this host's, and the packet's number.

        Raises:
            StateError: it cannot be sent here.
        """
        self._forget_connections()
        self._number = (self._number + _STEP) & 0x7FFFFFFF
        before = counters()
        if flow.iif is None:
            return self._send_from_here(flow, before)
        if not self._wires.reaches(flow.iif):
            raise StateError(f"nothing can be sent into {flow.iif}")
        ends = octets.ends_of(flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port)
        self._wires.put(flow.iif, octets.build(ends, self._number, length=flow.length, tos=flow.tos))
        return self._seen(before, self._number), self._number

    def _check_neighbours(self) -> None:
        """Somebody who is not known to be on a wire was looked for there: only the place itself knows who answers."""
        for ifname, address in self._wires.asked:
            ways = [
                (route.dst, hop.via)
                for route in self.snapshot.routes
                if route.type == "unicast" and route.dst.version == address.version
                for hop in route.nexthops
                if hop.oif == ifname
            ]
            gateways = {hop.via for route in self.snapshot.routes for hop in route.nexthops if hop.oif == ifname}
            near = any(via is None and address in dst for dst, via in ways)
            if not near and address not in gateways and not address.is_link_local:
                self._wires.asked.clear()
                asyncio.run(rebuild.batch(address.version, [f"neigh flush dev {ifname}"]))
                raise StateError(f"who answers for {address} on {ifname} is not known")

    def _seen(self, before: dict[str, int], number: int | None) -> Seen:
        left: list[Sighting] = []
        self._wires.settle(left, self._listeners.datagram_sockets(), self._listeners.on_ready)
        self._check_neighbours()
        opened = half_open()
        if not forget(opened):
            raise StateError("this kernel cannot forget a connection that has begun (CONFIG_INET_DIAG_DESTROY)")
        after = counters()
        taken = self._listeners.arrived.pop(number, None) if number is not None else None
        words = f"udp {taken.address} {taken.port}" if taken else f"tcp {opened[0].port}" if opened else ""
        return Seen(
            tuple(each for each in left if number is None or each.number == number),
            words,
            frozenset(key for key, value in after.items() if value > before.get(key, 0)),
            self._tracing.read(self._rules) if self._tracing is not None and self._rules is not None else (),
        )

    def answer(self, sent: Sighting) -> Seen:
        """Let the far end answer to what left, by the interface that it left by."""
        before = counters()
        self._wires.put(sent.ifname, octets.build(sent.ends.turned(), sent.number, answer=True))
        seen = self._seen(before, sent.number)
        if self._sender is None:
            return seen
        connected = _answered(self._sender, sent.ends.protocol)
        close_silently(self._sender)
        self._sender = None
        return Seen(seen.left, seen.taken, seen.counted, seen.traced, connected)

    def _send_from_here(self, flow: Flow, before: dict[str, int]) -> tuple[Seen, int]:
        family = socket.AF_INET if flow.destination.version == 4 else socket.AF_INET6
        if self._sender is not None:
            close_silently(self._sender)
        icmp = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        try:
            if flow.protocol == "icmp":
                sock = owned_socket(family, socket.SOCK_RAW, icmp, flow.uid or 0)
            else:
                kind = socket.SOCK_STREAM if flow.protocol == "tcp" else socket.SOCK_DGRAM
                sock = owned_socket(family, kind, 0, flow.uid or 0)
        except OSError as error:
            raise StateError(f"no socket of user {flow.uid} can be had: {error.strerror}") from error
        self._sender = sock
        sock.setblocking(False)
        refused = 0
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, flow.mark)
            if flow.device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, flow.device.encode())
            if flow.tos:
                level, name = (0, 1) if family == socket.AF_INET else (41, 67)  # IP_TOS, IPV6_TCLASS
                sock.setsockopt(level, name, flow.tos)
            if flow.protocol != "icmp" or not flow.source.is_unspecified:
                port = flow.source_port if flow.protocol != "icmp" else 0
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((str(flow.source), port))
            _send_on(sock, flow, self._number)
        except BlockingIOError:
            pass  # a connection that has begun
        except OSError as error:
            refused = error.errno or 1
        seen = self._seen(before, None)
        wanted = _PROTOCOL[flow.protocol, family]
        ours = [each for each in seen.left if each.kind == "packet" and not each.answer]
        first = next((each for each in ours if each.ends.protocol == wanted), None)
        number = first.number if first is not None else self._number
        if first is None and flow.protocol == "tcp":
            refused = refused or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return Seen(seen.left, seen.taken, seen.counted, seen.traced, refused=refused), number

    def carry(self, port: int, mark: int, endpoint: tuple[IPAddress, int], length: int) -> tuple[Sighting, ...]:
        """Send what WireGuard would: a datagram from its port, with its mark, to a peer. Where it left.

        Raises:
            StateError: that port has no socket in the twin.
        """
        address, far = endpoint
        number = self._number = (self._number + _STEP) & 0x7FFFFFFF
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = self._listeners.sender(port, address.version)
        if sock is None:
            raise StateError(f"no UDP socket on port {port}, from which WireGuard would send")
        before = counters()
        previous = sock.getsockopt(socket.SOL_SOCKET, _SO_MARK)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        try:
            target = str(address)
            if family == socket.AF_INET and sock.family == socket.AF_INET6:
                target = f"::ffff:{address}"
            sock.sendto(octets.payload_of(number, max(0, length - 28)), (target, far))
        except OSError:
            return ()
        finally:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, previous)
        return self._seen(before, number).left

    def trace(self) -> None:
        """From now on the kernel tells the way through nftables."""
        done = asyncio.run(run(["nft", "-f", "-"], stdin=nft_trace.watching_rules(), timeout=_SECONDS))
        if done.code != 0:
            raise StateError(f"the kernel's trace cannot be had: {done.said}")
        self._rules = nft_trace.Rules(asyncio.run(run(["nft", "-a", "list", "ruleset"], timeout=_SECONDS)).stdout)
        self._tracing = nft_trace.Tracing()

    def stop_tracing(self) -> None:
        """As before."""
        if self._tracing is not None:
            self._tracing.close()
            self._tracing = None
            asyncio.run(run(["nft", "delete", "table", "inet", nft_trace.TABLE], timeout=_SECONDS))

    def way_out(self, source: IPAddress, destination: IPAddress) -> str:
        """What `ip route get` says of an answer: the kernel's way, in one line."""
        argv = ["ip", f"-{source.version}", "route", "get", str(destination), "from", str(source)]
        done = asyncio.run(run(argv, timeout=_SECONDS))
        return " ".join(done.stdout.split()).removesuffix(" cache") if done.code == 0 else ""

    def leave(self) -> None:
        """Let go of everything, and move into a new and empty namespace; this one ends."""
        self._listeners.close_all()
        self._wires.close()
        for each in (self._sender, self._tracing):
            if each is not None:
                each.close()
        unshare(CLONE_NEWNET)

    # Changes

    def run(self, argv: Sequence[str]) -> Completed:
        """Run a command of a fix.

        Raises:
            StateError: it is none that a fix has.
        """
        check_command(argv)
        return asyncio.run(run(list(argv), timeout=_SECONDS))

    def replace_sockets(self, before: Sequence[ListeningSocket], after: Sequence[ListeningSocket]) -> None:
        """Let a program listen otherwise.

        Raises:
            StateError: it cannot.
        """
        for each in before:
            if each not in after:
                self._listeners.close(each)
        for each in after:
            if each not in before:
                self._listeners.listen(each)

    def _forget_connections(self) -> None:
        """Empty the connection tracking table (IPCTNL_MSG_CT_DELETE without attributes)."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as sock:
            sock.send(struct.pack("=IHHII", 20, 1 << 8 | 2, 1 | 4, 1, 0) + struct.pack("=BBH", 0, 0, 0))
            sock.settimeout(_SECONDS)
            sock.recv(4096)  # an error too: then there is no connection tracking


_PROTOCOL = {
    (name, family): number
    for name, family, number in (
        ("tcp", socket.AF_INET, TCP), ("tcp", socket.AF_INET6, TCP), ("udp", socket.AF_INET, UDP),
        ("udp", socket.AF_INET6, UDP), ("icmp", socket.AF_INET, 1), ("icmp", socket.AF_INET6, 58),
    )
}  # fmt: skip


def _spared(snapshot: Snapshot, what: str) -> bool:
    """Whether a twin does without: neighbours all answer, a tunnel's peers are looked at where a packet meets them."""
    if what.startswith(("iptables-nft-save", "ip6tables-nft-save", "nft -j")):
        return snapshot.firewall.nft_text is not None  # the same rules as nft lists them
    return what == "neighbours" or what.startswith("wireguard")


def _send_on(sock: socket.socket, flow: Flow, number: int) -> None:
    target = (str(flow.destination), flow.destination_port)
    if flow.protocol == "tcp":
        sock.connect(target)
    elif flow.protocol == "udp":
        sock.sendto(octets.payload_of(number, max(0, flow.length - 28)), target)
    else:
        whole = octets.build(
            Ends(flow.destination, flow.destination, 1 if flow.destination.version == 4 else 58), number
        )
        sock.sendto(whole[20 if flow.destination.version == 4 else 40 :], (str(flow.destination), 0))


def _answered(sock: socket.socket, protocol: int) -> bool:
    if protocol == TCP:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        try:
            sock.getpeername()
        except OSError:
            return False
        return True
    try:
        return bool(sock.recv(65536))
    except OSError:
        return False


def _outer_pid() -> int:
    """Our number in the pid namespace that /proc shows."""
    return int(os.readlink("/proc/self"))


def check_command(argv: Sequence[str]) -> None:
    """A fix's command holds names that a listing brought; only what changes the twin's own namespace is run.

    Raises:
        StateError: it may do something else.
    """
    words = list(argv)
    line = shlex.join(words)
    if not words or not _PROGRAMS.fullmatch(words[0]):
        raise StateError(f"{line}: this program is not run in a twin")
    if words[0] == "sysctl":
        values = [word.partition("=") for word in words[2:]]
        if words[1:2] != ["-w"] or not all(rebuild.settable(name) and value.isdecimal() for name, _, value in values):
            raise StateError(f"{line}: this setting is not changed in a twin")
    elif words[:4] == ["ip", "link", "set", "dev"]:
        if len(words) != 6 or words[5] not in ("up", "down"):
            raise StateError(f"{line}: this command is not run in a twin")
    elif words[0] == "ip":
        if not re.fullmatch(r"-[46]", words[1]) or words[2] not in ("rule", "route"):
            raise StateError(f"{line}: this command is not run in a twin")
    elif words[0] == "nft":
        given = [word for word in words[1:] if word not in ("--echo", "--handle")]
        if any(word.startswith("-") for word in given[:1]) or re.search(r"[\n\\]|\binclude\b", " ".join(given)):
            raise StateError(f"{line}: this command is not run in a twin")
    else:
        walls.check_iptables_words(words[1:], line)
