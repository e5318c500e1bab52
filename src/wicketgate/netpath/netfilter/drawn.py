# SPDX-License-Identifier: Apache-2.0
"""Ports that source NAT draws by chance: which one it took is not known, only between which it lies (nf_nat_l4proto_unique_tuple)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wicketgate.netpath.netfilter.names import WITH_PORTS

if TYPE_CHECKING:
    from wicketgate.netpath.netfilter.run import Run

Ports = tuple[int, int]
REASON = "source NAT drew the port by chance"


def range_of(protocol: int, port: int, ports: Ports | None) -> Ports | None:
    """From which range a port is drawn; None where the protocol has none, or the range has one.

    Args:
        protocol: IP protocol number.
        port: before it was drawn: without a range of the rule's own the new one is of the same class.
        ports: of the rule.
    """
    if protocol not in WITH_PORTS or (ports is not None and ports[0] == ports[1]):
        return None
    if ports is not None:
        return ports
    return (1, 511) if port < 512 else (600, 1023) if port < 1024 else (1024, 65535)


def port_of(run: Run, *, source: bool) -> Ports | None:
    """The range of the packet's port, where that was drawn: the source's once it is translated, the destination's of an answer
    until it is translated back.
    """
    connection = run.connection
    if connection.drawn is None:
        return None
    original = connection.direction == "original"
    if source is not original or (original and run.hook not in ("postrouting", "input") and run.iif != "lo"):
        return None
    answer, packet = connection.answer, run.packet
    here = (packet.source, packet.source_port) if original else (packet.destination, packet.destination_port)
    return connection.drawn if here == (answer.destination, answer.destination_port) else None


def within(drawn: Ports, low: int, high: int) -> bool | None:
    """Whether a port of the range is one of these; None: it may be."""
    if drawn[1] < low or high < drawn[0]:
        return False
    return True if low <= drawn[0] and drawn[1] <= high else None
