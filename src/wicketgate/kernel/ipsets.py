# SPDX-License-Identifier: Apache-2.0
"""The ipsets of a network namespace, asked from the kernel itself and written as `ipset save` does.

The program ipset is not needed, and in most pods it is not there. Sources: linux/netfilter/ipset/ip_set.h,
net/netfilter/ipset/ip_set_core.c (ip_set_dump_do), ipset(8) for the spelling.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from wicketgate.errors import StateError

_NETLINK_NETFILTER = 12
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_LIST = 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
_PROTOCOL = 6  # IPSET_PROTOCOL_MIN: every kernel since 2.6.39 speaks it
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_PATIENCE = 5.0
_READ = 1 << 16
# enum ip_set.h: of the set
_SETNAME, _TYPENAME, _FAMILY, _DATA, _ADT = 2, 3, 5, 7, 8
# of its creation, or of an element
_IP, _IP_TO, _CIDR, _PORT, _PORT_TO, _TIMEOUT, _PROTO, _FLAGS, _MARK, _MARKMASK, _BITMASK = (
    1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12,
)  # fmt: skip
_MAXELEM, _NETMASK, _SIZE = 19, 20, 23  # of its creation alone
_ETHER, _NAME, _IP2, _CIDR2, _IFACE = 17, 18, 20, 21, 23  # of an element alone
_PHYSDEV, _NOMATCH, _COUNTERS, _COMMENT, _FORCEADD, _SKBINFO, _WILDCARD = 2, 4, 8, 16, 32, 64, 128
_FAMILIES = {2: "inet", 10: "inet6"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_ICMP = (1, 58)

_Attributes = dict[int, bytes]


def ipsets() -> str:
    """Every ipset of the calling thread's network namespace, as `ipset save` prints it; empty where there is none.

    Raises:
        StateError: no right, or a kernel without ipset.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
            sock.settimeout(_PATIENCE)
            sock.bind((0, 0))
            body = _GENERIC.pack(socket.AF_INET, 0, 0) + _ATTRIBUTE.pack(5, 1) + bytes((_PROTOCOL, 0, 0, 0))
            sock.send(_HEADER.pack(_HEADER.size + len(body), _LIST, _REQUEST | _DUMP, 1, 0) + body)
            return "".join(f"{line}\n" for line in _lines(sock))
    except OSError as error:
        raise StateError(f"ipsets cannot be listed: {error.strerror or error}") from error


def _lines(sock: socket.socket) -> Iterator[str]:
    parts: list[str] = []
    for body in _messages(sock):
        found = _attributes(body[_GENERIC.size :])
        name = _text(found.get(_SETNAME, b""))
        if _TYPENAME in found:  # the first message of a set
            kind = _text(found[_TYPENAME])
            parts = kind.partition(":")[2].split(",")
            yield " ".join(("create", name, kind, *_options(found, kind)))
        for at, element in _walk(found.get(_ADT, b"")):
            if at == _DATA:
                yield f"add {name} {_element(_attributes(element), parts)}"


def _messages(sock: socket.socket) -> Iterator[bytes]:
    while True:
        data = sock.recv(_READ)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise StateError("ipsets cannot be listed: a damaged answer")
            body = data[at + _HEADER.size : at + length]
            at += length + 3 & ~3
            code = -struct.unpack_from("=i", body)[0] if kind in (_ERROR, _DONE) and len(body) >= 4 else 0
            if code:
                raise OSError(code, os.strerror(code))
            if kind in (_ERROR, _DONE):
                return
            yield body


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def _attributes(data: bytes) -> _Attributes:
    return dict(_walk(data))


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")  # net order: NLA_F_NET_BYTEORDER


def _address(data: bytes) -> str:
    for _, value in _walk(data):
        return str(IPv4Address(value) if len(value) == 4 else IPv6Address(value))
    raise StateError("ipsets cannot be listed: an address is missing")


def _options(found: _Attributes, kind: str) -> Iterator[str]:
    """What `ipset restore` needs to make the same set, and what decides about matches."""
    data = _attributes(found.get(_DATA, b""))
    family = _FAMILIES.get(found.get(_FAMILY, b"\0")[0])
    if kind.startswith("hash:") and family and kind != "hash:mac":
        yield f"family {family}"
    if kind.startswith("bitmap:"):
        yield f"range {_range(data, kind)}"
    if kind.startswith("hash:") and _MAXELEM in data:
        yield f"maxelem {_number(data[_MAXELEM])}"
    if _NETMASK in data:
        yield f"netmask {data[_NETMASK][0]}"
    if _BITMASK in data:
        yield f"bitmask {_address(data[_BITMASK])}"
    if _MARKMASK in data:
        yield f"markmask {_number(data[_MARKMASK]):#010x}"
    if _SIZE in data and kind == "list:set":
        yield f"size {_number(data[_SIZE])}"
    if _TIMEOUT in data:
        yield f"timeout {_number(data[_TIMEOUT])}"
    flags = _number(data.get(_FLAGS, b"\0"))
    for flag, word in ((_COUNTERS, "counters"), (_COMMENT, "comment"), (_FORCEADD, "forceadd"), (_SKBINFO, "skbinfo")):
        if flags & flag:
            yield word


def _range(data: _Attributes, kind: str) -> str:
    if kind == "bitmap:port":
        return f"{_number(data[_PORT])}-{_number(data[_PORT_TO])}"
    return f"{_address(data[_IP])}-{_address(data[_IP_TO])}"


def _element(data: _Attributes, parts: list[str]) -> str:
    flags = _number(data.get(_FLAGS, b"\0"))
    spelled = []
    for at, part in enumerate(parts):
        second = at > 0 and part in ("ip", "net")
        if part in ("ip", "net"):
            address = _address(data[_IP2 if second else _IP])
            length = data.get(_CIDR2 if second else _CIDR)
            whole = 128 if ":" in address else 32
            net = part == "net" and length is not None and length[0] != whole
            spelled.append(f"{address}/{length[0]}" if net and length else address)
        elif part == "port":
            spelled.append(_port(data, alone=parts == ["port"]))
        elif part == "mark":
            spelled.append(f"{_number(data[_MARK]):#x}")
        elif part == "iface":
            spelled.append(("physdev:" if flags & _PHYSDEV else "") + _text(data[_IFACE]))
        elif part == "mac":
            spelled.append(":".join(f"{each:02x}" for each in data.get(_ETHER, b"")))
        else:
            spelled.append(_text(data[_NAME]))
    words = [",".join(spelled)]
    if _TIMEOUT in data:
        words.append(f"timeout {_number(data[_TIMEOUT])}")
    if flags & _NOMATCH:
        words.append("nomatch")
    if flags & _WILDCARD:
        words.append("wildcard")
    return " ".join(words)


def _port(data: _Attributes, *, alone: bool) -> str:
    port, protocol = _number(data[_PORT]), data.get(_PROTO, b"\0")[0]
    if alone:
        return str(port)
    name = _PROTOCOLS.get(protocol, str(protocol))
    return f"{name}:{port >> 8}/{port & 255}" if protocol in _ICMP else f"{name}:{port}"
