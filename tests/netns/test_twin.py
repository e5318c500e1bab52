# SPDX-License-Identifier: Apache-2.0
"""Fixes proved in a twin, and what the model cannot tell, decided there."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from netns.twins import LISTENER, examined, lacking, look, proofs, stranger_to, told, uplinked, with_tunnel
from wicketgate.doctor.examine import examine
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import ListeningSocket, PeerState
from wicketgate.netpath.step import FilterStep
from wicketgate.netpath.verdict import Verdict

BOTH = ("model", "twin")
CLIENT = PeerState("C" * 43 + "=", (ip_address("198.51.100.7"), 40001), (ip_network("10.8.0.2/32"),))
GREEDY = PeerState("G" * 43 + "=", None, (ip_network("0.0.0.0/0"), ip_network("::/0")))
TUNNEL = "ip tuntap add wg0 mode tun; ip link set wg0 up mtu 1420; ip addr add 10.8.0.1/24 dev wg0"
CAPTURE = """
ip -4 route add 0.0.0.0/0 dev wg0 table 51820
ip -4 rule add not fwmark 51820 table 51820
ip -4 rule add table main suppress_prefixlength 0
"""
DROPS = {
    "nft": "nft 'add table inet f; add chain inet f c { type filter hook input priority 0; }'; "
    "nft add rule inet f c iifname eth0 tcp dport 9000 drop",
    "iptables-nft": "iptables-nft -A INPUT -i eth0 -p tcp --dport 9000 -j DROP",
    "iptables-legacy": "iptables-legacy -A INPUT -i eth0 -p tcp --dport 9000 -j DROP",
}
EGRESS = Concern(Kind.EGRESS, Flow(ip_address("10.8.0.2"), ip_address("203.0.113.9"), "tcp", 40000, 443, iif="wg0"))


@pytest.fixture
def place(new_host):
    """`place(script)`: a pod that the script made, looked at with a listener on 9000 (or others)."""

    def make(*script: str, listeners: tuple[ListeningSocket, ...] = (LISTENER,)):
        pod = new_host("pod")
        uplinked(pod, new_host("node"), *script)
        return look(pod, *listeners)

    return make


def the(examination):
    """The finding that was asked for."""
    assert len(examination.findings) == 1, examination
    return examination.findings[0]


def test_the_seeds_fixes_work_in_the_twin(place):
    """Source rule, sport rule and bound listener: proved by model and twin, without a note."""
    snapshot = with_tunnel(place(TUNNEL, CAPTURE), GREEDY)
    found = examined(snapshot, stranger_to())
    assert proofs(the(found)) == {
        "source-rule": BOTH, "sport-rule": BOTH, "mark-answers": BOTH, "bind-listener-to-uplink": BOTH,
    }  # fmt: skip
    assert told(found, "twin") == []


@pytest.mark.parametrize("tool", DROPS)
def test_an_accept_rule_works_in_the_twin(place, tool):
    """In each kind of firewall the rule that drops is rebuilt, and the accept before it is tried and undone."""
    found = examined(place(DROPS[tool]), stranger_to())
    assert the(found).diagnosis.cause.code == "input-drop"
    assert proofs(the(found)) == {"accept-rule": BOTH}
    assert told(found, "twin") == []
    assert the(found).fixes[0].side_effects == ()


def test_a_client_is_forwarded_and_translated_in_the_twin(place):
    """A packet out of the tunnel leaves by the uplink with its address, and its answer goes back into the tunnel."""
    snapshot = with_tunnel(place(TUNNEL, "sysctl -qw net.ipv4.ip_forward=0"), CLIENT)
    found = examined(snapshot, EGRESS)
    assert the(found).diagnosis.cause.code == "forwarding-off"
    assert proofs(the(found)) == {"forwarding+masquerade": BOTH}
    assert told(found, "twin") == []


def test_a_client_that_the_tunnel_captures_is_let_out_in_the_twin(place):
    """The peer that claims everything gets its client's packets back; the rule for clients cures it in the twin too."""
    script = (TUNNEL, CAPTURE, "sysctl -qw net.ipv4.ip_forward=1", "nft 'add table ip n; add chain ip n p { type nat hook "
              "postrouting priority srcnat; }'; nft add rule ip n p oifname eth0 masquerade")  # fmt: skip
    snapshot = with_tunnel(place(*script), CLIENT, GREEDY)
    found = examined(snapshot, EGRESS)
    assert the(found).diagnosis.cause.code == "server-peer-claims-default"
    assert proofs(the(found))["client-rule"] == BOTH


