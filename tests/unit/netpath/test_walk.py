# SPDX-License-Identifier: Apache-2.0
"""A packet's whole way on made-up snapshots: each end of docs/dispositions.md once."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netpath_values import networks, routes, rules, snapshots
from wicketgate.netpath.fib import Links, Table, longest_prefix_naively
from wicketgate.netpath.filter import HookResult, HookVerdict
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.lookup import Question
from wicketgate.netpath.round_trip import round_trip
from wicketgate.netpath.snapshot import (
    Address,
    Link,
    ListeningSocket,
    NextHop,
    PeerState,
    Route,
    Rule,
    Snapshot,
    Unread,
    WireGuardState,
)
from wicketgate.netpath.step import FilterStep, Stage
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker, trace

HEALTH, WG_PORT = 9000, 51820
POD, STRANGER, CLIENT = ip_address("10.0.0.2"), ip_address("203.0.113.9"), ip_address("10.8.0.5")
KEY = "A" * 43 + "="


def local(address, device):
    """The kernel's own route for an address."""
    return Route(
        ip_network(address), table=255, type="local", nexthops=(NextHop(device),), prefsrc=ip_address(address),
        scope=254, protocol=2,
    )  # fmt: skip


SETTINGS = {
    f"net.ipv4.conf.{name}.{key}": "0"
    for name in ("all", "lo", "eth0", "wg0")
    for key in ("rp_filter", "src_valid_mark", "accept_local", "route_localnet", "forwarding")
} | {"net.ipv6.conf.all.forwarding": "0"}

DEFAULT_RULES = (
    Rule(4, 0, table=255, protocol=2),
    Rule(4, 32766, table=254, protocol=2),
    Rule(4, 32767, table=253, protocol=2),
)
WG_QUICK_RULES = (
    DEFAULT_RULES[0],
    Rule(4, 32764, table=254, suppress_prefixlength=0, protocol=3),
    Rule(4, 32765, table=51820, fwmark=0xCA6C, fwmask=0xFFFFFFFF, invert=True, protocol=3),
    *DEFAULT_RULES[1:],
)
PEER = PeerState(KEY, endpoint=(ip_address("198.51.100.7"), 51820), allowed_ips=(ip_network("0.0.0.0/0"),))
WG0 = WireGuardState("wg0", "kernel", KEY, WG_PORT, 0xCA6C, (PEER,))
ETH_DEFAULT = Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("eth0", ip_address("10.0.0.1")),), protocol=3)
WG_DEFAULT = Route(ip_network("0.0.0.0/0"), table=51820, nexthops=(NextHop("wg0"),), scope=253, protocol=3)

SEED_POD = Snapshot(
    taken_at=0.0,
    links=(
        Link(1, "lo", mtu=65536, up=True, lower_up=True, loopback=True),
        Link(2, "eth0", mtu=1500, up=True, lower_up=True),
        Link(3, "wg0", "wireguard", mtu=1420, up=True, lower_up=True, pointopoint=True),
    ),
    addresses=(
        Address("lo", 1, ip_interface("127.0.0.1/8"), scope=254),
        Address("eth0", 2, ip_interface("10.0.0.2/24")),
        Address("wg0", 3, ip_interface("10.8.0.1/24")),
    ),
    routes=(
        local("127.0.0.1", "lo"),
        local("10.0.0.2", "eth0"),
        local("10.8.0.1", "wg0"),
        Route(ip_network("10.0.0.0/24"), nexthops=(NextHop("eth0"),), prefsrc=POD, scope=253, protocol=2),
        Route(ip_network("10.8.0.0/24"), nexthops=(NextHop("wg0"),), scope=253, protocol=2),
        ETH_DEFAULT,
        WG_DEFAULT,
    ),
    rules=WG_QUICK_RULES,
    sysctls=MappingProxyType(SETTINGS),
    sockets=(
        ListeningSocket("tcp", 4, ip_address("0.0.0.0"), HEALTH, mark=0),
        ListeningSocket("udp", 4, ip_address("0.0.0.0"), WG_PORT, mark=0),
    ),
    wireguard=(WG0,),
)
PROBE = Flow(STRANGER, POD, "tcp", 40000, HEALTH, iif="eth0")


