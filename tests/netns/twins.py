# SPDX-License-Identifier: Apache-2.0
"""Places made by hand, and their twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from wicketgate.doctor.examine import Examination, Finding, examine
from wicketgate.doctor.twin import TwinJudge
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.kernel.twin.room import in_a_room
from wicketgate.kernel.twin.twin import Twin
from wicketgate.lab.host import Host, wire
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import ListeningSocket, PeerState, Snapshot, WireGuardState

POD4, POD6 = ip_address("10.44.0.2"), ip_address("fd44::2")
STRANGER = ip_address("203.0.113.9")
ADDRESSED = """
ip addr add 10.44.0.2/24 dev eth0
ip addr add fd44::2/64 dev eth0 nodad
ip route add default via 10.44.0.1
ip -6 route add default via fd44::1
"""
LISTENER = ListeningSocket("tcp", 4, ip_address("0.0.0.0"), 9000, mark=0)


def uplinked(pod: Host, node: Host, *script: str) -> None:
    """A pod with one uplink, addressed, and what the script says."""
    pod.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
    wire(pod, "eth0", node, "pod")
    pod.run("sh", "-ec", "\n".join([ADDRESSED, *script]))


def look(pod: Host, *listeners: ListeningSocket) -> Snapshot:
    """Its snapshot, as if these listened."""
    return replace(pod.acall(take_snapshot), sockets=listeners)


def with_tunnel(snapshot: Snapshot, *peers: PeerState, fwmark: int = 0xCA6C) -> Snapshot:
    """Its tun device wg0 is a WireGuard device with these peers, and somebody holds it."""
    links = tuple(replace(link, lower_up=link.lower_up or link.name == "wg0") for link in snapshot.links)
    routes = tuple(
        replace(r, nexthops=tuple(replace(hop, flags=hop.flags & 4) for hop in r.nexthops)) for r in snapshot.routes
    )
    port = ListeningSocket("udp", 4, ip_address("0.0.0.0"), 51820, mark=fwmark)
    port6 = ListeningSocket("udp", 6, ip_address("::"), 51820, mark=fwmark, v6only=True)
    device = WireGuardState("wg0", "userspace", "A" * 43 + "=", 51820, fwmark, peers)
    snapshot = replace(snapshot, links=links, routes=routes)
    return replace(snapshot, wireguard=(device,), sockets=(*snapshot.sockets, port, port6))


def lacking(snapshot: Snapshot) -> tuple[str, ...]:
    """What a twin of it lacks."""

    def build(tell):
        twin = Twin(snapshot)
        twin.build()
        tell({"lacking": list(twin.lacking)})

    (told,) = in_a_room(build, seconds=60)
    return tuple(told["lacking"])


def examined(snapshot: Snapshot, *asked: Concern) -> Examination:
    """The doctor's work, with a twin."""
    return examine(snapshot, asked, TwinJudge(seconds=60))


def stranger_to(port: int = 9000, protocol: str = "tcp", source=STRANGER, destination=POD4) -> Concern:
    """A flow that is asked for."""
    return Concern(Kind.ASKED, Flow(source, destination, protocol, 40000, port, iif="eth0"))


def proofs(finding: Finding) -> dict[str, tuple[str, ...]]:
    """What each fix was proved by."""
    return {each.fix.id: each.proved_by for each in finding.fixes}


def told(examination: Examination, words: str) -> Sequence[str]:
    """The notes that have these words."""
    return [note for note in examination.notes if words in note]
