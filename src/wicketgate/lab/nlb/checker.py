# SPDX-License-Identifier: Apache-2.0
"""One probe of one target, from one load balancer node's address: a TCP connect, or an HTTP request."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from typing import Final

from wicketgate.clock import Clock
from wicketgate.errors import StateError
from wicketgate.lab.nlb.settings import Checker, CheckSettings, Target, endpoint
from wicketgate.lab.nlb.target import Probe, Reason
from wicketgate.netpath.snapshot import IPAddress

IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h; choose the source port at connect(), so that ports do not run out
HEAD_LIMIT: Final = 16 * 1024  # bytes of an answer's head; a guess, far above any health page's
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")


async def probe(check: CheckSettings, checker: Checker, target: Target, listener_port: int, clock: Clock) -> Probe:
    """Probe once. Failures of the target are outcomes, never exceptions.

    Args:
        check: what to ask and how long to wait.
        checker: the source address.
        target: who is asked.
        listener_port: stands in the Host header, with the checker's address (NLB guide, target-group-health-checks).
        clock: measures the duration.
    """
    began = clock.monotonic()
    port = check.port_of(target)
    where = endpoint(target.address, port)
    try:
        async with asyncio.timeout(check.timeout):
            with source_socket(checker.address) as sock:
                await asyncio.get_running_loop().sock_connect(sock, (str(target.address), port))
                if check.protocol == "tcp":
                    failure, words = None, f"TCP connect to {where}"
                else:
                    code = await _ask(sock, check.path, endpoint(checker.address, listener_port))
                    failure, words = _judge(check, code)
    except TimeoutError:
        failure, words = Reason.TIMEOUT, f"Request timed out: {where} gave no answer in {check.timeout:g} s"
    except _MalformedError as error:
        failure, words = Reason.FAILED_HEALTH_CHECKS, f"Health checks failed: {where}: {error}"
    except OSError as error:
        failure, words = Reason.FAILED_HEALTH_CHECKS, f"Health checks failed: {where}: {_words(error)}"
    return Probe(failure, words, clock.monotonic() - began)


def source_socket(address: IPAddress) -> socket.socket:
    """A TCP socket that will connect from `address`.

    Raises:
        OSError: this host has no such address.
    """
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((str(address), 0))
    except OSError:
        sock.close()
        raise
    return sock


def require_source(checker: Checker) -> None:
    """See that probes can be sent from this checker's address.

    Raises:
        StateError: they cannot; otherwise every target would look dead for a fault of the load balancer.
    """
    try:
        source_socket(checker.address).close()
    except OSError as error:
        raise StateError(
            f"checker {checker.address}: {_words(error)}; give this host the address, on the side of the targets"
        ) from error


class _MalformedError(Exception):
    """The answer is no HTTP."""


async def _ask(sock: socket.socket, path: str, host: str) -> int:
    """Send the request and read the answer's head; its status code."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ELB-HealthChecker/2.0\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(sock, request.encode("ascii"))
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        if len(head) > HEAD_LIMIT:
            raise _MalformedError(f"a head of more than {HEAD_LIMIT} bytes")
        more = await loop.sock_recv(sock, 4096)
        if not more:
            raise _MalformedError(f"the connection was closed after {len(head)} bytes, before the end of the head")
        head += more
    found = _STATUS_LINE.match(head)
    if found is None:
        raise _MalformedError(f"the answer {head[:40]!r} is not HTTP/1")
    return int(found[1])


def _judge(check: CheckSettings, code: int) -> tuple[Reason | None, str]:
    if check.matches(code):
        return None, f"HTTP {code}"
    return Reason.RESPONSE_CODE_MISMATCH, f"Health checks failed with these codes: [{code}]"


def _words(error: OSError) -> str:
    """As strerror(3) says it; asyncio puts a text of its own into `strerror`."""
    if error.errno is None:
        return str(error)
    return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