def settled(snapshot=SEED_POD, **values):
    """The snapshot with other parameters: `eth0_rp_filter=1`."""
    names = {f"net.ipv4.conf.{key.replace('_', '.', 1)}": str(value) for key, value in values.items()}
    return replace(snapshot, sysctls=MappingProxyType({**snapshot.sysctls, **names}))


def with_peer(**changes):
    """The pod with another peer."""
    return replace(SEED_POD, wireguard=(replace(WG0, peers=(replace(PEER, **changes),)),))


def test_the_seeds_pod_answers_the_balancer_into_the_tunnel_and_the_rule_is_named():
    """The load balancer's probe is delivered; its answer is misrouted by wg-quick's rule, quoted as `ip rule` has it."""
    forward, reply = round_trip(SEED_POD, PROBE)
    assert forward.verdict is Verdict.DELIVERED
    assert (reply.verdict, reply.code, reply.egress) == (Verdict.MISROUTED, "reply-into-tunnel", "wg0")
    assert reply.object == "32765: not from all fwmark 0xca6c lookup 51820 proto boot"
    assert reply.object in [step.object for step in reply.steps]
    assert {step.direction for step in reply.steps} == {"reply"}
    assert {step.layer for step in reply.steps} == {0, 1}, "the carrier's way is part of it"
    assert reply.carrier == "eth0"


@pytest.mark.parametrize(
    ("fix", "works"),
    [
        (Rule(4, 100, table=254, src=ip_network("10.0.0.2/32"), protocol=87), True),
        (Rule(4, 100, table=254, ipproto=6, sport=(HEALTH, HEALTH), protocol=87), True),
        (Rule(4, 100, table=254, fwmark=7, fwmask=0xFF, protocol=87), False),
    ],
)
def test_what_would_mend_it(fix, works):
    """A source rule or a sport rule brings the answer home; a rule for a mark that nobody sets does not."""
    _, reply = round_trip(replace(SEED_POD, rules=(fix, *WG_QUICK_RULES)), PROBE)
    assert reply.works == works
    assert reply.egress == ("eth0" if works else "wg0")


def test_a_socket_bound_to_the_uplink_answers_by_it():
    """SO_BINDTODEVICE passes over routes by other interfaces; the pod's own default route is left."""
    bound = replace(SEED_POD.sockets[0], bound_device="eth0")
    _, reply = round_trip(replace(SEED_POD, sockets=(bound,)), PROBE)
    assert (reply.verdict, reply.egress, reply.via) == (Verdict.FORWARDED, "eth0", ip_address("10.0.0.1"))


def test_wireguards_own_answers_carry_its_mark():
    """The handshake's answer has the device's fwmark, so the `not fwmark` rule lets it out by the uplink."""
    forward, reply = round_trip(SEED_POD, Flow(STRANGER, POD, "udp", 40000, WG_PORT, iif="eth0"))
    assert forward.device is WG0
    assert (reply.verdict, reply.egress) == (Verdict.FORWARDED, "eth0")


def test_strict_rp_filter_drops_the_probe_before_anyone_sees_it():
    """The way back is the tunnel, so rp_filter=1 drops; the setting that is in force is named, `all` or the interface."""
    for settings, name in (({"eth0_rp_filter": 1}, "eth0"), ({"all_rp_filter": 1}, "all")):
        forward, reply = round_trip(settled(**settings), PROBE)
        assert (forward.verdict, forward.code) == (Verdict.DROPPED, "rp-filter")
        assert forward.object == f"net.ipv4.conf.{name}.rp_filter = 1"
        assert reply is None
    loose, _ = round_trip(settled(eth0_rp_filter=2, all_rp_filter=1), PROBE)
    assert loose.verdict is Verdict.DELIVERED


