# SPDX-License-Identifier: Apache-2.0
"""The flags of `wicket up` and `wicket sidecar`, each also an environment variable: `--health-port`, `WICKET_HEALTH_PORT`.

A flag wins over its variable; an empty variable counts as not set, which is how a manifest switches one off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from wicketgate.config.model import IPAddress
from wicketgate.config.problems import did_you_mean, shown
from wicketgate.config.values import BadValue, ip_literal, number
from wicketgate.errors import InputError
from wicketgate.logs import LogFormat
from wicketgate.wireguard.keys import PrivateKey, PublicKey

_NAME = re.compile(r"[^\s/:\0]{1,15}")
_DECIMAL = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)

Reader = Callable[[object], object]
_E = TypeVar("_E", bound=StrEnum)


class Role(StrEnum):
    """What the tunnel is for."""

    SERVER = "server"  # never a default route through the tunnel
    EXIT = "exit"  # the default route goes through it, replies are pinned


class Strategy(StrEnum):
    """How replies to the uplink are kept out of the tunnel."""

    PIN = "pin"
    ISOLATE = "isolate"
    HOST = "host"
    OFF = "off"


_UNBUILT = (Strategy.ISOLATE, Strategy.HOST)


class Choice(StrEnum):
    """When to use something that may be missing: wireguard-go, the door probe."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Level(StrEnum):
    """What has to be proved before health is green; each holds the ones before it."""

    PORT = "port"  # the sidecar without any right: what can be read, nothing that was tried
    HANDSHAKE = "handshake"
    TUNNEL = "tunnel"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Egress:
    """An outside host that must answer: a ping, or a TCP connection when there is a port."""

    address: IPAddress
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return str(self.address)
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


_PORT = "a port: 1-65535"
_EGRESS = "ADDRESS, IPv4:PORT or [IPv6]:PORT, with a port of 1-65535; no host names"
_ALLOWED = {
    "role": "server, exit",
    "strategy": "pin, off",
    "userspace": "auto, always, never",
    "health_port": _PORT,
    "tcp_port": "a port: 1-65535, or 0 for none; not the health port",
    "level": "handshake, tunnel, egress",
    "door": "auto, always, never",
    "probe_interval": "seconds: 0.1-60",
    "egress": _EGRESS,
    "drain": "seconds: 0-3600",
    "log": "json, console",
    "interface": "the name of an interface: 1-15 characters without blanks, / and :",
    "private_key_file": "the path of a file that holds the key, not the key",
    "preshared_key_file": "the path of a file that holds the key, not the key",
    "public_key": "a public key: 44 characters of base64",
    "listen_port": _PORT,
}


