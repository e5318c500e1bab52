# SPDX-License-Identifier: Apache-2.0
"""pyroute2's message classes with the attributes that newer kernels send (seen on Linux 6.18).

The compiled tables are inherited and would hide new entries, so each subclass resets them. pyroute2 0.9.7 numbers
fibmsg's map by hand and rtmsg's by position; the two forms do not mix.
"""

# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg


class RuleMessage(fibmsg):
    """struct fib_rule_hdr and its attributes (linux/fib_rules.h)."""

    _nlmsg_base__compiled_nla = _nlmsg_base__compiled_ft = False
    nla_map = (
        *fibmsg.nla_map,
        (25, "FRA_DSCP", "uint8"),  # Linux 6.13
        (26, "FRA_FLOWLABEL", "be32"),
        (27, "FRA_FLOWLABEL_MASK", "be32"),
        (28, "FRA_SPORT_MASK", "uint16"),  # Linux 6.15
        (29, "FRA_DPORT_MASK", "uint16"),
        (30, "FRA_DSCP_MASK", "uint8"),
    )


class RouteMessage(rtmsg):
    """struct rtmsg and its attributes (linux/rtnetlink.h)."""

    _nlmsg_base__compiled_nla = _nlmsg_base__compiled_ft = False
    nla_map = (
        *rtmsg.nla_map,
        ("RTA_PAD", "hex"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "be16"),
        ("RTA_DPORT", "be16"),
        ("RTA_NH_ID", "uint32"),
        ("RTA_FLOWLABEL", "be32"),
    )


LinkMessage = ifinfmsg
AddressMessage = ifaddrmsg
NeighbourMessage = ndmsg

POLICY: dict[int, Any] = {
    rtnl.RTM_NEWRULE: RuleMessage,
    rtnl.RTM_DELRULE: RuleMessage,
    rtnl.RTM_GETRULE: RuleMessage,
    rtnl.RTM_NEWROUTE: RouteMessage,
    rtnl.RTM_DELROUTE: RouteMessage,
    rtnl.RTM_GETROUTE: RouteMessage,
}
