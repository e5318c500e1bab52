# SPDX-License-Identifier: Apache-2.0
"""Routing lookups that rules make: `fib`, and `-m rpfilter`."""

from __future__ import annotations

from wicketgate.netpath.lookup import Found, Question, Unsure
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.packet import TCP, UDP
from wicketgate.netpath.snapshot import IPAddress


def devices(run: Run, question: Question) -> tuple[str, frozenset[str]] | Doubt | None:
    """The type of the route that is found, and the interfaces of its next hops; None where nothing is."""
    answer = run.facts.way(question)
    if isinstance(answer, Unsure):
        return Doubt(f"the lookup for {question.destination}: {answer.reason}", f"way {question}")
    if not isinstance(answer, Found):
        return None
    hops = answer.route.nexthops or answer.hops
    return answer.route.type, frozenset(hop.oif for hop in hops)


def _source(address: IPAddress) -> IPAddress | None:
    """rpfilter_get_saddr, get_saddr of nft_fib_ipv4.c: no multicast, broadcast or zero source."""
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return None
    return address


def reverse_path(run: Run, *, loose: bool, mark: bool, accept_local: bool) -> bool | Doubt:
    """`-m rpfilter` before its --invert (rpfilter_mt of ipt_rpfilter.c and ip6t_rpfilter.c)."""
    packet = run.packet
    link = run.facts.link(run.iif)
    if link is not None and link.loopback:
        return True
    six = packet.source.version == 6
    question = Question(
        packet.source,
        _source(packet.destination),
        mark=packet.mark if mark else 0,
        tos=packet.tos,
        protocol=packet.protocol if six and packet.protocol in (TCP, UDP) else 0,
        prefer=run.iif if six and not loose else "",
        strict=six and not loose,
        ignore_linkstate=not six,
    )
    found = devices(run, question)
    if found is None or isinstance(found, Doubt):
        return False if found is None else found
    kind, ways = found
    if kind == "local":
        return accept_local and (six or loose or run.iif in ways)
    if kind != "unicast":
        return False
    return loose or run.iif in ways


def fib_device(run: Run, *, of_source: bool, iif: bool, oif: bool, mark: bool) -> str | Doubt:
    """`fib saddr . iif oif`: the interface that is found, "" for none (nft_fib4_eval, nft_fib6_eval)."""
    packet = run.packet
    six = packet.source.version == 6
    given = run.oif if oif else run.iif if iif else ""
    link = run.facts.link(run.iif)
    if run.hook in ("prerouting", "input") and link is not None and link.loopback:
        return run.iif  # nft_fib_is_loopback
    target, other = (packet.source, packet.destination) if of_source else (packet.destination, packet.source)
    local_only = six and target.is_link_local
    question = Question(
        target,
        _source(other),
        iif=run.oif if of_source and iif and run.hook == "forward" else "lo",
        mark=packet.mark if mark else 0,
        tos=packet.tos,
        prefer=(given or run.iif) if local_only else "",
        strict=local_only,
        ignore_linkstate=not six,
        protocol=0,
    )
    found = devices(run, question)
    if isinstance(found, Doubt):
        return found
    if found is None or found[0] in ("local", "anycast", "blackhole", "unreachable", "prohibit"):
        return ""
    if given:
        return given if given in found[1] else ""
    if len(found[1]) == 1:
        return next(iter(found[1]))
    return Doubt(f"which of several next hops `fib` finds for {target}", f"fib {target}")