@pytest.mark.parametrize(("valid_mark", "verdict"), [(0, Verdict.DROPPED), (1, Verdict.DELIVERED)])
def test_src_valid_mark_lets_the_packets_mark_count_for_the_way_back(valid_mark, verdict):
    """With the packet marked as WireGuard's, the way back is the uplink, but only where src_valid_mark is 1."""
    snapshot = settled(eth0_rp_filter=1, all_src_valid_mark=valid_mark)
    assert trace(snapshot, replace(PROBE, mark=0xCA6C)).verdict is verdict


def test_nobody_listens_and_the_wrong_one_listens():
    """No socket of the port, and one on another address: both refused, told apart, and the near one named."""
    nothing, reset = round_trip(SEED_POD, replace(PROBE, destination_port=1))
    assert (nothing.verdict, nothing.code, nothing.object) == (Verdict.REFUSED, "no-listener", "tcp port 1")
    assert reset.code == "reply-into-tunnel", "the RST goes the way of every answer"
    elsewhere = ListeningSocket("tcp", 4, ip_address("127.0.0.1"), HEALTH)
    wrong, _ = round_trip(replace(SEED_POD, sockets=(elsewhere,)), PROBE)
    assert (wrong.code, wrong.object) == ("listener-wrong-address", "tcp 127.0.0.1:9000")


def test_a_v6_wildcard_socket_takes_ipv4_unless_it_says_no():
    """IPV6_V6ONLY decides; where it was not told the answer is unknown and the socket is named."""
    for v6only, verdict in ((False, Verdict.DELIVERED), (True, Verdict.REFUSED), (None, Verdict.UNKNOWN)):
        dual = ListeningSocket("tcp", 6, ip_address("::"), HEALTH, v6only=v6only)
        assert trace(replace(SEED_POD, sockets=(dual,)), PROBE).verdict is verdict


def test_a_tunnel_client_needs_forwarding():
    """What a client sends outside is dropped while wg0 does not forward, and leaves by the tunnel's default when it does."""
    flow = Flow(CLIENT, STRANGER, "tcp", 40000, 443, iif="wg0")
    off = trace(SEED_POD, flow)
    assert (off.verdict, off.code, off.object) == (
        Verdict.DROPPED,
        "forwarding-off",
        "net.ipv4.conf.wg0.forwarding = 0",
    )
    on = trace(settled(wg0_forwarding=1, eth0_forwarding=1), flow)
    assert (on.verdict, on.egress) == (Verdict.FORWARDED, "wg0")


def test_cryptokey_routing_both_ways():
    """A source nobody may use, a destination nobody has, a peer that was never heard of: dropped, each with its code."""
    inside = with_peer(allowed_ips=(ip_network("10.8.0.5/32"),))
    spoofed = trace(inside, Flow(ip_address("10.8.0.6"), ip_address("10.8.0.1"), "udp", 1, WG_PORT, iif="wg0"))
    assert (spoofed.verdict, spoofed.code) == (Verdict.DROPPED, "source-not-allowed")
    nobody = trace(inside, Flow(ip_address("10.8.0.1"), ip_address("10.8.0.6"), "udp", 1, 2))
    assert (nobody.verdict, nobody.code) == (Verdict.DROPPED, "no-peer-for-destination")
    silent = trace(with_peer(endpoint=None), Flow(ip_address("10.8.0.1"), CLIENT, "udp", 1, 2))
    assert (silent.verdict, silent.code) == (Verdict.DROPPED, "peer-without-endpoint")


def test_a_carrier_that_is_routed_into_its_own_tunnel():
    """Without its fwmark the encrypted packet goes into wg0 again, which the driver refuses: a loop, by its name."""
    for backend in ("kernel", "userspace"):
        looping = replace(SEED_POD, wireguard=(replace(WG0, fwmark=0, backend=backend),))
        lost = trace(looping, Flow(ip_address("0.0.0.0"), STRANGER, "udp", 1, 2, uid=0))
        assert (lost.verdict, lost.code, lost.object) == (Verdict.DROPPED, "tunnel-loop", "wg0")


