# SPDX-License-Identifier: Apache-2.0
"""A flow as people type it: `10.0.0.2:9000/tcp`, `--from 203.0.113.9:40000`."""

from __future__ import annotations

import re
from ipaddress import ip_address

from wicketgate.errors import InputError
from wicketgate.netpath.concerns import STRANGERS_PORT, Concern, Kind, arrives_by, stranger_to
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import IPAddress, Snapshot

_BRACKETED = re.compile(r"\[([^\]]*)\](?::(\d{1,5}))?")
_PROTOCOLS = ("tcp", "udp", "icmp")

Ends = tuple[IPAddress | None, int, IPAddress, int, str]


def ends_of(from_: str | None, to: str, flag: str = "--to") -> Ends:
    """The two ends: source or None, its port, destination, its port, protocol.

    Raises:
        InputError: names the flag, what was read and what is allowed.
    """
    place, _, protocol = to.rpartition("/")
    if protocol not in _PROTOCOLS or not place:
        raise InputError(
            f"{flag} {to}: allowed: ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp, as 10.0.0.2:9000/tcp"
        )
    destination, port = _endpoint(flag, place)
    if protocol == "icmp" and port:
        raise InputError(f"{flag} {to}: read port {port}; icmp has none, allowed: ADDRESS/icmp")
    if protocol != "icmp" and not port:
        raise InputError(
            f"{flag} {to}: read no port; allowed: ADDRESS:PORT/{protocol}, IPv6 as [ADDRESS]:PORT/{protocol}"
        )
    source, source_port = _endpoint("--from", from_) if from_ is not None else (None, 0)
    if source is not None and source.version != destination.version:
        raise InputError(
            f"--from {from_} and {flag} {to}: read IPv{source.version} and IPv{destination.version}; both must be of one family"
        )
    return source, source_port, destination, port, protocol


def _endpoint(flag: str, text: str) -> tuple[IPAddress, int]:
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        host, port = bracketed[1], bracketed[2] or "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, "0"
    try:
        address = ip_address(host)
    except ValueError as error:
        raise InputError(f"{flag} {text}: read address {host!r}; allowed: an IPv4 or IPv6 address, no name") from error
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{flag} {text}: read port {port!r}; allowed: 1 to 65535")
    return address, int(port)


def concern_of(
    snapshot: Snapshot, ends: Ends, *, iif: str | None = None, mark: int = 0, uid: int | None = None
) -> Concern:
    """The flow in this place: who sends it decides by which interface it comes in, unless that is told.

    Raises:
        InputError: the sender is elsewhere, and no interface is known by which it would come in; or there is no such one.
    """
    source, source_port, destination, port, protocol = ends
    sender = source if source is not None else stranger_to(destination)
    sport = 0 if protocol == "icmp" else source_port or STRANGERS_PORT
    if iif is not None:
        if snapshot.link(iif) is None:
            names = ", ".join(link.name for link in snapshot.links)
            raise InputError(f"--iif {iif}: there is no such interface; allowed: {names}")
        return Concern(Kind.ASKED, Flow(sender, destination, protocol, sport, port, iif=iif, mark=mark, uid=None))
    iif = arrives_by(snapshot, sender, destination)
    here = iif is None
    if here and not sender.is_unspecified and not any(each.ip == sender for each in snapshot.addresses):
        raise InputError(
            f"--from {sender}: no interface is known by which it would come in; this place has no uplink of that family"
        )
    user = (uid if uid is not None else 0) if here else None
    return Concern(Kind.ASKED, Flow(sender, destination, protocol, sport, port, iif=iif, mark=mark, uid=user))
