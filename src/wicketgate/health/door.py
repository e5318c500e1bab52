# SPDX-License-Identifier: Apache-2.0
"""The door probe: packets of our own that leave by the uplink and come in again by the uplink, as a stranger's.

A process that sends to its own address goes over `lo` and never meets what breaks real clients: rules for `-i eth0`,
rp_filter, the default route, policy rules that catch replies. Here nftables gives the agent's packets a stranger's
source, tc turns them round as they leave, and the kernel routes, filters and tracks them anew. Nothing leaves the
interface, only reserved addresses match, and CAP_NET_ADMIN is enough. `door_rules` has the rules themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import random
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Literal, Self

import structlog

from wicketgate.errors import KernelRefused, StateError
from wicketgate.health import door_rules as rules
from wicketgate.health.door_support import Support, support
from wicketgate.kernel.process import run
from wicketgate.kernel.tc import EGRESS, INGRESS, Redirect, TrafficControl
from wicketgate.netpath.snapshot import Family, IPAddress

_log = structlog.get_logger(room="door")

TcpMode = Literal["auto", "always", "never"]
_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
# The out probe's source ports: a new one each time, and none again while conntrack may remember it (120 s).
_OUT_SPORTS = range(32768, 61000)


class DoorUnavailable(StateError):  # noqa: N818 - it reads as the state it is
    """No door can be built here, and nothing of it was left behind. `str()` is the reason; the model has to judge."""


class NoRouteToStrangers(StateError):  # noqa: N818 - as above
    """The uplink has no route to a stranger: what every client's answer meets as well. A failure, not a missing door."""


class Outcome(StrEnum):
    """How a TCP check ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    SILENT = "silent"
    GARBAGE = "garbage"


@dataclass(frozen=True, slots=True)
class TcpAnswer:
    """What a balancer's TCP or HTTP check would have seen.

    Attributes:
        outcome: how it ended.
        seconds: until the connection stood, or the status line was read.
        status: of the HTTP answer, where one was asked for and given.
        meaning: one line for people.
    """

    outcome: Outcome
    seconds: float
    status: int | None
    meaning: str


@dataclass(frozen=True, slots=True)
class OutTarget:
    """Where a tunnel client's probe goes: send UDP from `sport` to `address`:`dport`; the payload comes back."""

    address: IPAddress
    sport: int
    dport: int


