# SPDX-License-Identifier: Apache-2.0
"""How what is ours is tagged. Only what carries these tags is ever removed."""

from __future__ import annotations

# rtm_protocol and FRA_PROTOCOL of every route and rule that Wicketgate adds: "W". Not in iproute2's rt_protos, so that
# `ip rule` prints the number and nobody mistakes it for a routing daemon.
ROUTE_PROTOCOL = 87

LINK_ALIAS = "wicketgate"

# Table names, each followed by the tunnel interface's name.
NFT_TABLE_PREFIX = "wicketgate-"
NFT_DOOR_TABLE_PREFIX = "wicketgate-door-"


def nft_table(ifname: str) -> str:
    """The nftables table of forwarding and translation for a tunnel."""
    return f"{NFT_TABLE_PREFIX}{ifname}"


def nft_door_table(ifname: str) -> str:
    """The nftables table of the door probe of a tunnel."""
    return f"{NFT_DOOR_TABLE_PREFIX}{ifname}"