def parse_egress(text: str) -> Egress:
    """ADDRESS, IPv4:PORT or [IPv6]:PORT.

    Raises:
        ValueError: something else.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise BadValue(_EGRESS)
        service = rest[1:] if rest else None
    elif text.count(":") == 1:
        host, _, service = text.partition(":")
    else:
        host, service = text, None
    address = ip_literal(host, _EGRESS, text)
    if address.is_multicast or address.is_unspecified:
        raise BadValue(_EGRESS)
    return Egress(address, None if service is None else number(service, 1, 65535, _EGRESS))


def _choice(kind: type[_E]) -> Reader:
    def read(value: object) -> object:
        return kind(_text(value))

    return read


def _port(low: int) -> Reader:
    def read(value: object) -> object:
        if isinstance(value, str):
            return number(value, low, 65535, _PORT)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 65535:
            raise BadValue(_PORT)
        return value

    return read


def _seconds(low: float, high: float) -> Reader:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadValue("a number")
        # float() would also take "1_000" and other scripts' digits.
        if isinstance(value, str) and not _DECIMAL.fullmatch(value):
            raise BadValue("a number")
        seconds = float(value)
        if not low <= seconds <= high:  # false for nan as well
            raise BadValue(f"{low:g}-{high:g}")
        return seconds

    return read


def _egress(value: object) -> object:
    return value if isinstance(value, Egress) else parse_egress(_text(value))


def _strategy(value: object) -> object:
    strategy = Strategy(_text(value))
    if strategy in _UNBUILT:
        raise BadValue("this strategy is not built yet")
    return strategy


def _level(value: object) -> object:
    level = Level(_text(value))
    if level is Level.PORT:
        raise BadValue("a gateway can prove more")
    return level


def _log(value: object) -> object:
    if value not in {"json", "console"}:
        raise BadValue("json, console")
    return value


def _interface(value: object) -> object:
    name = _text(value)
    # As the kernel's dev_valid_name (net/core/dev.c), which counts bytes.
    if not _NAME.fullmatch(name) or len(name.encode()) > 15 or name in {".", ".."}:
        raise BadValue("no name of an interface")
    return name


def _key_file(value: object) -> object:
    path = _text(value)
    try:
        PrivateKey.parse(path)
    except ValueError:
        return path
    raise BadValue("the key itself")


def _public_key(value: object) -> object:
    return PublicKey.parse(_text(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue("a text")
    return value


# How each field of the common ones is read; every reader raises ValueError for what is not allowed.
_READERS: Mapping[str, Reader] = {
    "strategy": _strategy,
    "health_port": _port(1),
    "tcp_port": _port(0),
    "level": _level,
    "door": _choice(Choice),
    "probe_interval": _seconds(0.1, 60),
    "egress": _egress,
    "drain": _seconds(0, 3600),
    "log": _log,
}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What both commands take.

    Plain dataclasses: a dozen texts do not need the half second and the 9 MB of a validation library's start
    (bench/start_to_green.py, bench/idle_cost.py).
    """

    _readers: ClassVar[Mapping[str, Reader]] = _READERS

    strategy: Strategy = Strategy.PIN
    health_port: int = 8080
    tcp_port: int = 9000  # 0 = none
    level: Level | None = None  # None = by role
    door: Choice = Choice.AUTO
    probe_interval: float = 1.0  # seconds
    egress: Egress | None = None
    drain: float = 30.0  # seconds
    log: LogFormat = "console"

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str]) -> Self:
        """From the command line and the environment.

        Args:
            flags: field name -> what the flag said; None = not given.
            environ: the environment; variables that do not belong to a field are left alone.

        Raises:
            InputError: naming every bad field with its value and what is allowed.
        """
        known = [field.name for field in fields(cls)]
        given: dict[str, object] = {}
        source: dict[str, str] = {}
        for field in known:
            variable = environment_name(field)
            if environ.get(variable):
                given[field], source[field] = environ[variable], variable
        for field, value in flags.items():
            if value is not None:
                given[field], source[field] = value, flag_name(field)
        wrong: list[str] = []
        values: dict[str, Any] = {}
        for field, value in given.items():
            if field not in known:
                near = did_you_mean(field, known)
                wrong.append(f"{source[field]}: unknown" + (f"; did you mean {flag_name(near)}?" if near else ""))
                continue
            try:
                values[field] = cls._readers[field](value)
            except ValueError:
                why = ", which is not built yet" if field == "strategy" and value in _UNBUILT else ""
                # A key's file may turn out to be the key.
                wrong.append(f"{source[field]}: {shown(str(value), key=field)}{why}; allowed: {cls.allowed(field)}")
        if wrong:
            raise InputError("\n".join(wrong))
        settings = cls(**values)
        if settings.tcp_port == settings.health_port:
            raise InputError(
                f"--tcp-port and --health-port are both {settings.tcp_port}; allowed: two ports, or --tcp-port 0"
            )
        return settings

    @classmethod
    def allowed(cls, field: str) -> str:
        """What a field may be, for help and errors."""
        return _ALLOWED[field]


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(_Settings):
    """`wicket up`."""

    _readers: ClassVar[Mapping[str, Reader]] = {**_READERS, "role": _choice(Role), "userspace": _choice(Choice)}

    role: Role = Role.SERVER
    userspace: Choice = Choice.AUTO

    @property
    def effective_level(self) -> Level:
        """The level, or the default of the role."""
        return self.level or (Level.EGRESS if self.role is Role.EXIT else Level.TUNNEL)


@dataclass(frozen=True, kw_only=True)
class SidecarSettings(_Settings):
    """`wicket sidecar`.

    Attributes:
        interface: the one to stand beside.
        private_key_file: the key of a peer that the user added, for the handshake of a sidecar without rights.
        preshared_key_file: that peer's preshared key.
        public_key: the gateway's, for that handshake.
        listen_port: the UDP port that the interface should have; None = whichever it has.
    """

    _readers: ClassVar[Mapping[str, Reader]] = {
        **_READERS,
        "level": _choice(Level),  # the weakest too
        "interface": _interface,
        "private_key_file": _key_file,
        "preshared_key_file": _key_file,
        "public_key": _public_key,
        "listen_port": _port(1),
    }

    interface: str = "wg0"
    private_key_file: str | None = None
    preshared_key_file: str | None = None
    public_key: PublicKey | None = None
    listen_port: int | None = None

    @property
    def effective_level(self) -> Level:
        """The level, or `tunnel`; `port` only when it was asked for."""
        return self.level or Level.TUNNEL

    @classmethod
    def allowed(cls, field: str) -> str:
        """What a field may be; the sidecar has one level more."""
        return "port, handshake, tunnel, egress" if field == "level" else _ALLOWED[field]


def environment_name(field: str) -> str:
    """`health_port` -> `WICKET_HEALTH_PORT`."""
    return f"WICKET_{field.upper()}"


def flag_name(field: str) -> str:
    """`health_port` -> `--health-port`."""
    return "--" + field.replace("_", "-")
