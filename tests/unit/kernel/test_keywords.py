# SPDX-License-Identifier: Apache-2.0
"""No keyword reaches the kernel unchecked: pyroute2 drops the ones it does not know in silence."""

from __future__ import annotations

import pytest

from wicketgate.kernel.devconf import DevconfMessage, check_key
from wicketgate.kernel.keywords import UnknownKeyword, attribute_names, compose
from wicketgate.kernel.messages import LinkMessage, RouteMessage, RuleMessage


@pytest.mark.parametrize(
    ("message", "fields", "attributes", "hint"),
    [
        (RuleMessage, {}, {"FRA_SUPPRESS_PREFIXLENGTH": 0}, "did you mean FRA_SUPPRESS_PREFIXLEN?"),
        (RuleMessage, {"tabel": 3}, {}, "did you mean table?"),
        (RouteMessage, {}, {"RTA_FIBMATCH": True}, "RouteMessage has no attribute 'RTA_FIBMATCH'"),
        (LinkMessage, {}, {"IFLA_ALIAS": "x"}, "did you mean IFLA_IFALIAS?"),
        (RuleMessage, {}, {"suppress_prefixlen": 0}, "RuleMessage has no attribute 'suppress_prefixlen'"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_one(message, fields, attributes, hint):
    """iproute2's spelling, pyroute2's short one and plain typos are errors before the kernel is asked."""
    with pytest.raises(UnknownKeyword) as caught:
        compose(message, fields, attributes)
    assert hint in str(caught.value)


def test_a_message_holds_what_was_given_and_nothing_else():
    """None leaves an attribute out; header fields default to 0."""
    message = compose(RuleMessage, {"family": 2, "flags": 2}, {"FRA_PRIORITY": 0, "FRA_SRC": None})
    assert message["attrs"] == [["FRA_PRIORITY", 0]]
    assert (message["family"], message["flags"], message["action"]) == (2, 2, 0)


def test_newer_attributes_have_their_kernel_numbers():
    """Rtmsg's map is numbered by position: RTA_NH_ID must come out as 30 (linux/rtnetlink.h), FRA_DPORT_MASK as 29."""
    assert attribute_names(RouteMessage).index("RTA_NH_ID") == 30
    message = compose(RouteMessage, {"family": 2}, {"RTA_NH_ID": 7})
    message.encode()
    assert message.data[-8:] == (8).to_bytes(2, "little") + (30).to_bytes(2, "little") + (7).to_bytes(4, "little")
    rule = compose(RuleMessage, {"family": 2}, {"FRA_DPORT_MASK": 0xFFFF})
    rule.encode()
    assert int.from_bytes(rule.data[-6:-4], "little") == 29


def test_devconf_goes_out_by_number():
    """src_valid_mark is IPV4_DEVCONF_SRC_VMARK, 24 (linux/ip.h), nested three deep."""
    spec = {"attrs": [["AF_INET", {"attrs": [["IFLA_INET_CONF", {"attrs": [["src_valid_mark", 1]]}]]}]]}
    message = compose(DevconfMessage, {"index": 5}, {"IFLA_AF_SPEC": spec})
    message.encode()
    kinds = [int.from_bytes(message.data[at + 2 : at + 4], "little") & 0x3FFF for at in (32, 36, 40, 44)]
    assert kinds == [26, 2, 1, 24]
    with pytest.raises(ValueError, match="allowed: forwarding, rp_filter"):
        check_key("rpfilter")
