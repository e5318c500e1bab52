# SPDX-License-Identifier: Apache-2.0
"""NAT on a connection: how nf_nat binds a source or a destination to it, and turns packets both ways.

A binding is kept in `Connection.answer`, the tuple that a reply is expected with (nf_nat_core.c). Packets of the
original direction get the ends of that tuple turned; replies get the ends of `original` turned.
"""

from __future__ import annotations

from typing import Literal

from wicketgate.netpath.netfilter.run import Run
from wicketgate.netpath.packet import ConnState, Ends
from wicketgate.netpath.replaced import replaced
from wicketgate.netpath.snapshot import IPAddress
from wicketgate.netpath.step import Hook, TranslationStep

Side = Literal["source", "destination"]

# nf_nat_core.h HOOK2MANIP, and NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC. A nat chain's own priority orders it among nat
# chains only: all of them run in the one hook of nf_nat (nf_nat_register_fn).
SIDE: dict[Hook, Side] = {
    "prerouting": "destination",
    "output": "destination",
    "input": "source",
    "postrouting": "source",
}
NAT_PRIORITY: dict[Hook, int] = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
CONNTRACK_PRIORITY = -200  # NF_IP_PRI_CONNTRACK


def wants_binding(run: Run, side: Side) -> bool:
    """Nat chains are asked for the first packet of a connection, once for each side."""
    if not run.has_connection or run.connection.state not in (ConnState.NEW, ConnState.RELATED):
        return False
    return not (run.connection.source_nat if side == "source" else run.connection.destination_nat)


def bind(
    run: Run,
    side: Side,
    address: IPAddress | None,
    port: int | None,
    where: str,
    *,
    drawn: tuple[int, int] | None = None,
) -> None:
    """Decide one side of the connection (nf_nat_setup_info).

    Args:
        run: the packet in its hook.
        side: which.
        address: the new one; None keeps it.
        port: the new one; None keeps it. The kernel takes another source port when another connection has it, which no
            listing tells; the model keeps it.
        where: the rule that says so; empty for the null binding at the end of the chains.
        drawn: the source port becomes one of this range, by chance.
    """
    connection = run.connection
    before = connection.answer.turned()
    after = before
    if side == "source":
        after = replaced(
            before,
            source=before.source if address is None else address,
            source_port=before.source_port if port is None else port,
        )
        run.connection = replaced(connection, answer=after.turned(), source_nat=True, drawn=drawn)
    else:
        after = replaced(
            before,
            destination=before.destination if address is None else address,
            destination_port=before.destination_port if port is None else port,
        )
        run.connection = replaced(connection, answer=after.turned(), destination_nat=True)
    if where and (after != before or drawn):
        chance = f", the port one of {drawn[0]}-{drawn[1]}" if drawn else ""
        run.steps.append(
            TranslationStep(
                stage=run.stage,
                object=where,
                effect=f"{before.spelled()} becomes {after.spelled()}{chance}",
                before=before,
                after=after,
            )
        )


def translate(run: Run, *, told: bool) -> None:
    """Give the packet the addresses its connection has on this hook's side (nf_nat_packet).

    Args:
        run: the packet in its hook.
        told: the step that bound the connection says it already.
    """
    if not run.has_connection:
        return
    side = SIDE[run.hook]
    connection, packet = run.connection, run.packet
    original = connection.direction == "original"
    sent = connection.original if original else connection.answer
    wanted = (connection.answer if original else connection.original).turned()
    # IPS_SRC_NAT and IPS_DST_NAT are set only where a binding changed something; replies need the other side's.
    if _side(sent, side) == _side(wanted, side):
        return
    if run.hook == "output" and sent.destination != wanted.destination:
        run.reroute = True  # nf_nat_ipv4_local_fn
    before = packet.ends
    if side == "source":
        after = replaced(before, source=wanted.source, source_port=wanted.source_port)
    else:
        after = replaced(before, destination=wanted.destination, destination_port=wanted.destination_port)
    if after == before:
        return
    run.set_packet(packet.with_ends(after))
    if not told:
        run.steps.append(
            TranslationStep(
                stage=run.stage,
                object="connection tracking: NAT of this connection",
                effect=f"{before.spelled()} becomes {after.spelled()}",
                before=before,
                after=after,
            )
        )


def _side(ends: Ends, side: Side) -> tuple[IPAddress, int]:
    if side == "source":
        return ends.source, ends.source_port
    return ends.destination, ends.destination_port


def is_source_nat(run: Run) -> bool:
    """`ct status snat`: the source of the connection was changed (IPS_SRC_NAT)."""
    connection = run.connection
    return _side(connection.original, "source") != _side(connection.answer.turned(), "source")


def is_destination_nat(run: Run) -> bool:
    """`ct status dnat`."""
    connection = run.connection
    return _side(connection.original, "destination") != _side(connection.answer.turned(), "destination")
