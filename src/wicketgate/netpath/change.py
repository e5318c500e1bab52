# SPDX-License-Identifier: Apache-2.0
"""What is different between two moments of a network namespace, one value for each thing, as its own tool spells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from wicketgate.netpath.snapshot import (
    Address,
    IPAddress,
    Link,
    ListeningSocket,
    PeerState,
    Route,
    WireGuardState,
)
from wicketgate.netpath.spelling import RTNH_F_ONLINK, spell_address

# Changes with every connection, and decides nothing until it is full.
RESTLESS = frozenset({"net.netfilter.nf_conntrack_count"})
_PORT_RANGE = "net.ipv4.ip_local_port_range"
# linux/if_addr.h, those that decide whether an address is used; iproute2's words
_ADDRESS_FLAGS = {0x08: "dadfailed", 0x20: "deprecated", 0x40: "tentative"}


class What(StrEnum):
    """What a change is about."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    RULE = "rule"
    NFTABLES = "nftables"
    IPTABLES = "iptables"
    SYSCTL = "sysctl"
    WIREGUARD = "wireguard"
    SOCKET = "socket"
    RESYNC = "resync"  # changes were lost on the way, and what is different was found by reading everything again


class Action(StrEnum):
    """What happened to it."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change.

    Attributes:
        at: when it was heard of, seconds since the epoch.
        what: what it is about.
        action: what happened to it.
        text: the thing as iproute2, nft, iptables-save, sysctl, wg or ss spell it.
        value: as it is now, or as it was when it was removed; None where the text is all there is.
        before: as it was, where it changed and that is known.
        who: the process or netlink port that did it, where the kernel tells; empty otherwise.
        told: the kernel sent an event for it; False = found by reading.
    """

    at: float
    what: What
    action: Action
    text: str
    value: object = None
    before: object = None
    who: str = ""
    told: bool = True


@dataclass(frozen=True, slots=True)
class Difference:
    """The part of a `StateChange` that comparing gives."""

    what: What
    action: Action
    text: str
    value: object = None
    before: object = None


def link_added(link: Link) -> str:
    """`3: wg0 mtu 1420 up type wireguard`."""
    words = [f"{link.index}: {link.name}", f"mtu {link.mtu}", "up" if link.up else "down"]
    words += ["NO-CARRIER"] if link.up and not link.lower_up else []
    words += [f"type {link.kind}"] if link.kind else []
    return " ".join(words)


def link_difference(before: Link, after: Link) -> str:
    """`eth0 mtu 1400 (was 1500), down (was up)`: the words of `ip link set`; empty when none of them differs."""
    pairs = [
        ("name ", before.name, after.name),
        ("", "up" if before.up else "down", "up" if after.up else "down"),
        ("", "LOWER_UP" if before.lower_up else "NO-CARRIER", "LOWER_UP" if after.lower_up else "NO-CARRIER"),
        ("mtu ", str(before.mtu), str(after.mtu)),
        ("address ", before.mac, after.mac),
        ("master ", str(before.master or "none"), str(after.master or "none")),
        ("alias ", repr(before.alias), repr(after.alias)),
        ("group ", str(before.group), str(after.group)),
    ]
    # An interface that is down has no carrier: that is no second change.
    if before.up != after.up and before.lower_up != after.lower_up:
        del pairs[2]
    words = [f"{word}{now} (was {was})" for word, was, now in pairs if was != now]
    return f"{before.name} {', '.join(words)}" if words else ""


def address_difference(before: Address, after: Address) -> str:
    """`2001:db8::2/64 dev eth0 deprecated`; empty when nothing that matters differs."""
    was, now = _address_words(before), _address_words(after)
    if was == now and before.scope == after.scope and before.peer == after.peer:
        return ""
    return " ".join([spell_address(after), *now, *(f"(was {word})" for word in was if word not in now)])


def _address_words(address: Address) -> list[str]:
    return [word for flag, word in _ADDRESS_FLAGS.items() if address.flags & flag]


def lasting(route: Route) -> Route:
    """The route without what differs between an event and a listing of the same one.

    That is what the links' state makes of it (dead, linkdown), and the order of an IPv6 route's ways.
    """
    hops = route.nexthops
    if not any(hop.flags & ~RTNH_F_ONLINK for hop in hops) and (len(hops) < 2 or route.family == 4):
        return route
    kept = [replace(hop, flags=hop.flags & RTNH_F_ONLINK) for hop in hops]
    if route.family == 6:
        kept.sort(key=lambda hop: (int(hop.via or 0), hop.oif, hop.weight))
    return replace(route, nexthops=tuple(kept))


def route_key(route: Route) -> tuple[object, ...]:
    """Routes of one key take each other's place (`ip route replace`), or are ways of one multipath route."""
    return (route.dst, route.table, route.tos, route.metric, route.src)


def sysctl_differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    """Parameters whose value is another: `net.ipv4.conf.eth0.rp_filter = 1 (was 0)`.

    Those that came or went with their interface are left out.
    """
    for name, value in after.items():
        was = before.get(name)
        if was is not None and was != value and name not in RESTLESS:
            shown = " ".join(value.split())
            yield Difference(What.SYSCTL, Action.CHANGED, f"{name} = {shown} (was {' '.join(was.split())})", value, was)


