# SPDX-License-Identifier: Apache-2.0
"""IPv4 packets that come in: martians, the reverse-path filter, delivery here or forwarding (ip_route_input_slow).

IPv6 has no reverse-path filter in its routing and few martians; `arrives6` has what ip6_rcv_core() refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from wicketgate.netpath.lookup import LOOPBACK, Found, Question, Refused, Unsure, route_line
from wicketgate.netpath.routing import BROADCAST, Routing, Way
from wicketgate.netpath.snapshot import NextHop


@dataclass(frozen=True, slots=True)
class Blocked:
    """The packet is thrown away before a route is followed.

    Attributes:
        code: cause: rp-filter, martian-source, martian-destination, forwarding-off.
        object: the setting or address.
        reason: one clause.
        errno: what RTM_GETROUTE says of it.
        skb_drop_reason: the kernel's name for it, where it has one (include/net/dropreason-core.h).
    """

    code: str
    object: str
    reason: str
    errno: str = "EINVAL"
    skb_drop_reason: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """The source may come in here; `effect` says why."""

    object: str
    effect: str


def input4(routing: Routing, question: Question) -> tuple[Way | Refused | Blocked | Unsure, Passed | None]:
    """The way of an IPv4 packet that came in by `question.iif`, and what the source check said.

    Raises:
        NotTold: a parameter that decides is not in the snapshot.
    """
    source, destination, iif = question.source, question.destination, question.iif
    assert source is not None
    settings = routing.settings
    if source.is_multicast or source == BROADCAST:
        return Blocked(
            "martian-source", f"source {source}", "no host has such an address", skb_drop_reason="IP_INVALID_SOURCE"
        ), None
    if destination.is_multicast or destination == BROADCAST or (int(source) == 0 and int(destination) == 0):
        return Unsure("multicast and broadcast destinations are not modelled", str(destination)), None
    if int(source) >> 24 == 0:
        return Blocked(
            "martian-source",
            f"source {source}",
            "addresses of 0.0.0.0/8 are no senders",
            skb_drop_reason="IP_INVALID_SOURCE",
        ), None
    if int(destination) >> 24 == 0:
        return Blocked(
            "martian-destination",
            f"destination {destination}",
            "addresses of 0.0.0.0/8 are no receivers",
            skb_drop_reason="IP_INVALID_DEST",
        ), None
    if (destination.is_loopback or source.is_loopback) and not settings.either(4, iif, "route_localnet"):
        code = "martian-destination" if destination.is_loopback else "martian-source"
        which = destination if destination.is_loopback else source
        words = f"{which} may not come in by {iif}"
        return Blocked(code, f"net.ipv4.conf.{iif}.route_localnet = 0", words, skb_drop_reason="IP_LOCALNET"), None
    answer = routing.lookup(question)
    if isinstance(answer, Unsure):
        return answer, None
    if isinstance(answer, Refused):
        if not settings.forwards(4, iif):
            return Blocked(
                "forwarding-off",
                settings.forwarding_spelled(4, iif),
                f"{destination} is no address of this host, and {iif} does not forward",
                "EHOSTUNREACH",
            ), None
        return answer, None
    way = Way(answer.route.type, answer.hops, None, answer.route, answer.rule, answer.trail)
    if way.kind == "broadcast" and settings.of(4, iif, "bc_forwarding"):
        return Unsure("forwarding of broadcasts is not modelled", f"net.ipv4.conf.{iif}.bc_forwarding"), None
    if way.kind in ("local", "broadcast"):
        return _judged(routing, question, replace(way, hops=(NextHop(LOOPBACK),)), "")
    if not settings.forwards(4, iif):
        return Blocked(
            "forwarding-off",
            settings.forwarding_spelled(4, iif),
            f"{destination} is no address of this host, and {iif} does not forward",
            "EHOSTUNREACH",
        ), None
    if way.kind != "unicast":
        return Blocked(
            "martian-destination",
            route_line(answer.route),
            "a route of this type leads nowhere for a packet that comes in",
            skb_drop_reason="IP_INVALID_DEST",
        ), None
    if routing.several_defaults(answer):
        return Unsure(
            "several default routes of one metric: what the kernel knows of their gateways decides",
            route_line(answer.route),
        ), None
    # The reverse lookup names the interface that the packet would leave by as its `iif`: each branch for itself.
    outs = {hop.oif for hop in way.hops}
    verdicts = [(_judged(routing, question, way, oif)) for oif in sorted(outs)]
    if len({type(verdict[0]) for verdict in verdicts}) > 1:
        return Unsure(
            "a hash chooses the next hop, and the source check differs between them", route_line(answer.route)
        ), None
    return verdicts[0]


def _judged(
    routing: Routing, question: Question, way: Way, leaves: str
) -> tuple[Way | Blocked | Unsure, Passed | None]:
    checked = check_source(routing, question, leaves, broadcast=way.kind == "broadcast")
    return (way, checked) if isinstance(checked, Passed) else (checked, None)


def check_source(
    routing: Routing, question: Question, leaves: str, *, broadcast: bool = False
) -> Passed | Blocked | Unsure:
    """fib_validate_source().

    Args:
        routing: of the snapshot.
        question: of the packet as it came in.
        leaves: the interface it would be forwarded by; empty when it is delivered here.
        broadcast: it came to a broadcast address; the reverse lookup then has no source.
    """
    iif, source = question.iif, question.source
    assert source is not None
    settings = routing.settings
    mode = settings.larger(4, iif, "rp_filter")
    spelled = settings.spelled(4, iif, "rp_filter")
    accepts_local = settings.either(4, iif, "accept_local")
    if not mode and (iif != leaves or not settings.either(4, iif, "send_redirects")):
        if accepts_local:
            return Passed(f"net.ipv4.conf.{iif}.accept_local = 1", "any source may come in")
        if routing.default_rules[4] and not routing.custom_local_routes:
            return _quickly(routing, question, leaves, spelled, broadcast=broadcast)
    return _in_full(routing, question, leaves, mode, spelled, broadcast=broadcast)


def _quickly(
    routing: Routing, question: Question, leaves: str, spelled: str, *, broadcast: bool
) -> Passed | Blocked | Unsure:
    """Without rules of its own, a namespace only compares the source with its addresses; and once it had one, never so."""
    assert question.source is not None
    iif = question.iif
    quick = (
        _own(iif, str(question.source))
        if routing.is_own(question.source)
        else Passed(spelled, "the way back is not checked")
    )
    full = _in_full(routing, question, leaves, 0, spelled, broadcast=broadcast)
    if type(quick) is type(full):
        return quick
    if isinstance(full, Unsure):
        return full
    words = "whether the namespace ever had a policy rule of its own cannot be seen, and the source check depends on it"
    return Unsure(words, full.object)


def _in_full(
    routing: Routing, question: Question, leaves: str, mode: int, spelled: str, *, broadcast: bool
) -> Passed | Blocked | Unsure:
    """__fib_validate_source()."""
    iif, source, settings = question.iif, question.source, routing.settings
    assert source is not None
    accepts_local = settings.either(4, iif, "accept_local")
    reverse = replace(
        question,
        destination=source,
        source=None if broadcast else question.destination,
        iif=leaves or LOOPBACK,
        oif="",
        mark=question.mark if settings.either(4, iif, "src_valid_mark") else 0,
        uid=0,
        source_port=question.destination_port,
        destination_port=question.source_port,
    )
    back = routing.lookup(reverse)
    if isinstance(back, Unsure):
        return back
    if isinstance(back, Refused):
        if mode:
            words = f"no route leads back to {source}" + (f": {back.object}" if back.object else "")
            return Blocked("rp-filter", spelled, words, "EXDEV", "IP_RPFILTER")
        return Passed(spelled, "the way back is not checked")
    return _way_back(routing, question, back, mode, spelled, accepts_local=accepts_local)


def _way_back(
    routing: Routing, question: Question, back: Found, mode: int, spelled: str, *, accepts_local: bool
) -> Passed | Blocked | Unsure:
    iif, source = question.iif, question.source
    line = route_line(back.route)
    if back.route.type == "local" and not accepts_local:
        return _own(iif, line)
    if back.route.type not in ("unicast", "local"):
        return Blocked(
            "martian-source", line, f"{source} is a {back.route.type} address here", skb_drop_reason="IP_INVALID_SOURCE"
        )
    uses = any(hop.oif == iif for hop in back.route.nexthops)
    if uses or (back.route.type == "local" and iif == LOOPBACK):
        return Passed(spelled, f"{source} is answered by {iif}: {line}")
    no_address = not any(a.ifname == iif and a.family == 4 for a in routing.snapshot.addresses)
    if no_address and mode:
        return Blocked(
            "rp-filter",
            spelled,
            f"{iif} has no address, and the way back to {source} is {line}",
            "EXDEV",
            "IP_RPFILTER",
        )
    if mode == 1:
        return Blocked(
            "rp-filter", spelled, f"the way back to {source} is not by {iif}: {line}", "EXDEV", "IP_RPFILTER"
        )
    return Passed(spelled, f"some route leads back to {source}: {line}" if mode else "the way back is not checked")


def _own(iif: str, what: str) -> Blocked:
    words = f"the source is an address of this host ({what})"
    return Blocked("martian-source", f"net.ipv4.conf.{iif}.accept_local = 0", words, skb_drop_reason="IP_LOCAL_SOURCE")


def arrives6(source: IPv6Address, destination: IPv6Address, *, loopback: bool) -> Blocked | None:
    """What ip6_rcv_core() of net/ipv6/ip6_input.c refuses before anything is asked."""
    if source.is_multicast:
        return Blocked("martian-source", f"source {source}", "a multicast address is no sender")
    if (source.is_loopback or destination.is_loopback) and not loopback:
        which = "source" if source.is_loopback else "destination"
        return Blocked(f"martian-{which}", f"{which} ::1", "::1 never travels by a wire")
    return None