def test_refusals_on_the_way_out():
    """No route and routes that reject are an errno to the sender, with the rule or route that says so."""
    bare = replace(SEED_POD, routes=SEED_POD.routes[:4])
    lost = trace(bare, Flow(POD, STRANGER, "udp", 1, 2))
    assert (lost.verdict, lost.code) == (Verdict.REFUSED, "no-route")
    black = Route(ip_network("203.0.113.0/24"), type="blackhole", protocol=3)
    refused = trace(replace(SEED_POD, routes=(*SEED_POD.routes, black)), Flow(POD, STRANGER, "udp", 1, 2))
    assert (refused.verdict, refused.code) == (Verdict.REFUSED, "blackhole-route")
    assert refused.object.startswith("blackhole 203.0.113.0/24")
    _, reply = round_trip(replace(bare, rules=DEFAULT_RULES), PROBE)
    assert (reply.verdict, reply.code) == (Verdict.DROPPED, "reply-unroutable"), (
        "nobody is told of a reply that is lost"
    )


def test_packets_to_ourselves_go_by_lo():
    """Sent, and delivered on `lo`; the answer comes the same way, whatever the tunnel's rules."""
    forward, reply = round_trip(SEED_POD, Flow(POD, POD, "tcp", 40000, HEALTH))
    assert (forward.verdict, forward.packet.iif, forward.egress) == (Verdict.DELIVERED, "lo", "")
    assert reply.verdict is Verdict.DELIVERED


def test_an_answer_from_outside_reaches_the_socket_that_asked():
    """A connection from here: out by the tunnel, and the answer back in through it."""
    forward, reply = round_trip(SEED_POD, Flow(ip_address("0.0.0.0"), STRANGER, "tcp", 40000, 443, uid=0))
    assert (forward.verdict, forward.egress, forward.carrier) == (Verdict.FORWARDED, "wg0", "eth0")
    assert forward.packet.source == ip_address("10.8.0.1"), "the kernel chose the tunnel's address"
    assert reply.verdict is Verdict.DELIVERED


def test_large_packets_do_not_fit_the_tunnel():
    """A full-sized TCP packet that is forwarded into wg0 is refused (too big), the interface and its MTU named."""
    flow = Flow(STRANGER, CLIENT, "tcp", 1, 2, iif="eth0", length=1500)
    refused = trace(settled(eth0_forwarding=1), flow)
    assert (refused.verdict, refused.code, refused.object) == (Verdict.REFUSED, "mtu-too-large", "wg0 mtu 1420")


def test_two_next_hops_are_two_branches():
    """Where only a hash decides and the ways differ, the verdict is unknown and both are shown."""
    both = Route(ip_network("192.0.2.0/24"), nexthops=(NextHop("eth0", ip_address("10.0.0.1")), NextHop("wg0")))
    split = trace(replace(SEED_POD, routes=(*SEED_POD.routes, both)), Flow(POD, ip_address("192.0.2.1"), "udp", 1, 2))
    assert split.verdict is Verdict.UNKNOWN
    assert [branch.egress for branch in split.branches] == ["eth0", "wg0"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"rules": (replace(WG_QUICK_RULES[0], unknown=("FRA_TUN_ID 5",)), *DEFAULT_RULES[1:])}, "FRA_TUN_ID"),
        ({"routes": (local("10.0.0.2", "eth0"), replace(ETH_DEFAULT, unknown=("RTA_ENCAP",)))}, "RTA_ENCAP"),
        ({"unread": (Unread("routes", "not permitted"),)}, "routes"),
        ({"sysctls": MappingProxyType({})}, "net.ipv4.conf"),
        ({"unread": (Unread("sockets", "not permitted"),), "sockets": (), "wireguard": ()}, "sockets"),
    ],
)
def test_what_is_not_known_is_said(change, where):
    """An attribute without a name, a listing or setting that is missing: unknown, and which object it was."""
    said = trace(
        replace(SEED_POD, **change),
        PROBE if "routes" not in change else replace(PROBE, iif=None, source=POD, destination=STRANGER),
    )
    assert said.verdict is Verdict.UNKNOWN
    assert where in said.object + said.reason
    assert said.code == ""


