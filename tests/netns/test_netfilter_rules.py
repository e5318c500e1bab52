# SPDX-License-Identifier: Apache-2.0
"""Single things that netfilter does, each with the kernel's word: what a random search found, and what it may miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from netns.filter_judge import Judge
from netns.filter_rules import Rules
from netns.filter_stand import FilterStand
from wicketgate.lab.host import Host
from wicketgate.netpath.packet import ICMP, ICMPV6, SYN, TCP, UDP, Packet

BUILT_IN = {
    "raw": "PREROUTING OUTPUT", "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING", "filter": "INPUT FORWARD OUTPUT",
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Host.create("rules-pod") as pod, Host.create("rules-near") as near:
        stand = FilterStand(pod, near)
        yield Judge(stand)
        stand.close()


def restore(**tables: str) -> str:
    """A listing for iptables-restore with these rules; chains of the user are declared where a rule is for one."""
    text = ""
    for table, rules in tables.items():
        chains = {line.split()[1] for line in rules.splitlines()} - set(BUILT_IN[table].split())
        text += f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in BUILT_IN[table].split())
        text += "".join(f":{chain} - [0:0]\n" for chain in sorted(chains)) + rules.strip() + "\nCOMMIT\n"
    return text


_numbers = iter(range(20000, 60000))


def packets() -> list[Packet]:
    """UDP and TCP, to the pod, through it and from it, in both families."""
    made = []
    for protocol in (UDP, TCP):
        for source, destination, iif in (
            ("10.99.0.2", "10.99.0.1", "up0"), ("10.99.0.2", "10.98.0.2", "up0"), ("10.99.0.1", "10.98.0.2", ""),
            ("fd99::2", "fd99::1", "up0"), ("fd99::2", "fd98::2", "up0"), ("fd99::1", "fd98::2", ""),
        ):  # fmt: skip
            for port in (80, 9000):
                base = Packet(
                    ip_address(source), ip_address(destination), protocol, next(_numbers), port, iif=iif,
                    tcp_flags=SYN if protocol == TCP else 0, from_socket=not iif, uid=None if iif else 0, gid=None if iif else 0,
                )  # fmt: skip
                made.append(replace(base, length=(20 if base.family == 4 else 40) + (12 if protocol == UDP else 20)))
    return made


def agree(judge: Judge, rules: Rules, verdicts: set[str]) -> None:
    """Model and kernel agree on all packets, know all of them, and these verdicts occur."""
    judge.tally.verdicts.clear()
    judge.tally.unknown.clear()
    wrong = judge.judge(rules, packets())
    assert not wrong, wrong[0]
    assert not judge.tally.unknown, judge.tally.unknown
    assert verdicts <= set(judge.tally.verdicts), judge.tally.verdicts


@pytest.mark.parametrize("low", ["0:39", "0:60"])
def test_length_of_ipv6_counts_its_header(judge: Judge, low: str) -> None:
    """`-m length` of ip6tables compares the whole packet (found by the random search)."""
    rules = Rules(restore=(("ip6tables-nft-restore", restore(filter=f"-A INPUT -m length --length {low} -j DROP")),))
    agree(judge, rules, {"delivered"} if low == "0:39" else {"dropped"})


def test_accept_ends_one_base_chain_only(judge: Judge) -> None:
    """A packet that one table accepts is still seen, and dropped, by the next."""
    agree(judge, Rules("""table inet a {
 chain c { type filter hook input priority 0; policy drop;
  accept
 }
}
table inet b {
 chain c { type filter hook input priority 10; policy accept;
  tcp dport 9000 drop
  udp dport 9000 reject
 }
}
"""), {"dropped", "rejected", "delivered"})  # fmt: skip


def test_goto_does_not_come_back(judge: Judge) -> None:
    """`goto` from a base chain ends at the policy, `jump` goes on behind it."""
    agree(judge, Rules("""table inet a {
 chain one {
  udp dport 80 return
 }
 chain c { type filter hook input priority 0; policy drop;
  ip protocol udp goto one
  meta l4proto udp jump one
  accept
 }
}
"""), {"dropped", "delivered"})  # fmt: skip


def test_a_missing_element_ends_the_rule(judge: Judge) -> None:
    """A verdict map without an element for the packet ends its rule: what stands behind it is not run."""
    agree(judge, Rules("""table inet a {
 chain c { type filter hook input priority 0; policy accept;
  tcp dport vmap { 80 : continue } drop
 }
}
"""), {"dropped", "delivered"})  # fmt: skip


def test_nat_chains_run_at_the_priority_of_nat(judge: Judge) -> None:
    """A nat chain of priority -300 still runs at -100: a filter chain at -150 sees the first destination."""
    agree(judge, Rules("""table inet a {
 chain early { type nat hook prerouting priority -190; policy accept;
  ip daddr 10.99.0.1 udp dport 80 dnat ip to 10.98.0.2:9000
 }
 chain middle { type filter hook prerouting priority -150; policy accept;
  udp dport 9000 drop
 }
 chain late { type filter hook prerouting priority -90; policy accept;
  tcp dport 9000 drop
  udp dport 9000 meta mark set 7
 }
}
"""), {"dropped", "delivered", "sent"})  # fmt: skip


def test_no_connection_before_tracking(judge: Judge) -> None:
    """At priority -300 every packet is `ct state invalid`, and no connmark is read or set."""
    agree(judge, Rules("""table inet a {
 chain c { type filter hook prerouting priority -300; policy accept;
  udp dport 80 ct state invalid drop
  ct state new drop
  ct mark 0 drop
  ct mark set 5
 }
 chain d { type filter hook prerouting priority -150; policy accept;
  ct mark 5 drop
  tcp dport 80 ct state new ct mark 0 drop
 }
}
""" ), {"dropped", "delivered"})  # fmt: skip


def test_connmark_is_carried_to_the_reply(judge: Judge) -> None:
    """A mark saved on the connection is restored for its replies."""
    rules = "-A PREROUTING -i up0 -j MARK --set-xmark 0x17/0xff\n-A PREROUTING -i up0 -j CONNMARK --save-mark\n"
    rules += "-A PREROUTING -i far0 -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf"
    for tool in ("nft", "legacy"):
        agree(judge, Rules(restore=((f"iptables-{tool}-restore", restore(mangle=rules)),)), {"sent"})


def test_legacy_and_nft_side_by_side(judge: Judge) -> None:
    """Legacy iptables, which no nft listing shows, drops what nftables accepted."""
    agree(judge, Rules(
        "table ip a {\n chain c { type filter hook input priority -10; policy accept;\n  accept\n }\n}\n",
        (("iptables-legacy-restore", restore(filter="-A INPUT -p tcp -m tcp --dport 9000 -j DROP")),),
    ), {"dropped", "delivered"})  # fmt: skip


def test_source_nat_in_input(judge: Judge) -> None:
    """SNAT in the nat table's INPUT changes the source of what is delivered, behind the filter."""
    rules = restore(nat="-A INPUT -p udp -j SNAT --to-source 10.99.0.11", filter="-A INPUT -s 10.99.0.11 -j DROP")
    agree(judge, Rules(restore=(("iptables-nft-restore", rules),)), {"delivered"})


