# SPDX-License-Identifier: Apache-2.0
"""The packets' way: one nft table that chooses a target for each new flow; conntrack keeps it there.

- A flow's first packet is hashed over its 5-tuple (jhash) among the targets in service and its destination is
  rewritten. The source is not: the target sees the client's address, and its answer must come back through this host.
- Later packets follow the conntrack entry, whatever the table says by then: replacing the table moves no flow.
- To move the flows of a target is to delete its entries; their next packet is hashed anew.
- A packet from a target without an entry is dropped: let through, it would leave an entry of its own in the way of the
  client's next packet, which would then reach the target from another port.
- What no listener takes, and what comes while no target is in service, is dropped in silence, as a real NLB does.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wicketgate.errors import StateError
from wicketgate.kernel.nft import nft_delete_table, nft_replace_table
from wicketgate.lab.nlb.conntrack import TrackedFlow, forget, list_flows
from wicketgate.lab.nlb.settings import Listener, NlbSettings, Target, endpoint

BALANCER_BITS = 0xFFFF0000  # of a conntrack mark: which load balancer; the rest: which target


@dataclass(frozen=True, slots=True)
class Backend:
    """A target as the data path knows it: one registration of an address.

    Attributes:
        number: 1-65535, never used twice in a load balancer's life.
        target: the address.
    """

    number: int
    target: Target


def table_name(name: str) -> str:
    """The nft table of a load balancer."""
    return f"wicketgate-nlb-{name}"


def mark_of(name: str, number: int) -> int:
    """The conntrack mark of flows to one backend: a hash of the load balancer's name, and the backend's number."""
    return ((zlib.crc32(name.encode()) & 0xFFFF or 1) << 16) | number


def port_at(listener: Listener, target: Target) -> int:
    """Where a listener sends to."""
    return target.port if listener.target_port is None else listener.target_port


def render(settings: NlbSettings, serving: Sequence[Backend], known: Sequence[Target]) -> str:
    """The chains of the table, as nft reads them between its braces.

    Args:
        settings: addresses and listeners.
        serving: who gets new flows; their order decides what the hash means.
        known: every target ever registered, for the rule about packets without an entry.
    """
    family = settings.family
    seed = zlib.crc32(settings.name.encode())
    addresses = ", ".join(str(address) for address in settings.addresses)
    icmp = "icmp" if family == "ip" else "icmpv6"
    lines: list[str] = []
    for listener in settings.listeners:
        for backend in serving:
            to = endpoint(backend.target.address, port_at(listener, backend.target))
            lines += [
                f"  chain {_chain(listener, backend)} {{",
                f"    ct mark set {mark_of(settings.name, backend.number):#x}",
                f"    meta l4proto {listener.protocol} dnat to {to}",
                "  }",
            ]
    lines += ["  chain choose {", "    type nat hook prerouting priority dstnat; policy accept;"]
    for listener in settings.listeners:
        choice = _choice(family, listener, serving, seed)
        if choice:
            lines.append(f"    {family} daddr {{ {addresses} }} {listener.protocol} dport {listener.port} {choice}")
    lines += [
        "  }",
        "  chain unclaimed {",
        "    type filter hook input priority filter; policy accept;",
        f"    {family} daddr {{ {addresses} }} meta l4proto {{ udp, tcp }} ct state new drop",
        f"    {family} daddr {{ {addresses} }} {icmp} type echo-request drop",
        "  }",
        "  chain untracked {",
        "    type filter hook forward priority filter; policy accept;",
    ]
    for protocol in ("udp", "tcp"):
        ends = sorted(
            {
                (target.address, port_at(listener, target))
                for listener in settings.listeners
                if listener.protocol == protocol
                for target in known
            }
        )
        if ends:
            elements = ", ".join(f"{address} . {port}" for address, port in ends)
            lines.append(f"    ct state new {family} saddr . {protocol} sport {{ {elements} }} drop")
    lines += ["  }"]
    return "\n".join(lines)


def _chain(listener: Listener, backend: Backend) -> str:
    return f"{listener.protocol}-{listener.port}-target-{backend.number}"


def _choice(family: str, listener: Listener, serving: Sequence[Backend], seed: int) -> str:
    if not serving:
        return ""
    if len(serving) == 1:  # older kernels refuse a modulus of one
        return f"goto {_chain(listener, serving[0])}"
    tuple5 = f"{family} saddr . {listener.protocol} sport . {family} daddr . {listener.protocol} dport"
    ways = ", ".join(f"{index} : goto {_chain(listener, backend)}" for index, backend in enumerate(serving))
    return f"jhash {tuple5} mod {len(serving)} seed {seed:#x} vmap {{ {ways} }}"


class Dataplane:
    """The table and the flows of one load balancer, in the network namespace of the caller."""

    def __init__(self, settings: NlbSettings) -> None:
        self._settings = settings
        self._known: dict[Target, None] = {}

    async def open(self) -> None:
        """Set what this namespace needs: forwarding, and how long conntrack remembers.

        Entries that an earlier load balancer of this name left are forgotten.

        Raises:
            StateError: a value cannot be written, or the kernel refuses the table.
        """
        seconds = self._settings.udp_idle
        tracking = "net/netfilter/nf_conntrack_"
        forward = "net/ipv4/ip_forward" if self._settings.family == "ip" else "net/ipv6/conf/all/forwarding"
        # The table first: without a rule that needs it, a namespace does not track at all.
        await self.apply(())
        _write(forward, 1)
        _write(f"{tracking}udp_timeout", seconds)  # before an answer came
        _write(f"{tracking}udp_timeout_stream", seconds)  # after
        _write(f"{tracking}tcp_timeout_established", self._settings.tcp_idle)
        _write(f"{tracking}acct", 1)
        await forget(self._settings.family, mark_of(self._settings.name, 0), BALANCER_BITS)

    async def apply(self, serving: Sequence[Backend], known: Sequence[Target] = ()) -> None:
        """Let new flows go to `serving` from now on. No existing flow moves.

        Raises:
            StateError: nft refused; the table is as before.
        """
        self._known.update(dict.fromkeys((*known, *(backend.target for backend in serving))))
        body = render(self._settings, serving, tuple(self._known))
        await nft_replace_table(self._settings.family, table_name(self._settings.name), body)

    async def evict(self, backend: Backend) -> None:
        """Forget the flows of a backend: the next packet of each is a new flow's.

        Raises:
            StateError: conntrack refused.
        """
        await forget(self._settings.family, mark_of(self._settings.name, backend.number))

    async def flows(self) -> tuple[TrackedFlow, ...]:
        """Every flow through this load balancer.

        Raises:
            StateError: conntrack could not be read.
        """
        flows = await list_flows(self._settings.family, mark_of(self._settings.name, 0), BALANCER_BITS)
        return tuple(sorted(flows, key=lambda flow: (flow.client, flow.client_port, flow.protocol)))

    async def close(self) -> None:
        """Take the table away and forget the flows. The namespace's settings stay: it is the load balancer's own."""

        async def clean() -> None:
            with contextlib.suppress(StateError):
                await nft_delete_table(self._settings.family, table_name(self._settings.name))
            with contextlib.suppress(StateError):
                await forget(self._settings.family, mark_of(self._settings.name, 0), BALANCER_BITS)

        # A second Ctrl-C does not leave half of it behind.
        await asyncio.shield(asyncio.ensure_future(clean()))


def _write(name: str, value: int) -> None:
    path = Path("/proc/sys") / name
    try:
        if int(path.read_text()) != value:
            path.write_text(str(value))
    except (OSError, ValueError) as error:
        raise StateError(f"/proc/sys/{name}={value} cannot be set on the load balancer's host: {error}") from error
