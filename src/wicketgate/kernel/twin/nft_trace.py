# SPDX-License-Identifier: Apache-2.0
"""The kernel's own account of a packet's way through the firewall: `meta nftrace`, read from netlink.

A table of ours stands at the beginning and at the end of each hook, so that also a packet that legacy iptables or
routing takes away was last seen somewhere. Source: NFNLGRP_NFTRACE, NFTA_TRACE_* in linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

from wicketgate.errors import StateError
from wicketgate.netpath.packet import TCP, UDP, Ends

TABLE = "wicket_twin_watch"
LIVE_TABLE = "wicketgate.live"  # of `kernel.live_table`, which watches one flow in a place itself
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
FIRST, LAST = -(1 << 31), (1 << 31) - 2  # conntrack confirms at INT_MAX
_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 12, 270, 1, 9
_TRACE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_VERDICTS = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    -1: "continue",
    -2: "break",
    -3: "jump",
    -4: "goto",
    -5: "return",
}
_POLICY, _RETURN, _RULE = 1, 2, 3  # enum nft_trace_types
_A_TABLE, _A_CHAIN, _A_HANDLE, _A_TYPE, _A_VERDICT, _A_MARK, _A_POLICY = 1, 2, 3, 4, 5, 14, 16
_A_ID, _A_NETWORK, _A_TRANSPORT, _A_IIF, _A_OIF = 6, 8, 9, 10, 12
_NESTED = 0x3FFF
_COUNTED = re.compile(r" ?counter packets \d+ bytes \d+")
_BASE = re.compile(r"type \w+ hook (?P<hook>\w+) .*?priority (?P<priority>[^;]+)")


@dataclass(frozen=True, slots=True)
class Traced:
    """A chain's or a rule's word about a packet.

    Attributes:
        family: of the table.
        table: its name.
        chain: its name.
        handle: of the rule; 0 for a policy or the end of a chain.
        verdict: drop, accept, jump ...
        hook: of the base chain that began it, where known.
        text: the rule as `nft` lists it, or the policy in words.
        mark: of the packet.
        number: the kernel's for this packet.
        iif: index of the interface it came in by; 0 where that was not told.
        oif: index of the one it leaves by; 0 as above.
        ends: its addresses and ports; told once a base chain.
        tcp_flags: of a TCP packet, told with the ends.
    """

    family: str
    table: str
    chain: str
    handle: int
    verdict: str
    hook: str = ""
    text: str = ""
    mark: int = 0
    number: int = 0
    iif: int = 0
    oif: int = 0
    ends: Ends | None = None
    tcp_flags: int = 0

    @property
    def ours(self) -> bool:
        """Of a table that watches."""
        return self.table in (TABLE, LIVE_TABLE)


def watching_rules() -> str:
    """For `nft -f`."""
    chains = []
    for hook in HOOKS:
        first = "meta nftrace set 1" if hook in ("prerouting", "output") else ""
        chains.append(f"chain {hook}_first {{ type filter hook {hook} priority {FIRST}; {first}\n}}")
        chains.append(f"chain {hook}_last {{ type filter hook {hook} priority {LAST};\n}}")
    return f"table inet {TABLE} {{\n" + "\n".join(chains) + "\n}\n"


class Tracing:
    """Listens in the calling thread's namespace from when it is made."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        except OSError as error:
            self._sock.close()
            raise StateError(f"the kernel's trace cannot be had: {error.strerror}") from error
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """For `select`."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()

    def read(self, rules: Rules) -> tuple[Traced, ...]:
        """What was traced since the last time, in order.

        Raises:
            StateError: words were lost, so that what is left would tell another story.
        """
        found: list[Traced] = []
        try:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found += list(_decode(self._sock.recv(1 << 17)))
        except OSError as error:
            raise StateError(f"the kernel's trace was lost: {error.strerror}") from error
        hook = ""
        named = []
        for each in found:
            hook = rules.hooks.get((each.family, each.table, each.chain), hook)
            text = rules.texts.get((each.family, each.table, each.chain, each.handle), "")
            text = text or f"{each.family} {each.table} {each.chain}: policy {each.verdict}"
            named.append(replace(each, hook=hook, text=text))
        return tuple(named)


def _decode(data: bytes) -> Iterator[Traced]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        body = data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
        if kind == _TRACE and len(body) >= 4:
            yield _traced(body)


def _traced(body: bytes) -> Traced:
    found = dict(_attributes(body[4:]))  # struct nfgenmsg { u8 family, version; be16 res_id; }
    kind = _number(found.get(_A_TYPE, b""))
    verdict = ""
    if _A_VERDICT in found:
        code = dict(_attributes(found[_A_VERDICT])).get(1, b"\0\0\0\0")
        verdict = _VERDICTS.get(_signed(code), "")
    if kind == _POLICY and _A_POLICY in found:
        verdict = _VERDICTS.get(_signed(found[_A_POLICY]), verdict)
    return Traced(
        _FAMILIES.get(body[0], str(body[0])),
        found.get(_A_TABLE, b"").rstrip(b"\0").decode(errors="replace"),
        found.get(_A_CHAIN, b"").rstrip(b"\0").decode(errors="replace"),
        _number(found.get(_A_HANDLE, b"")) if kind == _RULE else 0,
        verdict,
        mark=_number(found.get(_A_MARK, b"")),
        number=_number(found.get(_A_ID, b"")),
        iif=_number(found.get(_A_IIF, b"")),
        oif=_number(found.get(_A_OIF, b"")),
        ends=_ends(found.get(_A_NETWORK, b""), found.get(_A_TRANSPORT, b"")),
        tcp_flags=_flags(found.get(_A_NETWORK, b""), found.get(_A_TRANSPORT, b"")),
    )


def _ends(network: bytes, transport: bytes) -> Ends | None:
    if len(network) < 20:
        return None
    six = network[0] >> 4 == 6
    if six and len(network) < 40:
        return None
    protocol = network[6] if six else network[9]
    source, destination = (network[8:24], network[24:40]) if six else (network[12:16], network[16:20])
    ports = (0, 0)
    if protocol in (TCP, UDP) and len(transport) >= 4:
        ports = (int.from_bytes(transport[:2]), int.from_bytes(transport[2:4]))
    return Ends(ip_address(source), ip_address(destination), protocol, *ports)


def _flags(network: bytes, transport: bytes) -> int:
    ends = _ends(network, transport)
    return transport[13] if ends is not None and ends.protocol == TCP and len(transport) >= 14 else 0


def _signed(data: bytes) -> int:
    return int.from_bytes(data[:4], signed=True)


def _number(data: bytes) -> int:
    return int.from_bytes(data)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _NESTED, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Rules:
    """Rules by their handles, as `nft -a list ruleset` prints them."""

    def __init__(self, listing: str) -> None:
        self.texts: dict[tuple[str, str, str, int], str] = {}
        self.hooks: dict[tuple[str, str, str], str] = {}
        family = table = chain = ""
        for line in listing.splitlines():
            words = line.split()
            if words[:1] == ["table"] and not line.startswith(("\t", " ")):
                family, table = words[1], words[2]
            elif words[:1] == ["chain"] and line.endswith(tuple("0123456789")) and "{" in line:
                chain = words[1]
            elif (base := _BASE.search(line)) is not None:
                self.hooks[family, table, chain] = base["hook"]
            elif (rule := re.match(r"\s+(.*) # handle (\d+)$", line)) is not None and chain:
                self.texts[family, table, chain, int(rule[2])] = _COUNTED.sub("", rule[1])
