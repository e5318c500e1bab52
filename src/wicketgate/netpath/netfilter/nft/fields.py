# SPDX-License-Identifier: Apache-2.0
"""What nft's expressions read from a packet: payload, meta, ct, fib.

A getter gives the value; None where the kernel gives up on the rule (NFT_BREAK: a TCP port of a UDP packet); a `Doubt`
where the model does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from wicketgate.netpath.netfilter import drawn, names
from wicketgate.netpath.netfilter.ipt.conntrack_matches import status
from wicketgate.netpath.netfilter.ipt.place_matches import packet_type
from wicketgate.netpath.netfilter.lookups import fib_device
from wicketgate.netpath.netfilter.nft.model import Ct, Fib, Meta, Payload, RawPayload
from wicketgate.netpath.netfilter.nft.values import NotKnownError, Type, Value
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP

Got = Value | Doubt | None
Getter = Callable[[Run], Got]
Field = tuple[Getter, Type]

_FRAGMENT_OFFSET = 0x1FFF  # of `ip frag-off`; the model sends no fragments, and does not know the DF bit


def payload(expression: Payload) -> Field:
    """`ip saddr`, `tcp dport` ...

    Raises:
        NotKnownError: a field that the model does not know.
    """
    protocol, name = expression.protocol, expression.field
    table = _FIELDS.get(protocol)
    if table is None or name not in table:
        if protocol in _ABSENT_HERE:
            return (lambda _run: None), Type.OTHER
        if protocol in _UNTOLD or table is not None:
            doubt = Doubt(f"`{protocol} {name}` is not in the model's packet", f"{protocol} {name}")
            holds = _HOLDS.get(protocol)
            if holds is None:
                return (lambda _run: doubt), Type.OTHER
            return (lambda run: doubt if holds(run) else None), Type.OTHER
        raise NotKnownError(f"`{protocol} {name}`")
    return table[name]


def _four(value: Callable[[Run], Got]) -> Getter:
    return lambda run: value(run) if run.version == 4 else None


def _six(value: Callable[[Run], Got]) -> Getter:
    return lambda run: value(run) if run.version == 6 else None


def _of(protocol: int, value: Callable[[Run], Got]) -> Getter:
    return lambda run: value(run) if run.protocol == protocol else None


def _upper_length(run: Run) -> int:
    return run.packet.length - (20 if run.version == 4 else 40)


def _port(run: Run, *, source: bool) -> Got:
    if run.connection.drawn is not None and drawn.port_of(run, source=source) is not None:
        return Doubt(drawn.REASON)
    return run.sport if source else run.dport


def _any_port(source: bool) -> Getter:
    doubt = Doubt("`th sport/dport` of a packet without ports reads other octets", "th port")

    def get(run: Run) -> Got:
        if run.protocol in names.WITH_PORTS:
            return _port(run, source=source)
        return doubt

    return get


def _mac(run: Run) -> Got:
    if not run.iif:
        return None  # no link header yet
    return Doubt("the frame's MAC addresses are not known", "ether")


_HOLDS: dict[str, Callable[[Run], bool]] = {
    "ip": lambda run: run.version == 4,
    "ip6": lambda run: run.version == 6,
    "tcp": lambda run: run.protocol == TCP,
    "udp": lambda run: run.protocol == UDP,
    "icmp": lambda run: run.version == 4 and run.protocol == ICMP,
    "icmpv6": lambda run: run.version == 6 and run.protocol == ICMPV6,
    "ether": lambda run: bool(run.iif),
    "esp": lambda run: run.protocol == 50,
    "ah": lambda run: run.protocol == 51,
    "comp": lambda run: run.protocol == 108,
    "igmp": lambda run: run.protocol == 2,
    "udplite": lambda run: run.protocol == 136,
    "sctp": lambda run: run.protocol == 132,
    "dccp": lambda run: run.protocol == 33,
}
_UNTOLD = frozenset({"esp", "ah", "comp", "igmp", "gre", "gretap", "vxlan", "geneve", "th"})
_ABSENT_HERE = frozenset({"arp", "vlan"})
_N = Type.NUMBER


def _ports(number: int) -> dict[str, Field]:
    return {
        "sport": (_of(number, lambda run: _port(run, source=True)), _N),
        "dport": (_of(number, lambda run: _port(run, source=False)), _N),
    }


_FIELDS: dict[str, dict[str, Field]] = {
    "ip": {
        "saddr": (_four(lambda run: run.source), Type.ADDRESS),
        "daddr": (_four(lambda run: run.destination), Type.ADDRESS),
        "protocol": (_four(lambda run: run.protocol), Type.PROTOCOL),
        "ttl": (_four(lambda run: run.packet.hop_limit), _N),
        "dscp": (_four(lambda run: run.packet.tos >> 2), Type.DSCP),
        "ecn": (_four(lambda run: run.packet.tos & 3), Type.ECN),
        "tos": (_four(lambda run: run.packet.tos), _N),
        "length": (_four(lambda run: run.packet.length), _N),
        "version": (_four(lambda _run: 4), _N),
        "hdrlength": (_four(lambda _run: 5), _N),
    },
    "ip6": {
        "saddr": (_six(lambda run: run.source), Type.ADDRESS),
        "daddr": (_six(lambda run: run.destination), Type.ADDRESS),
        "nexthdr": (_six(lambda run: run.protocol), Type.PROTOCOL),
        "hoplimit": (_six(lambda run: run.packet.hop_limit), _N),
        "dscp": (_six(lambda run: run.packet.tos >> 2), Type.DSCP),
        "ecn": (_six(lambda run: run.packet.tos & 3), Type.ECN),
        "length": (_six(_upper_length), _N),
        "version": (_six(lambda _run: 6), _N),
    },
    "tcp": _ports(TCP) | {"flags": (_of(TCP, lambda run: run.packet.tcp_flags), Type.TCP_FLAGS)},
    "udp": _ports(UDP) | {"length": (_of(UDP, _upper_length), _N)},
    "udplite": _ports(136),
    "sctp": _ports(132),
    "dccp": _ports(33),
    "th": {"sport": (_any_port(True), _N), "dport": (_any_port(False), _N)},
    "icmp": {
        "type": (lambda run: run.packet.icmp_type if _HOLDS["icmp"](run) else None, Type.ICMP_TYPE),
        "code": (lambda run: run.packet.icmp_code if _HOLDS["icmp"](run) else None, Type.ICMP_CODE),
    },
    "icmpv6": {
        "type": (lambda run: run.packet.icmp_type if _HOLDS["icmpv6"](run) else None, Type.ICMPV6_TYPE),
        "code": (lambda run: run.packet.icmp_code if _HOLDS["icmpv6"](run) else None, Type.ICMPV6_CODE),
    },
    "ether": {
        "saddr": (_mac, Type.OTHER),
        "daddr": (_mac, Type.OTHER),
        "type": (lambda run: (0x0800 if run.version == 4 else 0x86DD) if run.iif else None, Type.ETHERTYPE),
    },
}


def raw_payload(expression: RawPayload) -> Field:
    """`@nh,96,32`: cut out of the header as far as its bits are known."""
    base, offset, length = expression.base, expression.offset, expression.length
    text = f"@{base},{offset},{length}"
    doubt = Doubt(f"`{text}` reads bits that are not in the model's packet", text)
    if base not in ("nh", "th") or not 0 <= offset <= 1024 or not 0 < length <= 256:
        return (lambda _run: doubt), Type.NUMBER

    def get(run: Run) -> Got:
        value, known, size = _network_header(run) if base == "nh" else _transport_header(run)
        down = size - offset - length
        if down < 0:
            return doubt
        mask = (1 << length) - 1
        return (value >> down) & mask if (known >> down) & mask == mask else doubt

    return get, Type.NUMBER


def _network_header(run: Run) -> tuple[int, int, int]:
    """Its value, which bits of it are known, its size in bits."""
    packet = run.packet
    fields: tuple[tuple[int, int | None], ...]
    if run.version == 4:
        fields = ((4, 4), (4, 5), (8, packet.tos), (16, packet.length), (16, None), (3, None), (13, 0),
                  (8, packet.hop_limit), (8, run.protocol), (16, None), (32, run.source), (32, run.destination))  # fmt: skip
    else:
        fields = ((4, 6), (8, packet.tos), (20, None), (16, _upper_length(run)), (8, run.protocol),
                  (8, packet.hop_limit), (128, run.source), (128, run.destination))  # fmt: skip
    return _packed(fields)


def _transport_header(run: Run) -> tuple[int, int, int]:
    sport, dport = (
        None if drawn.port_of(run, source=each) else port for each, port in ((True, run.sport), (False, run.dport))
    )
    if run.protocol == TCP:
        return _packed(((16, sport), (16, dport), (64, None), (8, None), (8, run.packet.tcp_flags), (48, None)))
    if run.protocol == UDP:
        return _packed(((16, sport), (16, dport), (16, _upper_length(run)), (16, None)))
    if run.protocol in (ICMP, ICMPV6) and run.packet.icmp_type is not None:
        return _packed(((8, run.packet.icmp_type), (8, run.packet.icmp_code), (48, None)))
    if run.protocol in names.WITH_PORTS:
        return _packed(((16, sport), (16, dport), (64, None)))
    return 0, 0, 64


def _packed(fields: tuple[tuple[int, int | None], ...]) -> tuple[int, int, int]:
    value = known = size = 0
    for bits, content in fields:
        value = value << bits | (content or 0)
        known = known << bits | (0 if content is None else (1 << bits) - 1)
        size += bits
    return value, known, size


def fragment_offset(mask: int) -> bool:
    """`ip frag-off & MASK` asks for nothing but the offset, which is 0."""
    return mask & ~_FRAGMENT_OFFSET == 0


def meta(expression: Meta) -> Field:
    """`meta mark`, `iifname` ...

    Raises:
        NotKnownError: a key that the model does not know.
    """
    found = _META.get(expression.key)
    if found is None:
        raise NotKnownError(f"`meta {expression.key[:40]}`")
    return found


def _doubtful(what: str, kind: Type = Type.OTHER) -> Field:
    doubt = Doubt(f"`meta {what}` is not in a snapshot", f"meta {what}")
    return (lambda _run: doubt), kind


def _index(inward: bool) -> Getter:
    def get(run: Run) -> Got:
        index = run.facts.index(run.iif if inward else run.oif)
        return Doubt("an interface that the snapshot does not have", "ifindex") if index is None else index

    return get


def _group(inward: bool) -> Getter:
    def get(run: Run) -> Got:
        name = run.iif if inward else run.oif
        if not name:
            return None
        link = run.facts.link(name)
        return Doubt(f"the group of {name} is not known", f"group {name}") if link is None else link.group

    return get


def _kind(inward: bool) -> Getter:
    def get(run: Run) -> Got:
        link = run.facts.link(run.iif if inward else run.oif)
        return link.kind if link is not None else None

    return get


def _owner(user: bool) -> Getter:
    doubt = Doubt("the sending socket's owner is not known", "meta skuid" if user else "meta skgid")
    early = Doubt("early demultiplexing may have found a socket already", "early demux")

    def get(run: Run) -> Got:
        packet = run.packet
        if packet.from_socket:
            value = packet.uid if user else packet.gid
            return doubt if value is None else value
        # A connected socket's packets have their owner in INPUT (ip_rcv_finish_core, tcp_v4_early_demux).
        return early if run.hook == "input" and run.ct_state.value == "established" else None

    return get


_META: dict[str, Field] = {
    "length": (lambda run: run.packet.length, _N),
    "protocol": (lambda run: 0x0800 if run.version == 4 else 0x86DD, Type.ETHERTYPE),
    "nfproto": (lambda run: 2 if run.version == 4 else 10, Type.NFPROTO),
    "l4proto": (lambda run: run.protocol, Type.PROTOCOL),
    "mark": (lambda run: run.packet.mark, _N),
    "iif": (_index(True), Type.INDEX),
    "oif": (_index(False), Type.INDEX),
    "iifname": (lambda run: run.iif, Type.NAME),
    "oifname": (lambda run: run.oif, Type.NAME),
    "iifgroup": (_group(True), Type.GROUP),
    "oifgroup": (_group(False), Type.GROUP),
    "iifkind": (_kind(True), Type.NAME),
    "oifkind": (_kind(False), Type.NAME),
    "skuid": (_owner(True), _N),
    "skgid": (_owner(False), _N),
    "pkttype": (packet_type, Type.PACKET_TYPE),
    "nftrace": (lambda _run: 0, _N),
} | {
    key: _doubtful(key)
    for key in (
        "priority", "random", "rtclassid", "cpu", "cgroup", "time", "day", "hour", "iiftype", "oiftype", "secpath",
        "ipsec", "ibrname", "obrname", "ibriport", "obriport", "sdif", "sdifname", "ibrpvid", "ibrvproto", "prandom",
        "secmark", "ibrhwaddr", "broute",
    )
}  # fmt: skip


def ct(expression: Ct) -> Field:
    """`ct state`, `ct original ip daddr` ...

    Raises:
        NotKnownError: a key that the model does not know.
    """
    key, direction = expression.key, expression.direction
    if key == "state":
        return (lambda run: names.CT_STATES[run.ct_state.value]), Type.CT_STATE
    if key in ("saddr", "daddr", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "proto-src", "proto-dst"):
        return _ends(key, direction)
    plain: dict[str, Field] = {
        "mark": (lambda run: run.connection.mark, _N),
        "direction": (lambda run: 0 if run.connection.direction == "original" else 1, Type.CT_DIRECTION),
        "status": (_status, Type.CT_STATUS),
        "protocol": (lambda run: run.connection.original.protocol, Type.PROTOCOL),
        "l3proto": (lambda run: 2 if run.version == 4 else 10, Type.NFPROTO),
        "zone": (lambda run: run.connection.zone, _N),
    }
    if key in plain:
        getter, kind = plain[key]
    elif key in ("expiration", "helper", "label", "bytes", "packets", "avgpkt", "id", "secmark", "count"):
        doubt = Doubt(f"`ct {key}` is not in a snapshot", f"ct {key}")
        getter, kind = (lambda _run: doubt), Type.OTHER
    else:
        raise NotKnownError(f"`ct {key[:40]}`")
    return (lambda run: getter(run) if run.has_connection else None), kind


def _status(run: Run) -> Got:
    known, value = status(run)
    if not known & names.CT_STATUS["assured"]:
        return Doubt("whether the connection is assured is not known", "ct assured")
    return value


def status_bits(run: Run, mask: int) -> int | Doubt | None:
    """`ct status & mask`, which is known unless it asks for `assured`."""
    if not run.has_connection:
        return None
    known, value = status(run)
    if mask & ~known:
        return Doubt("whether the connection is assured is not known", "ct assured")
    return value & mask


def _ends(key: str, direction: str) -> Field:
    name = key.rpartition(" ")[2]
    family = 4 if key.startswith("ip ") else 6 if key.startswith("ip6 ") else 0

    def get(run: Run) -> Got:
        if not run.has_connection or (family and run.version != family):
            return None
        ends = run.connection.answer if (direction or run.connection.direction) == "reply" else run.connection.original
        if name == "saddr":
            return int(ends.source)
        if name == "daddr":
            return int(ends.destination)
        if name == "proto-dst" and ends is run.connection.answer and run.connection.drawn is not None:
            return Doubt(drawn.REASON)
        return ends.source_port if name == "proto-src" else ends.destination_port

    return get, Type.ADDRESS if name.endswith("addr") else Type.NUMBER


def fib(expression: Fib, *, presence: bool = False) -> Field:
    """`fib daddr type`, `fib saddr . iif oif`.

    Args:
        expression: what is asked.
        presence: only whether something is found (`missing`, `exists`).
    """
    flags = expression.flags
    of_source, iif, oif = "saddr" in flags, "iif" in flags, "oif" in flags
    if expression.result == "type":

        def kind(run: Run) -> Got:
            address = run.packet.source if of_source else run.packet.destination
            found = run.facts.address_type(address, run.oif if oif else run.iif if iif else "")
            if found is None:
                return Doubt(f"what {address} is here is not known", f"type {address}")
            return names.ROUTE_TYPES.get(found, -1)

        return kind, Type.ROUTE_TYPE

    def device(run: Run) -> Got:
        found = fib_device(run, of_source=of_source, iif=iif, oif=oif, mark="mark" in flags)
        if isinstance(found, Doubt) or (expression.result == "oifname" and not presence):
            return found
        if presence:
            return int(bool(found))
        index = run.facts.index(found)
        return Doubt(f"the index of {found} is not known", f"ifindex {found}") if index is None else index

    if presence:
        return device, Type.NUMBER
    return device, Type.NAME if expression.result == "oifname" else Type.INDEX
