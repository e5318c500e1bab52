# SPDX-License-Identifier: Apache-2.0
"""Traffic control as far as the door needs it: a clsact qdisc, u32 filters, mirred's ingress redirect.

Four messages of rtnetlink (linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h), written by
hand because pyroute2 0.9.7 has neither the action's cookie nor IPv6 keys. What is ours is known by that cookie
(TCA_ACT_COOKIE, 16 bytes, Linux 4.11), which the kernel keeps and never reads: no other filter is ever removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from wicketgate.errors import KernelRefused, StateError

# linux/netlink.h
_NETLINK_ROUTE = 0
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_NLM_F_DUMP_INTR, _NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x10, 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_NLA_TYPE_MASK = 0x3FFF
_NLMSGHDR = struct.Struct("=IHHII")  # nlmsg_len, nlmsg_type, nlmsg_flags, nlmsg_seq, nlmsg_pid
# linux/rtnetlink.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BBHiIII")  # tcm_family, pad, pad, tcm_ifindex, tcm_handle, tcm_parent, tcm_info
_TCA_KIND, _TCA_OPTIONS = 1, 2
# linux/pkt_sched.h: TC_H_CLSACT is TC_H_INGRESS; the minor number chooses the hook.
_TC_H_CLSACT = 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
# linux/pkt_cls.h
_TCA_U32_CLASSID, _TCA_U32_SEL, _TCA_U32_ACT = 1, 5, 7
_TC_U32_TERMINAL = 1
# struct tc_u32_sel: flags, offshift, nkeys, pad, __be16 offmask, off, offoff, hoff, __be32 hmask
_U32_SEL = struct.Struct("=BBBxHHhhI")
_U32_KEY = struct.Struct("=4s4sii")  # struct tc_u32_key: __be32 mask, __be32 val, off, offmask
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_ACT_STATS, _TCA_ACT_COOKIE = 1, 2, 4, 6
_TCA_STATS_BASIC = 1  # struct gnet_stats_basic: __u64 bytes, __u32 packets
_TC_ACT_STOLEN = 4
# linux/tc_act/tc_mirred.h
_TCA_MIRRED_PARMS = 2
_TCA_INGRESS_REDIR = 3
_MIRRED = struct.Struct("=IIiiiiI")  # tc_gen: index, capab, action, refcnt, bindcnt; eaction, ifindex
COOKIE_SIZE = 16  # TC_COOKIE_MAX_SIZE

_ETH_P = {4: 0x0800, 6: 0x86DD}
# Offsets of the addresses in the network header: RFC 791 section 3.1, RFC 8200 section 3.
_OFFSETS = {4: (12, 16), 6: (8, 24)}


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline (RTM_NEWQDISC)."""

    ifindex: int
    kind: str
    handle: int
    parent: int

    @property
    def at_the_door(self) -> bool:
        """It holds the place of clsact: clsact itself or its older sibling `ingress`."""
        return self.parent == _TC_H_CLSACT


@dataclass(frozen=True, slots=True)
class Filter:
    """A classifier's filter (RTM_NEWTFILTER), as far as ownership and order need it."""

    ifindex: int
    parent: int
    priority: int
    protocol: int  # ETH_P_*, host order
    kind: str
    handle: int
    cookie: bytes = b""  # of its first action; empty = none
    packets: int = 0  # that its first action took

    @property
    def empty(self) -> bool:
        """A u32 classifier's own entry or hash table, which holds no rule itself: struct of handles, TC_U32_NODE is 0."""
        return self.kind == "u32" and not self.handle & 0xFFF

    def spell(self, ifname: str) -> str:
        """As `tc filter del` takes it."""
        hook = {INGRESS: "ingress", EGRESS: "egress"}.get(self.parent, f"parent {self.parent:#x}")
        return f"dev {ifname} {hook} protocol {self.protocol:#06x} pref {self.priority} {self.kind}"


