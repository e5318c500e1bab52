# SPDX-License-Identifier: Apache-2.0
"""What a load balancer is told: listeners, targets, checkers and how it checks. JSON in and out.

Defaults are those of the AWS API where the lab can live with them; intervals are the lab's own, much shorter ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal, Self

from pydantic import TypeAdapter, ValidationError

from wicketgate.errors import InputError
from wicketgate.netpath.snapshot import IPAddress

Transport = Literal["udp", "tcp"]
TRAFFIC_PORT = "traffic-port"  # botocore elbv2 HealthCheckPort: the port of the target itself, the default
UDP_IDLE = 120  # s; a real NLB's, which nobody can change (NLB guide, network-load-balancers)
TCP_IDLE = 350  # s; tcp.idle_timeout.seconds, default


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """An address registered with the load balancer.

    Attributes:
        address: of the pod (target type `ip`).
        port: where traffic goes unless the listener names another port.
        az: availability zone; one that no checker stands in makes the target `unused`.
    """

    address: IPAddress
    port: int
    az: str = "a"

    def __str__(self) -> str:
        return endpoint(self.address, self.port)

    @classmethod
    def parse(cls, text: str, az: str = "a") -> Self:
        """Read `10.0.1.2:51820` or `[fd00::2]:51820`.

        Raises:
            InputError: it is neither.
        """
        found = re.fullmatch(r"(?:\[(?P<six>[^]]+)\]|(?P<four>[^:]+)):(?P<port>\d{1,5})", text)
        try:
            if found is None:
                raise ValueError(text)
            target = cls(ip_address(found["six"] or found["four"]), int(found["port"]), az)
        except ValueError:
            raise InputError(
                f"target {text!r}: read no ADDRESS:PORT; allowed are 10.0.1.2:51820 and [fd00::2]:51820"
            ) from None
        _port("target", target.port)
        return target


@dataclass(frozen=True, slots=True)
class Listener:
    """A port of the load balancer.

    Attributes:
        protocol: `udp` or `tcp`.
        port: on every address of the load balancer.
        target_port: on the targets; None means each target's own port.
    """

    protocol: Transport
    port: int
    target_port: int | None = None


@dataclass(frozen=True, slots=True)
class Checker:
    """A load balancer node: the private address that its probes come from, one an availability zone."""

    address: IPAddress
    az: str = "a"


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How targets are checked. UDP cannot be, as on a real NLB.

    Attributes:
        protocol: `tcp` connects, `http` also asks for `path`.
        port: a number, or `traffic-port` (also for UDP listeners: a TCP connect to the UDP port's number).
        path: of the HTTP request.
        matcher: codes that pass, `200-399` or `200,204,300-308`.
        interval: seconds between two probes of one checker.
        timeout: seconds until a probe without an answer has failed.
        healthy_threshold: consecutive passes that bring an unhealthy target back (a new one needs one).
        unhealthy_threshold: consecutive failures that take a target out.
    """

    protocol: Literal["tcp", "http"] = "http"
    port: int | Literal["traffic-port"] = "traffic-port"
    path: str = "/"
    matcher: str = "200-399"
    interval: float = 0.5
    timeout: float = 0.4
    healthy_threshold: int = 2
    unhealthy_threshold: int = 2

    def port_of(self, target: Target) -> int:
        """Where a target is probed."""
        return target.port if self.port == TRAFFIC_PORT else int(self.port)

    def matches(self, code: int) -> bool:
        """Whether an HTTP status code passes."""
        return any(first <= code <= last for first, last in _ranges(self.matcher))


