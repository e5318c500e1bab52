# SPDX-License-Identifier: Apache-2.0
"""What both firewalls do to a packet in the same way: NAT with its choices of address and port, and rejection."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.conntrack import Side, bind
from wicketgate.netpath.netfilter.drawn import range_of
from wicketgate.netpath.netfilter.run import Doubt, End, Run, UnknowableError
from wicketgate.netpath.snapshot import IPAddress

MOST_CHOICES = 32  # a guess: more ways than that are not tried one by one


@dataclass(frozen=True, slots=True)
class Goal:
    """Where NAT may lead (struct nf_nat_range2): an address or a range, a port or a range; None keeps it."""

    addresses: tuple[IPAddress, IPAddress] | None = None
    ports: tuple[int, int] | None = None
    random: bool = False  # another port in any case


def choose(run: Run, low: int, high: int, doubt: Doubt) -> int:
    """A number of the range; each is tried.

    Raises:
        UnknowableError: the range is too wide to try all.
    """
    count = high - low + 1
    if count <= 1:
        return low
    if count > MOST_CHOICES:
        raise UnknowableError(run.where(), doubt.reason)
    return low + run.choose(count, doubt)


def translate_to(run: Run, side: Side, goal: Goal, where: str) -> None:
    """Bind one side of the connection to the goal (get_unique_tuple)."""
    address: IPAddress | None = None
    if goal.addresses is not None:
        first, last = goal.addresses
        # find_best_ips_proto: by a hash of both addresses, so the same for every connection of this pair
        doubt = Doubt(f"the kernel picks one of {first}-{last}", f"{where} address")
        value = choose(run, int(first), int(last), doubt)
        address = first if value == int(first) else _like(first, value)
    port: int | None = None
    drawn: tuple[int, int] | None = None
    current = run.connection.answer.turned()
    if goal.ports is None and goal.random and side == "source":
        drawn = range_of(current.protocol, current.source_port, None)
    if goal.ports is not None:
        low, high = goal.ports
        mine = current.source_port if side == "source" else current.destination_port
        if low <= mine <= high and (low == high or not goal.random):
            port = mine
        elif side == "source":
            port, drawn = low, range_of(current.protocol, mine, goal.ports)
        else:
            port = choose(run, low, high, Doubt(f"the kernel picks one of the ports {low}-{high}", f"{where} port"))
    bind(run, side, address, port, where, drawn=drawn)


def _like(first: IPAddress, value: int) -> IPAddress:
    return IPv4Address(value) if first.version == 4 else IPv6Address(value)


def masquerade(run: Run, ports: tuple[int, int] | None, where: str, *, random: bool = False) -> End | None:
    """The source becomes the address of the outgoing interface."""
    sources = run.facts.masquerade_sources(run.oif, run.packet.destination)
    if not sources:
        return End(HookVerdict.DROP, where, f"masquerade finds no address on {run.oif or 'no interface'}")
    doubt = Doubt(f"masquerade picks one of {', '.join(map(str, sources))}", f"{where} {run.oif}")
    address = sources[choose(run, 0, len(sources) - 1, doubt)]
    translate_to(run, "source", Goal((address, address), ports, random), where)
    return None


def redirect(run: Run, ports: tuple[int, int] | None, where: str) -> End | None:
    """The destination becomes this host: loopback in output, else the first address of the incoming interface."""
    family = 4 if run.version == 4 else 6
    if run.hook == "output":
        address: IPAddress = IPv4Address("127.0.0.1") if family == 4 else IPv6Address("::1")
    else:
        here = [each.ip for each in run.facts.addresses(run.iif, 4 if family == 4 else 6)]
        if family == 6:  # nf_nat_redirect_ipv6_usable: an address of the destination's scope
            here = [each for each in here if each.is_link_local == run.packet.destination.is_link_local]
        if not here:
            return End(HookVerdict.DROP, where, f"redirect finds no address on {run.iif or 'no interface'}")
        address = here[0]
    translate_to(run, "destination", Goal((address, address), ports), where)
    return None


def reject(where: str, how: str) -> End:
    """The packet is gone and its sender is told."""
    return End(HookVerdict.REJECT, where, how)
