# SPDX-License-Identifier: Apache-2.0
"""Rules and routes in iproute2's words. tests/netns/test_kernel_spelling.py holds them against iproute2 itself."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from wicketgate.netpath.snapshot import Address, NextHop, Route, Rule
from wicketgate.netpath.spelling import list_rule, route_command, rule_command, spell_address, spell_route, spell_rule

DEFAULT = ip_network("0.0.0.0/0")


def test_the_rules_that_wg_quick_adds_read_as_ip_rule_prints_them():
    """The two rules of DESIGN section 1, word for word."""
    marked = Rule(4, 32765, table=51820, invert=True, fwmark=51820, fwmask=0xFFFFFFFF)
    assert list_rule(marked) == "32765:\tnot from all fwmark 0xca6c lookup 51820"
    suppress = Rule(4, 32764, table=254, suppress_prefixlength=0)
    assert list_rule(suppress) == "32764:\tfrom all lookup main suppress_prefixlength 0"


@pytest.mark.parametrize(
    ("rule", "spelled"),
    [
        (Rule(4, 9, src=ip_network("10.0.0.2"), table=254, protocol=87), "from 10.0.0.2 lookup main proto 87"),
        (Rule(6, 9, src=ip_network("fd00::/64"), dst=ip_network("::1"), table=255), "from fd00::/64 to ::1 lookup local"),
        (Rule(4, 9, fwmark=0, fwmask=0xFF, table=5), "from all fwmark 0/0xff lookup 5"),
        (Rule(4, 9, ipproto=6, sport=(9000, 9000), dport=(1, 2), table=254), "from all ipproto tcp sport 9000 dport 1-2 lookup main"),
        (Rule(4, 9, action="goto", goto=500), "from all goto 500"),
        (Rule(4, 9, action="prohibit", uid_range=(0, 0)), "from all uidrange 0-0 prohibit"),
        (Rule(4, 9, table=3, unknown=("FRA_DSCP 4",)), "from all lookup 3 [FRA_DSCP 4]"),
    ],
)  # fmt: skip
def test_rules(rule, spelled):
    """Each selector and action stands where `ip rule` prints it."""
    assert spell_rule(rule) == spelled


def test_commands_leave_nothing_to_the_tools_defaults():
    """What we log can be typed: priority, table, protocol and scope are always said."""
    rule = Rule(4, 100, src=ip_network("10.0.0.2"), table=254, protocol=87)
    assert rule_command("add", rule) == "ip -4 rule add from 10.0.0.2 lookup main pref 100 protocol 87"
    route = Route(DEFAULT, table=51820, nexthops=(NextHop("wg0"),), protocol=87, scope=253)
    assert route_command("add", route) == "ip -4 route add default dev wg0 table 51820 proto 87 scope link"


@pytest.mark.parametrize(
    ("route", "spelled"),
    [
        (
            Route(DEFAULT, nexthops=(NextHop("eth0", ip_address("169.254.1.1"), flags=4),), protocol=3),
            "default via 169.254.1.1 dev eth0 onlink",
        ),
        (
            Route(ip_network("10.0.0.0/24"), nexthops=(NextHop("e0"),), protocol=2, scope=253, prefsrc=ip_address("10.0.0.1")),
            "10.0.0.0/24 dev e0 proto kernel scope link src 10.0.0.1",
        ),
        (Route(ip_network("10.6.0.0/24"), type="blackhole", protocol=3), "blackhole 10.6.0.0/24"),
        (
            Route(DEFAULT, protocol=3, nexthops=(NextHop("a", weight=2), NextHop("b", ip_address("fd00::1")))),
            "default nexthop dev a weight 2 nexthop via inet6 fd00::1 dev b weight 1",
        ),
        (Route(ip_network("fd00::/8"), protocol=3, metric=7, nexthops=(NextHop("e0"),), metrics={"mtu": "lock 1400"}), "fd00::/8 dev e0 metric 7 mtu lock 1400"),
    ],
)  # fmt: skip
def test_routes(route, spelled):
    """Each part stands where `ip route` prints it, in one line."""
    assert spell_route(route) == spelled


def test_addresses():
    """With the other end where there is one."""
    assert spell_address(Address("wg0", 4, ip_interface("10.8.0.1/24"))) == "10.8.0.1/24 dev wg0"
    peer = Address("ppp0", 4, ip_interface("10.8.0.1/32"), peer=ip_address("10.8.0.2"))
    assert spell_address(peer) == "10.8.0.1 peer 10.8.0.2/32 dev ppp0"