@dataclass(frozen=True, slots=True)
class NlbSettings:
    """One load balancer with one target group.

    Attributes:
        name: in its nft table's name and for people.
        addresses: where clients send to, one an availability zone; all of one family.
        listeners: at least one; a port number may serve UDP and TCP.
        checkers: at least one; addresses of this host on the side of the targets.
        check: how targets are checked.
        targets: registered at the start.
        deregistration_delay: seconds a deregistered target keeps its flows (AWS default 300; 0-3600).
        connection_termination: flows end with the delay (AWS default for UDP); otherwise they live while they are busy.
        udp_idle: whole seconds after which a silent UDP flow is forgotten; a real NLB's 120.
        tcp_idle: whole seconds after which a silent TCP connection is forgotten.
    """

    addresses: tuple[IPAddress, ...]
    listeners: tuple[Listener, ...]
    checkers: tuple[Checker, ...]
    check: CheckSettings = field(default_factory=CheckSettings)
    targets: tuple[Target, ...] = ()
    name: str = "nlb"
    deregistration_delay: float = 300.0
    connection_termination: bool = True
    udp_idle: int = UDP_IDLE
    tcp_idle: int = TCP_IDLE

    def __post_init__(self) -> None:
        """Refuse what cannot work, all of it at once.

        Raises:
            InputError: with one line a problem.
        """
        problems = list(_problems(self))
        if problems:
            raise InputError("\n".join(f"load balancer {self.name}: {problem}" for problem in problems))

    @property
    def family(self) -> Literal["ip", "ip6"]:
        """As nft spells it. A real UDP listener too serves targets of one family only."""
        return "ip" if self.addresses[0].version == 4 else "ip6"

    def check_target(self, target: Target) -> None:
        """See that a target can be registered.

        Raises:
            InputError: a port out of range, or the other family.
        """
        _port(f"target {target}", target.port)
        if target.address.version != self.addresses[0].version:
            raise InputError(
                f"target {target}: an IPv{target.address.version} address; load balancer {self.name} takes IPv{self.addresses[0].version} targets"
            )

    def to_json(self) -> str:
        """The settings as indented JSON."""
        return _ADAPTER.dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> NlbSettings:
        """Read settings.

        Raises:
            InputError: every field that is wrong, what was read and what is allowed.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise InputError("load balancer settings: " + explain(error)) from None


def endpoint(address: IPAddress, port: int) -> str:
    """`10.0.0.1:51820` or `[fd00::1]:51820`."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def explain(error: ValidationError) -> str:
    """Every field that is wrong, one sentence each."""
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc']) or 'the text'}: read {one['input']!r}; {one['msg']}"
        for one in error.errors()
    )


def _port(what: str, port: int) -> None:
    if not 0 < port < 0x10000:
        raise InputError(f"{what}: port {port}; allowed are 1 to 65535")


def _ranges(matcher: str) -> list[tuple[int, int]]:
    ranges = []
    for part in matcher.split(","):
        found = re.fullmatch(r"\s*(\d{3})(?:-(\d{3}))?\s*", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise InputError(
                f"check.matcher: read {matcher!r}; allowed are codes and ranges such as 200-399 or 200,204"
            )
        ranges.append((int(found[1]), int(found[2] or found[1])))
    return ranges


def _problems(settings: NlbSettings) -> list[str]:
    found: list[str] = []
    check = settings.check
    if not re.fullmatch(r"[a-z0-9-]{1,32}", settings.name):
        found.append(f"name {settings.name!r}: allowed are 1 to 32 of a-z, 0-9 and -")
    for what, values in (
        ("addresses", settings.addresses),
        ("listeners", settings.listeners),
        ("checkers", settings.checkers),
    ):
        if not values:
            found.append(f"{what}: none; at least one is needed")
    versions = {
        *(address.version for address in settings.addresses),
        *(checker.address.version for checker in settings.checkers),
        *(target.address.version for target in settings.targets),
    }
    if len(versions) > 1:
        found.append("addresses, checkers and targets: both families; one load balancer serves one")
    ports = [(listener.protocol, listener.port) for listener in settings.listeners]
    found.extend(f"listeners: {p} {n} twice" for p, n in sorted(set(ports)) if ports.count((p, n)) > 1)
    found.extend(
        f"targets: {target} twice" for target in sorted(set(settings.targets)) if settings.targets.count(target) > 1
    )
    numbers = [("check.port", check.port)] if check.port != TRAFFIC_PORT else []
    numbers += [("listeners.port", listener.port) for listener in settings.listeners]
    numbers += [("listeners.target_port", one.target_port) for one in settings.listeners if one.target_port is not None]
    numbers += [("targets.port", target.port) for target in settings.targets]
    found.extend(f"{what}: {n}; allowed are 1 to 65535" for what, n in numbers if not 0 < int(n) < 0x10000)
    for what, seconds in (("check.interval", check.interval), ("check.timeout", check.timeout)):
        if not 0 < seconds <= 300:
            found.append(f"{what}: {seconds} s; allowed are more than 0 and up to 300")
    for what, count in (
        ("healthy_threshold", check.healthy_threshold),
        ("unhealthy_threshold", check.unhealthy_threshold),
    ):
        if not 1 <= count <= 10:
            found.append(f"check.{what}: {count}; allowed are 1 to 10 (a real NLB: 2 to 10)")
    for what, idle in (("udp_idle", settings.udp_idle), ("tcp_idle", settings.tcp_idle)):
        if not 1 <= idle <= 6000:
            found.append(f"{what}: {idle} s; allowed are 1 to 6000")
    if not 0 <= settings.deregistration_delay <= 3600:
        found.append(f"deregistration_delay: {settings.deregistration_delay} s; allowed are 0 to 3600")
    if not re.fullmatch(r"/[\x21-\x7e]{0,1023}", check.path):
        found.append(f"check.path {check.path!r}: allowed are 1 to 1024 printable characters that start with /")
    try:
        _ranges(check.matcher)
    except InputError as error:
        found.append(str(error))
    return found


_ADAPTER: TypeAdapter[NlbSettings] = TypeAdapter(NlbSettings)
