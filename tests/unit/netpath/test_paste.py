# SPDX-License-Identifier: Apache-2.0
"""Pastes as people make them: prompts, quotes, prose, other people's tools; and what is missing is named."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

import pytest

from wicketgate.doctor import suppose
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object, to_text
from wicketgate.errors import StateError
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.paste.bundle import read_paste
from wicketgate.netpath.paste.holes import is_hole
from wicketgate.netpath.paste.lines import command_of
from wicketgate.netpath.snapshot import Snapshot

ADDRESSES = """\
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
2: eth0@if12: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9001 qdisc noqueue state UP group default
    link/ether 8e:0e:9b:ba:7e:ad brd ff:ff:ff:ff:ff:ff link-netnsid 0
    inet 10.0.0.2/24 brd 10.0.0.255 scope global dynamic eth0
       valid_lft 3021sec preferred_lft 3021sec
3: wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420 qdisc noqueue state UNKNOWN group default qlen 1000
    link/none
    inet 10.8.0.2/24 scope global wg0
       valid_lft forever preferred_lft forever
"""
RULES = """\
0:	from all lookup local
32764:	from all lookup main suppress_prefixlength 0
32765:	not from all fwmark 0xca6c lookup 51820
32766:	from all lookup main
32767:	from all lookup default
"""
ROUTES = """\
default dev wg0 table 51820 scope link
default via 10.0.0.1 dev eth0
10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2
10.8.0.0/24 dev wg0 proto kernel scope link src 10.8.0.2
local 10.0.0.2 dev eth0 table local proto kernel scope host src 10.0.0.2
local 10.8.0.2 dev wg0 table local proto kernel scope host src 10.8.0.2
local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1
"""
SOCKETS = """\
Netid State  Recv-Q Send-Q Local Address:Port  Peer Address:PortProcess
tcp   LISTEN 0      128          0.0.0.0:9000       0.0.0.0:*    users:(("wicket",pid=7,fd=9))
tcp   ESTAB  0      0           10.0.0.2:9000      10.0.3.4:5511
udp   UNCONN 0      0            0.0.0.0:51820      0.0.0.0:*
"""
WG = """\
interface: wg0
  public key: 4HWTbBAKtcQqoHgb4Hv8DVjXqEZ3EiPM1Jj0vXYCbVo=
  private key: (hidden)
  listening port: 51820
  fwmark: 0xca6c

peer: dGhpcyBpcyBub3QgYSBrZXkgYnV0IGl0IGlzIDMyIGI=
  endpoint: 198.51.100.7:51820
  allowed ips: 0.0.0.0/0, ::/0
  latest handshake: 1 minute, 20 seconds ago
  transfer: 1.50 MiB received, 92 B sent
  persistent keepalive: every 25 seconds