@dataclass(frozen=True, slots=True)
class Redirect:
    """`tc filter add dev IF egress u32 match ip src S match ip dst D action mirred ingress redirect dev IF`."""

    destination: IPv4Address | IPv6Address
    source: IPv4Address | IPv6Address | None
    priority: int
    cookie: bytes
    protocol: int = 0  # of IP, without options or extension headers; 0 = any
    ports: tuple[int, int] | None = None  # source and destination, of TCP or UDP
    word: tuple[int, int] | None = None  # offset in the IP packet, and the 32 bits that stand there

    def spell(self, ifname: str) -> str:
        """In tc's words."""
        word = "ip" if self.destination.version == 4 else "ip6"
        source = f"match {word} src {self.source} " if self.source is not None else ""
        return (
            f"tc filter add dev {ifname} egress protocol {'ip' if word == 'ip' else 'ipv6'} pref {self.priority} u32 "
            f"{source}match {word} dst {self.destination} {self._spelled_upper(word)}action mirred ingress redirect dev {ifname} cookie {self.cookie.hex()}"
        )

    def _spelled_upper(self, word: str) -> str:
        text = f"match {word} protocol {self.protocol} 0xff " if self.protocol else ""
        if self.ports is not None:
            text += f"match {word} sport {self.ports[0]} 0xffff match {word} dport {self.ports[1]} 0xffff "
        if self.word is not None:
            text += f"match u32 {self.word[1]:#x} 0xffffffff at {self.word[0]} "
        return text

    def _upper_keys(self) -> list[bytes]:
        keys = []
        six = self.destination.version == 6
        if self.protocol:
            shift, at = (8, 4) if six else (16, 8)  # the word that holds the next header, or the protocol
            keys.append(_U32_KEY.pack((0xFF << shift).to_bytes(4), (self.protocol << shift).to_bytes(4), at, 0))
        if self.ports is not None:
            value = self.ports[0].to_bytes(2) + self.ports[1].to_bytes(2)
            keys.append(_U32_KEY.pack(b"\xff" * 4, value, 40 if six else 20, 0))
        if self.word is not None:
            keys.append(_U32_KEY.pack(b"\xff" * 4, self.word[1].to_bytes(4), self.word[0], 0))
        return keys

    def message(self, ifindex: int) -> bytes:
        """The body of RTM_NEWTFILTER."""
        version = self.destination.version
        source_at, destination_at = _OFFSETS[version]
        keys = [*_keys(self.source, source_at), *_keys(self.destination, destination_at), *self._upper_keys()]
        selector = _U32_SEL.pack(_TC_U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0) + b"".join(keys)
        mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_INGRESS_REDIR, ifindex)
        action = (
            _nla(_TCA_ACT_KIND, b"mirred\0")
            + _nla(_TCA_ACT_OPTIONS, _nla(_TCA_MIRRED_PARMS, mirred))
            + _nla(_TCA_ACT_COOKIE, self.cookie)
        )
        options = _nla(_TCA_U32_SEL, selector) + _nla(_TCA_U32_ACT, _nla(1, action))
        info = self.priority << 16 | socket.htons(_ETH_P[version])
        return _TCMSG.pack(0, 0, 0, ifindex, 0, EGRESS, info) + _nla(_TCA_KIND, b"u32\0") + _nla(_TCA_OPTIONS, options)


def _keys(address: IPv4Address | IPv6Address | None, offset: int) -> list[bytes]:
    if address is None:
        return []
    packed = address.packed
    return [_U32_KEY.pack(b"\xff" * 4, packed[at : at + 4], offset + at, 0) for at in range(0, len(packed), 4)]


