# SPDX-License-Identifier: Apache-2.0
"""Flows that become another, and the lines of `wicket watch`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from ipaddress import ip_address, ip_network

import pytest

from doctor_pod import CAPTURE, GREEDY, HEALTHY, wg_quicked, with_peers
from wicketgate.doctor.flow_watch import FlowWatch, Judgement, flow_name
from wicketgate.doctor.watch_report import (
    change_line,
    change_object,
    count_words,
    flow_line,
    flow_object,
    is_derived,
    mark_object,
    note_object,
)
from wicketgate.errors import StateError
from wicketgate.netpath.change import Action, StateChange, What
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import Firewall, NextHop, Route, Rule, Unread

AT = 1_700_000_000.25
BALANCER = "load balancer -> 10.0.0.2:9000/tcp"
QUICKED = wg_quicked()


def spelled(changes) -> list[str]:
    """The changes' texts."""
    return [each.spelled() for each in changes]


def test_the_first_look_tells_every_flow_and_the_next_only_what_changed():
    """wg-quick's rules break the balancer's flow, by the very rule; without the rule it works again."""
    book = FlowWatch()
    healthy = with_peers(HEALTHY, GREEDY)
    assert f"{BALANCER}: works" in spelled(book.look(healthy))
    assert book.look(healthy) == ()
    told = spelled(book.look(QUICKED))
    rule = "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    assert f"{BALANCER}: works -> broken: reply-into-tunnel: {rule}" in told
    assert book.look(QUICKED) == ()
    without = replace(QUICKED, rules=tuple(each for each in QUICKED.rules if each != CAPTURE))
    assert f"{BALANCER}: broken -> works" in spelled(book.look(without))


def test_another_rule_that_breaks_it_is_a_change():
    """Broken by one and then by another: told, with the new one."""
    book = FlowWatch()
    book.look(QUICKED)
    moved = replace(CAPTURE, priority=32763)
    told = spelled(book.look(replace(QUICKED, rules=(*QUICKED.rules[:1], moved, *QUICKED.rules[1:]))))
    assert (
        f"{BALANCER}: broken -> broken: reply-into-tunnel: 32763: not from all fwmark 0xca6c lookup 51820 proto boot"
        in told
    )


def test_a_listener_that_goes_takes_no_flow_with_it():
    """A flow that was found once is judged on: its listener is missing now, which is the point."""
    book = FlowWatch()
    book.look(HEALTHY)
    told = spelled(book.look(replace(HEALTHY, sockets=HEALTHY.sockets[1:])))
    assert f"{BALANCER}: works -> broken: no-listener: tcp port 9000" in told
    assert book.count(Judgement.BROKEN) >= 1


def test_what_cannot_be_read_is_unknown_and_not_working():
    """Without the firewall's listings no flow works; without routes nothing is judged at all."""
    book = FlowWatch()
    book.look(replace(HEALTHY, firewall=Firewall(), unread=(Unread("nft -j list ruleset", "Operation not permitted"),)))
    assert {each.judgement for each in book.states} == {Judgement.UNKNOWN}
    assert "Operation not permitted" in book.states[0].spelled()
    with pytest.raises(StateError, match="routes: no"):
        book.look(replace(HEALTHY, unread=(Unread("routes", "no"),)))


def test_a_flow_that_was_asked_for_is_judged_alone():
    """It is made of the first snapshot and kept."""
    flow = Flow(ip_address("0.0.0.0"), ip_address("203.0.113.9"), "tcp", 40000, 443, uid=0)
    book = FlowWatch(lambda _: [Concern(Kind.ASKED, flow)])
    assert spelled(book.look(HEALTHY)) == ["this host -> 203.0.113.9:443/tcp: works"]
    assert spelled(book.look(replace(HEALTHY, routes=HEALTHY.routes[:-1]))) == [
        "this host -> 203.0.113.9:443/tcp: works -> broken: egress-unreachable: "
        + next(each.cause.where for each in book.states if each.cause is not None)
    ]
    assert len(book.states) == 1


