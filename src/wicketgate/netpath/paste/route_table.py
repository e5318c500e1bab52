# SPDX-License-Identifier: Apache-2.0
"""`route -n` and `netstat -rn`, the old listing of table main, put into the words of `ip route`.

It shows IPv4's table main alone, without source addresses, scopes and who made a route.
"""

from __future__ import annotations

import re
from ipaddress import ip_network

_TITLE = "Kernel IP routing table"
_HEAD = re.compile(r"^Destination +Gateway +Genmask +Flags +(?:(Metric) +Ref +Use|MSS +Window +irtt) +Iface$")
_ADDRESS = r"\d+\.\d+\.\d+\.\d+"
_LINE = re.compile(
    rf"^({_ADDRESS}|default) +({_ADDRESS}|\*|-) +({_ADDRESS}) +([UGHDRMA!C]+) +(\d+|-) +(\d+|-) +(\d+|-) +(\S+)$"
)


class RouteTableReader:
    """Reads the lines of such listings, one after the other.

    Attributes:
        broken: the last line stands right below routes and is none that is understood: a host's name, without -n.
    """

    def __init__(self) -> None:
        self.broken = False
        self._within = self._metrics = self._spaced = False

    def space(self) -> None:
        """A blank line: what follows may be anything."""
        self._spaced = True

    def take(self, line: str) -> str | None:
        """The route as `ip route` has it, empty for a line above the routes; None where it is of no such listing.

        Raises:
            ValueError: a route that is none, such as one with holes in its mask.
        """
        self.broken = False
        if line.startswith(_TITLE):
            self._within, self._spaced = True, False
            return ""
        head = _HEAD.match(line)
        if head is not None:
            self._within, self._spaced, self._metrics = True, False, head[1] is not None
            return ""
        found = _LINE.match(line) if self._within else None
        if found is None:
            self.broken = self._within and not self._spaced
            self._within = False
            return None
        destination, gateway, mask, flags, metric, _, _, ifname = found.groups()
        network = ip_network(f"{'0.0.0.0' if destination == 'default' else destination}/{mask}")
        where = "default" if network.prefixlen == 0 else str(network)
        if "!" in flags:  # unreachable, prohibit and throw look alike
            return f"unreachable {where} kind-not-listed"
        if ifname == "*":
            return f"blackhole {where}"
        words = [
            where,
            *([f"via {gateway}"] if "G" in flags else []),
            f"dev {ifname}",
            *([] if "G" in flags else ["scope link"]),
        ]
        if self._metrics and metric not in ("0", "-"):
            words.append(f"metric {metric}")
        return " ".join(words)
