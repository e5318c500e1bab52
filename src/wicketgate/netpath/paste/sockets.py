# SPDX-License-Identifier: Apache-2.0
"""The lines of `ss -lntu` and `netstat -lntu`."""

from __future__ import annotations

import re
from ipaddress import ip_address

from wicketgate.netpath.snapshot import ListeningSocket

_SS = re.compile(r"^\s*(?:(tcp|udp)\s+)?(LISTEN|UNCONN)\s+\d+\s+\d+\s+(\S+)\s+(\S+)")
_NETSTAT = re.compile(r"^\s*(tcp|udp)(6?)\s+\d+\s+\d+\s+(\S+)\s+(\S+)(?:\s+(LISTEN))?")


def is_socket_line(line: str) -> bool:
    """`tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*`, or netstat's."""
    return _SS.match(line) is not None or _NETSTAT.match(line) is not None


def socket_of(line: str) -> ListeningSocket | None:
    """The listener of a line; None for a connection.

    Raises:
        ValueError: its address is none.
    """
    ss = _SS.match(line)
    if ss is not None:
        protocol = ss[1] or ("tcp" if ss[2] == "LISTEN" else "udp")
        return _made(protocol, ss[3], old=False)
    said = _NETSTAT.match(line)
    if said is None or (said[1] == "tcp" and not said[5]) or not said[4].endswith(":*"):
        return None
    return _made(said[1], said[3], old=True)


def _made(protocol: str, local: str, *, old: bool) -> ListeningSocket:
    host, _, port = local.rpartition(":")
    host, _, device = host.partition("%")
    inside, bracket, behind = host.partition("]")
    if bracket and behind.startswith("%"):
        device = behind[1:]
    host = inside.strip("[]")
    v6only: bool | None = None
    if host == "*":  # ss: a socket of IPv6 that takes IPv4 too
        host, v6only = "::", False
    elif ":" in host and not old:
        v6only = True if host == "::" else None
    address = ip_address(host)
    return ListeningSocket(
        "tcp" if protocol == "tcp" else "udp", 4 if address.version == 4 else 6, address, int(port), device, v6only
    )
