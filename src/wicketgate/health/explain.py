# SPDX-License-Identifier: Apache-2.0
"""Why it is red, and what can be said where no door can be built: invariants asked of the kernel's routing.

Would a stranger's packet reach the socket, would the answer get home by the uplink, would a client's traffic be
forwarded? The kernel itself answers (RTM_GETROUTE), without a packet. Firewalls are not seen this way, and the
evidence says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from wicketgate.errors import KernelRefused
from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.reasons import NOT_SEEN
from wicketgate.health.target import ProbeTarget
from wicketgate.kernel import sysctl
from wicketgate.kernel.netlink import RouteAnswer
from wicketgate.kernel.sockets import listening_sockets
from wicketgate.netpath.snapshot import Family, IPAddress
from wicketgate.netpath.tracking_table import is_full

# RFC 5737 TEST-NET-3 and RFC 3849 stand for any host that is not nearby; no packet is sent to them.
STRANGER: dict[Family, IPAddress] = {4: ip_address("203.0.113.9"), 6: ip_address("2001:db8:203::9")}
_STRANGERS_PORT = 40000
_TCP, _UDP = 6, 17


def conntrack_usage() -> tuple[int, int] | None:
    """Flows that are tracked in this network namespace, and how many there may be; None without connection tracking."""
    values = [sysctl.read(f"net.netfilter.nf_conntrack_{which}") for which in ("count", "max")]
    count, most = (int(v) if v is not None and v.isdigit() else -1 for v in values)
    return (count, most) if count >= 0 and most > 0 else None  # a maximum of 0 is none


class RouteOracle(Protocol):
    """Who answers where a packet would go; the kernel now, a model of it later."""

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
        """The route, or KernelRefused with the errno a sender would meet."""
        ...


class Explainer:
    """Asks about one uplink at a time."""

    def __init__(
        self,
        oracle: RouteOracle,
        *,
        health_port: int,
        conntrack: Callable[[], tuple[int, int] | None] = conntrack_usage,
    ) -> None:
        self._oracle = oracle
        self._health_port = health_port
        self._conntrack = conntrack

    async def why(
        self, target: ProbeTarget, family: Family, uplink: str, address: IPAddress, at: float
    ) -> CheckResult | None:
        """The first invariant that does not hold; None when all do (then it is a firewall, a peer, a process)."""
        usage = self._conntrack()
        if usage is not None and is_full(*usage):
            words = f"connection tracking holds {usage[0]} of {usage[1]} flows (net.netfilter.nf_conntrack_max): new ones are dropped"
            return _fail("conntrack", Cause.CONNTRACK_FULL, words, at)
        for check in await self.all(target, family, uplink, address, at):
            if check.state is State.FAIL:
                return check
        return None

    async def all(
        self, target: ProbeTarget, family: Family, uplink: str, address: IPAddress, at: float
    ) -> list[CheckResult]:
        """Every invariant for clients of one family."""
        checks = [
            await self.reaches(family, uplink, address, at, port=target.listen_port),
            await self.returns(target, family, uplink, address, at),
            await self.balancer(family, uplink, address, at),
        ]
        if target.level in ("tunnel", "egress"):
            for path in target.egress_paths:
                if path.family == family:
                    checks.append(await self._forwarded(target, family, path.probe, at))
        return checks

    async def reaches(
        self, family: Family, uplink: str, address: IPAddress, at: float, *, port: int, protocol: int = _UDP
    ) -> CheckResult:
        """A stranger's packet is delivered here: local table, reverse path filter, martians."""
        name = f"arrival-ipv{family}"
        try:
            answer = await self._oracle.get_route(
                address, src=STRANGER[family], iif=uplink, ipproto=protocol, sport=_STRANGERS_PORT, dport=port
            )
        except KernelRefused as refused:
            if refused.errno == errno.EXDEV:
                words = f"a stranger's packet on {uplink} fails the reverse path filter (rp_filter): the way back leaves elsewhere"
                return _fail(name, Cause.RP_FILTER, words, at)
            if refused.errno == errno.EINVAL:
                return _fail(name, Cause.MARTIAN_SOURCE, f"a stranger's packet on {uplink} is martian", at)
            return _fail(name, Cause.REPLY_UNROUTABLE, f"a stranger's packet on {uplink} is refused: {refused}", at)
        if answer.type != "local":
            words = f"a stranger's packet to {address} is not delivered here but forwarded by {answer.oif}"
            return _fail(name, Cause.ADDRESS_MISSING, words, at)
        return _pass(name, f"a stranger's packet on {uplink} is delivered here; {NOT_SEEN}", at)

    async def returns(
        self, target: ProbeTarget, family: Family, uplink: str, address: IPAddress, at: float
    ) -> CheckResult:
        """WireGuard's answer to a stranger leaves by the uplink."""
        return await self._leaves(
            f"reply-ipv{family}",
            family,
            uplink,
            address,
            at,
            tunnel=target.ifname,
            mark=target.fwmark,
            protocol=_UDP,
            port=target.listen_port,
        )

    async def balancer(self, family: Family, uplink: str, address: IPAddress, at: float) -> CheckResult:
        """The health port's answer, sent by a socket that is bound to the uplink."""
        name = f"balancer-ipv{family}"
        arrives = await self.reaches(family, uplink, address, at, port=self._health_port, protocol=_TCP)
        if arrives.state is not State.PASS:
            return CheckResult(name, arrives.state, arrives.evidence, cause=arrives.cause, at=at)
        return await self._leaves(name, family, uplink, address, at, oif=uplink, protocol=_TCP, port=self._health_port)

    async def listener(self, target: ProbeTarget, family: Family, address: IPAddress, at: float) -> CheckResult:
        """Some socket is bound to the WireGuard port; whether it is WireGuard's cannot be told from here."""
        name = f"listener-ipv{family}"
        for sock in await listening_sockets():
            if sock.protocol == "udp" and sock.port == target.listen_port:
                dual = sock.family == 6 and family == 4 and not sock.v6only and sock.address.is_unspecified
                if (sock.family == family and (sock.address.is_unspecified or sock.address == address)) or dual:
                    return _pass(name, f"UDP port {target.listen_port} is bound; nothing was proved beyond that", at)
        return _fail(name, Cause.NO_LISTENER, f"nothing is bound to UDP port {target.listen_port}", at)

    async def _forwarded(self, target: ProbeTarget, family: Family, probe: IPAddress, at: float) -> CheckResult:
        name = f"forwarding-ipv{family}"
        try:
            answer = await self._oracle.get_route(STRANGER[family], src=probe, iif=target.ifname)
        except KernelRefused as refused:
            if refused.errno == errno.EHOSTUNREACH and target.level != "egress":
                words = "what clients send outside is not forwarded: only the gateway itself can be reached through it"
                return _pass(name, words, at)
            if refused.errno == errno.EHOSTUNREACH:
                return _fail(name, Cause.FORWARDING_OFF, f"what clients send is not forwarded: {refused}", at)
            if refused.errno == errno.EXDEV:
                return _fail(name, Cause.RP_FILTER, f"what clients send fails rp_filter on {target.ifname}", at)
            return _fail(name, Cause.EGRESS_UNREACHABLE, f"what clients send is refused: {refused}", at)
        if answer.oif == target.ifname:
            words = f"what clients send outside goes back into {target.ifname}"
            # A server whose default lies in the tunnel (the seed's pod) still serves what is behind the tunnel.
            if target.level != "egress":
                return _pass(name, f"{words}: only the gateway itself can be reached through it", at)
            return _fail(name, Cause.REPLY_INTO_TUNNEL, words, at)
        return _pass(name, f"what clients send outside leaves by {answer.oif}; {NOT_SEEN}", at)

    async def _leaves(
        self,
        name: str,
        family: Family,
        uplink: str,
        address: IPAddress,
        at: float,
        *,
        protocol: int,
        port: int,
        tunnel: str = "",
        oif: str | None = None,
        mark: int = 0,
    ) -> CheckResult:
        # ip6_route_output_flags() keeps to the device for a bound socket; for a bare question it does so only when no
        # source is given, so that is how IPv6 has to be asked.
        source = None if oif is not None and family == 6 else address
        try:
            answer = await self._oracle.get_route(
                STRANGER[family],
                src=source,
                oif=oif,
                mark=mark,
                uid=os.getuid(),
                ipproto=protocol,
                sport=port,
                dport=_STRANGERS_PORT,
            )
        except KernelRefused as refused:
            cause = Cause.BLACKHOLE_ROUTE if refused.errno in (errno.EINVAL, errno.EACCES) else Cause.REPLY_UNROUTABLE
            return _fail(name, cause, f"the answer to a stranger has no way: {refused}", at)
        if answer.oif == uplink:
            return _pass(name, f"the answer to a stranger leaves by {uplink}; {NOT_SEEN}", at)
        if answer.oif == tunnel:
            words = f"the answer to a stranger leaves by {tunnel} (table {answer.table}), into the tunnel"
            return _fail(name, Cause.REPLY_INTO_TUNNEL, words, at)
        return _fail(
            name, Cause.REPLY_WRONG_UPLINK, f"the answer to a stranger leaves by {answer.oif}, not {uplink}", at
        )


def _pass(name: str, evidence: str, at: float) -> CheckResult:
    return CheckResult(name, State.PASS, evidence, at=at)


def _fail(name: str, cause: Cause, evidence: str, at: float) -> CheckResult:
    return CheckResult(name, State.FAIL, evidence, cause=cause, at=at)
