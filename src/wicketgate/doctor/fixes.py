# SPDX-License-Identifier: Apache-2.0
"""The catalogue: what may mend a cause, best first. Whether it does is for `prove` to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from types import MappingProxyType

from wicketgate.doctor.change import (
    Fix,
    add_route,
    add_rule,
    change_socket,
    remove_route,
    remove_rules,
    set_sysctls,
)
from wicketgate.doctor.filter_fixes import accept, except_from_nat, masquerade
from wicketgate.doctor.mark_fixes import accept_mark, mark_answers
from wicketgate.doctor.tunnel_fixes import allow, endpoint, link_up, unloop
from wicketgate.netpath.concerns import STRANGER, defaults, is_tunnel
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.lookup import route_line, rule_line
from wicketgate.netpath.packet import TCP, UDP
from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Family, IPAddress, Route, Rule, Snapshot
from wicketgate.netpath.spelling import route_command, rule_command

_MAINS = 32766  # the priority of the rule for `main`
_PREFERENCE = 100  # a guess: before wg-quick's 32764, behind what CNIs put at the front
_BOOT = 3  # rt_protos: what `ip route add` writes
_METRIC6 = 1024  # IP6_RT_PRIO_USER
_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_TOOL_HOOKS = ("prerouting-drop", "input-drop", "forward-drop", "output-drop", "postrouting-drop")

Maker = Callable[[Snapshot, Diagnosis], Iterator[Fix]]


def candidates(snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[Fix, ...]:
    """What may mend this cause in this place."""
    if diagnosis.cause is None:
        return ()
    maker = _MAKERS.get(diagnosis.cause.code)
    return tuple(maker(snapshot, diagnosis)) if maker is not None else ()


def _answers_home(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """The answer leaves by the wrong interface."""
    flow = diagnosis.concern.flow
    if flow.iif is None:
        return
    family: Family = 4 if flow.destination.version == 4 else 6
    preference = _preference(snapshot, family, diagnosis.cause.where if diagnosis.cause else "")
    table = _table_of(snapshot, family, flow.iif)
    if preference is not None:
        from_pod = Rule(family, preference, table=table, src=ip_network(flow.destination))
        yield _rule_fix("source-rule", f"answer from {flow.destination} by the table of {flow.iif}", from_pod)
        if flow.protocol in _PROTOCOLS and flow.destination_port:
            port = flow.destination_port
            by_port = Rule(family, preference, table=table, ipproto=_PROTOCOLS[flow.protocol], sport=(port, port))
            yield _rule_fix("sport-rule", f"answer from port {port} by the table of {flow.iif}", by_port)
    yield from _route_home(snapshot, flow.source, flow.iif)
    yield from mark_answers(snapshot, diagnosis)
    yield from _bound_listener(snapshot, diagnosis)


def _route_home(snapshot: Snapshot, source: IPAddress, ifname: str) -> Iterator[Fix]:
    """A route to the sender alone. wg-quick's first rule lets table main answer for what it has a route to.

    Not to a stranger: there are as many as there are clients.
    """
    family: Family = 4 if source.version == 4 else 6
    if source == STRANGER[family]:
        return
    for way in defaults(snapshot, family):
        if any(hop.oif == ifname for hop in way.nexthops):
            metric = _METRIC6 if family == 6 else 0
            route = Route(ip_network(source), RT_TABLE_MAIN, nexthops=way.nexthops, protocol=_BOOT, metric=metric)
            commands = (route_command("add", route),), (route_command("del", route),)
            yield Fix("sender-route", f"route {source} by {ifname} in table main", *commands, add_route(route))
            return


def _destination_by_main(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """What this host sends is captured by the tunnel."""
    flow = diagnosis.concern.flow
    family: Family = 4 if flow.destination.version == 4 else 6
    preference = _preference(snapshot, family, diagnosis.cause.where if diagnosis.cause else "")
    if preference is not None:
        rule = Rule(family, preference, table=RT_TABLE_MAIN, dst=ip_network(flow.destination))
        yield _rule_fix("destination-rule", f"route what goes to {flow.destination} by table main", rule)


def _rule_fix(name: str, words: str, rule: Rule) -> Fix:
    return Fix(name, words, (rule_command("add", rule),), (rule_command("del", rule),), add_rule(rule))


def _preference(snapshot: Snapshot, family: Family, guilty: str) -> int | None:
    """A free priority before the guilty rule and everything else that is not the kernel's."""
    number, _, _ = guilty.partition(": ")
    others = [r.priority for r in snapshot.rules if r.family == family and r.priority]
    limit = min([*others, int(number) if number.isdecimal() else _MAINS])
    wanted = min(_PREFERENCE, limit - 1)
    return wanted if wanted > 0 else None


