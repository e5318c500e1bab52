# SPDX-License-Identifier: Apache-2.0
"""Flows, causes and proved fixes on made-up pods."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType

import pytest

from doctor_pod import CAPTURE, CLIENT, EMPTY, GREEDY, HEALTHY, filtered, settled, wg_quicked, with_peers
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object, to_text
from wicketgate.errors import InputError, StateError
from wicketgate.netpath.concerns import Concern, Kind, find
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import Address, Firewall, ListeningSocket, NextHop, Route, Rule, Surroundings, Unread
from wicketgate.netpath.verdict import Verdict

VERDICTS = {str(each) for each in Verdict}


def of(snapshot, kind):
    """The first finding of a kind."""
    return next(each for each in examine(snapshot).findings if each.diagnosis.concern.kind is kind)


def drop(port):
    match = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": port}}
    return [match, {"drop": None}]


def test_a_healthy_pod_works():
    """Balancer, kubelet and WireGuard client are examined, all work, and the exit code is 0."""
    found = examine(HEALTHY)
    assert found.works
    assert found.exit_code == 0
    assert [each.diagnosis.concern.kind for each in found.findings] == [Kind.BALANCER, Kind.KUBELET, Kind.CLIENT]


def test_the_seeds_pod_is_diagnosed_and_the_source_rule_is_first():
    """reply-into-tunnel quotes the rule; the source rule comes first and is harmless; only that flow is broken."""
    found = examine(wg_quicked())
    assert found.exit_code == 1
    assert [each.diagnosis.concern.kind for each in found.broken] == [Kind.BALANCER]
    (finding,) = found.broken
    assert finding.diagnosis.cause.code == "reply-into-tunnel"
    assert finding.diagnosis.cause.where == "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    assert finding.diagnosis.cause.object == "policy rule"
    assert [fix.fix.id for fix in finding.fixes] == [
        "source-rule",
        "sport-rule",
        "mark-answers",
        "bind-listener-to-uplink",
    ]
    assert finding.fixes[0].fix.commands == ("ip -4 rule add from 10.0.0.2 lookup main pref 100",)
    assert finding.fixes[0].fix.undo == ("ip -4 rule del from 10.0.0.2 lookup main pref 100",)
    assert all(not fix.side_effects for fix in finding.fixes)


@pytest.mark.parametrize("rp", [0, 1, 2])
def test_strict_rp_filter_does_not_hide_the_rule(rp):
    """The cause stays the rule; binding the listener is offered only where rp_filter is not strict."""
    finding = of(settled(wg_quicked(), all_rp_filter=rp), Kind.BALANCER)
    assert finding.diagnosis.cause.code == "reply-into-tunnel"
    assert finding.diagnosis.cause.where.startswith("32765: ")
    assert ("bind-listener-to-uplink" in [fix.fix.id for fix in finding.fixes]) == (rp != 1)
    assert (finding.diagnosis.verdicts[0] is Verdict.DROPPED) == (rp == 1)


def test_popular_advice_is_called_wrong():
    """Accept rules do nothing, and deleting the suppress rule captures the pod's own subnet: both were computed."""
    finding = of(wg_quicked(), Kind.BALANCER)
    assert "INPUT" in finding.wrong_advice[0]
    assert "10.0.0.0/24 is captured" in finding.wrong_advice[1]


def test_without_the_suppress_rule_the_own_subnet_is_captured():
    """Kubelet's probe then fails too, under its own code, and the source rule mends both."""
    pod = wg_quicked()
    pod = replace(pod, rules=tuple(rule for rule in pod.rules if rule.suppress_prefixlength is None))
    finding = of(pod, Kind.KUBELET)
    assert finding.diagnosis.cause.code == "local-subnet-captured"
    assert finding.fixes[0].mends == 2


