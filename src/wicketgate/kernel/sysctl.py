# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters under /proc/sys, by the names that sysctl(8) prints.

A dot within a part of a name is written as a slash, as sysctl(8) does: `net.ipv4.conf.eth0/100.rp_filter` is the
interface `eth0.100`. /proc/sys/net shows the network namespace of the thread that looks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from wicketgate.errors import KernelRefused

ROOT = "/proc/sys"

# Those that decide a packet's way, or say whether it is near a limit.
_WHOLE = (
    "net.ipv4.ip_forward",
    "net.ipv4.fwmark_reflect",
    "net.ipv4.tcp_fwmark_accept",
    "net.ipv4.ip_nonlocal_bind",
    "net.ipv4.icmp_echo_ignore_all",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.nexthop_compat_mode",
    "net.ipv6.fwmark_reflect",
    "net.ipv6.ip_nonlocal_bind",
    "net.ipv6.bindv6only",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
)
_IPV4_CONF = (
    "forwarding",
    "rp_filter",
    "src_valid_mark",
    "accept_local",
    "route_localnet",
    "arp_filter",
    "arp_ignore",
    "arp_announce",
    "log_martians",
    "accept_source_route",
    "ignore_routes_with_linkdown",
)
_IPV6_CONF = ("forwarding", "disable_ipv6", "accept_ra", "ignore_routes_with_linkdown", "mtu")


def part(name: str) -> str:
    """An interface's name as a part of a parameter's name: `eth0.100` becomes `eth0/100`."""
    return name.replace(".", "/")


def path(name: str) -> str:
    """The file of a parameter.

    Raises:
        ValueError: a name that would leave /proc/sys.
    """
    parts = [piece.replace("/", ".") for piece in name.split(".")]
    if any(piece in ("", ".", "..") for piece in parts):
        raise ValueError(f"sysctl name {name!r}; allowed: parts joined by dots, as sysctl(8) prints them")
    return "/".join((ROOT, *parts))


def read(name: str) -> str | None:
    """The value as it is printed; None where this kernel or namespace has no such parameter."""
    try:
        with open(path(name), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def writable(name: str) -> bool:
    """Whether this process may write it: /proc/sys is read-only in most containers."""
    return os.access(path(name), os.W_OK)


def write(name: str, value: str) -> None:
    """Set a parameter and read it back.

    Raises:
        KernelRefused: EROFS, EACCES, ENOENT, EINVAL ...; EOPNOTSUPP when it then reads differently.
    """
    what = f"sysctl -w {name}={value}"
    try:
        with open(path(name), "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise KernelRefused(what, error.errno or errno.EIO, error.strerror or str(error)) from error
    found = read(name)
    if found != value:
        raise KernelRefused(what, errno.EOPNOTSUPP, f"the kernel took it, yet it reads {found}")


def names_that_matter(interfaces: Iterable[str]) -> Iterator[str]:
    """The parameters that a snapshot holds."""
    yield from _WHOLE
    for interface in ("all", "default", *interfaces):
        for key in _IPV4_CONF:
            yield f"net.ipv4.conf.{part(interface)}.{key}"
        for key in _IPV6_CONF:
            yield f"net.ipv6.conf.{part(interface)}.{key}"


def read_all(interfaces: Iterable[str]) -> dict[str, str]:
    """Every parameter that matters and exists."""
    found = {}
    for name in names_that_matter(interfaces):
        value = read(name)
        if value is not None:
            found[name] = value
    return found