def test_names_of_flows():
    """Who is who; addresses where there is no better name."""
    flow = Flow(ip_address("10.8.0.2"), ip_address("2001:db8::9"), "udp", 40000, 53, iif="wg0")
    assert flow_name(Concern(Kind.EGRESS, flow)) == "tunnel client 10.8.0.2 -> [2001:db8::9]:53/udp"
    assert flow_name(Concern(Kind.ASKED, flow)) == "10.8.0.2 -> [2001:db8::9]:53/udp"
    assert flow_name(Concern(Kind.KUBELET, flow)) == "kubelet -> [2001:db8::9]:53/udp"


def test_a_change_as_a_line():
    """Time to the millisecond, a sign, the kind, the text, who; IPv6 rules and default routes are told apart."""
    rule = Rule(4, 7, table=254)
    change = StateChange(AT, What.RULE, Action.ADDED, "7: from all lookup main", rule, who="netlink port 4711")
    assert change_line(change, UTC) == "22:13:20.250 + rule      7: from all lookup main  (netlink port 4711)"
    six = replace(change, value=replace(rule, family=6), action=Action.REMOVED, who="")
    assert change_line(six, UTC) == "22:13:20.250 - rule      -6 7: from all lookup main"
    default = Route(ip_network("::/0"), nexthops=(NextHop("eth0"),))
    route = StateChange(AT, What.ROUTE, Action.CHANGED, "default dev eth0", default)
    assert change_line(route, UTC) == "22:13:20.250 ~ route     -6 default dev eth0"
    lost = StateChange(AT, What.RESYNC, Action.CHANGED, "lost", told=False)
    assert change_line(lost, UTC) == "22:13:20.250 ! resync    lost"


def test_the_kernels_own_routes_are_told_apart():
    """Those of table local that it keeps by itself; one that somebody put there is somebody's."""
    local = Route(ip_network("10.0.0.2/32"), table=255, type="local", protocol=2)
    assert is_derived(StateChange(AT, What.ROUTE, Action.ADDED, "", local))
    assert not is_derived(StateChange(AT, What.ROUTE, Action.ADDED, "", replace(local, protocol=3)))
    assert not is_derived(StateChange(AT, What.ROUTE, Action.ADDED, "", replace(local, table=254)))
    assert not is_derived(StateChange(AT, What.RULE, Action.ADDED, "", Rule(4, 7, table=255, protocol=2)))


def test_a_flow_as_a_line_and_the_count_of_all():
    """The verdict before and after, with code and rule."""
    book = FlowWatch()
    book.look(with_peers(HEALTHY, GREEDY))
    change = next(each for each in book.look(QUICKED) if flow_name(each.after.concern) == BALANCER)
    assert flow_line(AT, change, UTC) == (
        f"22:13:20.250 > flow      {BALANCER}: works -> broken: reply-into-tunnel: "
        "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    )
    total = len(book.states)
    assert count_words(book).startswith(f"{total} flows: ")
    assert count_words(FlowWatch()) == "no flows to watch"


def test_json_carries_what_the_lines_do():
    """Every object has a time in UTC and its kind."""
    rule = Rule(6, 7, table=254)
    change = StateChange(AT, What.RULE, Action.ADDED, "7: from all lookup main", rule)
    assert change_object(3, change) == {
        "time": "2023-11-14T22:13:20.250Z", "event": "change", "number": 3, "what": "rule", "action": "added",
        "text": "7: from all lookup main", "family": 6, "who": None, "told": True,
    }  # fmt: skip
    book = FlowWatch()
    book.look(with_peers(HEALTHY, GREEDY))
    turned = next(each for each in book.look(QUICKED) if flow_name(each.after.concern) == BALANCER)
    told = flow_object(AT, turned, 1, 3)
    assert (told["was"], told["now"], told["changes"], told["name"]) == ("works", "broken", [1, 3], BALANCER)
    assert told["flow"] == {"from": "203.0.113.9:40000", "to": "10.0.0.2:9000", "proto": "tcp", "iif": "eth0"}
    assert told["cause"]["code"] == "reply-into-tunnel"
    assert flow_object(AT, turned, 4, 3)["changes"] is None
    assert [each["now"] for each in mark_object(AT, "end", book, 9)["flows"]] == [
        str(each.judgement) for each in book.states
    ]
    assert note_object(AT, "x") == {"time": "2023-11-14T22:13:20.250Z", "event": "note", "text": "x"}
