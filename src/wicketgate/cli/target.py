# SPDX-License-Identifier: Apache-2.0
"""HOST:PORT from the command line, and the addresses behind it."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

from wicketgate.errors import InputError, StateError

_TARGET = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: a name or address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """From `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`.

        Raises:
            InputError: with what is allowed.
        """
        found = _TARGET.fullmatch(text)
        if found is None or not 1 <= int(found["port"]) <= 65535:
            raise InputError(
                f"HOST:PORT: {text!r} was read; allowed are name:port, 192.0.2.1:port and [2001:db8::1]:port, "
                "with a port of 1-65535"
            )
        return cls(found["six"] or found["host"], int(found["port"]))

    def resolve(self) -> list[Endpoint]:
        """Every address, in the system's order of preference (RFC 6724).

        Raises:
            InputError: no such host.
            StateError: the name service does not answer.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise StateError(f"{self.host}: the name service does not answer ({error.strerror})") from None
            raise InputError(f"{self.host}: no such host ({error.strerror})") from None
        except UnicodeError:
            raise InputError(f"{self.host}: no host name") from None
        return [Endpoint(family, address) for family, _, _, _, address in found]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and port, as the socket module writes it."""

    family: socket.AddressFamily
    address: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.address[:2]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"

    def connect(self) -> socket.socket:
        """A connected, non-blocking UDP socket: ICMP errors reach it. Raises OSError."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return sock
