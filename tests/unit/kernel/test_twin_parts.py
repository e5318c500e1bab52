# SPDX-License-Identifier: Apache-2.0
"""The twin's packets, its reading of the kernel's trace, and what it refuses to load or to run."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.errors import StateError
from wicketgate.kernel.twin import nft_trace, octets, walls
from wicketgate.kernel.twin.rebuild import one_word, settable
from wicketgate.kernel.twin.twin import check_command
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP, Ends
from wicketgate.netpath.snapshot import Firewall
from wicketgate.wireguard import packets

numbers = st.integers(0, 0xFFFFFFFF)
ports = st.integers(1, 65535)


@st.composite
def ends(draw):
    """Both families, every protocol that is sent."""
    make = draw(st.sampled_from((IPv4Address, IPv6Address)))
    bits = 32 if make is IPv4Address else 128
    near, far = (make(draw(st.integers(1, 2**bits - 1))) for _ in range(2))
    protocol = draw(st.sampled_from((TCP, UDP, ICMP if bits == 32 else ICMPV6)))
    if protocol in (TCP, UDP):
        return Ends(near, far, protocol, draw(ports), draw(ports))
    return Ends(near, far, protocol)


@given(ends(), numbers, st.booleans(), st.integers(0, 200), st.integers(0, 255))
def test_a_packet_is_known_again(ends, number, answer, length, tos):
    """Whatever it is, its number, its ends and whether it answers are read from it, and it is a valid packet."""
    made = octets.build(ends, number, answer=answer, length=length, tos=tos)
    seen = octets.sighting(made, "eth0", 7)
    assert seen is not None
    assert (seen.number, seen.ends, seen.kind, seen.ifname, seen.mark) == (number, ends, "packet", "eth0", 7)
    assert seen.answer == (answer and ends.protocol != UDP)
    parsed = packets.parse_ip(made)
    assert parsed is not None
    if ends.protocol == TCP:
        assert packets.parse_tcp(parsed)
    elif ends.protocol == UDP:
        assert packets.parse_udp(parsed)
    else:
        echo = packets.parse_echo(parsed)
        assert echo is not None
        assert echo.request != answer


@given(st.binary(max_size=200))
def test_any_octets_are_read_without_an_error(data):
    """Frames, packets and netlink messages cut short or made up never raise."""
    octets.sighting(data, "eth0")
    octets.neighbour_answer(data, b"\2" * 6)
    octets.tagged(data)
    list(nft_trace._decode(data))
    list(nft_trace._decode(struct.pack("=IHHII", 16 + len(data), nft_trace._TRACE, 0, 0, 0) + data))


@given(ends(), numbers)
def test_an_icmp_error_tells_which_packet_it_is_about(ends, number):
    """The quoted head is enough."""
    if ends.protocol != TCP:
        return
    about = octets.build(ends, number)[: 28 if ends.source.version == 4 else 48]
    kind, protocol = (3, ICMP) if ends.source.version == 4 else (1, ICMPV6)
    error = packets.ip_packet(ends.destination, ends.source, protocol, struct.pack("!BBHI", kind, 1, 0, 0) + about)
    seen = octets.sighting(error, "eth0")
    assert seen is not None
    assert (seen.number, seen.kind) == (number, f"icmp-{kind}-1")


def test_neighbours_are_answered_for():
    """An ARP request gets its answer; a probe and an announcement get none."""
    mac, asker = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"

    def request(sender, target):
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, asker, sender, bytes(6), target)
        return octets.frame(b"\xff" * 6, asker, octets.ETH_P_ARP, body)

    near, far = IPv4Address("10.0.0.2").packed, IPv4Address("10.0.0.1").packed
    answer = octets.neighbour_answer(request(near, far), mac)
    assert answer is not None
    assert answer[1] == IPv4Address("10.0.0.1")
    assert answer[0][:14] == asker + mac + b"\x08\x06"
    assert octets.neighbour_answer(request(bytes(4), far), mac) is None
    assert octets.neighbour_answer(request(near, near), mac) is None


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -M /tmp/program -j DROP",
        "-A INPUT --modprobe=/tmp/program -j DROP",
        "-A INPUT --modp /tmp/program -j DROP",
        "-A INPUT -4M /tmp/program -j DROP",
        "-A INPUT -m ../../tmp/evil -j DROP",
        "-t nat -A INPUT -j DROP",
        "!reboot",
        '-A INPUT -m comment --comment "open',
    ],
)
def test_a_hostile_iptables_listing_is_not_loaded(line):
    """What would start a program, or is no rule, is refused before any tool sees it."""
    with pytest.raises(StateError):
        walls.check_restore(f"*filter\n:INPUT ACCEPT [0:0]\n{line}\nCOMMIT\n", "iptables-restore")


def test_ordinary_listings_are_loaded():
    """Matches whose options look alike."""
    text = '*filter\n:INPUT ACCEPT [0:0]\n[1:60] -A INPUT -m statistic --mode nth --every 2 --packet 0 -m comment --comment "a -m b" -j DROP\nCOMMIT\n'
    walls.check_restore(text, "iptables-restore")


@pytest.mark.parametrize(
    "text", ['include "/etc/passwd"', "define x = 1", 'chain c { type filter hook input priority 0; include "x" }']
)
def test_a_hostile_nft_listing_is_not_loaded(text):
    """It would read other files when it is told to."""
    with pytest.raises(StateError):
        walls.nft_text(Firewall(nft_text=f"table inet f {{\n{text}\n}}\n"))


def test_tables_of_iptables_are_left_to_iptables():
    """What iptables-nft-save prints is not loaded a second time with nft."""
    text = "table ip filter {\n\tchain INPUT {\n\t}\n}\ntable inet mine {\n}\ntable ip mine {\n}\n"
    kept = walls.nft_text(Firewall(nft_text=text, iptables_nft="*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"))
    assert kept == "table inet mine {\n}\ntable ip mine {\n}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "true"],
        ["sysctl", "-w", "kernel.core_pattern=|/tmp/x"],
        ["sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=2", "kernel.panic=1"],
        ["sysctl", "-p", "/tmp/x"],
        ["ip", "netns", "exec", "x", "sh"],
        ["ip", "-batch", "/tmp/x"],
        ["ip", "-4", "netns", "exec"],
        ["nft", "-f", "/tmp/x"],
        ["nft", "insert", "rule", "inet", 'x;include "/tmp/y"', "c"],
        ["iptables", "-I", "INPUT", "--modprobe=/tmp/x"],
        ["/tmp/ip", "-4", "rule", "add"],
        [],
    ],
)
def test_no_other_command_is_run(argv):
    """A fix's words come from listings, which may be anybody's."""
    with pytest.raises(StateError):
        check_command(argv)


@pytest.mark.parametrize(
    "line",
    [
        "ip -4 rule add from 10.0.0.2 lookup main pref 100",
        "sysctl -w net.ipv4.conf.eth0/100.forwarding=1",
        "nft --echo --handle insert rule inet f c tcp dport 9000 accept",
        "iptables-legacy -t mangle -I INPUT 1 -i eth0 -p tcp -m tcp --dport 9000 -j ACCEPT",
    ],
)
def test_commands_of_fixes_are_run(line):
    """Those of the catalogue."""
    check_command(line.split())


def test_only_settings_of_the_namespace_are_set():
    """Nothing that the whole machine shares."""
    assert settable("net.ipv4.conf.eth0.rp_filter")
    assert not settable("net.netfilter.nf_conntrack_max")
    assert not settable("kernel.panic")
    assert not settable("net.ipv4.conf.../../../kernel.panic")


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "a'b", "a;b", "-a", "a" * 16, "a\nb", 'a"b'])
def test_odd_interface_names_are_refused(name):
    """They would be other words in a command."""
    assert not one_word(name)


def test_rules_are_found_by_their_handles():
    """From `nft -a list ruleset`, without counters; sets and their elements are no rules."""
    listing = """table inet f { # handle 1
\tset s { # handle 2
\t\ttype ipv4_addr
\t}

\tchain c { # handle 3
\t\ttype filter hook input priority filter; policy drop;
\t\ttcp dport 9000 counter packets 1 bytes 60 drop # handle 4
\t}
}
"""
    rules = nft_trace.Rules(listing)
    assert rules.texts == {("inet", "f", "c", 4): "tcp dport 9000 drop"}
    assert rules.hooks == {("inet", "f", "c"): "input"}


def test_a_missing_nft_text_is_missed():
    """A firewall that is known as JSON alone cannot be loaded."""
    firewall = Firewall(nft_json='{"nftables": [{"rule": {}}]}')
    assert list(walls.lacks_of(firewall)) == ["nftables: `nft list ruleset` is not in the snapshot"]
    assert list(walls.lacks_of(replace(firewall, nft_text="", nft_json=None))) == []
