# SPDX-License-Identifier: Apache-2.0
"""The model of netfilter against the kernel: the same packets, the same end, the same mark, the same translation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from netns.drop_tap import DropTap, why_no_tap
from netns.filter_judge import Judge, shrink
from netns.filter_rules import Maker, Rules
from netns.filter_stand import FilterStand
from wicketgate.lab.host import Host
from wicketgate.netpath.packet import UDP, Packet

# Bigger: WICKETGATE_FILTER_RULESETS=2000 WICKETGATE_FILTER_SEED=7 pytest tests/netns/test_netfilter_against_kernel.py
RULESETS = int(os.environ.get("WICKETGATE_FILTER_RULESETS", "25"))
SEED = int(os.environ.get("WICKETGATE_FILTER_SEED", "1"))
FLOWS = 40


@pytest.fixture(scope="module")
def stand() -> Iterator[FilterStand]:
    with Host.create("filter-pod") as pod, Host.create("filter-near") as near:
        made = FilterStand(pod, near)
        yield made
        made.close()


@pytest.mark.timeout(60 + RULESETS * 5)
def test_random_rulesets(stand: FilterStand, capsys: pytest.CaptureFixture[str]) -> None:
    """For random rules of nftables and both iptables, every packet, its reply and the next one end as the model says."""
    with contextlib.ExitStack() as stack:
        _random_rulesets(Judge(stand, None if why_no_tap() else stack.enter_context(DropTap())), capsys)


def _random_rulesets(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    number = 0

    @seed(SEED)
    @settings(max_examples=RULESETS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    def compare(chosen: int) -> None:
        nonlocal number
        maker = Maker(Random(chosen))
        rules = judge.settle(maker.rules())
        flows = []
        for _ in range(FLOWS):
            number += 1
            flows.append(maker.flow(number))
        known = len(judge.tally.wrong)
        if judge.judge(rules, flows):
            raise AssertionError(
                f"ruleset {chosen}\n{shrink(judge, rules, flows, bool)}\n\nfirst:\n{judge.tally.wrong[known]}"
            )

    compare()
    with capsys.disabled():
        print(f"\nnetfilter against the kernel: {judge.tally.line()}")
    assert judge.tally.cases > RULESETS * FLOWS
    assert judge.tally.unknown.total() < 0.05 * judge.tally.cases, judge.tally.unknown.most_common(3)


def test_a_mark_that_input_clears_and_postrouting_restores(stand: FilterStand) -> None:
    """Found with seed 12: what answers a local socket meets CONNMARK in INPUT, and the next packet is marked by what that left."""
    legacy = (
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A INPUT -m conntrack --ctstatus SEEN_REPLY -j CONNMARK --set-xmark 0x0/0xff\n"
        "-A POSTROUTING -j CONNMARK --restore-mark\nCOMMIT\n"
    )
    nft = "table inet t0 {\n chain b1 { type filter hook postrouting priority 0; policy accept;\n  ct mark set 0x2\n }\n}\n"
    flow = Packet(
        ip_address("fd99::1"), ip_address("2001:db8::5"), UDP, 30122, 51820, mark=1, uid=0, gid=0, from_socket=True
    )
    judge = Judge(stand)
    judge.load(Rules())  # a restore leaves the tables that it does not name
    assert judge.judge(Rules(nft, (("ip6tables-legacy-restore", legacy),)), [flow]) == []
    assert judge.tally.cases == 3
    assert judge.tally.verdicts == {"sent": 2, "delivered": 1}


@pytest.mark.parametrize("tracks", ["", "ct state new", "ip saddr 192.0.2.77 masquerade", "notrack"])
@pytest.mark.parametrize("family", ["ip", "inet", "ip6"])
def test_a_nat_chain_is_called_only_where_a_rule_has_connections_tracked(
    stand: FilterStand, family: str, tracks: str
) -> None:
    """Found with seed 21: chains of type nat do not turn connection tracking on; an expression that needs it does."""
    nat = (
        "table inet t0 {\n chain b1 { type nat hook output priority -100; policy accept;\n  meta mark 0x5 drop\n }\n}\n"
    )
    kind = "nat hook postrouting priority 100" if "masquerade" in tracks else "filter hook output priority -300"
    user = f"table {family} t1 {{\n chain b0 {{ type {kind}; policy accept;\n  {tracks} counter\n }}\n}}\n"
    user = user.replace("masquerade counter", "counter masquerade")
    if tracks.startswith("ip ") and family == "ip6":
        user = user.replace("ip saddr 192.0.2.77", "ip6 saddr fd00::77")
    flows = [
        Packet(ip_address(source), ip_address(destination), UDP, 30122, 51820, mark=5, uid=0, gid=0, from_socket=True)
        for source, destination in (("10.99.0.1", "10.99.0.3"), ("fd99::1", "2001:db8::5"))
    ]
    judge = Judge(stand)
    judge.load(Rules())
    assert judge.judge(Rules(nat + (user if tracks else "")), flows) == []
    on = {"ip": 1, "ip6": 1, "inet": 2}[family] if tracks not in ("", "notrack") else 0
    assert judge.tally.verdicts["dropped"] == on


@pytest.mark.parametrize(
    ("rule", "tracks"),
    [
        ("-A OUTPUT -m conntrack --ctstate NEW", True),
        ("-A OUTPUT -m state --state NEW", True),
        ("-A OUTPUT -m connmark --mark 0x1", True),
        ("-A OUTPUT -j CONNMARK --save-mark", True),
        ("-A OUTPUT -p tcp -m connlimit --connlimit-above 9", True),
        ('-A OUTPUT -m comment --comment "a -m state in words"', False),
        ("-A OUTPUT -j MARK --set-mark 5", False),
    ],
)
@pytest.mark.parametrize("kind", ["legacy", "nft"])
def test_what_of_iptables_has_connections_tracked(stand: FilterStand, kind: str, rule: str, tracks: bool) -> None:
    """The same of iptables' matches and targets, both kinds."""
    nat = "table inet t0 {\n chain b1 { type nat hook output priority -100; policy accept;\n  drop\n }\n}\n"
    text = f"*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n"
    flow = Packet(ip_address("10.99.0.1"), ip_address("10.99.0.3"), UDP, 30122, 51820, uid=0, gid=0, from_socket=True)
    judge = Judge(stand)
    judge.load(Rules())
    assert judge.judge(Rules(nat, ((f"iptables-{kind}-restore", text),)), [flow]) == []
    assert judge.tally.verdicts["dropped"] == tracks


