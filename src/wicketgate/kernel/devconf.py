# SPDX-License-Identifier: Apache-2.0
"""An interface's IPv4 configuration through netlink: /proc/sys is read-only in a container without `privileged`.

RTM_SETLINK with IFLA_AF_SPEC / AF_INET / IFLA_INET_CONF takes CAP_NET_ADMIN of the namespace and nothing else.
IPv6 has no such way (inet6_set_link_af() takes a token and an address mode only).
"""

# mypy: disable-error-code="no-untyped-call,assignment"

from __future__ import annotations

import errno
from typing import Literal, get_args

from pyroute2.netlink import nla, nlmsg, rtnl

from wicketgate.errors import KernelRefused
from wicketgate.kernel.connection import Connection
from wicketgate.kernel.messages import LinkMessage

DevconfKey = Literal[
    "forwarding",
    "rp_filter",
    "accept_local",
    "src_valid_mark",
    "route_localnet",
    "arp_filter",
    "arp_ignore",
    "arp_announce",
]
# linux/ip.h, IPV4_DEVCONF_*: sysctl's name, the number, and the name pyroute2 reads it by
_KEYS: dict[str, tuple[int, str]] = {
    "forwarding": (1, "forwarding"),
    "rp_filter": (8, "rp_filter"),
    "arp_filter": (13, "arpfilter"),
    "arp_announce": (18, "arp_announce"),
    "arp_ignore": (19, "arp_ignore"),
    "accept_local": (23, "accept_local"),
    "src_valid_mark": (24, "src_vmark"),
    "route_localnet": (26, "route_localnet"),
}


class DevconfMessage(nlmsg):
    """struct ifinfomsg with the one attribute that is written here."""

    prefix = "IFLA_"
    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = ((26, "IFLA_AF_SPEC", "af_spec"),)

    class af_spec(nla):  # noqa: N801 - pyroute2 finds it by this name
        """Nested by address family."""

        nla_map = ((2, "AF_INET", "inet"),)

        class inet(nla):  # noqa: N801
            """linux/if_link.h, IFLA_INET_*."""

            nla_map = ((1, "IFLA_INET_CONF", "conf"),)

            class conf(nla):  # noqa: N801
                """One u32 for each value, typed by its number."""

                nla_map = tuple((number, name, "uint32") for name, (number, _) in _KEYS.items())


def check_key(key: str) -> None:
    """Raise ValueError for a key that cannot be set this way."""
    if key not in _KEYS:
        raise ValueError(f"devconf {key!r}; allowed: {', '.join(get_args(DevconfKey))}")


async def read_devconf(connection: Connection, index: int, ifname: str) -> dict[str, int]:
    """The interface's values by sysctl's names.

    Raises:
        KernelRefused: ENODEV.
    """
    what = f"ip -d link show {ifname}"
    (message,) = await connection.request(LinkMessage, rtnl.RTM_GETLINK, {"index": index}, {}, what=what)
    spec = message.get_attr("IFLA_AF_SPEC")
    conf = spec.get_attr("AF_INET") if spec else None
    if not conf:
        raise KernelRefused(what, errno.ENODATA, "the kernel tells no IPv4 configuration of this interface")
    return {name: int(conf[told]) for name, (_, told) in _KEYS.items()}


async def write_devconf(connection: Connection, index: int, ifname: str, key: str, value: int) -> None:
    """Set one value and read it back.

    Raises:
        KernelRefused: EPERM, ENODEV ...; EOPNOTSUPP when it then reads differently.
    """
    check_key(key)
    what = f"sysctl -w net.ipv4.conf.{ifname.replace('.', '/')}.{key}={value} (by netlink)"
    conf = {"attrs": [[key, value]]}
    spec = {"attrs": [["AF_INET", {"attrs": [["IFLA_INET_CONF", conf]]}]]}
    await connection.request(DevconfMessage, rtnl.RTM_SETLINK, {"index": index}, {"IFLA_AF_SPEC": spec}, what=what)
    found = (await read_devconf(connection, index, ifname))[key]
    if found != value:
        raise KernelRefused(what, errno.EOPNOTSUPP, f"the kernel took it, yet it reads {found}")
