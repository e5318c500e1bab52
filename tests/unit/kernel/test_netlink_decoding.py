# SPDX-License-Identifier: Apache-2.0
"""Messages of the kernel, byte by byte, that a test kernel cannot be made to send."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.exceptions import NetlinkError

from wicketgate.kernel import decode
from wicketgate.kernel.connection import NLM_F_DUMP_INTR, CheckingMarshal
from wicketgate.kernel.encode import route_parts, rule_parts
from wicketgate.kernel.plain_routes import PlainRoute
from wicketgate.netpath.snapshot import NextHop, Route, Rule

RTM_NEWROUTE, RTM_NEWRULE, NLMSG_DONE = 24, 32, 3
NLM_F_MULTI = 2
NAMES = {1: "lo", 2: "e0", 3: "e1"}


def attribute(number, payload):
    padding = b"\0" * (-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), number) + payload + padding


def u32(value):
    return struct.pack("=I", value)


def message(kind, body, *, flags=NLM_F_MULTI, sequence=1):
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def parse(data, marshal=None):
    return list((marshal or CheckingMarshal()).parse(data))


def route_message(*attributes, family=socket.AF_INET, dst_len=0, kind=1, flags=0, table=254):
    header = struct.pack("=BBBBBBBBI", family, dst_len, 0, 0, table, 3, 0, kind, flags)
    return message(RTM_NEWROUTE, header + b"".join(attributes))


def rule_message(*attributes, action=1, flags=0, table=254):
    return message(
        RTM_NEWRULE,
        struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, table, 0, 0, action, flags) + b"".join(attributes),
    )


def route_of(*args, **kwargs):
    return decode.route(parse(route_message(*args, **kwargs))[0], NAMES.__getitem__)


def rule_of(*args, **kwargs):
    return decode.rule(parse(rule_message(*args, **kwargs))[0])


def test_an_attribute_of_a_later_kernel_lands_in_unknown():
    """A number that nobody knows yet is named by its number, in routes and rules alike."""
    assert route_of(attribute(4, u32(2)), attribute(99, b"abcd")).unknown == ("attribute 99",)
    assert rule_of(attribute(77, b"\1")).unknown == ("attribute 77",)


@pytest.mark.parametrize(
    ("number", "payload", "name"),
    [(25, b"\x08", "FRA_DSCP 8"), (28, b"\x00\xff", "FRA_SPORT_MASK 0xff00"), (11, u32(5), "FRA_FLOW 5")],
)
def test_selectors_without_a_field_of_their_own_are_named(number, payload, name):
    """No verdict may rest on a rule whose selector the model cannot express."""
    assert rule_of(attribute(number, payload)).unknown == (name,)


def test_a_full_port_mask_is_no_news():
    """Linux 6.15 and later send FRA_DPORT_MASK with every rule that has a dport."""
    rule = rule_of(attribute(24, struct.pack("=HH", 80, 80)), attribute(29, b"\xff\xff"))
    assert (rule.dport, rule.unknown) == ((80, 80), ())


def test_what_is_missing_has_its_own_meaning():
    """Priority 0 is a missing attribute; 4294967295 is an unset suppressor; other actions have no table."""
    rule = rule_of(attribute(14, u32(0xFFFFFFFF)), attribute(13, u32(0xFFFFFFFF)))
    assert (rule.priority, rule.suppress_prefixlength, rule.suppress_ifgroup) == (0, None, None)
    assert rule_of(attribute(14, u32(0))).suppress_prefixlength == 0
    assert rule_of(action=7, table=0).table == 0


def test_an_unknown_action_or_flag_of_a_rule_is_named():
    """An action number that is not in linux/fib_rules.h, and a flag bit likewise."""
    assert rule_of(action=5).unknown == ("action 5",)
    assert rule_of(flags=0x100 | 0x2).unknown == ("flags 0x100",)


def test_a_nexthop_object_without_its_ways_is_named():
    """With nexthop_compat_mode=0 the kernel sends the object's number alone: nobody can say where that leads."""
    route = route_of(attribute(30, u32(7)))
    assert (route.nh_id, route.nexthops, route.unknown) == (7, (), ("RTA_NH_ID",))
    assert route_of(attribute(30, u32(7)), attribute(4, u32(2))).unknown == ()


def test_multipath_and_a_gateway_of_the_other_family():
    """RTA_MULTIPATH's weights count from 0; RTA_VIA carries its own family."""
    via = attribute(18, struct.pack("=H", socket.AF_INET6) + ip_address("fd00::1").packed)
    hop = struct.pack("=HBBi", 8 + len(via), 4, 2, 3) + via
    plain = struct.pack("=HBBi", 8, 0, 0, 2)
    route = route_of(attribute(9, hop + plain))
    assert route.nexthops == (NextHop("e1", ip_address("fd00::1"), 3, 4), NextHop("e0", None, 1, 0))


