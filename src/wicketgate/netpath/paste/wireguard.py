# SPDX-License-Identifier: Apache-2.0
"""The lines of `wg show`. Private and preshared keys are passed over, hidden or not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from wicketgate.netpath.snapshot import IPAddress, IPNetwork, PeerState, WireGuardState

_INTERFACE = re.compile(r"^\s*interface: (\S{1,15})$")
_FIELD = re.compile(
    r"^\s*(public key|private key|listening port|fwmark|peer|preshared key|endpoint|allowed ips|latest handshake|transfer"
    r"|persistent keepalive): (.*)$"
)
_UNITS = {
    "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
    "second": 1, "minute": 60, "hour": 3600, "day": 86400, "year": 365 * 86400,
}  # fmt: skip
_AMOUNT = re.compile(r"([\d.]{1,12}) (B|KiB|MiB|GiB|TiB) (received|sent)")
_SPAN = re.compile(r"(\d{1,6}) (second|minute|hour|day|year)s?")


def is_interface_line(line: str) -> bool:
    """`interface: wg0`."""
    return _INTERFACE.match(line) is not None


def is_field_line(line: str) -> bool:
    """A line below it."""
    return _FIELD.match(line) is not None


@dataclass
class _Peer:
    key: str
    fields: dict[str, str] = field(default_factory=dict)


def devices_of(lines: Iterable[str], now: float) -> tuple[WireGuardState, ...]:
    """The devices of a listing.

    Args:
        lines: that `is_interface_line` and `is_field_line` took.
        now: when it was taken, seconds since the epoch, for the age of handshakes.

    Raises:
        ValueError: a value is not what wg prints.
    """
    found: dict[str, tuple[dict[str, str], list[_Peer]]] = {}
    current: tuple[dict[str, str], list[_Peer]] | None = None
    for line in lines:
        opened = _INTERFACE.match(line)
        if opened:
            current = found[opened[1]] = {}, []
            continue
        said = _FIELD.match(line)
        if said is None or current is None:
            continue
        name, value = said[1], said[2].strip()
        if name == "peer":
            current[1].append(_Peer(value))
        elif name == "private key":
            continue
        elif current[1]:
            current[1][-1].fields[name] = value
        else:
            current[0][name] = value
    return tuple(_device(name, fields, peers, now) for name, (fields, peers) in found.items())


def _device(name: str, fields: dict[str, str], peers: list[_Peer], now: float) -> WireGuardState:
    mark = fields.get("fwmark", "off")
    return WireGuardState(
        name,
        "kernel",  # wg prints the same of both
        fields.get("public key", "").replace("(none)", ""),
        int(fields.get("listening port", "0")),
        0 if mark == "off" else int(mark, 16),
        tuple(_peer(each, now) for each in peers),
    )


def _peer(peer: _Peer, now: float) -> PeerState:
    said = peer.fields
    keepalive = said.get("persistent keepalive", "off")
    span = _SPAN.search(keepalive)
    amounts = {
        match[3]: int(float(match[1]) * _UNITS[match[2]]) for match in _AMOUNT.finditer(said.get("transfer", ""))
    }
    return PeerState(
        peer.key,
        _endpoint(said.get("endpoint", "(none)")),
        _networks(said.get("allowed ips", "(none)")),
        _ago(said.get("latest handshake", ""), now),
        amounts.get("received", 0),
        amounts.get("sent", 0),
        int(span[1]) * _UNITS[span[2]] if span else 0,
        "preshared key" in said,
    )


def _ago(said: str, now: float) -> float:
    if said == "Now":
        return now
    spans = [int(match[1]) * _UNITS[match[2]] for match in _SPAN.finditer(said)]
    return now - sum(spans) if spans else 0.0


def _endpoint(said: str) -> tuple[IPAddress, int] | None:
    if said == "(none)":
        return None
    host, _, port = said.rpartition(":")
    return ip_address(host.strip("[]").partition("%")[0]), int(port)


def _networks(said: str) -> tuple[IPNetwork, ...]:
    if said == "(none)":
        return ()
    return tuple(ip_network(each.strip()) for each in said.split(",") if each.strip())