def test_the_json_is_the_contract():
    """Keys and verdicts as DESIGN has them, nothing more, for working, broken and unknown flows."""
    for pod in (HEALTHY, wg_quicked(), replace(HEALTHY, firewall=Firewall())):
        told = json.loads(json.dumps(to_object(examine(pod))))
        assert set(told) == {"works", "flows"}
        for flow in told["flows"]:
            more = {"supposing"} if pod.firewall == Firewall() else set()
            assert set(flow) == {"flow", "works", "forward", "reply", "cause", "path", "fixes"} | more
            assert set(flow["flow"]) == {"from", "to", "proto", "iif"}
            assert {flow["forward"], flow["reply"]} <= VERDICTS
            assert flow["cause"] is None or set(flow["cause"]) == {"code", "object", "where", "explanation"}
            assert all(set(step) == {"direction", "stage", "object", "effect"} for step in flow["path"])
            for fix in flow["fixes"]:
                assert set(fix) == {"id", "commands", "undo", "proved_by", "side_effects"}
                assert fix["proved_by"] == ["model"]


def test_what_was_not_read_is_unknown_and_not_healthy():
    """Without the firewall's listing no flow is said to work or to be broken, and the exit code says so."""
    found = examine(replace(HEALTHY, firewall=Firewall()))
    assert not found.works
    assert not found.broken
    assert found.exit_code == 3
    assert "nft -j list ruleset" in to_text(found)


def test_without_routes_nothing_is_judged():
    """What every verdict rests on and could not be read ends the examination."""
    with pytest.raises(StateError, match="rules: refused"):
        examine(replace(HEALTHY, unread=(Unread("rules", "refused"),)))


def test_nothing_to_examine_is_said():
    """No listener and no device: the user is asked to name a flow."""
    with pytest.raises(InputError, match="--to"):
        examine(replace(HEALTHY, sockets=(), wireguard=(), links=HEALTHY.links[:2]))


def test_an_input_drop_is_named_and_an_accept_in_that_table_mends_it():
    """The nft rule is quoted; the accept goes into the same table and chain."""
    finding = of(filtered(HEALTHY, "input", drop(9000)), Kind.BALANCER)
    assert finding.diagnosis.cause.code == "input-drop"
    assert finding.diagnosis.cause.where.endswith("tcp dport 9000 drop")
    assert finding.diagnosis.cause.object == "firewall rule"
    assert [fix.fix.commands for fix in finding.fixes] == [
        ('nft insert rule inet filter input iifname "eth0" tcp dport 9000 accept',)
    ]


def test_an_iptables_drop_is_mended_with_its_own_tool():
    """Legacy iptables' rule is quoted and answered with iptables-legacy."""
    listing = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n[0:0] -A INPUT -p tcp -m tcp --dport 9000 -j DROP\nCOMMIT\n"
    pod = replace(HEALTHY, firewall=replace(EMPTY, iptables_legacy=listing))
    finding = of(pod, Kind.BALANCER)
    assert finding.diagnosis.cause.where == "-A INPUT -p tcp -m tcp --dport 9000 -j DROP"
    assert finding.fixes[0].fix.commands == ("iptables-legacy -I INPUT 1 -i eth0 -p tcp -m tcp --dport 9000 -j ACCEPT",)


def test_two_faults_need_two_fixes():
    """A drop and a captured reply: the fix shown is both together, and its undo goes backwards."""
    finding = of(filtered(wg_quicked(), "input", drop(9000)), Kind.BALANCER)
    assert finding.fixes[0].fix.id == "accept-rule+source-rule"
    assert len(finding.fixes[0].fix.commands) == 2
    assert finding.fixes[0].fix.undo[0].startswith("ip -4 rule del")


