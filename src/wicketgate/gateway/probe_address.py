# SPDX-License-Identifier: Apache-2.0
"""The tunnel address of the probe peer: one that a real client might have, and that no client has.

Inside the tunnel's network where there is room, so that rules written for clients apply to the probe as well; the
last usable host, since people number their clients from the front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address

from wicketgate.netpath.snapshot import Family, IPAddress, IPInterface, IPNetwork

# RFC 5737 TEST-NET-2 and RFC 3849: they exist on no network, and are routed to the tunnel by a route of our own.
_FALLBACK: dict[Family, IPAddress] = {4: ip_address("198.51.100.254"), 6: ip_address("2001:db8:77:1::fe")}
_LOOK_AT = 4096  # candidates; a network whose last 4,096 hosts are all taken is treated as full


def _candidates(network: IPNetwork) -> Iterator[IPAddress]:
    last = int(network.broadcast_address) - (1 if network.version == 4 else 0)
    first = int(network.network_address) + 1
    make = type(network.network_address)
    for number in range(last, max(first, last - _LOOK_AT) - 1, -1):
        yield make(number)


def choose(interfaces: Collection[IPInterface], allowed_ips: Collection[IPNetwork], family: Family) -> IPAddress | None:
    """An address of the family for the probe, or None when the tunnel has no address of that family.

    Args:
        interfaces: the tunnel's own addresses.
        allowed_ips: what the peers claim. A claim as wide as the tunnel's network or wider does not block an address
            (cryptokey routing prefers the probe's /32), a narrower one does.
        family: 4 or 6.
    """
    own = [i for i in interfaces if i.version == family]
    if not own:
        return None
    taken = {i.ip for i in own}
    for interface in own:
        network = interface.network
        if network.max_prefixlen - network.prefixlen < 2:
            continue
        narrower = [n for n in allowed_ips if n.version == family and n.prefixlen > network.prefixlen]
        for candidate in _candidates(network):
            if candidate not in taken and not any(candidate in n for n in narrower):
                return candidate
    return _FALLBACK[family]