def test_locked_metrics_read_as_iproute2_writes_them():
    """RTAX_LOCK is a bit mask by attribute number."""
    metrics = attribute(1, u32(1 << 2)) + attribute(2, u32(1400)) + attribute(8, u32(1360))
    assert dict(route_of(attribute(8, metrics)).metrics) == {"mtu": "lock 1400", "advmss": "1360"}


def test_an_interrupted_dump_is_noticed_in_any_of_its_messages():
    """pyroute2 never raises NLM_F_DUMP_INTR; the flag may stand on the closing message alone."""
    for data in (
        message(RTM_NEWRULE, rule_message()[16:], flags=NLM_F_MULTI | NLM_F_DUMP_INTR, sequence=9),
        message(NLMSG_DONE, u32(0), flags=NLM_F_MULTI | NLM_F_DUMP_INTR, sequence=9),
    ):
        marshal = CheckingMarshal()
        parse(data, marshal)
        assert marshal.interrupted == {9}
    marshal = CheckingMarshal()
    parse(rule_message(), marshal)
    assert not marshal.interrupted


def test_an_error_at_the_end_of_a_dump_is_an_error():
    """NLMSG_DONE carries the dump's own return code, which pyroute2 drops."""
    (done,) = parse(message(NLMSG_DONE, struct.pack("=i", -errno.ENOENT)))
    error = done["header"]["error"]
    assert isinstance(error, NetlinkError)
    assert error.code == errno.ENOENT
    (done,) = parse(message(NLMSG_DONE, struct.pack("=i", 0)))
    assert done["header"]["error"] is None


def test_a_mark_without_a_mask_is_never_written():
    """`fwmark 0xca6c/0` matches every packet: a forgotten mask must not become a hijack."""
    with pytest.raises(ValueError, match="matches everything"):
        rule_parts(Rule(4, 1, fwmark=51820, table=254))


def test_what_is_not_understood_is_never_written():
    """A rule or route with unknown attributes cannot be put back as it was, so it is not tried."""
    with pytest.raises(ValueError, match="FRA_DSCP 8"):
        rule_parts(Rule(4, 1, table=254, unknown=("FRA_DSCP 8",)))
    with pytest.raises(ValueError, match="RTA_ENCAP"):
        route_parts(Route(ip_network("::/0"), unknown=("RTA_ENCAP",)), int)
    with pytest.raises(ValueError, match=r"allowed: .*unicast"):
        route_parts(Route(ip_network("::/0"), type="unicats"), int)
    with pytest.raises(ValueError, match="allowed: mtu"):
        route_parts(Route(ip_network("::/0"), metrics={"mtuu": "1"}), int)


WAYS = st.fixed_dictionaries(
    {},
    optional={
        1: st.binary(min_size=16, max_size=16), 4: st.sampled_from([2, 3]), 5: st.binary(min_size=16, max_size=16),
        6: st.integers(0, 2**32 - 1), 7: st.binary(min_size=16, max_size=16), 15: st.integers(0, 2**32 - 1),
        20: st.sampled_from([0, 1, 3]), 12: st.just(bytes(32)), 16: st.just(5), 30: st.integers(1, 9), 23: st.just(60),
    },
)  # fmt: skip


@given(
    WAYS,
    st.sampled_from([socket.AF_INET, socket.AF_INET6]),
    st.integers(0, 128),
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 16, 0x200]),
    st.permutations(range(11)),
)
def test_plain_routes_are_decoded_as_pyroute2_does(ways, family, dst_len, kind, flags, order):  # noqa: PLR0917
    """A route of a dump gives the same value as the same message outside of one, which pyroute2 decodes."""
    width = 4 if family == socket.AF_INET else 16
    parts = [
        attribute(number, value[:width] if number in (1, 5, 7) else bytes([value]) if number == 20 else value)
        if isinstance(value, bytes) or number == 20
        else attribute(number, u32(value))
        for number, value in ways.items()
    ]
    parts = [parts[at] for at in order if at < len(parts)]
    body = struct.pack("=BBBBBBBBI", family, min(dst_len, width * 8), 0, 8, 254, 3, 253, kind, flags) + b"".join(parts)
    quick, slow = (parse(message(RTM_NEWROUTE, body, flags=each))[0] for each in (NLM_F_MULTI, 0))
    assert isinstance(quick, PlainRoute) == (not {16, 30} & ways.keys() and not ways.get(20))
    assert decode.route(quick, NAMES.__getitem__) == decode.route(slow, NAMES.__getitem__)
    assert (quick["family"], quick["flags"]) == (slow["family"], slow["flags"])
