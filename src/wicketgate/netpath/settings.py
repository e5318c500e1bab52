# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters as the stack combines them: `all` and the interface by or, by maximum, or the interface alone."""

from __future__ import annotations

from collections.abc import Mapping

from wicketgate.netpath.lookup import Unsure

# What a parameter is when a snapshot does not hold it and the kernel has it since a later version than the others, or
# hardly anybody changes it. Everything else that is missing makes the model unsure.
_DEFAULTS = {"send_redirects": 1, "force_forwarding": 0, "bc_forwarding": 0, "ignore_routes_with_linkdown": 0}


class NotTold(Exception):  # noqa: N818 - it is no error, it is what the snapshot lacks
    """A parameter that decides is not in the snapshot."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @property
    def unsure(self) -> Unsure:
        """As an answer."""
        return Unsure("the snapshot does not hold this parameter", self.name)


def in_name(ifname: str) -> str:
    """An interface's name as part of a parameter's: sysctl(8) writes its dots as slashes."""
    return ifname.replace(".", "/")


class Settings:
    """The parameters of one namespace.

    Args:
        values: `Snapshot.sysctls`.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def number(self, name: str, default: int | None = None) -> int:
        """A parameter's number. Raises NotTold when the snapshot lacks it and there is no default."""
        said = self._values.get(name, "")
        digits = said.removeprefix("-")
        if digits.isdigit():
            return int(said)
        if default is None:
            raise NotTold(name)
        return default

    def of(self, family: int, ifname: str, key: str) -> int:
        """The interface's own (IN_DEV_CONF_GET)."""
        return self.number(f"net.ipv{family}.conf.{in_name(ifname)}.{key}", _DEFAULTS.get(key))

    def either(self, family: int, ifname: str, key: str) -> bool:
        """`all` or the interface's (IN_DEV_ORCONF)."""
        return bool(self.of(family, "all", key) or self.of(family, ifname, key))

    def larger(self, family: int, ifname: str, key: str) -> int:
        """The larger of `all` and the interface's (IN_DEV_MAXCONF)."""
        return max(self.of(family, "all", key), self.of(family, ifname, key))

    def spelled(self, family: int, ifname: str, key: str) -> str:
        """`net.ipv4.conf.eth0.rp_filter = 1`: the one of `all` and the interface that is larger."""
        which = "all" if self.of(family, "all", key) > self.of(family, ifname, key) else in_name(ifname)
        return f"net.ipv{family}.conf.{which}.{key} = {self.of(family, which.replace('/', '.'), key)}"

    def forwards(self, family: int, ifname: str) -> bool:
        """Whether a packet that came in by this interface may leave by another.

        IPv4 asks the interface; IPv6 asks `all`, or since Linux 6.17 the interface's force_forwarding.
        """
        if family == 4:
            return bool(self.of(4, ifname, "forwarding"))
        return bool(self.of(6, "all", "forwarding") or self.of(6, ifname, "force_forwarding"))

    def forwarding_spelled(self, family: int, ifname: str) -> str:
        """The parameter that forbids it."""
        return f"net.ipv{family}.conf.{in_name(ifname) if family == 4 else 'all'}.forwarding = 0"