class Door:
    """The door of one tunnel at one uplink. An async context manager; open several one after the other.

    Args:
        uplink: the interface.
        addresses: the pod's addresses on it; the first of each family is the one strangers speak to.
        tag: whose door: the tunnel's name. Leftovers are found again by it.
        tcp: `auto` lets TCP in only on kernels known to queue the redirect; `always` overrides, with a warning.
        kernel_release: as `uname -r`; None = this machine's.

    Attributes:
        families: those the door is open for.
        tcp_supported: whether `tcp_check` may be called.
        reason: why, or why not, in one line.
    """

    def __init__(
        self,
        netlink: object | None = None,
        *,
        uplink: str,
        addresses: Sequence[IPAddress],
        tag: str,
        tcp: TcpMode = "auto",
        kernel_release: str | None = None,
    ) -> None:
        self._netlink = netlink
        self.uplink = uplink
        self.tag = tag
        self._pods: dict[Family, tuple[IPAddress, ...]] = {}
        for family in (4, 6):
            pods = tuple(each for each in addresses if each.version == family and not each.is_link_local)
            if pods:
                self._pods[family] = pods  # type: ignore[index]
        self.families: tuple[Family, ...] = tuple(self._pods)
        self._support: Support = support(kernel_release)
        self.tcp_supported = tcp != "never" and (tcp == "always" or self._support.tcp)
        self.reason = "TCP through the door is switched off" if tcp == "never" else self._support.reason
        self._forced = tcp == "always" and not self._support.tcp
        self._tc = TrafficControl()
        self._slot = -1
        self._index = 0
        self._made_clsact = False
        self._listing = ""
        self._opened = False
        self._next = random.randrange(len(_OUT_SPORTS))  # noqa: S311 - only to differ from the last run's ports

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    def pod(self, family: Family) -> IPAddress:
        """The address strangers speak to."""
        return self._pods[family][0]

    def stranger(self, family: Family) -> IPAddress:
        """Whom the pod sees: shown as the probe peer's endpoint by `wg show`, to be kept out of what users read."""
        self._must_be_open()
        return rules.trio(family, self._slot).stranger

    async def open(self) -> None:
        """Build the door; a killed predecessor's is removed first.

        Raises:
            DoorUnavailable: with everything undone.
        """
        if self._opened:
            return
        if not self._support.door:
            raise DoorUnavailable(self._support.reason)
        if not self.families:
            raise DoorUnavailable(f"{self.uplink} has no address that a stranger could speak to")
        if not rules.spellable(self.uplink):
            raise DoorUnavailable(f"nft cannot spell the interface name {self.uplink!r}")
        if self._forced:
            _log.warning("TCP goes through the door although the kernel may deadlock on it", reason=self.reason)
        self._tc = TrafficControl()
        try:
            self._tc.open()
            await self._build()
        except BaseException as error:
            await self._undo()
            if isinstance(error, StateError):
                raise DoorUnavailable(f"no door at {self.uplink}: {error}") from error
            raise
        self._opened = True

    async def close(self) -> None:
        """Remove exactly what `open` put there."""
        if self._opened:
            self._opened = False
            await self._undo()

    async def verify(self) -> bool:
        """Whether all of it is still in place.

        Raises:
            StateError: it cannot be read.
        """
        self._must_be_open()
        if _index(self.uplink) != self._index:
            return False
        wanted = sorted((each.priority, each.cookie) for each in self._redirects())
        found = sorted(
            (each.priority, each.cookie) for each in await self._tc.filters(self._index) if self._ours(each.cookie)
        )
        return wanted == found and await self._list() == self._listing

    async def repair(self) -> None:
        """Build it again, whatever is left of it.

        Raises:
            DoorUnavailable: it can no longer be built; the door is closed then.
        """
        await self.close()
        await self.open()

    @staticmethod
    async def clean_leftovers(tag: str, *, uplink: str | None = None) -> int:
        """Remove what killed predecessors of this tag left on an uplink, or on all.

        Returns:
            how many filters and tables there were.

        Raises:
            StateError: no netlink, or no right.
        """
        async with TrafficControl() as tc:
            count = 0
            for index in sorted({each.ifindex for each in await tc.qdiscs() if each.at_the_door}):
                name = _name(index)
                if name and uplink in (None, name):
                    count += await _remove_filters(tc, index, name, tag, made_clsact=False)
        tables = [
            (family, name)
            for family, name in await _tables()
            if name == rules.table_name(tag, uplink or "")
            or (uplink is None and name.startswith(rules.table_prefix(tag)))
        ]
        if tables:
            await _nft(rules.delete_script(tables))
        return count + len(tables)

    def udp_socket(self, family: Family, port: int) -> socket.socket:
        """A connected, non-blocking UDP socket whose packets arrive at pod:port as a stranger's; the caller closes it.

        Raises:
            NoRouteToStrangers: the uplink has no route outwards.
            StateError: the pod's address is gone, or the interface.
        """
        return self._socket(family, socket.SOCK_DGRAM, port)

    async def tcp_check(self, family: Family, port: int, timeout: float, *, http_path: str | None = None) -> TcpAnswer:
        """Connect to pod:port as the balancer does; with a path, GET it and read the status line.

        Raises:
            DoorUnavailable: TCP stays out of the door on this kernel.
            NoRouteToStrangers: the uplink has no route outwards.
            StateError: the pod's address is gone, or the interface.
        """
        if not self.tcp_supported:
            raise DoorUnavailable(self.reason)
        started = time.perf_counter()

        def ended(outcome: Outcome, meaning: str, status: int | None = None) -> TcpAnswer:
            return TcpAnswer(outcome, time.perf_counter() - started, status, meaning)

        loop = asyncio.get_running_loop()
        three = rules.trio(family, self._slot)
        with self._socket(family, socket.SOCK_STREAM, None) as sock:
            try:
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(sock, (str(three.agent_peer), port))
                    if http_path is None:
                        return ended(Outcome.ANSWERED, f"port {port} accepts a stranger's connection")
                    host = f"[{self.pod(family)}]" if family == 6 else str(self.pod(family))
                    request = f"GET {http_path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
                    await loop.sock_sendall(sock, request.encode())
                    head = b""
                    while b"\n" not in head and len(head) < 4096:
                        data = await loop.sock_recv(sock, 4096)
                        if not data:
                            break
                        head += data
            except TimeoutError:
                return ended(Outcome.SILENT, f"port {port} gives a stranger no answer within {timeout:g} s")
            except ConnectionRefusedError:
                return ended(Outcome.REFUSED, f"port {port} refuses a stranger's connection")
            except OSError as error:
                return ended(Outcome.SILENT, f"port {port}: {error.strerror}")
        word = head.split(b"\r\n", 1)[0].split(b" ")
        if len(word) >= 2 and word[0].startswith(b"HTTP/1.") and word[1].isdigit():
            status = int(word[1])
            return ended(Outcome.ANSWERED, f"GET {http_path} on port {port}: {status}", status)
        return ended(Outcome.GARBAGE, f"port {port} answers GET {http_path} with something that is not HTTP")

    def out_target(self, family: Family) -> OutTarget:
        """The next target of the out probe; a new source port each time, or conntrack would know the flow already."""
        self._must_be_open()
        self._next = (self._next + 1) % len(_OUT_SPORTS)
        return OutTarget(rules.trio(family, self._slot).target, _OUT_SPORTS[self._next], rules.OUT_PORT)

    async def counters(self, family: Family) -> Mapping[str, int]:
        """Packets counted at every stage since the door was opened: `door_rules.STAGES`.

        Raises:
            StateError: they cannot be read.
        """
        self._must_be_open()
        word = "ip" if family == 4 else "ip6"
        text = await _nft_read("-j", "list", "counters", "table", word, rules.table_name(self.tag, self.uplink))
        entries = [each["counter"] for each in json.loads(text)["nftables"] if "counter" in each]
        return {str(each["name"]): int(each["packets"]) for each in entries}

    def _must_be_open(self) -> None:
        if not self._opened:
            raise DoorUnavailable(f"the door at {self.uplink} is not open")

    def _ours(self, raw: bytes) -> bool:
        return rules.is_cookie(raw, self.tag)

    def _socket(self, family: Family, kind: socket.SocketKind, port: int | None) -> socket.socket:
        self._must_be_open()
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.uplink.encode())
            if kind == socket.SOCK_STREAM:
                # Ended by RST: a probe a second would else keep sixty sockets in TIME_WAIT.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            sock.bind((str(self.pod(family)), 0))
            if port is not None:
                sock.connect((str(rules.trio(family, self._slot).agent_peer), port))
        except OSError as error:
            sock.close()
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise NoRouteToStrangers(f"{self.uplink} has no route to a stranger: {error.strerror}") from error
            raise StateError(f"no probe socket on {self.uplink} at {self.pod(family)}: {error.strerror}") from error
        return sock

    async def _build(self) -> None:
        self._index = _index(self.uplink)
        if self._index == 0:
            raise StateError(f"no interface {self.uplink}")
        await Door.clean_leftovers(self.tag, uplink=self.uplink)
        present = [each for each in await self._tc.qdiscs(self._index) if each.at_the_door]
        if present and present[0].kind != "clsact":
            raise StateError(f"{self.uplink} has somebody's {present[0].kind} qdisc where clsact belongs")
        self._slot = await self._free_slot()
        await _nft("".join(self._scripts()))
        self._made_clsact = not present
        await self._tc.add(self._index, self.uplink, self._redirects(), clsact=not present)
        self._listing = await self._list()

    async def _undo(self) -> None:
        """Remove whatever there is of ours; what is gone already is no error, what cannot be removed is logged."""
        try:
            with contextlib.suppress(KernelRefused):
                await _remove_filters(self._tc, self._index, self.uplink, self.tag, made_clsact=self._made_clsact)
            self._made_clsact = False
            tables = [(family, rules.table_name(self.tag, self.uplink)) for family in ("ip", "ip6")]
            mine = [each for each in await _tables() if each in tables]
            if mine:
                await _nft(rules.delete_script(mine))
        except StateError as error:
            _log.warning("something of the door may be left", uplink=self.uplink, error=str(error))
        finally:
            self._tc.close()

    async def _free_slot(self) -> int:
        used = set()
        for index in {each.ifindex for each in await self._tc.qdiscs() if each.at_the_door}:
            for each in await self._tc.filters(index):
                if rules.is_cookie(each.cookie):
                    used.add(rules.cookie_slot(each.cookie))
                elif index == self._index:
                    used.update(
                        slot for slot in range(rules.SLOTS) if each.priority // 2 == rules.priority(4, slot) // 2
                    )
        for slot in range(rules.SLOTS):
            if slot not in used:
                return slot
        raise StateError(f"{len(used)} doors in one network namespace: no address is left")

    def _scripts(self) -> list[str]:
        return [
            rules.table_script(family, self.tag, self.uplink, self._slot, pods) for family, pods in self._pods.items()
        ]

    def _redirects(self) -> list[Redirect]:
        mark = rules.cookie(self.tag, self._slot, made_clsact=self._made_clsact)
        found = []
        for family, pods in self._pods.items():
            three, pref = rules.trio(family, self._slot), rules.priority(family, self._slot)
            found.append(Redirect(pods[0], three.stranger, pref, mark))
            found.append(Redirect(three.stranger, None, pref, mark))
            found.extend(Redirect(pod, three.target, pref, mark) for pod in pods)
        return found

    async def _list(self) -> str:
        """Our tables without their counts; empty where they are gone."""
        name = rules.table_name(self.tag, self.uplink)
        parts = []
        for family in self.families:
            done = await run(["nft", "-s", "list", "table", "ip" if family == 4 else "ip6", name])
            parts.append(done.stdout if done.code == 0 else "")
        return "".join(parts)