def test_dnat_from_output_to_this_host(judge: Judge) -> None:
    """REDIRECT in OUTPUT brings a packet of the host to its own loopback address."""
    for family, tool in ((4, "iptables"), (6, "ip6tables")):
        rules = restore(nat="-A OUTPUT -p udp -m udp --dport 9000 -j REDIRECT --to-ports 53", filter="-A INPUT -i lo -p udp -j DROP"
                        if family == 6 else "-A INPUT -i lo -p tcp -j DROP")  # fmt: skip
        agree(judge, Rules(restore=((f"{tool}-legacy-restore", rules),)), {"sent"})


def test_an_echo_request_is_in_no_set_of_services(judge: Judge) -> None:
    """`th dport` of ICMP reads octets that are not known; the protocol beside it settles that it is no service's."""
    nft = """table inet a {
 map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.98.0.2 . tcp . 80 : drop } }
 map wide { type ipv6_addr . inet_proto . inet_service : verdict; flags interval; elements = { fd98::/16 . tcp . 1-65535 : drop } }
 chain c { type filter hook forward priority 0; policy accept;
  ip daddr . meta l4proto . th dport vmap @services
  ip6 daddr . meta l4proto . th dport vmap @wide
  meta l4proto . th dport != { udp . 53, tcp . 53 } drop
 }
}
"""
    pings = [
        Packet(ip_address(a), ip_address(b), number, icmp_type=kind, iif="up0", length=length)
        for a, b, number, kind, length in (
            ("10.99.0.2", "10.98.0.2", ICMP, 8, 32), ("fd99::2", "fd98::2", ICMPV6, 128, 52)
        )
    ]  # fmt: skip
    judge.tally.unknown.clear()
    assert not judge.judge(Rules(nft), [*packets(), *pings])
    assert not judge.tally.unknown


