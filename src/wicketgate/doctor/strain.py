# SPDX-License-Identifier: Apache-2.0
"""What no rule decides and a small packet does not meet: a tunnel too large for its way, a connection table that is full."""

from __future__ import annotations

from collections.abc import Iterator

from wicketgate.netpath.concerns import STRANGER
from wicketgate.netpath.lookup import Found, Question
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.settings import NotTold
from wicketgate.netpath.snapshot import IPAddress, Link, Snapshot, WireGuardState
from wicketgate.netpath.tracking_table import is_full
from wicketgate.netpath.wireguard import outer_length

_INTERNET = 1500  # octets that a path over the internet carries
_MOST = 80  # octets that WireGuard adds over IPv6
_COUNT, _LIMIT = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"


def strains(snapshot: Snapshot, routing: Routing) -> tuple[str, ...]:
    """Sentences for the reader, each with its cause code; none when there is nothing to say.

    Args:
        snapshot: the place.
        routing: of it.
    """
    return (*(words for state in snapshot.wireguard for words in _large(snapshot, routing, state)), *_full(snapshot))


def _large(snapshot: Snapshot, routing: Routing, state: WireGuardState) -> Iterator[str]:
    links = {link.name: link for link in snapshot.links}
    tunnel = links.get(state.ifname)
    if tunnel is None:
        return
    largest, narrow = 0, None
    for endpoint in _endpoints(state):
        uplink = links.get(_way_to(routing, state, endpoint))
        if uplink is None or uplink is tunnel:
            continue
        octets = outer_length(tunnel.mtu, endpoint, tunnel.mtu)
        if octets > uplink.mtu:
            yield _too_large(tunnel, uplink, octets)
            return
        if uplink.mtu > _INTERNET and octets > max(largest, _INTERNET):
            largest, narrow = octets, uplink
    if narrow is not None:
        yield (
            f"mtu-too-large: {tunnel.name} (mtu {tunnel.mtu}) makes packets of up to {largest} octets. {narrow.name} carries {narrow.mtu}, "
            f"but a path over the internet {_INTERNET}: clients that come that way may lose the large ones; "
            f"`ip link set dev {tunnel.name} mtu {_INTERNET - _MOST}`"
        )


def _too_large(tunnel: Link, uplink: Link, octets: int) -> str:
    return (
        f"mtu-too-large: {tunnel.name} (mtu {tunnel.mtu}) makes packets of up to {octets} octets, and {uplink.name} carries {uplink.mtu}: "
        f"large ones go in fragments, which many firewalls and balancers drop; "
        f"`ip link set dev {tunnel.name} mtu {min(uplink.mtu, _INTERNET) - _MOST}`"
    )


def _endpoints(state: WireGuardState) -> tuple[IPAddress, ...]:
    """Those of its peers; a server that has not heard of its clients yet is asked by any."""
    found = tuple(dict.fromkeys(peer.endpoint[0] for peer in state.peers if peer.endpoint is not None))
    return found or tuple(STRANGER.values())


def _way_to(routing: Routing, state: WireGuardState, endpoint: IPAddress) -> str:
    """The interface alone: a source address need not be chosen, so a paste without parameters tells it too."""
    try:
        found = routing.lookup(Question(endpoint, mark=state.fwmark, protocol=17))
    except NotTold:
        return ""
    return found.hops[0].oif if isinstance(found, Found) and found.hops else ""


def _full(snapshot: Snapshot) -> Iterator[str]:
    values = [snapshot.sysctls.get(name, "") for name in (_COUNT, _LIMIT)]
    if not all(value.isdigit() for value in values):
        return
    count, most = map(int, values)
    if is_full(count, most):
        yield (
            f"conntrack-full: {count} connections are tracked here of {most} ({_LIMIT}): new ones are dropped, whatever the rules say"
        )