def test_forwarding_off_is_named_and_masquerade_is_part_of_the_fix():
    """A server whose pod does not forward: forwarding and then translation are what mends it."""
    finding = of(with_peers(HEALTHY, CLIENT), Kind.EGRESS)
    assert finding.diagnosis.cause.code == "forwarding-off"
    assert finding.diagnosis.cause.where == "net.ipv4.conf.wg0.forwarding = 0"
    assert finding.fixes[0].fix.id == "forwarding+masquerade"
    assert finding.fixes[0].fix.commands[:2] == (
        "sysctl -w net.ipv4.conf.wg0.forwarding=1", "sysctl -w net.ipv4.conf.eth0.forwarding=1",
    )  # fmt: skip


def test_missing_translation_is_named():
    """What leaves with a private tunnel address does not come back."""
    pod = settled(with_peers(HEALTHY, CLIENT), wg0_forwarding=1, eth0_forwarding=1)
    finding = of(pod, Kind.EGRESS)
    assert finding.diagnosis.cause.code == "masquerade-missing"
    assert finding.fixes[0].fix.id == "masquerade"


def test_a_client_that_never_came_is_played_as_one_that_does():
    """A peer without an endpoint has one as soon as its packet comes in; it is no fault of the place."""
    pod = settled(with_peers(HEALTHY, replace(CLIENT, endpoint=None)), wg0_forwarding=1, eth0_forwarding=1)
    assert of(pod, Kind.EGRESS).diagnosis.cause.code == "masquerade-missing"


def test_missing_translation_is_named_for_a_flow_that_was_asked_for():
    """The same client to a public address, named by the user."""
    pod = settled(with_peers(HEALTHY, CLIENT), wg0_forwarding=1, eth0_forwarding=1)
    flow = Flow(ip_address("10.8.0.2"), ip_address("1.1.1.1"), "icmp", iif="wg0")
    (finding,) = examine(pod, [Concern(Kind.ASKED, flow)]).findings
    assert finding.diagnosis.cause.code == "masquerade-missing"
    assert finding.fixes


def test_a_client_that_is_sent_back_into_the_tunnel():
    """A peer that claims everything captures what clients send outside; a rule for the tunnel's own packets helps."""
    pod = settled(wg_quicked(HEALTHY, CLIENT, replace(GREEDY, endpoint=None)), wg0_forwarding=1, eth0_forwarding=1)
    finding = of(pod, Kind.EGRESS)
    assert finding.diagnosis.cause.code == "server-peer-claims-default"
    assert finding.diagnosis.cause.where.startswith("32765: ")
    assert "ip -4 rule add from all iif wg0 lookup main pref 100" in finding.fixes[0].fix.commands


def test_an_exit_peer_with_an_endpoint_is_no_fault():
    """Clients that leave by another peer of the same tunnel are forwarded on purpose."""
    pod = settled(wg_quicked(HEALTHY, CLIENT, GREEDY), wg0_forwarding=1, eth0_forwarding=1)
    diagnosis = of(pod, Kind.EGRESS).diagnosis
    assert diagnosis.cause is None or diagnosis.cause.code != "server-peer-claims-default"


def test_a_fix_that_breaks_something_says_so_and_is_not_first():
    """Where the first rules come at 1, nothing can be put before them; what is left is still harmless."""
    pod = wg_quicked()
    first = replace(CAPTURE, priority=1)
    pod = replace(pod, rules=(pod.rules[0], first, *pod.rules[1:]))
    finding = of(pod, Kind.BALANCER)
    assert [fix.fix.id for fix in finding.fixes] == ["mark-answers", "bind-listener-to-uplink"]


def test_a_link_local_gateway_is_no_kubelet():
    """With podIP/32 behind 169.254.1.1 the node's address is not known: no kubelet is invented, and it is said."""
    routes = tuple(
        replace(route, nexthops=(NextHop("eth0", ip_address("169.254.1.1")),)) if not route.dst.prefixlen else route
        for route in HEALTHY.routes
    )
    addresses = (HEALTHY.addresses[0], Address("eth0", 2, ip_interface("10.0.0.2/32")), HEALTHY.addresses[2])
    found = find(replace(HEALTHY, routes=routes, addresses=addresses))
    assert Kind.KUBELET not in [each.kind for each in found.concerns]
    assert any("169.254.1.1" in note for note in found.notes)


