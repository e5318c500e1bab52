# SPDX-License-Identifier: Apache-2.0
"""Where the model knows the end of a flow, the twin's kernel sees the same one: every protocol, sender and way to fail."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from netns.test_twin import CAPTURE, CLIENT, TUNNEL
from netns.twins import LISTENER, look, uplinked, with_tunnel
from wicketgate.doctor.firewall import filter_of
from wicketgate.doctor.twin_outcome import Judgement, contradicts
from wicketgate.errors import StateError
from wicketgate.kernel.twin.room import in_a_room
from wicketgate.kernel.twin.twin import Twin
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.diagnose import diagnose
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import ListeningSocket, PeerState
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

EXIT = PeerState("E" * 43 + "=", (ip_address("198.51.100.9"), 51820), (ip_network("0.0.0.0/0"), ip_network("::/0")))
DNS = ListeningSocket("udp", 4, ip_address("0.0.0.0"), 53, mark=0)
DUAL = ListeningSocket("tcp", 6, ip_address("::"), 9001, mark=0, v6only=False)
S4, S6, POD4, POD6 = "203.0.113.9", "2001:db8:203::9", "10.44.0.2", "fd44::2"
FORWARD = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"


def flow(source: str, destination: str, protocol: str, port: int = 0, iif: str | None = "eth0", **others) -> Concern:
    sport = 0 if protocol == "icmp" else 40000
    return Concern(Kind.ASKED, Flow(ip_address(source), ip_address(destination), protocol, sport, port, iif, **others))


def sent(destination: str, protocol: str, port: int = 0, uid: int = 0) -> Concern:
    return flow("::" if ":" in destination else "0.0.0.0", destination, protocol, port, None, uid=uid)


IN = [flow(S4, POD4, "tcp", 9000), flow(S4, POD4, "udp", 53), flow(S4, POD4, "icmp"), flow(S6, POD6, "icmp"),
      flow(S4, POD4, "tcp", 9001), flow(S6, POD6, "tcp", 9001)]  # fmt: skip
OUT = [sent(S4, "tcp", 443), sent(S4, "udp", 53), sent(S4, "icmp"), sent(S6, "tcp", 443), sent(S6, "udp", 53),
       sent(S6, "icmp")]  # fmt: skip
THROUGH = [flow("10.44.0.9", S4, "tcp", 443), flow("10.44.0.9", S4, "udp", 53), flow("fd44::9", S6, "tcp", 443)]
CASES: dict[str, tuple[list[str], list[Concern]]] = {
    "everything works": ([FORWARD], [*IN, *OUT]),
    "nobody listens": ([], [flow(S4, POD4, "tcp", 54), flow(S4, POD4, "udp", 54), flow(S6, POD6, "udp", 54)]),
    "echoes are ignored": (["sysctl -qw net.ipv4.icmp_echo_ignore_all=1"], [flow(S4, POD4, "icmp")]),
    "input rejects": (
        ["iptables-legacy -A INPUT -p tcp -j REJECT", "iptables-nft -A INPUT -p udp -j REJECT"],
        [flow(S4, POD4, "tcp", 9000), flow(S4, POD4, "udp", 53)],
    ),
    "output drops answers": (
        ["iptables-legacy -A OUTPUT -o eth0 -j DROP", "ip6tables-nft -A OUTPUT -o eth0 -p tcp -j DROP"],
        [*IN[:3], IN[5], sent(S4, "udp", 53)],
    ),
    "output rejects": (["iptables-nft -A OUTPUT -p tcp -j REJECT"], [sent(S4, "tcp", 443)]),
    "no way back": (["ip route del default", "ip -6 route del default"], [*IN, *OUT]),
    "blackholes": (["ip route add blackhole 203.0.113.0/24"], [*IN[:3], *OUT[:3]]),
    "a prohibiting rule": ([FORWARD, "ip rule add to 203.0.113.0/24 pref 50 prohibit"], [*IN[:3], *OUT[:3], THROUGH[0]]),
    "strict rp_filter": (
        ["sysctl -qw net.ipv4.conf.all.rp_filter=1", "ip route add blackhole 203.0.113.0/24"],
        [flow(S4, POD4, "tcp", 9000)],
    ),
    "martians": ([], [flow("127.0.0.5", POD4, "tcp", 9000), flow(POD4, POD4, "tcp", 9000)]),
    "nothing is forwarded": (["sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"], THROUGH[:2]),
    "destinations are translated": (
        [FORWARD, "nft 'add table ip n; add chain ip n p { type nat hook prerouting priority -100; }'",
         "nft 'add rule ip n p tcp dport 80 redirect to :9000; add rule ip n p tcp dport 81 dnat to 10.44.0.77; "
         "add rule ip n p tcp dport 82 dnat to 198.51.100.4'"],
        [flow(S4, POD4, "tcp", 80), flow(S4, POD4, "tcp", 81), flow(S4, POD4, "tcp", 82)],
    ),
    "a tunnel with an exit": (
        [TUNNEL, CAPTURE, FORWARD],
        [sent(S4, "tcp", 443), sent(S4, "udp", 53, uid=1000), flow(S4, POD4, "tcp", 9000),
         flow("10.8.0.2", "10.8.0.1", "tcp", 9000, "wg0"), flow("10.8.0.2", POD4, "icmp", iif="wg0"),
         flow("10.8.0.2", S4, "tcp", 443, "wg0"), flow("10.8.0.2", "10.44.0.9", "udp", 53, "wg0")],
    ),
    "a rule for a user": (
        ["ip rule add uidrange 1000-1000 pref 50 blackhole"], [sent(S4, "tcp", 443), sent(S4, "tcp", 443, uid=1000)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_twin_sees_what_the_model_says(new_host, case):
    """Verdicts of both ways, interfaces and translation."""
    script, concerns = CASES[case]
    pod = new_host("pod")
    uplinked(pod, new_host("node"), *script)
    snapshot = look(pod, LISTENER, DNS, DUAL)
    if TUNNEL in script:
        snapshot = with_tunnel(snapshot, CLIENT, EXIT)
    walker = Walker(snapshot, filter_of(snapshot))
    said = [diagnose(walker, concern) for concern in concerns]

    def play(tell):
        twin = Twin(snapshot)
        twin.build()
        judgement = Judgement(twin, snapshot)
        for found in said:
            outcome = judgement.of(found.concern)
            tell({"wrong": "" if found.unknown else contradicts(outcome, found)})

    told = list(in_a_room(play, seconds=60))
    wrong = [
        f"{found.concern.spelled()}: {each['wrong']}" for found, each in zip(said, told, strict=True) if each["wrong"]
    ]
    assert wrong == []
    assert not all(found.unknown for found in said)


def test_who_is_not_known_on_the_wire_is_not_made_up(new_host):
    """A bound socket asks the wire for a stranger: whether anybody answers there only the place itself knows."""
    pod = new_host("pod")
    uplinked(pod, new_host("node"), "ip route del default")
    snapshot = look(pod, replace(LISTENER, bound_device="eth0"))

    def play(tell):
        twin = Twin(snapshot)
        twin.build()
        judgement = Judgement(twin, snapshot)
        with pytest.raises(StateError, match=r"who answers for 203\.0\.113\.9 on eth0 is not known"):
            judgement.of(flow(S4, POD4, "tcp", 9000))
        tell({"then": judgement.of(flow("10.44.0.9", POD4, "tcp", 9000)).plain()})

    (told,) = in_a_room(play, seconds=60)
    assert Verdict(told["then"]["reply"]) is Verdict.FORWARDED