def test_the_device_group_that_has_a_name(judge: Judge) -> None:
    """Both tools list group 0 by the name that iproute2 gives it."""
    nft = "table inet a {\n chain c { type filter hook forward priority 0; policy accept;\n  iifgroup != 0 drop\n oifgroup 0 tcp dport 80 drop\n }\n}\n"
    agree(judge, Rules(nft), {"dropped", "sent"})
    rules = restore(filter="-A FORWARD -p tcp -m devgroup --src-group 0x0 -j DROP")
    agree(judge, Rules(restore=(("iptables-legacy-restore", rules),)), {"dropped", "sent"})


@pytest.mark.parametrize(
    "rule",
    [
        "meta nfproto ipv4 meta l4proto tcp reject with tcp reset",
        "meta nfproto ipv6 tcp dport 80 reject with tcp reset",
        "meta nfproto != ipv6 tcp dport { 80, 9000 } counter reject with tcp reset",
        "meta mark set 0x7 meta nfproto ipv6 meta l4proto tcp reject with tcp reset",
        "meta protocol ip reject with icmpv6 addr-unreachable",
        "meta protocol ip6 reject with icmpv6 addr-unreachable",
    ],
)
def test_what_nft_hides_before_a_reject(judge: Judge, rule: str) -> None:
    """Found by the random search: nft 1.0.6 lists no `meta nfproto` before a reset and no `meta protocol` before a reject."""
    text = (
        "table inet a {\n chain c {\n  tcp dport { 1, 2,\n3 } accept\n  " + rule + "\n }\n"
        " chain f { type filter hook forward priority 0; policy accept;\n  jump c\n }\n}\n"
    )
    agree(judge, Rules(text), {"sent"})
    firewall = judge.stand.snapshot().firewall
    key = "nfproto" if "nfproto" in rule else "protocol"
    assert f"meta {key}" in (firewall.nft_text or "")
    assert f'"key": "{key}"' in (firewall.nft_json or "")


def test_a_text_listing_with_what_nft_hid_loads_as_it_was(judge: Judge) -> None:
    """A twin is made from the text: what it then hides is the same."""
    text = "table inet a {\n chain c { type filter hook forward priority 0; policy accept;\n  meta nfproto ipv6 tcp dport 80 reject with tcp reset\n }\n}\n"
    assert not judge.load(Rules(text))
    first = judge.stand.snapshot().firewall.nft_text
    assert not judge.load(Rules(first or ""))
    assert judge.stand.snapshot().firewall.nft_text == first


@pytest.mark.parametrize("family", ["netdev", "inet"])
@pytest.mark.parametrize("device", ['device "up0"', 'devices = { "up0", "far0" }', 'device "far0"'])
def test_a_chain_at_an_interface(judge: Judge, family: str, device: str) -> None:
    """Found by reading nft's text: nft 1.0.6 leaves a chain's devices out of its JSON, and such a chain took no packet."""
    text = (
        f"table {family} a {{\n chain c {{\n  type filter hook ingress {device} priority 0; policy accept;\n"
        "  ip saddr 10.99.0.2 tcp dport 80 drop\n  ip6 saddr fd99::2 udp dport 9000 drop\n }\n}\n"
    )
    agree(judge, Rules(text), {"sent"} if device == 'device "far0"' else {"dropped", "sent"})


def test_a_dormant_table_does_nothing(judge: Judge) -> None:
    """Found in the same way: nft 1.0.6 leaves the flag out of its JSON, and such a table dropped."""
    text = (
        "table inet a {\n flags dormant\n chain c {\n  type filter hook forward priority 0; policy drop;\n }\n}\n"
        "table inet b {\n chain c {\n  type filter hook forward priority 0; policy accept;\n  tcp dport 80 drop\n }\n}\n"
    )
    agree(judge, Rules(text), {"dropped", "sent"})