def test_a_listener_on_loopback_alone_is_no_fault():
    """It may be meant so: no flow is made of it, and it is said."""
    private = ListeningSocket("tcp", 4, ip_address("127.0.0.1"), 9000, mark=0)
    found = find(replace(HEALTHY, sockets=(private,)))
    assert Kind.BALANCER not in [each.kind for each in found.concerns]
    assert any("127.0.0.1" in note for note in found.notes)


def test_a_tunnel_whose_peers_were_not_read_is_named_all_the_same():
    """The link's kind is enough to say that the reply goes into a tunnel, whoever its peers are."""
    pod = replace(wg_quicked(), wireguard=(), unread=(Unread("wireguard", "no right"),))
    assert of(pod, Kind.BALANCER).diagnosis.cause.code == "reply-into-tunnel"


def test_a_way_through_a_tunnel_that_was_not_read_is_never_called_working():
    """A flow out by such a link is unknown, with the reason."""
    pod = replace(HEALTHY, wireguard=(), unread=(Unread("wireguard", "no right"),))
    flow = Flow(ip_address("10.8.0.1"), ip_address("10.8.0.2"), "tcp", 40000, 80, uid=0)
    found = examine(pod, [Concern(Kind.ASKED, flow)])
    assert not found.works
    assert not found.broken
    assert "no right" in found.unknown[0].diagnosis.unknown


def test_other_listeners_are_only_guarded():
    """With a health port here, a closed ssh port is no fault of this place, and the note names it."""
    ssh = ListeningSocket("tcp", 4, ip_address("0.0.0.0"), 22, mark=0)
    found = examine(filtered(replace(HEALTHY, sockets=(*HEALTHY.sockets, ssh)), "input", drop(22)))
    assert found.works
    assert any("22" in note for note in found.notes)


def test_a_blackhole_is_named_and_its_removal_proved():
    """A rule that refuses the reply."""
    rule = Rule(4, 50, action="blackhole", dst=ip_network("203.0.113.0/24"), protocol=3)
    pod = replace(HEALTHY, rules=(HEALTHY.rules[0], rule, *HEALTHY.rules[1:]))
    finding = of(pod, Kind.BALANCER)
    assert finding.diagnosis.cause.code == "blackhole-route"
    assert finding.diagnosis.cause.where == "50: from all to 203.0.113.0/24 blackhole proto boot"
    assert finding.fixes[0].fix.id == "remove-rule"


def test_the_text_marks_the_guilty_rule_and_shows_commands():
    """One line of verdict, the way with a mark, why, and what to paste."""
    text = to_text(examine(wg_quicked()))
    assert text.splitlines()[0] == "1 of 3 flows is broken: reply-into-tunnel."
    marked = [line for line in text.splitlines() if "<-- this one" in line]
    assert len(marked) == 1
    assert "32765: not from all fwmark 0xca6c lookup 51820" in marked[0]
    assert "    ip -4 rule add from 10.0.0.2 lookup main pref 100" in text.splitlines()


def test_settings_that_were_not_told_are_unknown():
    """A parameter that decides and is not in the snapshot makes the flow unknown, by its name."""
    pod = replace(HEALTHY, sysctls=MappingProxyType({}))
    found = examine(pod)
    assert not found.broken
    assert "rp_filter" in to_text(found)


# The catalogue


def ids(finding):
    return [each.fix.id for each in finding.fixes]


@pytest.mark.parametrize(("rp", "more"), [(0, ""), (1, "+src-valid-mark"), (2, "")])
def test_answers_may_be_marked(rp, more):
    """The mark that the rule leaves out, on the flow and its answers alone; strict rp_filter needs src_valid_mark too."""
    finding = of(settled(wg_quicked(), eth0_rp_filter=rp), Kind.BALANCER)
    fix = next(each for each in finding.fixes if each.fix.id.startswith("mark-answers"))
    assert fix.fix.id == f"mark-answers{more}"
    assert any("ct mark 0xca6c meta mark set 0xca6c" in command for command in fix.fix.commands)
    assert not fix.side_effects


