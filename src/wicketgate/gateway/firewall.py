# SPDX-License-Identifier: Apache-2.0
"""Forwarding, address translation and MSS clamping, as one nftables table of our own.

Nobody else's rule is read, changed or flushed. An accept here does not overrule a foreign drop (every base chain of a
hook has its say), so this table only drops what must not pass and translates what leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import collapse_addresses

from wicketgate.config.settings import Role
from wicketgate.kernel import nft
from wicketgate.netpath.snapshot import IPNetwork


def table_name(ifname: str) -> str:
    """The name of the table that belongs to a tunnel."""
    return nft.table_name(ifname)


def _set(networks: Iterable[IPNetwork], version: int) -> str:
    members = [n for n in networks if n.version == version and n.prefixlen > 0]
    return ", ".join(str(n) for n in collapse_addresses(members))  # type: ignore[type-var]


def render(ifname: str, *, role: Role, clients: Iterable[IPNetwork]) -> str:
    """The table as `nft -f -` takes it, replacing what was there in one transaction.

    Args:
        ifname: the tunnel.
        role: `server` translates clients that leave by an uplink, `exit` what leaves by the tunnel.
        clients: the networks behind the tunnel: the interface's own and the peers' allowed-ips, without a default.

    The first two lines make deletion possible whether or not the table exists.
    """
    networks = tuple(clients)
    name = table_name(ifname)
    lines = [f"table inet {name}", f"delete table inet {name}", f"table inet {name} {{"]
    lines += [
        "  chain forward {",
        "    type filter hook forward priority mangle; policy accept;",
        # Without this a client behind a smaller path MTU loses its big segments in silence.
        f'    iifname "{ifname}" tcp flags syn tcp option maxseg size set rt mtu',
        f'    oifname "{ifname}" tcp flags syn tcp option maxseg size set rt mtu',
        # The instance metadata service gives out credentials: a VPN client has no business there.
        f'    iifname "{ifname}" ip daddr 169.254.169.254 drop',
        f'    iifname "{ifname}" ip6 daddr fd00:ec2::254 drop',
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
    ]
    if role is Role.EXIT:
        lines += [f'    oifname "{ifname}" masquerade']
    else:
        for keyword, version in (("ip", 4), ("ip6", 6)):
            members = _set(networks, version)
            if members:
                lines += [f'    {keyword} saddr {{ {members} }} oifname != {{ "lo", "{ifname}" }} masquerade']
    lines += ["  }", "}"]
    return "\n".join(lines) + "\n"