def test_a_change_of_a_header_is_for_packets_of_its_family(stand: FilterStand) -> None:
    """Found with seed 24: `ip6 hoplimit set` in a table inet leaves IPv4 alone, and ends its rule there."""
    nft = (
        "table inet t0 {\n chain b0 { type filter hook output priority 0; policy accept;\n"
        "  ip6 hoplimit set 63 meta mark set 0x7\n  ip ttl set 9 meta mark set 0x8\n }\n"
        " chain b1 { type filter hook postrouting priority 0; policy accept;\n"
        "  ip ttl 64 drop\n  ip6 hoplimit 64 drop\n }\n}\n"
    )
    flows = [
        Packet(ip_address(source), ip_address(destination), UDP, 30122, 51820, uid=0, gid=0, from_socket=True)
        for source, destination in (("10.99.0.1", "10.99.0.3"), ("fd99::1", "2001:db8::5"))
    ]
    judge = Judge(stand)
    judge.load(Rules())
    assert judge.judge(Rules(nft), flows) == []
    assert judge.tally.verdicts["sent"] >= 2


@pytest.mark.parametrize("status", ["CONFIRMED", "SEEN_REPLY"])
def test_a_connection_is_confirmed_when_it_comes_back_over_lo(stand: FilterStand, status: str) -> None:
    """Found with seed 4: what this host sends to itself is confirmed behind POSTROUTING, before INPUT sees it."""
    text = f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstatus {status} -j DROP\nCOMMIT\n"
    ours = Packet(ip_address("10.98.0.1"), ip_address("10.99.0.11"), UDP, 30122, 53, uid=0, gid=0, from_socket=True)
    theirs = Packet(ip_address("10.99.0.77"), ip_address("10.99.0.11"), UDP, 30123, 53, iif="up0")
    for tool in ("nft", "legacy"):
        judge = Judge(stand)
        judge.load(Rules())
        rules = Rules(restore=((f"iptables-{tool}-restore", text),))
        assert judge.judge(rules, [ours, theirs], followed=False) == []
        assert judge.tally.verdicts["dropped"] == (status == "CONFIRMED")


def test_nomatch_is_only_of_sets_of_nets(stand: FilterStand) -> None:
    """Found with seed 1: --return-nomatch turns the answer of hash:net about, and leaves hash:ip's alone."""
    sets = (
        "create ips hash:ip family inet\nadd ips 203.0.113.5\n"
        "create nets hash:net family inet\nadd nets 203.0.113.0/24\nadd nets 203.0.113.5 nomatch\n"
        "create both list:set size 4\nadd both ips\n"
    )
    verdicts = {}
    for name in ("ips", "nets", "both"):
        text = f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m set --match-set {name} dst --return-nomatch -j DROP\nCOMMIT\n"
        flows = [
            Packet(
                ip_address("10.98.0.1"), ip_address(f"203.0.113.{last}"), UDP, 30124, 53, uid=0, gid=0, from_socket=True
            )
            for last in (5, 6)
        ]
        judge = Judge(stand)
        judge.load(Rules())
        rules = Rules(restore=(("iptables-legacy-restore", text),), ipset=sets)
        assert judge.judge(rules, flows, followed=False) == []
        verdicts[name] = judge.tally.verdicts["dropped"]
        judge.load(Rules())
    assert verdicts == {"ips": 1, "nets": 1, "both": 1}


def test_an_address_that_a_rule_puts_into_a_set_is_a_doubt(stand: FilterStand) -> None:
    """A set that packets fill is not answered from a listing."""
    text = (
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j SET --add-set seen dst\n"
        "-A OUTPUT -m set --match-set seen dst -j DROP\nCOMMIT\n"
    )
    ours = Packet(ip_address("10.98.0.1"), ip_address("203.0.113.5"), UDP, 30125, 53, uid=0, gid=0, from_socket=True)
    judge = Judge(stand)
    judge.load(Rules())
    rules = Rules(restore=(("iptables-legacy-restore", text),), ipset="create seen hash:ip family inet\n")
    assert judge.judge(rules, [ours], followed=False) == []
    (why,) = judge.tally.unknown
    assert "--match-set seen dst -j DROP: rules put packets' addresses into the ipset seen" in why
    judge.load(Rules())
