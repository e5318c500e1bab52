# SPDX-License-Identifier: Apache-2.0
"""The agent's sockets at the door: bound to the uplink and the pod's address, a new source port each."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time

from wicketgate.errors import StateError
from wicketgate.health.door_types import NoRouteToStrangers, Outcome, TcpAnswer
from wicketgate.netpath.snapshot import IPAddress

_HEAD = 4096  # bytes of an answer that are looked at for its status line; a guess, a hundred would do

# No route; or one, or a rule, that says unreachable, prohibit or blackhole (fib_props).
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


def bound_socket(
    uplink: str, pod: IPAddress, kind: socket.SocketKind, peer: tuple[IPAddress, int] | None = None, *, port: int = 0
) -> socket.socket:
    """A non-blocking socket at an uplink; the caller closes it.

    Args:
        uplink: SO_BINDTODEVICE; needs no right since Linux 5.7.
        pod: its address.
        kind: SOCK_DGRAM or SOCK_STREAM.
        peer: connect there (UDP); None = not yet.
        port: its own port; 0 = any free one.

    Raises:
        NoRouteToStrangers: the uplink has no route to the peer.
        StateError: the address or the interface is gone.
    """
    sock = socket.socket(socket.AF_INET if pod.version == 4 else socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, uplink.encode())
        if kind == socket.SOCK_STREAM:
            # Ended by RST: a probe a second would else keep sixty sockets in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        sock.bind((str(pod), port))
        if peer is not None:
            sock.connect((str(peer[0]), peer[1]))
    except OSError as error:
        sock.close()
        raise _no_socket(uplink, pod, error) from error
    return sock


def _no_socket(uplink: str, pod: IPAddress, error: OSError) -> StateError:
    if error.errno in _NO_WAY:
        return NoRouteToStrangers(f"{uplink} has no route to a stranger: {error.strerror}")
    return StateError(f"no probe socket on {uplink} at {pod}: {error.strerror}")


async def tcp_probe(
    uplink: str, pod: IPAddress, peer: tuple[IPAddress, int], timeout: float, http_path: str | None
) -> TcpAnswer:
    """Connect; with a path, GET it and read the status line.

    Raises:
        NoRouteToStrangers, StateError: as `bound_socket`.
    """
    started = time.perf_counter()
    port = peer[1]

    def ended(outcome: Outcome, meaning: str, status: int | None = None) -> TcpAnswer:
        return TcpAnswer(outcome, time.perf_counter() - started, status, meaning)

    loop = asyncio.get_running_loop()
    head = b""
    with bound_socket(uplink, pod, socket.SOCK_STREAM) as sock:
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, (str(peer[0]), port))
                if http_path is None:
                    return ended(Outcome.ANSWERED, f"port {port} accepts a stranger's connection")
                host = f"[{pod}]" if pod.version == 6 else str(pod)
                request = f"GET {http_path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
                await loop.sock_sendall(sock, request.encode())
                while b"\n" not in head and len(head) < _HEAD:
                    data = await loop.sock_recv(sock, _HEAD)
                    if not data:
                        break
                    head += data
        except TimeoutError:
            return ended(Outcome.SILENT, f"port {port} gives a stranger no answer within {timeout:g} s")
        except ConnectionRefusedError:
            return ended(Outcome.REFUSED, f"port {port} refuses a stranger's connection")
        except OSError as error:
            if error.errno in _NO_WAY:
                raise _no_socket(uplink, pod, error) from error
            return ended(Outcome.SILENT, f"port {port}: {error.strerror}")
    word = head.split(b"\r\n", 1)[0].split(b" ")
    if len(word) >= 2 and word[0].startswith(b"HTTP/1.") and word[1].isdigit():
        status = int(word[1])
        return ended(Outcome.ANSWERED, f"GET {http_path} on port {port}: {status}", status)
    return ended(Outcome.GARBAGE, f"port {port} answers GET {http_path} with something that is not HTTP")