"""
NO_FIREWALL = "$ iptables-save\n$ ip6tables-save\n$ nft list ruleset\n"
SYSCTLS = "".join(
    f"net.ipv4.conf.{where}.{key} = {value}\n"
    for where in ("all", "lo", "eth0", "wg0")
    for key, value in (("rp_filter", 0), ("src_valid_mark", 1), ("forwarding", 0), ("accept_local", 0), ("route_localnet", 0))
)  # fmt: skip
WHOLE = ADDRESSES + RULES + ROUTES + SOCKETS + WG + NO_FIREWALL + SYSCTLS


def pasted(text: str) -> Snapshot:
    """The snapshot of a paste that was recognized."""
    found = read_paste(text, now=1000.0)
    assert found is not None
    return found.snapshot


def missing(snapshot: Snapshot) -> set[str]:
    """The commands whose output is asked for."""
    return {each.why.partition("prints it: ")[2] for each in snapshot.unread if "prints it: " in each.why}


def without_time(snapshot: Snapshot) -> str:
    """All of it, to be compared."""
    return repr(snapshot)


def quoted(text: str) -> str:
    return "".join(f"> {line}\n" for line in text.splitlines())


def prompted(text: str) -> str:
    return (
        "Hello,\n\nmy pod:\n```\n" + text.replace("0:\tfrom", "[root@pod ~]# ip rule\n0:\tfrom", 1) + "```\nany idea?\n"
    )


def coloured(text: str) -> str:
    return text.replace("eth0", "\x1b[36meth0\x1b[0m").replace("10.0.0.2", "\x1b[35m10.0.0.2\x1b[0m")


def spaced(text: str) -> str:
    """A forum takes tabs and the blanks at the start of a line away."""
    return "\n".join(line.strip().replace("\t", " ") for line in text.splitlines())


@pytest.mark.parametrize("dress", [quoted, prompted, coloured, spaced, lambda text: text.replace("\n", "\r\n")])
def test_what_terminals_and_forums_put_around_it_changes_nothing(dress):
    """Quote marks, prompts, fences, prose, colours, lost blanks and CRLF: the same snapshot."""
    assert without_time(pasted(dress(WHOLE))) == without_time(pasted(WHOLE))


def test_a_whole_paste_lacks_nothing_that_decides():
    """IPv4 alone, everything there: no command is asked for, and the rule is named without a supposition."""
    snapshot = pasted(WHOLE)
    assert missing(snapshot) == set()
    finding = next(f for f in examine(snapshot).findings if f.diagnosis.concern.kind is Kind.CLIENT)
    assert finding.supposed == ()


def test_wireguard_is_read_without_keys_of_its_own():
    """Peer, endpoint, AllowedIPs, age of the handshake, octets, keepalive."""
    (device,) = pasted(WHOLE).wireguard
    (peer,) = device.peers
    assert (device.listen_port, device.fwmark) == (51820, 0xCA6C)
    assert str(peer.endpoint and peer.endpoint[0]) == "198.51.100.7"
    assert [str(each) for each in peer.allowed_ips] == ["0.0.0.0/0", "::/0"]
    assert (peer.latest_handshake, peer.rx_bytes, peer.tx_bytes, peer.persistent_keepalive) == (920.0, 1572864, 92, 25)


def test_a_private_key_is_neither_kept_nor_shown():
    """It may be pasted by mistake, as wg-quick's file or by `wg showconf`."""
    key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
    text = f"{WHOLE}[Interface]\nPrivateKey = {key}\nTable = {key}\n  private key: {key}\n[#] wg set wg0 private-key {key}\n"
    snapshot = pasted(text)
    report = examine(snapshot)
    for shown in (repr(snapshot), to_text(report), json.dumps(to_object(report))):
        assert key not in shown
        assert key[:20] not in shown
    assert any("private key was in the paste" in each.why for each in snapshot.unread)


@pytest.mark.parametrize(
    ("left_out", "command"),
    [
        (ADDRESSES, "ip addr"),
        (RULES, "ip rule"),
        (WG, "wg show"),
        (SOCKETS, "ss -lntu"),
        (NO_FIREWALL, "nft list ruleset"),
        (NO_FIREWALL, "iptables-save"),
        (SYSCTLS, "sysctl -a -r '^net.ipv[46].(conf|ip_forward)'"),
        ("default via 10.0.0.1 dev eth0\n10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2\n", None),
    ],
)
def test_each_output_that_lacks_is_asked_for(left_out, command):
    """And no flow is called working or broken without it, unless it cannot matter."""
    snapshot = pasted(WHOLE.replace(left_out, ""))
    if command is not None:
        assert command in missing(snapshot)
    if left_out == ADDRESSES:
        with pytest.raises(StateError, match="ip addr"):
            examine(snapshot)


