# SPDX-License-Identifier: Apache-2.0
"""Fixes of WireGuard's own settings: AllowedIPs, endpoints, the mark of what a device sends; and of links."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

from wicketgate.doctor.change import Fix, add_route, change_device, change_link
from wicketgate.netpath.concerns import STRANGER, STRANGERS_PORT, defaults, uplinks
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.snapshot import (
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    Family,
    NextHop,
    PeerState,
    Route,
    Snapshot,
    WireGuardState,
)
from wicketgate.netpath.spelling import FULL_MASK, route_command
from wicketgate.netpath.step import CryptokeyStep, Stage
from wicketgate.netpath.trace import Trace

_BOOT, _KERNEL = 3, 2  # rt_protos
_LINK, _HOST = 253, 254  # rt_scopes


def allow(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """The address that no peer has, for the only peer there is: of several nobody can tell which."""
    trace = _ended(diagnosis)
    inward = trace.code == "source-not-allowed"
    name = trace.packet.iif if inward else trace.egress
    address = trace.packet.source if inward else trace.packet.destination
    device = _device(snapshot, name)
    if device is None or len(device.peers) != 1:
        return
    peer = device.peers[0]
    wider = replace(peer, allowed_ips=(*peer.allowed_ips, ip_network(address)))

    def command(of: PeerState) -> str:
        networks = ",".join(map(str, of.allowed_ips)) or '""'
        return f"wg set {name} peer {of.public_key} allowed-ips {networks}"

    yield Fix(
        "allowed-ips",
        f"let {name}'s peer have {address} (and keep it in its AllowedIPs)",
        (command(wider),),
        (command(peer),),
        change_device(device, replace(device, peers=(wider,))),
    )


def endpoint(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """A peer without an endpoint is not written to. Which it has only its owner knows, so there is no command."""
    trace = _ended(diagnosis)
    device = _device(snapshot, trace.egress)
    peers = [s.peer for s in trace.steps if isinstance(s, CryptokeyStep) and s.stage is Stage.TUNNEL_OUT and s.peer]
    if device is None or not peers:
        return
    peer = peers[-1]
    family: Family = 4 if uplinks(snapshot, 4) else 6
    given = replace(peer, endpoint=(STRANGER[family], STRANGERS_PORT))
    words = (
        f"let the peer send first (PersistentKeepalive there), or give it its address here: "
        f"wg set {device.ifname} peer {peer.public_key} endpoint ADDRESS:PORT"
    )
    after = replace(device, peers=tuple(given if each == peer else each for each in device.peers))
    yield Fix("peer-endpoint", words, (), (), change_device(device, after))


def unloop(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """What the device encrypts is routed into it: the mark that a rule leaves out, or a route of its own."""
    trace = _ended(diagnosis)
    device = _device(snapshot, trace.object)
    if device is None:
        return
    for mark in dict.fromkeys(r.fwmark for r in snapshot.rules if r.invert and r.fwmark and r.fwmask == FULL_MASK):
        if mark != device.fwmark:
            before = f"{device.fwmark:#x}" if device.fwmark else "off"
            yield Fix(
                "tunnel-mark",
                f"let {device.ifname} mark its own packets with {mark:#x}, which a rule leaves out",
                (f"wg set {device.ifname} fwmark {mark:#x}",),
                (f"wg set {device.ifname} fwmark {before}",),
                change_device(device, replace(device, fwmark=mark)),
            )
    for address in dict.fromkeys(peer.endpoint[0] for peer in device.peers if peer.endpoint is not None):
        family: Family = 4 if address.version == 4 else 6
        for way in defaults(snapshot, family)[:1]:
            route = Route(
                ip_network(address), RT_TABLE_MAIN, nexthops=way.nexthops, protocol=_BOOT, metric=1024 if family == 6 else 0
            )  # fmt: skip
            yield Fix(
                "endpoint-route",
                f"route the endpoint {address} by {way.oif or 'the uplink'}",
                (route_command("add", route),),
                (route_command("del", route),),
                add_route(route),
            )


def link_up(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """An interface that was set down. Its static routes are gone with it; those of its addresses come back."""
    name = _ended(diagnosis).object
    link = snapshot.link(name)
    if link is None or link.up:
        return  # without a carrier nothing here mends it
    routes: list[Route] = []
    for each in snapshot.addresses:
        if each.ifname == name and each.family == 4:
            hop = (NextHop(name),)
            host = ip_network(each.ip)
            routes.append(Route(host, RT_TABLE_LOCAL, "local", hop, each.ip, scope=_HOST, protocol=_KERNEL))
            if each.interface.network.num_addresses > 1:
                routes.append(
                    Route(each.interface.network, RT_TABLE_MAIN, "unicast", hop, each.ip, scope=_LINK, protocol=_KERNEL)
                )
    made = tuple(each for each in routes if each not in snapshot.routes)
    up = replace(link, up=True, lower_up=True)

    def apply(before: Snapshot) -> Snapshot:
        return change_link(link, up)(replace(before, routes=(*before.routes, *made)))

    yield Fix(
        "link-up",
        f"set {name} up (routes that were added by hand went with it: add them again)",
        (f"ip link set dev {name} up",),
        (f"ip link set dev {name} down",),
        apply,
    )


def _ended(diagnosis: Diagnosis) -> Trace:
    """The way that went wrong."""
    if not diagnosis.forward.works or diagnosis.reply is None:
        return diagnosis.forward
    return diagnosis.reply


def _device(snapshot: Snapshot, name: str) -> WireGuardState | None:
    return next((each for each in snapshot.wireguard if each.ifname == name), None)