def _nla(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[at + 4 : at + length]
        at += length + (-length % 4)


class TrafficControl:
    """One rtnetlink socket for tc. Requests are answered in the order they were sent, one caller at a time.

    An async context manager; it belongs to the network namespace it was opened in.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = int.from_bytes(os.urandom(3), "little")
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make the socket.

        Raises:
            StateError: no netlink here.
        """
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        except OSError as error:
            raise StateError(f"no rtnetlink socket for tc: {error.strerror}") from error
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # Linux 4.12; without them errors are numbers only
            sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.bind((0, 0))
        sock.connect((0, 0))
        self._socket = sock

    def close(self) -> None:
        """Close the socket; what was set up stays."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def qdiscs(self, ifindex: int | None = None) -> tuple[Qdisc, ...]:
        """Every qdisc, or those of one interface.

        Raises:
            KernelRefused: the kernel would not tell.
        """
        found = []
        body = _TCMSG.pack(0, 0, 0, ifindex or 0, 0, 0, 0)
        for kind, payload in await self._dump(_RTM_GETQDISC, body, "tc qdisc show"):
            if kind != _RTM_NEWQDISC:
                continue
            _, _, _, index, handle, parent, _ = _TCMSG.unpack_from(payload)
            attributes = dict(_attributes(payload[_TCMSG.size :]))
            if ifindex in (None, index):
                found.append(Qdisc(index, _text(attributes.get(_TCA_KIND, b"")), handle, parent))
        return tuple(found)

    async def filters(self, ifindex: int, parent: int = EGRESS) -> tuple[Filter, ...]:
        """Filters at a hook of an interface, in the order the kernel asks them; empty where there is no clsact.

        Raises:
            KernelRefused: the kernel would not tell.
        """
        found = []
        body = _TCMSG.pack(0, 0, 0, ifindex, 0, parent, 0)
        for kind, payload in await self._dump(_RTM_GETTFILTER, body, "tc filter show"):
            if kind == _RTM_NEWTFILTER:
                found.append(_filter(payload))
        return tuple(found)

    async def add(self, ifindex: int, ifname: str, redirects: Sequence[Redirect], *, clsact: bool) -> None:
        """Add redirects, and the clsact qdisc first where it is asked for, in one send.

        One send, so that a killed process leaves either nothing or filters that say whose they are. When one message
        is refused the others are left to the caller to remove.

        Raises:
            KernelRefused: the first refusal, in tc's spelling, with the kernel's sentence.
        """
        flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
        batch: list[tuple[int, int, bytes, str]] = []
        if clsact:
            body = _TCMSG.pack(0, 0, 0, ifindex, _CLSACT_HANDLE, _TC_H_CLSACT, 0) + _nla(_TCA_KIND, b"clsact\0")
            batch.append((_RTM_NEWQDISC, flags, body, f"tc qdisc add dev {ifname} clsact"))
        batch += [(_RTM_NEWTFILTER, flags, each.message(ifindex), each.spell(ifname)) for each in redirects]
        await self._batch(batch)

    async def delete_filter(self, each: Filter, ifname: str) -> None:
        """Remove one filter, and its classifier when that was the last one: an empty u32 would stay in the list.

        Raises:
            KernelRefused: also when it is gone already (ENOENT).
        """
        await self._delete_filter(each, each.handle, ifname)
        rest = [other for other in await self.filters(each.ifindex, each.parent) if other.priority == each.priority]
        if rest and all(other.empty for other in rest):
            await self._delete_filter(each, 0, ifname)

    async def _delete_filter(self, each: Filter, handle: int, ifname: str) -> None:
        info = each.priority << 16 | socket.htons(each.protocol)
        body = _TCMSG.pack(0, 0, 0, each.ifindex, handle, each.parent, info)
        body += _nla(_TCA_KIND, each.kind.encode() + b"\0")
        what = f"tc filter del {each.spell(ifname)}"
        await self._batch([(_RTM_DELTFILTER, _NLM_F_REQUEST | _NLM_F_ACK, body, what)])

    async def delete_clsact(self, ifindex: int, ifname: str) -> None:
        """Remove the clsact qdisc, and with it whatever hangs there: look first.

        Raises:
            KernelRefused: also when it is gone already.
        """
        body = _TCMSG.pack(0, 0, 0, ifindex, _CLSACT_HANDLE, _TC_H_CLSACT, 0) + _nla(_TCA_KIND, b"clsact\0")
        await self._batch([(_RTM_DELQDISC, _NLM_F_REQUEST | _NLM_F_ACK, body, f"tc qdisc del dev {ifname} clsact")])

    async def _batch(self, messages: Sequence[tuple[int, int, bytes, str]]) -> None:
        async with self._lock:
            data, waiting = b"", {}
            for kind, flags, body, what in messages:
                self._sequence += 1
                waiting[self._sequence] = what
                data += _NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, self._sequence, 0) + body
            await self._send(data)
            refused: KernelRefused | None = None
            while waiting:
                for kind, flags, sequence, payload in _messages(await self._receive()):
                    if kind == _NLMSG_ERROR and sequence in waiting:
                        error = _refusal(waiting.pop(sequence), flags, payload)
                        refused = refused or error
            if refused is not None:
                raise refused

    async def _dump(self, kind: int, body: bytes, what: str) -> list[tuple[int, bytes]]:
        async with self._lock:
            for _ in range(8):  # NLM_F_DUMP_INTR: it changed meanwhile; a guess at how often that may happen in a row
                self._sequence += 1
                flags = _NLM_F_REQUEST | _NLM_F_DUMP
                await self._send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), kind, flags, self._sequence, 0) + body)
                found, interrupted, done = [], False, False
                while not done:
                    for type_, message_flags, sequence, payload in _messages(await self._receive()):
                        if sequence != self._sequence:
                            continue
                        interrupted = interrupted or bool(message_flags & _NLM_F_DUMP_INTR)
                        if type_ == _NLMSG_DONE:
                            done = True
                        elif type_ == _NLMSG_ERROR:
                            refused = _refusal(what, message_flags, payload)
                            if refused is not None:
                                raise refused
                            done = True
                        else:
                            found.append((type_, payload))
                if not interrupted:
                    return found
            raise StateError(f"{what}: the list changed under every one of 8 readings")

    async def _send(self, data: bytes) -> None:
        if self._socket is None:
            raise StateError("the tc socket is closed")
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self) -> bytes:
        if self._socket is None:
            raise StateError("the tc socket is closed")
        async with asyncio.timeout(5):  # the kernel answers within the send; this only guards against a bug
            return await asyncio.get_running_loop().sock_recv(self._socket, 1 << 17)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + _NLMSGHDR.size <= len(data):
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, at)
        if length < _NLMSGHDR.size:
            return
        yield kind, flags, sequence, data[at + _NLMSGHDR.size : at + length]
        at += length + (-length % 4)


def _refusal(what: str, flags: int, payload: bytes) -> KernelRefused | None:
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return None
    said = ""
    if flags & _NLM_F_ACK_TLVS:
        (length,) = struct.unpack_from("=I", payload, 4)  # the refused message's own header follows the code
        at = 4 + (_NLMSGHDR.size if flags & _NLM_F_CAPPED else length)
        said = _text(dict(_attributes(payload[at:])).get(_NLMSGERR_ATTR_MSG, b""))
    return KernelRefused(what, -code, said or os.strerror(-code))


def _filter(payload: bytes) -> Filter:
    _, _, _, ifindex, handle, parent, info = _TCMSG.unpack_from(payload)
    attributes = dict(_attributes(payload[_TCMSG.size :]))
    cookie, packets = b"", 0
    kind = _text(attributes.get(_TCA_KIND, b""))
    if kind == "u32":
        options = dict(_attributes(attributes.get(_TCA_OPTIONS, b"")))
        actions = [each for _, each in _attributes(options.get(_TCA_U32_ACT, b""))]
        if actions:
            action = dict(_attributes(actions[0]))
            cookie = action.get(_TCA_ACT_COOKIE, b"")
            basic = dict(_attributes(action.get(_TCA_ACT_STATS, b""))).get(_TCA_STATS_BASIC, b"")
            if len(basic) >= 12:
                _, packets = struct.unpack_from("=QI", basic)
    return Filter(ifindex, parent, info >> 16, socket.ntohs(info & 0xFFFF), kind, handle, cookie, packets)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
