# SPDX-License-Identifier: Apache-2.0
"""The flags of `wicket up` and `wicket sidecar`, each also an environment variable: `--health-port`, `WICKET_HEALTH_PORT`.

A flag wins over its variable; an empty variable counts as not set, which is how a manifest switches one off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from wicketgate.config.model import IPAddress
from wicketgate.config.problems import did_you_mean, shown
from wicketgate.config.values import BadValue, ip_literal, number
from wicketgate.errors import InputError
from wicketgate.logs import LogFormat
from wicketgate.wireguard.keys import PrivateKey

_NAME = re.compile(r"[^\s/:\0]{1,15}")


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


def _whole_number(value: object) -> object:
    # The library's own reading also takes "8_080", " 8080 " and 8080.0.
    if isinstance(value, bool | float):
        raise ValueError("a whole number")  # noqa: TRY004 - what a validator raises
    return number(value, 0, 65535, _PORT) if isinstance(value, str) else value


Port = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=65535)]
PortOrNone = Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=65535)]


class _Settings(BaseModel):
    """What both commands take."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    strategy: Strategy = Strategy.PIN
    health_port: Port = 8080
    tcp_port: PortOrNone = 9000  # 0 = none
    level: Level | None = None  # None = by role
    door: Choice = Choice.AUTO
    probe_interval: float = Field(default=1.0, ge=0.1, le=60, allow_inf_nan=False)  # seconds
    egress: Egress | None = None
    drain: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)  # seconds
    log: LogFormat = "console"

    @field_validator("strategy")
    @classmethod
    def _built(cls, strategy: Strategy) -> Strategy:
        if strategy in {Strategy.ISOLATE, Strategy.HOST}:
            raise ValueError("this strategy is not built yet")
        return strategy

    @field_validator("egress", mode="before")
    @classmethod
    def _egress(cls, value: object) -> object:
        return parse_egress(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.tcp_port == self.health_port:
            raise ValueError(
                f"--tcp-port and --health-port are both {self.tcp_port}; allowed: two ports, or --tcp-port 0"
            )
        return self

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str]) -> Self:
        """From the command line and the environment.

        Args:
            flags: field name -> what the flag said; None = not given.
            environ: the environment; variables that do not belong to a field are left alone.

        Raises:
            InputError: naming every bad field with its value and what is allowed.
        """
        given: dict[str, object] = {}
        source: dict[str, str] = {}
        for field in cls.model_fields:
            variable = environment_name(field)
            if environ.get(variable):
                given[field], source[field] = environ[variable], variable
        for field, value in flags.items():
            if value is not None:
                given[field], source[field] = value, flag_name(field)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InputError("\n".join(cls._sentences(error, given, source))) from None

    @classmethod
    def _sentences(cls, error: ValidationError, given: Mapping[str, object], source: Mapping[str, str]) -> list[str]:
        sentences = []
        for item in error.errors(include_url=False, include_input=False):
            if not item["loc"]:
                sentences.append(str(item["ctx"]["error"]))
                continue
            field = str(item["loc"][0])
            where = source.get(field, flag_name(field))
            if field not in cls.model_fields:
                near = did_you_mean(field, cls.model_fields)
                sentences.append(f"{where}: unknown" + (f"; did you mean {flag_name(near)}?" if near else ""))
                continue
            unbuilt = field == "strategy" and item["type"] == "value_error"
            why = ", which is not built yet" if unbuilt else ""
            value = shown(str(given.get(field, "")), key=field)  # a key's file may turn out to be the key
            sentences.append(f"{where}: {value}{why}; allowed: {cls.allowed(field)}")
        return sentences

    @classmethod
    def allowed(cls, field: str) -> str:
        """What a field may be, for help and errors."""
        return _ALLOWED[field]


class GatewaySettings(_Settings):
    """`wicket up`."""

    role: Role = Role.SERVER
    userspace: Choice = Choice.AUTO

    @field_validator("level")
    @classmethod
    def _proved(cls, level: Level | None) -> Level | None:
        if level is Level.PORT:
            raise ValueError("a gateway can prove more")
        return level

    @property
    def effective_level(self) -> Level:
        """The level, or the default of the role."""
        return self.level or (Level.EGRESS if self.role is Role.EXIT else Level.TUNNEL)


class SidecarSettings(_Settings):
    """`wicket sidecar`.

    Attributes:
        interface: the one to stand beside.
        private_key_file: the key of a peer that the user added, for the handshake of a sidecar without rights.
        listen_port: the UDP port that the interface should have; None = whichever it has.
    """

    interface: str = "wg0"
    private_key_file: str | None = None
    listen_port: Port | None = None

    @field_validator("interface")
    @classmethod
    def _interface(cls, name: str) -> str:
        # As the kernel's dev_valid_name (net/core/dev.c), which counts bytes.
        if not _NAME.fullmatch(name) or len(name.encode()) > 15 or name in {".", ".."}:
            raise ValueError("no name of an interface")
        return name

    @field_validator("private_key_file")
    @classmethod
    def _file(cls, path: str | None) -> str | None:
        if path is not None:
            try:
                PrivateKey.parse(path)
            except ValueError:
                return path
            raise ValueError("the key itself")
        return None

    @property
    def effective_level(self) -> Level:
        """The level, or `tunnel`; `port` only when it was asked for."""
        return self.level or Level.TUNNEL

    @classmethod
    def allowed(cls, field: str) -> str:
        """What a field may be; the sidecar has one level more."""
        return "port, handshake, tunnel, egress" if field == "level" else super().allowed(field)


def environment_name(field: str) -> str:
    """`health_port` -> `WICKET_HEALTH_PORT`."""
    return f"WICKET_{field.upper()}"


def flag_name(field: str) -> str:
    """`health_port` -> `--health-port`."""
    return "--" + field.replace("_", "-")