def _table_of(snapshot: Snapshot, family: Family, ifname: str) -> int:
    """The table whose default route leads out by the interface; main when several do."""
    tables = {r.table for r in defaults(snapshot, family) if any(hop.oif == ifname for hop in r.nexthops)}
    return RT_TABLE_MAIN if RT_TABLE_MAIN in tables or not tables else min(tables)


def _bound_listener(_snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    reply, flow = diagnosis.reply or diagnosis.doomed, diagnosis.concern.flow
    socket = diagnosis.forward.socket
    if socket is None and reply is not None:
        socket = reply.socket
    if socket is None or socket.bound_device or not flow.iif or socket.protocol != "tcp":
        return
    bound = replace(socket, bound_device=flow.iif)
    words = (
        f"let the program bind its listening socket to {flow.iif} (SO_BINDTODEVICE; needs no right since Linux 5.7), "
        f"as `wicket sidecar {flow.destination_port}` does"
    )
    yield Fix("bind-listener-to-uplink", words, (), (), change_socket(socket, bound))


def _home_route(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """No route leads out or back: a default route that another table still knows."""
    flow = diagnosis.concern.flow
    family: Family = 4 if flow.destination.version == 4 else 6
    outward = diagnosis.cause is not None and diagnosis.cause.code == "egress-unreachable"
    for route in defaults(snapshot, family):
        home = outward or any(hop.oif == flow.iif for hop in route.nexthops)
        if route.table != RT_TABLE_MAIN and home and not route.unknown:
            copy = replace(route, table=RT_TABLE_MAIN, protocol=3)
            commands = (route_command("add", copy),), (route_command("del", copy),)
            yield Fix("default-route", "give table main its default route back", *commands, add_route(copy))
            return


def _refusing(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """A blackhole, unreachable or prohibit route or rule."""
    where = diagnosis.cause.where if diagnosis.cause else ""
    version = diagnosis.concern.flow.destination.version  # rules of both families may read the same
    for rule in snapshot.rules:
        if rule.family == version and rule_line(rule) == where and not rule.unknown:
            commands = (rule_command("del", rule),), (rule_command("add", rule),)
            yield Fix("remove-rule", "remove the rule that refuses", *commands, remove_rules((rule,)))
            return
    for route in snapshot.routes:
        if route.family == version and route_line(route) == where and not route.unknown:
            commands = (route_command("del", route),), (route_command("add", route),)
            yield Fix("remove-route", "remove the route that refuses", *commands, remove_route(route))
            return


def _forwarding(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    flow = diagnosis.concern.flow
    if flow.destination.version == 6:
        names = ["net.ipv6.conf.all.forwarding"]
    else:
        outs = {hop.oif for route in defaults(snapshot, 4) for hop in route.nexthops if route.table == RT_TABLE_MAIN}
        refused = diagnosis.reply.flow.iif if diagnosis.reply is not None else flow.iif
        wanted = dict.fromkeys([flow.iif or "", refused or "", *sorted(outs)])
        names = [f"net.ipv4.conf.{each.replace('.', '/')}.forwarding" for each in wanted if each]
    values = {name: "1" for name in names if snapshot.sysctls.get(name, "0") == "0"}
    yield from _sysctls(
        snapshot,
        "forwarding",
        "let the kernel forward (where /proc/sys is read-only: by the pod's securityContext.sysctls)",
        values,
    )


def _ipv6_on(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    name, _, value = (diagnosis.cause.where if diagnosis.cause else "").partition(" = ")
    if name.endswith(".disable_ipv6") and value == "1":
        yield from _sysctls(snapshot, "ipv6-on", "let the interface have IPv6", {name: "0"})


def _loose(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    iif = diagnosis.concern.flow.iif
    if iif:
        name = f"net.ipv4.conf.{iif.replace('.', '/')}.rp_filter"
        yield from _sysctls(snapshot, "loose-rp-filter", f"check sources on {iif} loosely", {name: "2"})


def _checked(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """The rule first: by it the way back is the one the packet came by, and the check stays as strict as it was."""
    yield from list(_answers_home(snapshot, diagnosis))[:1]
    yield from _loose(snapshot, diagnosis)


def _sysctls(snapshot: Snapshot, name: str, words: str, values: dict[str, str]) -> Iterator[Fix]:
    if values:
        commands = tuple(f"sysctl -w {key}={value}" for key, value in values.items())
        undo = tuple(f"sysctl -w {key}={snapshot.sysctls.get(key, '0')}" for key in reversed(values))
        yield Fix(name, words, commands, undo, set_sysctls(values))


def _listen_elsewhere(_snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    near = diagnosis.forward.socket
    for step in diagnosis.forward.steps:
        near = getattr(step, "socket", None) or near
    flow = diagnosis.concern.flow
    if near is None or near.address.version != flow.destination.version:
        return
    nobody: IPAddress = type(near.address)(0)
    wide = replace(near, address=nobody, bound_device="")
    words = f"let the program listen on {nobody} or {flow.destination} instead of {near.address}"
    yield Fix("listen-address", words, (), (), change_socket(near, wide))


def _of_lost_mark(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """The rules first: they need no mark, and hold for UDP too."""
    rules = list(_answers_home(snapshot, diagnosis))
    yield from rules[:1]
    yield from accept_mark(snapshot, diagnosis)
    yield from rules[1:]


def _clients_by_main(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """A tunnel client's packets are captured by the tunnel's own default route."""
    flow = diagnosis.concern.flow
    if not flow.iif or not is_tunnel(snapshot, flow.iif):
        return
    family: Family = 4 if flow.destination.version == 4 else 6
    preference = _preference(snapshot, family, diagnosis.cause.where if diagnosis.cause else "")
    if preference is not None:
        rule = Rule(family, preference, table=RT_TABLE_MAIN, iif=flow.iif)
        yield _rule_fix("client-rule", f"route what comes out of {flow.iif} by table main", rule)


_MAKERS = MappingProxyType[str, Maker](
    {
        "reply-into-tunnel": _answers_home,
        "local-subnet-captured": _answers_home,
        "reply-wrong-uplink": _answers_home,
        "reply-unroutable": _home_route,
        "blackhole-route": _refusing,
        "forwarding-off": _forwarding,
        "rp-filter": _checked,
        "listener-wrong-address": _listen_elsewhere,
        "server-peer-claims-default": _clients_by_main,
        "masquerade-missing": masquerade,
        "mark-lost": _of_lost_mark,
        "own-traffic-captured": _destination_by_main,
        "egress-unreachable": _home_route,
        "address-missing": _ipv6_on,
        "source-not-allowed": allow,
        "no-peer-for-destination": allow,
        "peer-without-endpoint": endpoint,
        "tunnel-loop": unloop,
        "interface-down": link_up,
        "dnat-elsewhere": except_from_nat,
        **dict.fromkeys(_TOOL_HOOKS, accept),
    }
)