def test_a_known_sender_may_get_a_route_of_its_own():
    """wg-quick's first rule lets table main answer where it has more than a default route."""
    pod = wg_quicked()
    flow = Flow(ip_address("10.9.9.9"), ip_address("10.0.0.2"), "tcp", 40000, 9000, iif="eth0")
    finding = examine(pod, [Concern(Kind.ASKED, flow)]).findings[0]
    assert "sender-route" in ids(finding)
    route = next(each.fix for each in finding.fixes if each.fix.id == "sender-route")
    assert route.commands == ("ip -4 route add 10.9.9.9 via 10.0.0.1 dev eth0 table main proto boot scope global",)


def in_cluster(pod, **told):
    around = Surroundings(
        resolvers=(ip_address("10.96.0.10"),), cluster_domain=True, api=(ip_address("10.96.0.1"), 443)
    )
    return replace(pod, surroundings=replace(around, **told))


def test_what_the_pod_asks_of_its_cluster_is_examined():
    """DNS and API by the uplink work; outside of a cluster neither is invented."""
    assert of(in_cluster(HEALTHY), Kind.DNS).diagnosis.works
    assert of(in_cluster(HEALTHY), Kind.API).diagnosis.works
    kinds = {each.diagnosis.concern.kind for each in examine(HEALTHY).findings}
    assert not kinds & {Kind.DNS, Kind.API}
    lone = in_cluster(HEALTHY, cluster_domain=False, api=None)
    assert not {each.diagnosis.concern.kind for each in examine(lone).findings} & {Kind.DNS, Kind.API}


@pytest.mark.parametrize("kind", [Kind.DNS, Kind.API])
def test_what_the_pod_asks_of_its_cluster_must_not_go_into_the_tunnel(kind):
    """A tunnel that takes everything takes it: named, with the rule, and mended by a rule of its own."""
    finding = of(in_cluster(wg_quicked()), kind)
    assert finding.diagnosis.cause.code == "own-traffic-captured"
    assert finding.diagnosis.cause.where == "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    address = finding.diagnosis.concern.flow.destination
    assert finding.fixes[0].fix.commands == (f"ip -4 rule add from all to {address} lookup main pref 100",)


def test_a_peer_that_has_the_clusters_network_may_be_asked():
    """AllowedIPs that name it say that it is meant to go there."""
    peer = replace(GREEDY, allowed_ips=(ip_network("0.0.0.0/0"), ip_network("10.96.0.0/12")))
    assert of(in_cluster(wg_quicked(HEALTHY, peer)), Kind.DNS).diagnosis.works