def endpoint_text(address: IPAddress, port: int) -> str:
    """`192.0.2.1:51820`, `[2001:db8::1]:51820`."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _peer_words(peer: PeerState) -> dict[str, str]:
    return {
        "preshared-key": "(hidden)" if peer.has_preshared_key else "(none)",
        "endpoint": endpoint_text(*peer.endpoint) if peer.endpoint is not None else "(none)",
        "persistent-keepalive": str(peer.persistent_keepalive) if peer.persistent_keepalive else "off",
        "allowed-ips": ",".join(map(str, sorted(peer.allowed_ips, key=str))) or "(none)",
    }


def _device_words(device: WireGuardState) -> dict[str, str]:
    return {
        "public-key": device.public_key or "(none)",
        "listen-port": str(device.listen_port),
        "fwmark": f"{device.fwmark:#x}" if device.fwmark else "off",
    }


def wireguard_differences(before: Iterable[WireGuardState], after: Iterable[WireGuardState]) -> Iterator[Difference]:
    """Devices and peers in the words of `wg set`: `wg0 peer KEY allowed-ips 10.8.0.2/32 (was (none))`.

    Handshakes and counters are no changes.
    """
    was, now = ({each.ifname: each for each in devices} for devices in (before, after))
    nobody: dict[str, PeerState] = {}
    for name, device in was.items():
        if name not in now:
            yield Difference(What.WIREGUARD, Action.REMOVED, f"{name} {_joined(_device_words(device))}", device)
    for name, device in now.items():
        old = was.get(name)
        if old is None:
            yield Difference(What.WIREGUARD, Action.ADDED, f"{name} {_joined(_device_words(device))}", device)
        else:
            text = _changed(_device_words(old), _device_words(device))
            if text:
                yield Difference(What.WIREGUARD, Action.CHANGED, f"{name} {text}", device, old)
        peers = {peer.public_key: peer for peer in old.peers} if old is not None else nobody
        yield from _peer_differences(name, peers, {peer.public_key: peer for peer in device.peers})


def _peer_differences(
    name: str, before: Mapping[str, PeerState], after: Mapping[str, PeerState]
) -> Iterator[Difference]:
    for key, peer in before.items():
        if key not in after:
            yield Difference(What.WIREGUARD, Action.REMOVED, f"{name} peer {key} remove", peer)
    for key, peer in after.items():
        old = before.get(key)
        if old is None:
            words = {word: value for word, value in _peer_words(peer).items() if value not in ("(none)", "off")}
            text = f"{name} peer {key} {_joined(words)}".rstrip()
            yield Difference(What.WIREGUARD, Action.ADDED, text, peer)
        elif changed := _changed(_peer_words(old), _peer_words(peer)):
            yield Difference(What.WIREGUARD, Action.CHANGED, f"{name} peer {key} {changed}", peer, old)


def _joined(words: Mapping[str, str]) -> str:
    return " ".join(f"{word} {value}" for word, value in words.items())


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return " ".join(f"{word} {value} (was {before[word]})" for word, value in after.items() if value != before[word])


def quiet(device: WireGuardState) -> WireGuardState:
    """The device without what moves by itself: handshakes and counters."""
    peers = tuple(replace(peer, latest_handshake=0.0, rx_bytes=0, tx_bytes=0) for peer in device.peers)
    return replace(device, peers=peers)


def socket_text(socket: ListeningSocket) -> str:
    """`tcp 0.0.0.0:9000`, `udp [::]%eth0:51820`, as `ss -lntu` has them."""
    address = f"[{socket.address}]" if socket.family == 6 else str(socket.address)
    device = f"%{socket.bound_device}" if socket.bound_device else ""
    return f"{socket.protocol} {address}{device}:{socket.port}"


def socket_differences(
    before: Iterable[ListeningSocket], after: Iterable[ListeningSocket], sysctls: Mapping[str, str]
) -> Iterator[Difference]:
    """Listeners that came or went. UDP ports that the kernel chose (ip_local_port_range) are no listeners."""
    low, _, high = " ".join(sysctls.get(_PORT_RANGE, "").split()).partition(" ")
    chosen = range(int(low), int(high) + 1) if low.isdigit() and high.isdigit() else range(32768, 61000)
    was, now = (
        {socket_text(each): each for each in sockets if each.protocol == "tcp" or each.port not in chosen}
        for sockets in (before, after)
    )
    for text, socket in was.items():
        if text not in now:
            yield Difference(What.SOCKET, Action.REMOVED, text, socket)
    for text, socket in now.items():
        if text not in was:
            yield Difference(What.SOCKET, Action.ADDED, text, socket)


def ordered_difference(before: list[str], after: list[str]) -> tuple[list[str], list[tuple[str, bool]], bool]:
    """Lines of an ordered list that went, those that came (and whether before all that was there), and whether the
    rest stands in another order.
    """
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    gone, come = Counter(old) - Counter(new), Counter(new) - Counter(old)
    removed, added, kept = [], [], []
    for line in old:
        if gone[line]:
            gone[line] -= 1
            removed.append(line)
        else:
            kept.append(line)
    stayed: list[str] = []
    for line in new:
        if come[line]:
            come[line] -= 1
            added.append((line, head == 0 and not stayed and bool(kept or tail)))
        else:
            stayed.append(line)
    return removed, added, stayed != kept
