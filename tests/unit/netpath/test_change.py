# SPDX-License-Identifier: Apache-2.0
"""What is different between two moments, in the words of the tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.netpath.change import (
    Action,
    address_difference,
    lasting,
    link_added,
    link_difference,
    ordered_difference,
    quiet,
    socket_differences,
    sysctl_differences,
    wireguard_differences,
)
from wicketgate.netpath.netfilter.difference import firewall_differences
from wicketgate.netpath.snapshot import (
    Address,
    Firewall,
    Link,
    ListeningSocket,
    NextHop,
    PeerState,
    Route,
    WireGuardState,
)

ETH0 = Link(2, "eth0", "veth", 1500, up=True, lower_up=True, mac="02:00:00:00:00:01")
PEER = PeerState("P" * 43 + "=", None, (ip_network("10.8.0.2/32"),))
WG0 = WireGuardState("wg0", "kernel", "A" * 43 + "=", 51820, 0, (PEER,))
EMPTY = Firewall('{"nftables": []}', "", "", "", "", "")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"mtu": 1400}, "eth0 mtu 1400 (was 1500)"),
        ({"up": False, "lower_up": False}, "eth0 down (was up)"),
        ({"lower_up": False}, "eth0 NO-CARRIER (was LOWER_UP)"),
        ({"name": "lan0", "group": 7}, "eth0 name lan0 (was eth0), group 7 (was 0)"),
        ({"mac": "02:00:00:00:00:02"}, "eth0 address 02:00:00:00:00:02 (was 02:00:00:00:00:01)"),
        ({"master": 9}, "eth0 master 9 (was none)"),
        ({"alias": "x y"}, "eth0 alias 'x y' (was '')"),
        ({}, ""),
    ],
)
def test_links_differ_in_the_words_of_ip_link_set(changed, text):
    """One clause for each word; going down takes the carrier along without a second word."""
    assert link_difference(ETH0, replace(ETH0, **changed)) == text


def test_a_new_link_is_one_line():
    """Index, name, MTU, state, kind."""
    assert link_added(ETH0) == "2: eth0 mtu 1500 up type veth"
    assert link_added(replace(ETH0, lower_up=False, kind="")) == "2: eth0 mtu 1500 up NO-CARRIER"


def test_an_address_changes_when_its_use_does():
    """Tentative, deprecated and dadfailed are told; a lifetime that is renewed is not."""
    address = Address("eth0", 2, ip_interface("2001:db8::2/64"), flags=0xC0)
    assert address_difference(address, replace(address, flags=0x80)) == "2001:db8::2/64 dev eth0 (was tentative)"
    assert address_difference(address, replace(address, flags=0xE0)) == "2001:db8::2/64 dev eth0 deprecated tentative"
    assert address_difference(address, replace(address, flags=0xC0 | 0x100)) == ""


def test_what_the_links_state_makes_of_a_route_is_no_change():
    """Flags dead and linkdown go, onlink stays."""
    route = Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("eth0", ip_address("10.0.0.1"), flags=4 | 16 | 1),))
    assert lasting(route).nexthops[0].flags == 4
    assert lasting(lasting(route)) == lasting(route)
    ways = (NextHop("eth0", ip_address("fe80::2")), NextHop("eth0", ip_address("fe80::1")))
    one, other = (Route(ip_network("2001:db8::/64"), nexthops=each) for each in (ways, ways[::-1]))
    assert lasting(one) == lasting(other)


def test_settings_that_came_with_an_interface_are_no_change():
    """Only another value is; connection tracking's count never is."""
    before = {"net.ipv4.ip_forward": "0", "net.netfilter.nf_conntrack_count": "1", "net.ipv4.conf.eth0.rp_filter": "1"}
    after = {"net.ipv4.ip_forward": "1", "net.netfilter.nf_conntrack_count": "9", "net.ipv4.conf.eth1.rp_filter": "2"}
    assert [each.text for each in sysctl_differences(before, after)] == ["net.ipv4.ip_forward = 1 (was 0)"]