def translated(pod, to, port=51820, protocol="udp"):
    """A DNAT of a port in nftables."""
    place = {"family": "ip", "table": "mesh"}
    rule = [
        {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": port}},
        {"dnat": {"addr": to}},
    ]
    chain = {**place, "name": "pre", "handle": 1, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}
    items = [
        {"table": {"family": "ip", "name": "mesh", "handle": 1}},
        {"chain": chain},
        {"rule": {**place, "chain": "pre", "handle": 2, "expr": rule}},
    ]
    return replace(pod, firewall=replace(EMPTY, nft_json=json.dumps({"nftables": items}), nft_text=None))


def test_a_packet_that_is_sent_to_another_host_is_no_service():
    """It leaves, and its answer may even come: the listener here never sees it. An exception before the rule mends it."""
    pod = translated(settled(HEALTHY, all_forwarding=1, eth0_forwarding=1), "10.0.0.77")
    finding = of(pod, Kind.CLIENT)
    assert finding.diagnosis.cause.code == "dnat-elsewhere"
    assert "dnat to 10.0.0.77" in finding.diagnosis.cause.where
    assert not finding.diagnosis.works
    assert finding.fixes[0].fix.commands == ('nft insert rule ip mesh pre iifname "eth0" udp dport 51820 accept',)
    rule = "-A PREROUTING -p udp -m udp --dport 51820 -j DNAT --to-destination 10.0.0.77"
    text = f"*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n"
    old = replace(settled(HEALTHY, all_forwarding=1, eth0_forwarding=1), firewall=replace(EMPTY, iptables_legacy=text))
    finding = of(old, Kind.CLIENT)
    assert finding.diagnosis.cause.where == f"-t nat {rule}"
    assert finding.fixes[0].fix.commands == (
        "iptables-legacy -t nat -I PREROUTING 1 -i eth0 -p udp -m udp --dport 51820 -j ACCEPT",
    )


def test_a_lost_mark_is_named_and_may_be_kept():
    """The packet is marked as it comes in and its answer is not: the rule that takes it, and the setting that keeps the mark."""
    mark = [
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}},
        {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 0xCA6C}},
    ]
    finding = of(filtered(wg_quicked(), "prerouting", mark), Kind.BALANCER)
    assert finding.diagnosis.cause.code == "mark-lost"
    assert finding.diagnosis.cause.where == "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    assert "0xca6c" in finding.diagnosis.cause.explanation
    kept = next(each.fix for each in finding.fixes if each.fix.id == "accept-mark")
    assert kept.commands == ("sysctl -w net.ipv4.tcp_fwmark_accept=1",)


def asked(pod, source, destination, protocol="udp", iif=None, port=9):  # noqa: PLR0917
    flow = Flow(
        ip_address(source),
        ip_address(destination),
        protocol,
        40000 if iif else 0,
        port,
        iif=iif,
        uid=None if iif else 0,
    )
    return examine(pod, [Concern(Kind.ASKED, flow)]).findings[0]


def test_an_address_that_no_peer_has_is_given_to_the_only_one():
    """Both ways; of two peers nobody can tell which is meant."""
    pod = settled(with_peers(HEALTHY, CLIENT), all_forwarding=1, eth0_forwarding=1, wg0_forwarding=1)
    inward = asked(pod, "10.8.0.9", "10.0.0.2", "tcp", "wg0", 9000)
    assert inward.diagnosis.cause.code == "source-not-allowed"
    command = f"wg set wg0 peer {CLIENT.public_key} allowed-ips 10.8.0.2/32,10.8.0.9/32"
    assert inward.fixes[0].fix.commands == (command,)
    outward = asked(pod, "0.0.0.0", "10.8.0.9")
    assert outward.diagnosis.cause.code == "no-peer-for-destination"
    assert outward.fixes[0].fix.commands == (command,)
    assert outward.fixes[0].fix.undo == (f"wg set wg0 peer {CLIENT.public_key} allowed-ips 10.8.0.2/32",)
    two = with_peers(HEALTHY, CLIENT, replace(CLIENT, public_key="D" * 43 + "=", allowed_ips=()))
    assert not asked(two, "0.0.0.0", "10.8.0.9").fixes


def test_a_peer_without_an_endpoint_is_told_of():
    """What mends it only the owner knows: words, and no command."""
    finding = asked(with_peers(HEALTHY, replace(CLIENT, endpoint=None)), "0.0.0.0", "10.8.0.2")
    assert finding.diagnosis.cause.code == "peer-without-endpoint"
    (fix,) = finding.fixes
    assert fix.fix.commands == ()
    assert f"wg set wg0 peer {CLIENT.public_key} endpoint ADDRESS:PORT" in fix.fix.words