ROUTES = {
    "default-route": "ip route del default; ip route add default via 10.44.0.1 table 100",
    "remove-route": "ip route add blackhole 203.0.113.0/24",
    "remove-rule": "ip rule add to 203.0.113.0/24 pref 50 prohibit",
    "loose-rp-filter": "ip route add 203.0.113.0/24 dev e1; sysctl -qw net.ipv4.conf.eth0.rp_filter=1; "
    "ip rule add fwmark 7 lookup 100 pref 10; ip route add default via 10.44.0.1 table 100; "
    "nft 'add table ip m; add chain ip m o { type route hook output priority mangle; }; add rule ip m o tcp sport 9000 meta mark set 7'",
}


@pytest.mark.parametrize("fix", ROUTES)
def test_routes_rules_and_settings_are_mended_in_the_twin(place, fix):
    """The catalogue's other fixes: whichever the model proves, the twin proves too."""
    other = "ip link add e1 type veth peer name e1far; ip link set e1 up; ip link set e1far up; ip addr add 10.55.0.2/24 dev e1"
    snapshot = place(other, ROUTES[fix])
    alone = examine(snapshot, [stranger_to()])
    found = examined(snapshot, stranger_to())
    assert the(alone).diagnosis.broken
    assert [each.fix.id for each in the(found).fixes] == [each.fix.id for each in the(alone).fixes]
    assert set(proofs(the(found)).values()) <= {BOTH}, found.notes
    assert fix in proofs(the(found))


def test_a_listener_on_another_address_is_made_again(place):
    """A fix without commands: the socket is bound otherwise in the twin."""
    loopback = replace(LISTENER, address=ip_address("127.0.0.1"))
    found = examined(place(listeners=(loopback,)), stranger_to())
    assert the(found).diagnosis.cause.code == "listener-wrong-address"
    assert proofs(the(found)) == {"listen-address": BOTH}


# What the model cannot tell


def unsure(snapshot, concern):
    """The model alone cannot tell."""
    finding = the(examine(snapshot, [concern]))
    assert not finding.diagnosis.works
    assert not finding.diagnosis.broken
    return finding


def nft_input(rule: str) -> str:
    return f"nft 'add table inet f; add chain inet f c {{ type filter hook input priority 0; }}'; nft 'add rule inet f c {rule}'"


def test_a_limit_is_decided_by_the_twin(place):
    """A limit that nobody reaches: it works, the way is the kernel's own, the verdicts are the contract's."""
    snapshot = place(nft_input("tcp dport 9000 limit rate over 1000/second drop"))
    unsure(snapshot, stranger_to())
    found = examined(snapshot, stranger_to())
    assert found.works, found
    assert the(found).diagnosis.verdicts == (Verdict.DELIVERED, Verdict.FORWARDED)
    assert told(found, "the twin decided")
    assert any(isinstance(step, FilterStep) and "policy accept" in step.object for step in the(found).diagnosis.steps)


def test_what_an_unknown_match_drops_is_named_by_the_kernels_trace(place):
    """A match that the model does not know and that always holds: broken, with the very rule from the kernel's trace as the cause."""
    snapshot = place(nft_input("tcp dport 9000 tcp window > 100 drop"))
    unsure(snapshot, stranger_to())
    found = examined(snapshot, stranger_to())
    cause = the(found).diagnosis.cause
    assert found.exit_code == 1
    assert cause.code == "input-drop"
    assert "tcp window > 100" in cause.where
    assert the(found).diagnosis.verdicts[0] is Verdict.DROPPED


def test_what_chance_decides_stays_unknown(place):
    """Half of the packets are dropped: nobody decides, and the count is told."""
    snapshot = place("iptables-nft -A INPUT -p tcp --dport 9000 -m statistic --mode nth --every 2 --packet 0 -j DROP")
    unsure(snapshot, stranger_to())
    found = examined(snapshot, stranger_to())
    assert found.exit_code == 3
    assert "in the twin 16 of 32 tries worked" in the(found).diagnosis.unknown


