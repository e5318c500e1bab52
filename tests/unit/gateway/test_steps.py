# SPDX-License-Identifier: Apache-2.0
"""From what is there to what should be: the least steps, and none against what is not ours."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from wicketgate.config import wgquick
from wicketgate.config.settings import Role
from wicketgate.gateway.desired import desire
from wicketgate.gateway.live import Live
from wicketgate.gateway.pins import pin
from wicketgate.gateway.steps import tunnel_steps
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import LINK_ALIAS, ROUTE_PROTOCOL
from wicketgate.netpath.snapshot import Address, Link, NextHop, Route, Rule
from wicketgate.wireguard.keys import PrivateKey

TEXT = f"""[Interface]
PrivateKey = {PrivateKey.generate().expose_base64()}
Address = 10.8.0.1/24, fd00:8::1/64
[Peer]
PublicKey = {PrivateKey.generate().public()}
AllowedIPs = 0.0.0.0/0, 10.50.0.0/16
"""
DESIRED = desire(wgquick.parse(TEXT, path="wg0.conf"), ifname="wg0", role=Role.EXIT, uplinks=())
NETLINK = Netlink()  # never opened: steps are only looked at
LINK = Link(7, "wg0", kind="tun", mtu=DESIRED.mtu, up=True, alias=LINK_ALIAS)
ADDRESSES = tuple(Address("wg0", 7, i) for i in DESIRED.addresses)
PERFECT = Live((LINK,), ADDRESSES, DESIRED.routes, DESIRED.rules)


def spelled(live: Live, **more) -> list[str]:
    return [s.spelled for s in tunnel_steps(DESIRED, live, NETLINK, **more)]


def test_nothing_is_done_where_all_is_well():
    """Also with others' rules, routes and the kernel's own link-local address around."""
    own = Address("wg0", 7, ip_interface("fe80::1/64"), scope=253)
    foreign = Route(ip_network("10.1.0.0/16"), nexthops=(NextHop(oif="wg0"),), protocol=3)
    rule = Rule(4, 100, table=7, protocol=3)
    live = replace(
        PERFECT, addresses=(*ADDRESSES, own), routes=(*DESIRED.routes, foreign), rules=(*DESIRED.rules, rule)
    )
    assert spelled(live, stale=(rule,)) == []


def test_a_fresh_device_gets_everything_in_an_order_that_works():
    """Alias, MTU and addresses, then up, then routes (they need the link up), then the rules that use them."""
    found = spelled(Live((), (), (), ()))
    order = [
        "alias",
        "mtu",
        "10.8.0.1/24",
        "fd00:8::1/64",
        " up",
        "0.0.0.0/0" if "0.0.0.0/0" in str(found) else "default",
    ]
    places = [next(i for i, text in enumerate(found) if word in text) for word in order]
    assert places == sorted(places)
    assert max(i for i, t in enumerate(found) if " route " in t) < min(i for i, t in enumerate(found) if " rule " in t)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"links": (replace(LINK, up=False),)}, "wg0 up"),
        ({"links": (replace(LINK, mtu=1500),)}, f"wg0 mtu {DESIRED.mtu}"),
        ({"addresses": ADDRESSES[1:]}, "ip -4 address add 10.8.0.1/24 dev wg0"),
        ({"routes": DESIRED.routes[1:]}, "default dev wg0 table 51820"),
        ({"rules": DESIRED.rules[1:]}, "rule add"),
    ],
)
def test_one_thing_missing_is_one_step(change, word):
    """No more than what is missing."""
    found = spelled(replace(PERFECT, **change))
    assert len(found) == 1
    assert word in found[0]


def test_only_what_is_tagged_and_not_wanted_goes():
    """Our old route and a foreign address on our interface go; somebody else's route stays."""
    old = Route(ip_network("10.60.0.0/16"), nexthops=(NextHop(oif="wg0"),), protocol=ROUTE_PROTOCOL)
    theirs = replace(old, dst=ip_network("10.61.0.0/16"), protocol=4)
    elsewhere = replace(old, dst=ip_network("10.62.0.0/16"), nexthops=(NextHop(oif="wg1"),))
    stray = Address("wg0", 7, ip_interface("10.66.0.1/24"))
    found = spelled(replace(PERFECT, routes=(*DESIRED.routes, old, theirs, elsewhere), addresses=(*ADDRESSES, stray)))
    assert len(found) == 2
    assert "address del 10.66.0.1/24" in found[0]
    assert "10.60.0.0/16" in found[1]


def test_tagged_rules_of_another_tunnel_stay():
    """A rule does not tell whose it is: it goes only where the caller says that it is a leftover; pins and doors never."""
    other = Rule(4, 32700, table=51821, invert=True, fwmark=5, fwmask=0xFFFFFFFF, protocol=ROUTE_PROTOCOL)
    a_pin = pin(ip_interface("10.0.0.5/24").ip, 90)
    door = Rule(4, 7, table=254, src=ip_network("10.0.0.5/32"), dst=ip_network("192.0.2.1/32"), protocol=ROUTE_PROTOCOL)
    live = replace(PERFECT, rules=(*DESIRED.rules, other, a_pin, door))
    assert spelled(live) == []
    found = spelled(live, stale=live.rules)
    assert len(found) == 1
    assert "51821" in found[0]