def test_a_tunnel_that_swallows_itself():
    """Without its mark: the mark that wg-quick's rule leaves out, or a route to the endpoint."""
    pod = wg_quicked()
    pod = replace(pod, wireguard=(replace(pod.wireguard[0], fwmark=0),))
    finding = asked(pod, "0.0.0.0", "203.0.113.80", "tcp")
    assert finding.diagnosis.cause.code == "tunnel-loop"
    assert ids(finding) == ["tunnel-mark", "endpoint-route"]
    assert finding.fixes[0].fix.commands == ("wg set wg0 fwmark 0xca6c",)
    assert finding.fixes[0].fix.undo == ("wg set wg0 fwmark off",)


def test_an_interface_that_was_set_down():
    """Set up again its addresses' routes come back; one without a carrier is not mended from here."""
    links = tuple(replace(each, up=False, lower_up=False) if each.name == "wg0" else each for each in HEALTHY.links)
    gone = tuple(each for each in HEALTHY.routes if each.oif != "wg0")
    pod = with_peers(replace(HEALTHY, links=links, routes=gone), CLIENT)
    pod = settled(pod, all_forwarding=1, eth0_forwarding=1, wg0_forwarding=1)
    finding = asked(pod, "10.8.0.2", "10.0.0.2", "tcp", "wg0", 9000)
    assert finding.diagnosis.cause.code == "interface-down"
    assert finding.fixes[0].fix.commands == ("ip link set dev wg0 up",)


def test_a_default_route_that_only_another_table_knows_leads_clients_out():
    """egress-unreachable: table main gets it back."""
    away = tuple(replace(r, table=77) if not r.dst.prefixlen else r for r in HEALTHY.routes)
    pod = settled(
        with_peers(replace(HEALTHY, routes=away), CLIENT), all_forwarding=1, eth0_forwarding=1, wg0_forwarding=1
    )
    finding = of(pod, Kind.EGRESS)
    assert finding.diagnosis.cause.code == "egress-unreachable"
    assert finding.fixes[0].fix.id.startswith("default-route")


def test_more_popular_advice_is_called_wrong():
    """rp_filter alone, Table = off, hostNetwork: each is computed, and what would come of it is said."""
    wrong = " ".join(of(settled(wg_quicked(), eth0_rp_filter=1), Kind.BALANCER).wrong_advice)
    assert "rp_filter = 0 or 2 alone does not mend it" in wrong
    assert "its answer leaves by wg0" in wrong
    assert "takes the tunnel away with the fault" in wrong
    assert "leaves by eth0 then, outside the tunnel" in wrong
    assert "hostNetwork: true moves it to the node" in wrong
    loose = " ".join(of(wg_quicked(), Kind.BALANCER).wrong_advice)
    assert "rp_filter" not in loose


def test_the_rule_of_the_right_family_is_removed():
    """Both families may have a rule that reads the same."""
    four, six = (Rule(family, 90, action="unreachable", protocol=3) for family in (4, 6))
    address = Address("eth0", 2, ip_interface("2001:db8::2/64"))
    routes = (
        Route(ip_network("2001:db8::2/128"), 255, "local", (NextHop("eth0"),), protocol=2),
        Route(ip_network("::/0"), nexthops=(NextHop("eth0", ip_address("2001:db8::1")),), protocol=3),
    )
    rules = (*HEALTHY.rules[:1], four, *HEALTHY.rules[1:], Rule(6, 0, table=255), six, Rule(6, 32766, table=254))
    listening = ListeningSocket("tcp", 6, ip_address("::"), 9000, v6only=True, mark=0)
    pod = replace(
        HEALTHY, addresses=(*HEALTHY.addresses, address), routes=(*HEALTHY.routes, *routes), rules=rules,
        sockets=(*HEALTHY.sockets, listening),
    )  # fmt: skip
    by_family = {each.diagnosis.concern.flow.destination.version: each for each in examine(pod).broken}
    for family in (4, 6):
        assert by_family[family].diagnosis.cause.code == "blackhole-route"
        assert by_family[family].fixes[0].fix.commands[0].startswith(f"ip -{family} rule del")