def test_several_default_routes_of_one_metric_are_decided_by_the_twin(place):
    """Two routes by one uplink: the model does not choose, and in the twin every stranger is answered."""
    snapshot = place("ip route add default metric 5 nexthop via 10.44.0.1 nexthop via 10.44.0.3")
    alone = the(examine(snapshot, [stranger_to()])).diagnosis
    found = examined(snapshot, stranger_to())
    assert found.works, (alone, found)


def test_a_listing_that_hides_the_order_is_not_decided(place):
    """Two chains of one priority in two tables: which was first is not in the listings, and the twin does not guess."""
    snapshot = place(
        "nft 'add table ip a; add chain ip a c { type filter hook prerouting priority -150; }; add rule ip a c tcp dport 9000 meta mark set 1'",
        "nft 'add table ip b; add chain ip b c { type filter hook prerouting priority -150; }; add rule ip b c meta mark 1 drop'",
    )
    unsure(snapshot, stranger_to())
    assert not examined(snapshot, stranger_to()).broken


# What cannot be rebuilt


def test_what_cannot_be_rebuilt_is_named_and_proves_nothing(place):
    """A device of a kind that is not stood in for: the note names it, and the fixes are the model's alone."""
    snapshot = with_tunnel(place(TUNNEL, CAPTURE), GREEDY)
    odd = replace(snapshot.link("eth0"), index=77, name="gre7", kind="gre")
    found = examined(replace(snapshot, links=(*snapshot.links, odd)), stranger_to())
    assert told(found, "cannot be rebuilt: gre7")
    assert set(proofs(the(found)).values()) == {("model",)}


def test_a_setting_that_is_not_in_the_snapshot_is_missed(place):
    """A bundle without rp_filter: the twin would have its own, so it proves nothing."""
    snapshot = place(DROPS["nft"])
    values = {k: v for k, v in snapshot.sysctls.items() if k != "net.ipv4.conf.eth0.accept_local"}
    assert "IPv4: net.ipv4.conf.eth0.accept_local is not in the snapshot" in lacking(replace(snapshot, sysctls=values))


def test_a_fix_that_the_twin_contradicts_is_not_shown(place, monkeypatch):
    """The model is made to believe that a route to nowhere cures: it is dropped, and a note says what was seen."""
    from wicketgate.doctor import fixes
    from wicketgate.doctor.change import Fix

    snapshot = place("ip route add blackhole 203.0.113.0/24")
    real = fixes._MAKERS["blackhole-route"]

    def lying(snapshot, diagnosis):
        for fix in real(snapshot, diagnosis):
            yield Fix("a-lie", "does nothing", ("sysctl -w net.ipv4.conf.eth0.log_martians=1",),
                      ("sysctl -w net.ipv4.conf.eth0.log_martians=0",), fix.apply)  # fmt: skip

    monkeypatch.setattr(fixes, "_MAKERS", {"blackhole-route": lying})
    assert [each.fix.id for each in the(examine(snapshot, [stranger_to()])).fixes] == ["a-lie"]
    found = examined(snapshot, stranger_to())
    assert the(found).fixes == ()
    assert told(found, "not shown, because the twin contradicts the model: a-lie")


def test_an_undo_that_does_not_undo_is_told(place, monkeypatch):
    """Its side effect says so, and the twin is built anew for what comes after."""
    from wicketgate.doctor import fixes

    snapshot = place("ip route add blackhole 203.0.113.0/24")
    real = fixes._MAKERS["blackhole-route"]

    def careless(snapshot, diagnosis):
        for fix in real(snapshot, diagnosis):
            yield replace(fix, undo=())
            yield replace(fix, id="twice", words="again")

    monkeypatch.setattr(fixes, "_MAKERS", {"blackhole-route": careless})
    found = {each.fix.id: each for each in the(examined(snapshot, stranger_to())).fixes}
    assert "its undo does not take back everything" in found["remove-route"].side_effects[0]
    assert found["twice"].side_effects == ()
    assert found["twice"].proved_by == BOTH