async def _remove_filters(tc: TrafficControl, index: int, ifname: str, tag: str, *, made_clsact: bool) -> int:
    """Remove a tag's filters, and the qdisc that was made for them when nobody else uses it by now."""
    count = 0
    for each in await tc.filters(index):
        if rules.is_cookie(each.cookie, tag):
            made_clsact = made_clsact or rules.cookie_made_clsact(each.cookie)
            try:
                await tc.delete_filter(each, ifname)
                count += 1
            except KernelRefused as error:
                if error.errno not in _GONE:
                    raise
    if made_clsact and not await tc.filters(index, EGRESS) and not await tc.filters(index, INGRESS):
        try:
            await tc.delete_clsact(index, ifname)
        except KernelRefused as error:
            if error.errno not in _GONE:
                raise
    return count


async def _nft(script: str) -> None:
    done = await run(["nft", "-f", "-"], stdin=script)
    if done.code != 0:
        raise StateError(f"nft refused the door's table: {done.said}")


async def _nft_read(*arguments: str) -> str:
    done = await run(["nft", *arguments])
    if done.code != 0:
        raise StateError(f"nft {' '.join(arguments)}: {done.said}")
    return done.stdout


async def _tables() -> list[tuple[str, str]]:
    text = await _nft_read("-j", "list", "tables")
    entries = [each["table"] for each in json.loads(text)["nftables"] if "table" in each]
    return [(str(each["family"]), str(each["name"])) for each in entries]


def _index(ifname: str) -> int:
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
