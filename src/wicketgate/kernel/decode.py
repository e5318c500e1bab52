# SPDX-License-Identifier: Apache-2.0
"""From netlink messages to the values of `netpath.snapshot`. What cannot be named lands in `unknown`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType
from typing import Any

from wicketgate.kernel.plain_routes import PlainRoute, interface_of, parts_of
from wicketgate.netpath.snapshot import (
    NO_MAP,
    Address,
    IPAddress,
    IPNetwork,
    Link,
    Neighbour,
    NextHop,
    Route,
    Rule,
)

NameOf = Callable[[int], str]

IFF_UP, IFF_LOOPBACK, IFF_POINTOPOINT, IFF_LOWER_UP = 0x1, 0x8, 0x10, 0x10000  # linux/if.h

# linux/rtnetlink.h, RTN_*
ROUTE_TYPES = {
    0: "unspec",
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
    10: "nat",
    11: "xresolve",
}
# linux/fib_rules.h, FR_ACT_*
RULE_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

FIB_RULE_INVERT = 0x2
# PERMANENT, INVERT, UNRESOLVED, IIF_DETACHED, OIF_DETACHED: the last three say how things stand, not what was asked
FIB_RULE_KNOWN_FLAGS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
UNSET_U32 = 0xFFFFFFFF
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200
RTAX_LOCK = "RTAX_LOCK"
# linux/rtnetlink.h RTAX_*: the bit in RTAX_LOCK is the attribute's number
RTAX_NAMES = [
    "unspec",
    "lock",
    "mtu",
    "window",
    "rtt",
    "rttvar",
    "ssthresh",
    "cwnd",
    "advmss",
    "reordering",
    "hoplimit",
    "initcwnd",
    "features",
    "rto_min",
    "initrwnd",
    "quickack",
    "cc_algo",
    "fastopen_no_cookie",
]


def family_number(family: int) -> int:
    """AF_INET or AF_INET6 of 4 or 6."""
    return int(socket.AF_INET if family == 4 else socket.AF_INET6)


def attributes(message: Any) -> Iterator[tuple[str, Any]]:
    """Every attribute by name; one that pyroute2 cannot name is `attribute NUMBER`."""
    for name, value in message["attrs"]:
        if name == "UNKNOWN":
            number = value.get("header", {}).get("type", 0) if hasattr(value, "get") else 0
            yield f"attribute {number & 0x3FFF}", value
        else:
            yield name, value


def link(message: Any) -> Link:
    """RTM_NEWLINK."""
    values = {name: message.get_attr(name) for name in ("IFLA_IFNAME", "IFLA_MTU", "IFLA_MASTER", "IFLA_ADDRESS")}
    info = message.get_attr("IFLA_LINKINFO")
    flags = message["flags"]
    return Link(
        index=message["index"],
        name=values["IFLA_IFNAME"] or "",
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        mtu=values["IFLA_MTU"] or 0,
        up=bool(flags & IFF_UP),
        lower_up=bool(flags & IFF_LOWER_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        pointopoint=bool(flags & IFF_POINTOPOINT),
        master=values["IFLA_MASTER"] or 0,
        mac=values["IFLA_ADDRESS"] or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        group=message.get_attr("IFLA_GROUP") or 0,
        vrf_table=_vrf_table(info),
    )


def _vrf_table(info: Any) -> int:
    if not info or info.get_attr("IFLA_INFO_KIND") != "vrf":
        return 0
    data = info.get_attr("IFLA_INFO_DATA")
    return (data.get_attr("IFLA_VRF_TABLE") or 0) if data is not None and hasattr(data, "get_attr") else 0


def address(message: Any, name_of: NameOf) -> Address:
    """RTM_NEWADDR. IFA_LOCAL is our end of a point-to-point link, IFA_ADDRESS the other (linux/if_addr.h)."""
    far = message.get_attr("IFA_ADDRESS")
    near = message.get_attr("IFA_LOCAL") or far
    flags = message.get_attr("IFA_FLAGS")
    return Address(
        ifname=name_of(message["index"]),
        ifindex=message["index"],
        interface=ip_interface(f"{near}/{message['prefixlen']}"),
        scope=message["scope"],
        flags=message["flags"] if flags is None else flags,
        peer=ip_address(far) if far and far != near else None,
        protocol=message.get_attr("IFA_PROTO") or 0,
    )


def neighbour(message: Any, name_of: NameOf) -> Neighbour | None:
    """RTM_NEWNEIGH; None for entries without an IP address (bridge forwarding entries)."""
    ip = message.get_attr("NDA_DST")
    if not ip or message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    return Neighbour(
        ifname=name_of(message["ifindex"]),
        ip=ip_address(ip),
        mac=message.get_attr("NDA_LLADDR") or "",
        state=message["state"],
    )


def _prefix(value: str | None, length: int, family: int) -> IPNetwork:
    return ip_network(f"{value or ('0.0.0.0' if family == socket.AF_INET else '::')}/{length}", strict=False)


def _via(gateway: Any, via: Any) -> IPAddress | None:
    if gateway:
        return ip_address(gateway)
    if via:
        return ip_address(via["addr"])
    return None


def _metrics(value: Any) -> dict[str, str]:
    found = {name: number for name, number in value["attrs"] if name != "UNKNOWN"}
    lock = found.pop(RTAX_LOCK, 0)
    spelled = {}
    for name, number in found.items():
        short = name.removeprefix("RTAX_").lower()
        locked = short in RTAX_NAMES and lock & (1 << RTAX_NAMES.index(short))
        spelled[short] = f"lock {number}" if locked else str(number)
    return spelled


def route(message: Any, name_of: NameOf) -> Route:
    """RTM_NEWROUTE."""
    if isinstance(message, PlainRoute):
        index = interface_of(message)
        return parts_of(message, name_of(index) if index else "", ROUTE_TYPES)
    family = message["family"]
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in attributes(message):
        if name in _ROUTE_READ:
            found[name] = value
        elif name not in _ROUTE_HARMLESS:
            unknown.append(name)
    if found.get("RTA_PREF"):  # 0 = medium, the default (RFC 4191)
        unknown.append(f"RTA_PREF {found['RTA_PREF']}")
    hops: list[NextHop] = []
    if "RTA_MULTIPATH" in found:
        for hop in found["RTA_MULTIPATH"]:
            inner = dict(attributes(hop))
            unknown.extend(name for name in inner if name not in ("RTA_GATEWAY", "RTA_VIA"))
            hops.append(
                NextHop(
                    oif=name_of(hop["oif"]) if hop["oif"] else "",
                    via=_via(inner.get("RTA_GATEWAY"), inner.get("RTA_VIA")),
                    weight=hop["hops"] + 1,
                    flags=hop["flags"],
                )
            )
    elif "RTA_OIF" in found or "RTA_GATEWAY" in found or "RTA_VIA" in found:
        hops.append(
            NextHop(
                oif=name_of(found["RTA_OIF"]) if found.get("RTA_OIF") else "",
                via=_via(found.get("RTA_GATEWAY"), found.get("RTA_VIA")),
                flags=message["flags"] & 0xFF,  # the low byte of rtm_flags is RTNH_F_*
            )
        )
    nh_id = found.get("RTA_NH_ID", 0)
    if nh_id and not hops and message["type"] == 1:
        unknown.append("RTA_NH_ID")  # net.ipv4.nexthop_compat_mode=0: the kernel names the object and not its ways
    metrics = _metrics(found["RTA_METRICS"]) if "RTA_METRICS" in found else {}
    return Route(
        dst=_prefix(found.get("RTA_DST"), message["dst_len"], family),
        table=found.get("RTA_TABLE", message["table"]),
        type=ROUTE_TYPES.get(message["type"], f"type {message['type']}"),
        nexthops=tuple(hops),
        prefsrc=ip_address(found["RTA_PREFSRC"]) if found.get("RTA_PREFSRC") else None,
        metric=found.get("RTA_PRIORITY", 0),
        scope=message["scope"],
        protocol=message["proto"],
        tos=message["tos"],
        src=_prefix(found.get("RTA_SRC"), message["src_len"], family) if message["src_len"] else None,
        nh_id=nh_id,
        metrics=MappingProxyType(metrics) if metrics else NO_MAP,
        unknown=tuple(unknown),
    )


_ROUTE_READ = frozenset({
    "RTA_DST", "RTA_SRC", "RTA_OIF", "RTA_GATEWAY", "RTA_VIA", "RTA_PRIORITY", "RTA_PREFSRC", "RTA_METRICS",
    "RTA_MULTIPATH", "RTA_TABLE", "RTA_PREF", "RTA_NH_ID",
})  # fmt: skip
# Statistics and lifetimes: they change no decision.
_ROUTE_HARMLESS = frozenset({"RTA_CACHEINFO", "RTA_EXPIRES", "RTA_PAD", "RTA_UNSPEC"})


def _range(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, last = value.split(":")
    return int(first), int(last)


def rule(message: Any) -> Rule:
    """RTM_NEWRULE."""
    family = message["family"]
    found: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in attributes(message):
        if name in _RULE_READ:
            found[name] = value
        elif name not in ("FRA_PAD", "FRA_UNSPEC") and not (name == "FRA_TUN_ID" and not value):
            unknown.append(f"{name} {value}" if isinstance(value, int) else name)
    # A full mask is what an exact port or a range has always meant; the kernel sends it unasked since 6.15.
    unknown.extend(
        f"{mask} {found[mask]:#x}"
        for mask in ("FRA_SPORT_MASK", "FRA_DPORT_MASK")
        if found.get(mask, 0) not in (0, 0xFFFF)
    )
    flags = message["flags"] & ~FIB_RULE_KNOWN_FLAGS
    if flags:
        unknown.append(f"flags {flags:#x}")
    action = RULE_ACTIONS.get(message["action"])
    if action is None:
        unknown.append(f"action {message['action']}")
    suppress = found.get("FRA_SUPPRESS_PREFIXLEN", UNSET_U32)
    group = found.get("FRA_SUPPRESS_IFGROUP", UNSET_U32)
    l3mdev = bool(found.get("FRA_L3MDEV"))
    return Rule(
        family=4 if family == socket.AF_INET else 6,
        priority=found.get("FRA_PRIORITY", 0),  # priority 0 is a missing attribute
        action=action or f"action {message['action']}",
        table=found.get("FRA_TABLE", message["table"]) if action == "lookup" and not l3mdev else 0,
        src=_prefix(found.get("FRA_SRC"), message["src_len"], family) if message["src_len"] else None,
        dst=_prefix(found.get("FRA_DST"), message["dst_len"], family) if message["dst_len"] else None,
        iif=found.get("FRA_IIFNAME", ""),
        oif=found.get("FRA_OIFNAME", ""),
        fwmark=found.get("FRA_FWMARK", 0),
        fwmask=found.get("FRA_FWMASK", 0),
        tos=message["tos"],
        ipproto=found.get("FRA_IP_PROTO", 0),
        sport=_range(found.get("FRA_SPORT_RANGE")),
        dport=_range(found.get("FRA_DPORT_RANGE")),
        uid_range=_range(found.get("FRA_UID_RANGE")),
        invert=bool(message["flags"] & FIB_RULE_INVERT),
        suppress_prefixlength=None if suppress == UNSET_U32 else suppress,
        suppress_ifgroup=None if group == UNSET_U32 else group,
        goto=found.get("FRA_GOTO", 0),
        l3mdev=l3mdev,
        protocol=found.get("FRA_PROTOCOL", 0),
        unknown=tuple(unknown),
    )


_RULE_READ = frozenset({
    "FRA_DST", "FRA_SRC", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_GOTO", "FRA_PRIORITY", "FRA_FWMARK", "FRA_FWMASK",
    "FRA_SUPPRESS_IFGROUP", "FRA_SUPPRESS_PREFIXLEN", "FRA_TABLE", "FRA_L3MDEV", "FRA_UID_RANGE", "FRA_PROTOCOL",
    "FRA_IP_PROTO", "FRA_SPORT_RANGE", "FRA_DPORT_RANGE", "FRA_SPORT_MASK", "FRA_DPORT_MASK",
})  # fmt: skip