class Marks:
    """A filter that marks what a socket sends and asks for the way again, or does not."""

    def __init__(self, *, reroute):
        self.reroute = reroute
        self.seen = []

    def hook(self, name, packet, connection):
        self.seen.append((name, packet.iif, packet.oif))
        if name != "output":
            return HookResult(HookVerdict.ACCEPT, packet, connection)
        step = FilterStep(stage=Stage.OUTPUT, object="meta mark set 0xca6c", effect="sets the mark")
        return HookResult(HookVerdict.ACCEPT, replace(packet, mark=0xCA6C), connection, (step,), reroute=self.reroute)


def test_a_mark_set_at_output_changes_the_way_only_where_the_chain_reroutes():
    """`type route` and iptables' mangle ask again; a mark of a `type filter` chain comes too late."""
    for reroute, egress in ((True, "eth0"), (False, "wg0")):
        marks = Marks(reroute=reroute)
        _, reply = round_trip(SEED_POD, PROBE, marks)
        assert reply.egress == egress
        assert marks.seen[:3] == [("prerouting", "eth0", ""), ("input", "eth0", ""), ("output", "", "wg0")]
        assert "meta mark set 0xca6c" in [step.object for step in reply.steps]


class Refuses:
    """A filter that drops or rejects at one hook."""

    def __init__(self, where, verdict):
        self.where, self.verdict = where, verdict

    def hook(self, name, packet, connection):
        if name == self.where:
            return HookResult(self.verdict, packet, connection, object="the rule", reason="says no")
        return HookResult(HookVerdict.ACCEPT, packet, connection)


@pytest.mark.parametrize("name", ["prerouting", "input"])
def test_a_filters_no_is_the_end(name):
    """Drop, reject and unknown of a hook become the trace's, with the hook's code and the rule."""
    for verdict, end in (
        (HookVerdict.DROP, Verdict.DROPPED),
        (HookVerdict.REJECT, Verdict.REFUSED),
        (HookVerdict.UNKNOWN, Verdict.UNKNOWN),
    ):
        said = trace(SEED_POD, PROBE, Refuses(name, verdict))
        assert (said.verdict, said.object, said.reason) == (end, "the rule", "says no")
        assert said.code == ("" if end is Verdict.UNKNOWN else f"{name}-drop")


NO_LINKS = Links(lambda _name, _family: False, lambda _name, _ip: True)


@given(
    st.sampled_from((4, 6)).flatmap(lambda v: st.tuples(st.lists(networks(v), max_size=30), networks(v, shortest=32)))
)
def test_longest_prefix_agrees_with_looking_at_every_route(drawn):
    """The indexed table finds a prefix of the same length as the naive reference does."""
    prefixes, near = drawn
    destination = near.network_address
    routes = [Route(prefix, nexthops=(NextHop("e0"),)) for prefix in prefixes]
    found = Table(routes, NO_LINKS).lookup(Question(destination))
    assert (found.route.dst.prefixlen if found else None) == longest_prefix_naively(routes, destination)


def test_one_walker_serves_many_flows():
    """A walker keeps no state between flows."""
    walker = Walker(SEED_POD)
    assert walker.trace(PROBE) == walker.trace(PROBE) == trace(SEED_POD, PROBE)


@given(
    snapshots,
    st.sampled_from((PROBE, Flow(POD, STRANGER, "udp", 1, 2), Flow(ip_address("::"), ip_address("fd00::1"), "icmp"))),
)
def test_a_hostile_snapshot_still_gives_a_verdict(snapshot, flow):
    """Whatever a snapshot says, there is an end, and an end that is no success says why."""
    forward, reply = round_trip(snapshot, flow)
    assert forward.works or forward.reason
    assert reply is None or reply.works or reply.reason


@given(st.lists(rules, max_size=6).map(tuple), st.lists(routes, max_size=6).map(tuple))
def test_hostile_rules_and_routes_on_a_pod(more_rules, more_routes):
    """Rules with wild gotos, families and names, and routes of no known type: an end, and no exception."""
    snapshot = replace(SEED_POD, rules=more_rules, routes=SEED_POD.routes + more_routes)
    for flow in (PROBE, Flow(POD, STRANGER, "udp", 1, 2)):
        forward, _ = round_trip(snapshot, flow)
        assert forward.works or forward.reason
