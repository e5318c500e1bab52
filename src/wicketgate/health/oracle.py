# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel where packets would go, and puts right what its answers hide.

RTM_GETROUTE is the kernel's own lookup, without a packet. Two of its answers need a second look:

* For a packet that comes in, newer kernels say EINVAL for every refusal (since drop reasons took errno's place on the
  input path; seen on 6.18), where older ones say EXDEV for rp_filter and EHOSTUNREACH for forwarding that is off. The
  reverse lookup and the interface's settings tell which it was.
* For a socket that is bound to an interface without any route, IPv4 takes every destination for a neighbour
  (`ip_route_output_key_hash_rcu`: "apparently destination is on link") and says so with table 0. To a stranger that is
  no route.
"""

from __future__ import annotations

import errno

from wicketgate.errors import KernelRefused
from wicketgate.kernel.netlink import Netlink, RouteAnswer
from wicketgate.kernel.sysctl import part, read
from wicketgate.netpath.snapshot import IPAddress


class KernelOracle:
    """Netlink's answers with the errno that says why.

    Args:
        netlink: open, in the network namespace that is asked about.
    """

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    async def get_route(
        self,
        dst: IPAddress,
        *,
        src: IPAddress | None = None,
        iif: str | None = None,
        oif: str | None = None,
        mark: int = 0,
        uid: int | None = None,
        ipproto: int = 0,
        sport: int = 0,
        dport: int = 0,
    ) -> RouteAnswer:
        """As `Netlink.get_route`.

        Raises:
            KernelRefused: ENETUNREACH no route; for a packet that comes in EXDEV rp_filter, EHOSTUNREACH forwarding is
                off, EINVAL what is left (a martian source, a route that rejects).
        """
        try:
            answer = await self._netlink.get_route(
                dst, src=src, iif=iif, oif=oif, mark=mark, uid=uid, ipproto=ipproto, sport=sport, dport=dport
            )
        except KernelRefused as refused:
            if iif is None or src is None or refused.errno != errno.EINVAL:
                raise
            raise await self._why(refused, dst, src, iif, mark, ipproto, sport, dport) from refused
        if oif is not None and dst.version == 4 and answer.table == 0:
            words = "no route; a socket bound to the interface would look for the stranger on the wire"
            raise KernelRefused(f"ip route get {dst} oif {oif}", errno.ENETUNREACH, words)
        return answer

    async def _why(  # noqa: PLR0917 - the lookup that was refused, in its own order
        self,
        refused: KernelRefused,
        dst: IPAddress,
        src: IPAddress,
        iif: str,
        mark: int,
        ipproto: int,
        sport: int,
        dport: int,
    ) -> KernelRefused:
        local = await self._is_local(dst)
        if src.version == 4 and (mode := _rp_filter(iif)):
            # __fib_validate_source: addresses and ports change places; the mark counts only with src_valid_mark.
            try:
                back = await self._netlink.get_route(
                    src,
                    src=dst if local else None,
                    mark=mark if _setting("src_valid_mark", iif) else 0,
                    ipproto=ipproto,
                    sport=dport,
                    dport=sport,
                )
            except KernelRefused:
                return KernelRefused(refused.what, errno.EXDEV, f"rp_filter = {mode}, and no route leads back to {src}")
            if mode == 1 and back.oif != iif:
                words = f"rp_filter = 1, and the way back to {src} is by {back.oif}"
                return KernelRefused(refused.what, errno.EXDEV, words)
        if not local and not _forwards(dst, iif):
            return KernelRefused(refused.what, errno.EHOSTUNREACH, f"forwarding is off on {iif}")
        return refused

    async def _is_local(self, address: IPAddress) -> bool:
        try:
            return (await self._netlink.get_route(address)).type == "local"
        except KernelRefused:
            return False


def _rp_filter(ifname: str) -> int:
    """0 off, 1 strict, 2 loose: the larger of `all` and the interface's (ip-sysctl.rst)."""
    return max(_value(f"net.ipv4.conf.{each}.rp_filter") for each in ("all", part(ifname)))


def _setting(name: str, ifname: str) -> bool:
    return any(_value(f"net.ipv4.conf.{each}.{name}") for each in ("all", part(ifname)))


def _forwards(address: IPAddress, ifname: str) -> bool:
    if address.version == 4:
        return bool(_value(f"net.ipv4.conf.{part(ifname)}.forwarding"))
    return bool(_value("net.ipv6.conf.all.forwarding"))


def _value(name: str) -> int:
    said = read(name)
    return int(said) if said and said.isdigit() else 0