def test_wireguard_in_the_words_of_wg_and_without_what_moves_by_itself():
    """Devices and peers that come, go and change; a handshake, counters: nothing. Keys that are secret are not known."""
    busy = replace(PEER, latest_handshake=5.0, rx_bytes=7, tx_bytes=8)
    assert list(wireguard_differences([WG0], [replace(WG0, peers=(busy,))])) == []
    assert quiet(replace(WG0, peers=(busy,))) == WG0
    roamed = replace(PEER, endpoint=(ip_address("2001:db8::9"), 4500), has_preshared_key=True)
    (change,) = wireguard_differences([WG0], [replace(WG0, peers=(roamed,))])
    assert change.text == (
        f"wg0 peer {PEER.public_key} preshared-key (hidden) (was (none)) endpoint [2001:db8::9]:4500 (was (none))"
    )
    (change,) = wireguard_differences([WG0], [replace(WG0, fwmark=0xCA6C)])
    assert change.text == "wg0 fwmark 0xca6c (was off)"
    gone = list(wireguard_differences([WG0], [replace(WG0, peers=())]))
    assert [(each.action, each.text) for each in gone] == [(Action.REMOVED, f"wg0 peer {PEER.public_key} remove")]
    new = list(wireguard_differences([], [WG0]))
    assert [each.text for each in new] == [
        f"wg0 public-key {WG0.public_key} listen-port 51820 fwmark off",
        f"wg0 peer {PEER.public_key} allowed-ips 10.8.0.2/32",
    ]
    assert [each.action for each in wireguard_differences([WG0], [])] == [Action.REMOVED]


def test_listeners_as_ss_spells_them():
    """TCP always; UDP unless the kernel chose the port."""
    tcp = ListeningSocket("tcp", 4, ip_address("0.0.0.0"), 9000, bound_device="eth0")
    udp = ListeningSocket("udp", 6, ip_address("::"), 51820)
    chosen = ListeningSocket("udp", 4, ip_address("0.0.0.0"), 40000)
    settings = {"net.ipv4.ip_local_port_range": "32768\t60999"}
    assert [each.text for each in socket_differences((), (tcp, udp, chosen), settings)] == ["tcp 0.0.0.0%eth0:9000"]
    wide = {"net.ipv4.ip_local_port_range": "60000\t60999"}
    texts = [each.text for each in socket_differences((tcp, udp, chosen), (), wide)]
    assert texts == ["tcp 0.0.0.0%eth0:9000", "udp [::]:51820", "udp 0.0.0.0:40000"]


lines = st.lists(st.sampled_from("abcdef"), max_size=12)


@given(lines, lines)
def test_ordered_differences_lead_from_one_list_to_the_other(before, after):
    """Taking away what went and adding what came gives the other list, but for its order; and none is told needlessly."""
    removed, added, moved = ordered_difference(before, after)
    came = [line for line, _ in added]
    assert Counter(before) - Counter(removed) + Counter(came) == Counter(after)
    assert not Counter(removed) & Counter(came)
    if before == after:
        assert (removed, came, moved) == ([], [], False)
    if Counter(before) == Counter(after):
        assert moved == (before != after)


def nft(*rules: str, head: str = "type filter hook input priority filter; policy accept;") -> Firewall:
    """A listing with one chain."""
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    text = f"table inet guard {{\n\tchain in {{\n\t\t{head}\n{body}\t}}\n}}\n"
    return replace(EMPTY, nft_text=text)


def texts(before: Firewall, after: Firewall) -> list[str]:
    """The differences' texts."""
    return [each.text for each in firewall_differences(before, after)]


def test_nft_rules_come_and_go_and_counters_do_not_count():
    """Words add, insert, delete, and the chain's own line; a rule over several lines is one."""
    one = nft("tcp dport 9000 counter packets 5 bytes 300 drop")
    assert texts(one, nft("tcp dport 9000 counter packets 9 bytes 999 drop")) == []
    assert texts(one, nft("tcp dport 9000 counter packets 5 bytes 300 drop", "udp dport 53 accept")) == [
        "add rule inet guard in udp dport 53 accept"
    ]
    assert texts(
        one,
        nft(
            "ct state vmap { invalid : drop,",
            "\t established : accept }",
            "tcp dport 9000 counter packets 0 bytes 0 drop",
        ),
    ) == ["insert rule inet guard in ct state vmap { invalid : drop, established : accept }"]
    assert texts(one, nft()) == ["delete rule inet guard in tcp dport 9000 counter drop"]
    changed = texts(nft(), nft(head="type filter hook input priority filter; policy drop;"))
    assert changed == [
        "chain inet guard in { type filter hook input priority filter; policy drop; } "
        "(was { type filter hook input priority filter; policy accept; })"
    ]
    assert texts(nft("a", "b"), nft("b", "a")) == ["chain inet guard in: its rules stand in another order"]