def test_a_table_that_was_not_listed_decides_nothing():
    """`ip route` alone: what a rule asks of another table is unknown, and that table is named."""
    text = WHOLE.replace(
        ROUTES, "$ ip route\n" + "".join(line + "\n" for line in ROUTES.splitlines() if "table" not in line)
    )
    snapshot = pasted(text)
    assert "ip route show table 51820" in missing(snapshot)
    asked = examine(snapshot, [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert "table 51820" in asked.diagnosis.unknown
    assert len(asked.supposed) == 1
    assert "table 51820 is empty" in asked.supposed[0].words
    assert asked.supposed[0].diagnosis.works


def _to_port() -> Concern:
    flow = Flow(ip_address("203.0.113.9"), ip_address("10.0.0.2"), "tcp", 40000, 9000, iif="eth0")
    return Concern(Kind.ASKED, flow)


def _to_wireguard() -> Concern:
    return Concern(Kind.ASKED, replace(_to_port().flow, protocol="udp", destination_port=51820))


def test_each_end_that_a_missing_parameter_leads_to_is_told():
    """The client's first packet: strict rp_filter drops it, for its answer's route leads into the tunnel; else it works."""
    snapshot = pasted(WHOLE.replace(SYSCTLS, ""))
    asked = examine(snapshot, [_to_wireguard()]).findings[0]
    assert not asked.diagnosis.works
    assert asked.diagnosis.cause is None
    strict, loose = asked.supposed
    assert "rp_filter is 1; whatever src_valid_mark and forwarding are" in strict.words
    assert strict.diagnosis.cause is not None
    assert strict.diagnosis.cause.code == "rp-filter"
    assert strict.fixes
    assert "rp_filter is 0 or 2" in loose.words
    assert loose.diagnosis.works
    told = to_object(examine(snapshot, [_to_wireguard()]))["flows"][0]["supposing"]
    assert [each["works"] for each in told] == [False, True]


def test_two_parameters_that_decide_together_are_named_together():
    """Where only one pair of values leads to an end, that pair is told, and the rest as any other."""
    values = list(product("012", "01", "01"))
    ends = ["a" if value[:2] == ("1", "0") else "b" for value in values]
    told = suppose._told_apart(("rp_filter", "src_valid_mark", "forwarding"), values, ends)
    assert [words for words, _ in told] == [
        ["rp_filter is 1 and src_valid_mark is 0", "whatever forwarding is"],
        ["any other rp_filter and src_valid_mark", "whatever forwarding is"],
    ]
    assert sorted(at for _, members in told for at in members) == list(range(len(values)))
    assert suppose._told_apart(("rp_filter",), [("0",), ("1",), ("2",), ("3",)], list("abcd")) == []
    assert suppose._told_apart((), [()], ["a"]) == [([], [0])]


def test_rules_that_were_not_listed_decide_nothing():
    """Whatever the tables hold."""
    asked = examine(pasted(WHOLE.replace(RULES, "")), [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert not asked.diagnosis.works
    assert "ip rule is not in the paste" in asked.diagnosis.unknown


LOG = """\
[#] ip link add wg0 type wireguard
[#] wg setconf wg0 /dev/fd/63
[#] ip -4 address add 10.8.0.2/24 dev wg0
[#] ip link set mtu 1420 up dev wg0
[#] wg set wg0 fwmark 51820
[#] ip -4 route add 0.0.0.0/0 dev wg0 table 51820
[#] ip -4 rule add not fwmark 51820 table 51820
[#] ip -4 rule add table main suppress_prefixlength 0
[#] sysctl -q net.ipv4.conf.all.src_valid_mark=1
[#] nft -f /dev/fd/63
"""


def test_wg_quicks_own_log_tells_its_rules():
    """With the log in place of `ip rule` and of table 51820: unknown, and supposing that nothing else is there, the rule."""
    before = ADDRESSES[: ADDRESSES.index("3: wg0")]
    text = before + LOG + "$ ip route\ndefault via 10.0.0.1 dev eth0\n10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2\n" + SOCKETS  # fmt: skip
    snapshot = pasted(text)
    assert snapshot.link("wg0") is not None
    assert snapshot.sysctls["net.ipv4.conf.all.src_valid_mark"] == "1"
    (asked,) = [f for f in examine(snapshot).findings if str(f.diagnosis.concern.flow.source) == "203.0.113.9"]
    assert asked.diagnosis.cause is None
    assert len(asked.supposed) == 1
    assert "there are no other policy rules than the kernel's own and those shown" in asked.supposed[0].words
    cause = asked.supposed[0].diagnosis.cause
    assert cause is not None
    assert (cause.code, cause.where) == ("reply-into-tunnel", "32765: not from all fwmark 0xca6c lookup 51820")
    assert any("what `nft -f /dev/fd/63` changed is not in it" in each.why for each in snapshot.unread)


IPTABLES = """\
# Generated by iptables-save v1.8.9 (nf_tables) on Fri Nov 27 15:00:00 2026
*filter
:INPUT DROP [10:600]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
# Completed on Fri Nov 27 15:00:00 2026
"""


def test_wg_quicks_log_tells_where_it_failed():
    """The commonest post of all: /proc/sys is read-only. What wg-quick took back is not taken for there."""
    log = """[#] ip link add wg0 type wireguard
[#] ip -4 address add 10.2.0.2/32 dev wg0
[#] ip link set mtu 1420 up dev wg0
[#] ip -4 rule add not fwmark 51820 table 51820
[#] ip -4 rule add table main suppress_prefixlength 0
[#] sysctl -q net.ipv4.conf.all.src_valid_mark=1
sysctl: setting key "net.ipv4.conf.all.src_valid_mark": Read-only file system
[#] ip -4 rule delete table 51820
[#] ip -4 rule delete table main suppress_prefixlength 0
[#] ip link delete dev wg0
"""
    text = ADDRESSES + log
    snapshot = pasted(text)
    (words,) = [each.why for each in snapshot.unread if "takes back" in each.why]
    assert "`sysctl -q net.ipv4.conf.all.src_valid_mark=1`" in words
    assert "Read-only file system" in words
    assert snapshot.sysctls.get("net.ipv4.conf.all.src_valid_mark") != "1", "it was not set"
    assert [rule for rule in snapshot.rules if rule.family == 4 and rule.table == 51820] == []
    assert not any(rule.suppress_prefixlength == 0 for rule in snapshot.rules)


def test_iptables_save_of_the_nft_kind_tells_that_there_is_no_legacy():
    """It would warn of legacy tables; with the warning, legacy's own listing is asked for."""
    text = WHOLE.replace("$ iptables-save\n", f"$ iptables-save\n{IPTABLES}")
    assert pasted(text).firewall.iptables_legacy == ""
    warned = text.replace(
        "*filter", "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n*filter"
    )
    assert pasted(warned).firewall.iptables_legacy is None
    assert "iptables-legacy-save" in missing(pasted(warned))
    plain = text.replace(" (nf_tables)", "")
    assert pasted(plain).firewall.iptables_nft is None
    assert "INPUT DROP" in (pasted(plain).firewall.iptables_legacy or "")


def test_iptables_s_is_one_table_of_an_unknown_kind():
    """`iptables -S` shows a part: the rest is asked for, and its rules count where they are supposed to be all."""
    listing = "$ iptables -S\n-P INPUT DROP\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-A INPUT -i lo -j ACCEPT\n"
    snapshot = pasted(WHOLE.replace(NO_FIREWALL, listing))
    assert "*filter\n:INPUT DROP [0:0]" in (snapshot.firewall.iptables_nft or "")
    assert "iptables-legacy-save" in missing(snapshot)
    asked = examine(snapshot, [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert len(asked.supposed) == 1
    assert asked.supposed[0].diagnosis.cause is not None
    assert asked.supposed[0].diagnosis.cause.code == "input-drop"


CHAINS = """\
$ iptables -nvL
Chain INPUT (policy ACCEPT 0 packets, 0 bytes)
 pkts bytes target     prot opt in     out     source               destination
    5   300            all  --  *      *       0.0.0.0/0            0.0.0.0/0            /* counts only */
   1K   60K DROP       tcp  --  eth0   *       0.0.0.0/0            0.0.0.0/0            tcp dpt:9000

Chain FORWARD (policy DROP 12 packets, 720 bytes)
 pkts bytes target     prot opt in     out     source               destination

Chain OUTPUT (policy ACCEPT 0 packets, 0 bytes)
 pkts bytes target     prot opt in     out     source               destination

Chain f2b (1 references)
num   pkts bytes target     prot opt in     out     source               destination
1        0     0 RETURN     0    --  *      *      !10.0.0.0/8           0.0.0.0/0            tcp flags:0x17/0x02 MARK what
"""


def listed(text: str) -> str:
    """What is taken for iptables' rules of a paste with this listing instead of the others."""
    return pasted(WHOLE.replace(NO_FIREWALL, text)).firewall.iptables_nft or ""


def test_iptables_l_is_read_as_far_as_it_goes():
    """Targets, interfaces, ports, policies; a rule without a target; what is not understood is a match that nobody knows."""
    assert listed(CHAINS).splitlines() == [
        "*filter", ":INPUT ACCEPT [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]", ":f2b - [0:0]",
        '-A INPUT -m comment --comment "counts only"',
        "-A INPUT -i eth0 -p tcp -m tcp --dport 9000 -j DROP",
        "-A f2b ! -s 10.0.0.0/8 -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m not-understood -j RETURN",
        "COMMIT",
    ]  # fmt: skip
    asked = examine(pasted(WHOLE.replace(NO_FIREWALL, CHAINS)), [_to_port()]).findings[0]
    assert len(asked.supposed) == 1
    assert asked.supposed[0].diagnosis.cause is not None
    assert asked.supposed[0].diagnosis.cause.where == "-A INPUT -i eth0 -p tcp -m tcp --dport 9000 -j DROP"


def test_without_v_no_rule_is_believed_to_be_for_every_interface():
    """`-j DROP` may have been for wg0 alone: unknown, also where all rules are supposed to be listed."""
    text = "$ iptables -L\nChain INPUT (policy ACCEPT)\ntarget prot opt source destination\nDROP all -- anywhere anywhere\n"
    text += "ACCEPT all -- myhost.example.com anywhere\n"
    said = listed(text)
    assert "-A INPUT -m interfaces-not-listed -j DROP" in said
    assert "-A INPUT -m not-understood -m interfaces-not-listed -j ACCEPT" in said
    asked = examine(pasted(WHOLE.replace(NO_FIREWALL, text)), [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert not any(each.diagnosis.works for each in asked.supposed)


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_two_rules_in_doubt_are_doubted_one_by_one(policy):
    """The first may be for wg0 alone and the second for eth0: nothing says that both are for the same interface."""
    text = f"""$ iptables -L
Chain INPUT (policy {policy})
target prot opt source destination
ACCEPT all -- anywhere anywhere
DROP all -- anywhere anywhere

Chain FORWARD (policy ACCEPT)
target prot opt source destination

Chain OUTPUT (policy ACCEPT)
target prot opt source destination
"""
    asked = examine(pasted(WHOLE.replace(NO_FIREWALL, text)), [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert asked.supposed == ()


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_a_line_among_rules_that_is_not_understood_is_not_passed_over(policy):
    """Behind it more rules may be lost: whatever the policy, the chain decides nothing. A prompt or a blank line ends it."""
    text = CHAINS.replace("policy ACCEPT 0 packets", f"policy {policy} 0 packets", 1).replace(
        " DROP       tcp  --", " DROP       ~~   --"
    )
    asked = examine(pasted(WHOLE.replace(NO_FIREWALL, text)), [_to_port()]).findings[0]
    assert asked.supposed == ()
    for ending in ("", "\n\nwhat should I do?\n", "$ uname -a\nLinux\n", "root@pod:/#\n"):
        assert "-j not-understood" not in listed(CHAINS + ending)
    assert "-A f2b -j not-understood" in listed(CHAINS + "what should I do?\n")


def test_a_route_with_a_hosts_name_leaves_the_table_in_doubt():
    """`route` without -n: others may follow it, so table main is not taken for whole."""
    table = "Kernel IP routing table\nDestination Gateway Genmask Flags Metric Ref Use Iface\n"
    table += "0.0.0.0 10.0.0.1 0.0.0.0 UG 0 0 0 eth0\n"
    named = "office.example.com gw.example.com 255.255.0.0 UG 0 0 0 wg0\n"
    for text, whole in ((table, True), (table + named, False), (table + "\nany idea?\n", True)):
        snapshot = pasted(WHOLE.replace(ROUTES, "") + text + "$ uname -a\n")
        assert any(is_hole(each) for each in snapshot.routes if (each.family, each.table) == (4, 254)) is not whole


def test_chains_that_were_not_listed_decide_nothing():
    """`iptables -S INPUT` and a listing that was cut off: what FORWARD holds is not known."""
    said = listed("$ iptables -S INPUT\n-P INPUT ACCEPT\n")
    assert "-A FORWARD -j chain-not-listed" in said
    assert "-A INPUT" not in said


def test_two_tables_without_their_commands_are_told_apart():
    """Only nat has those chains; one table that was listed twice counts as it was listed last."""
    nat = "\n".join(f"Chain {name} (policy ACCEPT)\ntarget prot opt source destination" for name in
                    ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))  # fmt: skip
    said = listed(f"{CHAINS.partition(chr(10))[2]}\n{nat}\n{CHAINS}")
    assert said.count("*filter") == 1
    assert "*nat\n:PREROUTING ACCEPT [0:0]" in said


@pytest.mark.parametrize("cut", ["COMMIT\n", "}\n"])
def test_a_listing_that_was_cut_off_is_not_taken_for_whole(cut):
    """Without its end: the firewall was not read."""
    nft = "table inet f {\n\tchain in {\n\t\ttype filter hook input priority 0; policy accept;\n\t}\n}\n"
    text = WHOLE.replace(NO_FIREWALL, f"$ iptables-save\n{IPTABLES}$ nft list ruleset\n{nft}$ ip6tables-save\n")
    whole, broken = pasted(text), pasted(text.replace(cut, "", 1))
    assert whole.firewall.nft_json is not None
    assert whole.firewall.iptables_legacy is not None
    assert broken.firewall.nft_json is None or broken.firewall.iptables_legacy is None
    assert any("cut off" in each.why for each in broken.unread)
    assert not any(f.diagnosis.works or f.diagnosis.broken for f in examine(broken, [_to_port()]).findings)


def test_a_reject_of_the_text_may_be_for_one_family():
    """Nft's text hides `meta nfproto` before a reject in an inet table: unknown; supposing both families, refused."""
    nft = (
        "table inet f {\n\tchain in {\n\t\ttype filter hook input priority 0; policy accept;\n"
        "\t\ttcp dport 9000 reject\n\t\tip saddr 10.9.9.9 reject\n\t}\n}\n"
    )
    asked = examine(pasted(WHOLE.replace("$ nft list ruleset\n", nft)), [_to_port()]).findings[0]
    assert asked.diagnosis.cause is None
    assert len(asked.supposed) == 1
    assert "both families" in asked.supposed[0].words
    assert asked.supposed[0].diagnosis.cause is not None
    assert asked.supposed[0].diagnosis.cause.code == "input-drop"
    assert "tcp dport 9000 reject" in asked.supposed[0].diagnosis.cause.where


@pytest.mark.parametrize("instead", ["Chain INPUT (policy ACCEPT)\ntarget prot opt source destination\nDROP tcp -- anywhere anywhere\n",
                                     "Kernel IP routing table\nDestination Gateway Genmask Flags Metric Ref Use Iface\n10.9.0.0 10.0.0.1 255.255.0.0 UG 0 0 0 eth0\n"])  # fmt: skip
def test_outputs_that_say_less_are_named(instead):
    """With what to paste instead."""
    assert any("paste ip" in each.why for each in pasted(WHOLE.replace(ROUTES, "") + instead).unread)


def test_two_listings_of_one_kind():
    """The last counts, and that is said: before and after may both stand in a post."""
    after = "$ ip rule\n0:\tfrom all lookup local\n32766:\tfrom all lookup main\n32767:\tfrom all lookup default\n"
    snapshot = pasted(WHOLE + after)
    assert len([rule for rule in snapshot.rules if rule.family == 4]) == 3
    assert any("listed twice" in each.why for each in snapshot.unread)


def test_rules_whose_family_does_not_show():
    """Without a command, an address or table default it may be either: it is asked for."""
    bare = "0:\tfrom all lookup local\n32766:\tfrom all lookup main\n"
    snapshot = pasted(WHOLE.replace(RULES, bare))
    assert any("IPv4's or IPv6's?" in each.why for each in snapshot.unread)
    both = pasted(WHOLE.replace(RULES, RULES + bare))
    assert [rule.family for rule in both.rules] == [4] * 5 + [6] * 2


def test_nothing_recognized_is_no_snapshot():
    """A story, an empty text."""
    assert read_paste("", now=0.0) is None
    assert read_paste("My tunnel is broken, please help. ip rule shows nothing strange.\n", now=0.0) is None


@pytest.mark.parametrize(
    ("line", "program", "family"),
    [
        ("root@pod:/# ip -6 rule", "ip", 6),
        ("$ sudo ip rule show", "ip", 0),
        ("[root@node ~]# kubectl exec -it pod -c wg -- ip route show table all", "ip", 0),
        ("~ # ip netns exec blue ip6tables-save", "ip6tables-save", 6),
        ("=== ip rule ===", "ip", 0),
        ("+ /sbin/ip -4 rule", "ip", 4),
        ("bash-5.1# iptables-save | head", "iptables-save", 4),
        ("docker exec wg nft list ruleset", "nft", 0),
    ],
)
def test_commands_are_found_behind_prompts_and_wrappers(line, program, family):
    """The program, and the family that it was asked for."""
    command = command_of(line)
    assert command is not None
    assert (command.program, command.family) == (program, family)


@pytest.mark.parametrize(
    "line", ["", "the ip of my pod", "# Generated by iptables-save v1.8.9 on", "wg0 is up", "ss", "cat and dog"]
)
def test_prose_is_no_command(line):
    """A word alone is none."""
    assert command_of(line) is None
