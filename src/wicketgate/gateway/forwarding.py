# SPDX-License-Identifier: Apache-2.0
"""Forwarding between the tunnel and the uplinks, by whichever way this container allows.

IPv4: `forwarding` of an interface decides about packets that come in by it (IN_DEV_FORWARD in ip_route_input_slow), and
netlink sets it even where /proc/sys is read-only. IPv6 forwards only with `net.ipv6.conf.all.forwarding`, which netlink
cannot reach: where /proc/sys cannot be written it is said once, with the pod setting that gives it.
A value that suits already is not written.
"""

from __future__ import annotations

from wicketgate.errors import KernelRefused, StateError
from wicketgate.gateway.desired import Desired
from wicketgate.gateway.live import Live
from wicketgate.kernel import sysctl
from wicketgate.kernel.netlink import Netlink
from wicketgate.logs import get_logger

_log = get_logger("forwarding")
_ALL_IPV6 = "net.ipv6.conf.all.forwarding"


class Forwarding:
    """Sets what is missing and remembers what it set, to put it back."""

    def __init__(self, netlink: Netlink, tunnel: str) -> None:
        self._netlink = netlink
        self._tunnel = tunnel
        self._set: dict[str, tuple[int, int]] = {}  # interface -> (ifindex, value before)
        self._ipv6_before: str | None = None
        self._said = False
        # What could not be had, by family, for the health check.
        self.missing: dict[int, str] = {}

    async def keep(self, live: Live, desired: Desired) -> bool:
        """Turn on what is off.

        Returns:
            True when something was changed.
        """
        changed = False
        wanted = [link for link in live.links if link.name in {desired.ifname, *_names(live, desired.ifname)}]
        if any(i.version == 4 for i in desired.addresses):
            self.missing.pop(4, None)
            for link in wanted:
                if sysctl.read(f"net.ipv4.conf.{sysctl.part(link.name)}.forwarding") == "1":
                    continue
                try:
                    await self._netlink.set_devconf(link.name, "forwarding", 1)
                except KernelRefused as error:
                    self.missing[4] = str(error)
                    _log.error("forwarding cannot be turned on", interface=link.name, error=str(error))
                    continue
                self._set.setdefault(link.name, (link.index, 0))
                _log.info("change", did=f"sysctl -w net.ipv4.conf.{sysctl.part(link.name)}.forwarding=1 # by netlink")
                changed = True
        if any(i.version == 6 for i in desired.addresses):
            changed = self._keep_ipv6() or changed
        return changed

    def _keep_ipv6(self) -> bool:
        value = sysctl.read(_ALL_IPV6)
        if value in ("1", None):
            self.missing.pop(6, None)
            return False
        try:
            sysctl.write(_ALL_IPV6, "1")
        except KernelRefused as error:
            self.missing[6] = f"IPv6 is not forwarded: {error}"
            if not self._said:
                self._said = True
                _log.warning(
                    "IPv6 forwarding is off and cannot be turned on from here; IPv6 clients reach the gateway, not what is"
                    f" behind it: set securityContext.sysctls {_ALL_IPV6}=1 in the pod (allowedUnsafeSysctls of the kubelet)"
                )
            return False
        self._ipv6_before = self._ipv6_before or value
        _log.info("change", did=f"sysctl -w {_ALL_IPV6}=1")
        return True

    async def restore(self) -> None:
        """Put back what was changed, on interfaces that are still the same."""
        links = {link.name: link.index for link in await self._netlink.links()}
        for name, (index, before) in self._set.items():
            if name == self._tunnel or links.get(name) != index:
                continue
            try:
                await self._netlink.set_devconf(name, "forwarding", before)
                _log.info("change", did=f"sysctl -w net.ipv4.conf.{sysctl.part(name)}.forwarding={before} # by netlink")
            except StateError as error:
                _log.warning("could not put back", error=str(error))
        self._set.clear()
        if self._ipv6_before is not None:
            try:
                sysctl.write(_ALL_IPV6, self._ipv6_before)
                _log.info("change", did=f"sysctl -w {_ALL_IPV6}={self._ipv6_before}")
            except StateError as error:
                _log.warning("could not put back", error=str(error))
            self._ipv6_before = None


def _names(live: Live, tunnel: str) -> list[str]:
    return [u.ifname for u in live.uplinks(tunnel)]