def test_a_table_goes_with_its_rules_named():
    """What was in it is told, rule by rule, then the table."""
    assert texts(nft("tcp dport 9000 drop"), EMPTY) == [
        "delete rule inet guard in tcp dport 9000 drop",
        "delete table inet guard",
    ]


def test_elements_of_sets_are_told_and_their_age_is_not():
    """One line an element; what is left of a timeout is no difference."""

    def listing(*elements: str) -> Firewall:
        inner = f"\t\telements = {{ {', '.join(elements)} }}\n" if elements else ""
        text = f"table ip t {{\n\tset bad {{\n\t\ttype ipv4_addr\n\t\tflags timeout\n{inner}\t}}\n}}\n"
        return replace(EMPTY, nft_text=text)

    assert texts(listing("192.0.2.1 timeout 1h expires 59m3s"), listing("192.0.2.1 timeout 1h expires 2s")) == []
    assert texts(listing("192.0.2.1"), listing("192.0.2.1", "192.0.2.2")) == ["add element ip t bad { 192.0.2.2 }"]
    assert texts(listing("192.0.2.1"), listing()) == ["delete element ip t bad { 192.0.2.1 }"]


def saved(*rules: str, policy: str = "ACCEPT", table: str = "filter") -> str:
    """Text of iptables-save."""
    chain = "INPUT" if table == "filter" else "POSTROUTING"
    body = "".join(f"[{at}:{at}] -A {rule}\n" for at, rule in enumerate(rules))
    return f"# Generated on Friday\n*{table}\n:{chain} {policy} [7:9]\n:MINE - [0:0]\n{body}COMMIT\n# Completed\n"


def test_iptables_as_commands_of_the_same_program():
    """With -A, -I, -D, -P, -N, and with the table where it is not filter; counters and dates are no difference."""
    before = replace(EMPTY, iptables_legacy=saved("INPUT -p tcp -j DROP"))

    def after(text: str) -> list[str]:
        return texts(before, replace(EMPTY, iptables_legacy=text))

    assert after(saved("INPUT -p tcp -j DROP").replace("Friday", "Monday").replace("[7:9]", "[8:9]")) == []
    assert after(saved("INPUT -p tcp -j DROP", "INPUT -i lo -j ACCEPT")) == ["iptables-legacy -A INPUT -i lo -j ACCEPT"]
    assert after(saved("INPUT -i lo -j ACCEPT", "INPUT -p tcp -j DROP")) == ["iptables-legacy -I INPUT -i lo -j ACCEPT"]
    assert after(saved(policy="DROP")) == [
        "iptables-legacy -P INPUT DROP (was ACCEPT)",
        "iptables-legacy -D INPUT -p tcp -j DROP",
    ]
    new = replace(EMPTY, ip6tables_nft=saved("POSTROUTING -j MASQUERADE", table="nat"))
    assert texts(EMPTY, new) == [
        "ip6tables-nft -t nat -N MINE",
        "ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE",
    ]


def test_what_iptables_prints_nft_does_not_tell_again():
    """A table of iptables-nft stands in nft's listing too: one line, in iptables' words."""
    listing = 'table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t\txt target "TRACE"\n\t}\n}\n'
    after = replace(EMPTY, nft_text=listing, iptables_nft=saved("INPUT -j TRACE"))
    assert [each for each in texts(EMPTY, after) if "TRACE" in each] == ["iptables-nft -A INPUT -j TRACE"]


def test_a_listing_that_was_not_read_is_no_difference():
    """Unknown is not empty."""
    assert texts(nft("drop"), Firewall()) == []
    assert texts(Firewall(), nft("drop")) == []
