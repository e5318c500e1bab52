# SPDX-License-Identifier: Apache-2.0
"""A socket of this host that sends a flow's first packet, for real."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

from wicketgate.errors import StateError
from wicketgate.kernel.twin import octets
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.packet import ICMP, ICMPV6, Ends

_SO_MARK = 36


@contextlib.contextmanager
def own_socket(flow: Flow) -> Iterator[socket.socket]:
    """The socket, bound as the flow has it: address, port, device, mark, owner.

    Raises:
        StateError: there can be no such socket.
    """
    six = flow.destination.version == 6
    family = socket.AF_INET6 if six else socket.AF_INET
    kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0)}
    kind, protocol = kinds.get(flow.protocol, (socket.SOCK_RAW, ICMPV6 if six else ICMP))
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise StateError(f"no socket that sends it: {error.strerror}") from error
    with sock:
        try:
            if flow.mark:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, flow.mark)
            if flow.device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, flow.device.encode())
            if flow.uid:
                os.fchown(sock.fileno(), flow.uid, -1)  # the owner that netfilter and policy rules see
            if flow.protocol == "tcp":  # ended by RST: its port is free again at once
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            sock.bind((str(flow.source), flow.source_port))
        except OSError as error:
            raise StateError(f"no socket that sends it from {flow.source}: {error.strerror}") from error
        yield sock


def send_first(sock: socket.socket, flow: Flow) -> int:
    """Send the packet; 0, or the errno that the sender is told at once."""
    target = (str(flow.destination), flow.destination_port)
    try:
        if flow.protocol == "tcp":
            code = sock.connect_ex(target)
            return 0 if code == errno.EINPROGRESS else code
        if flow.protocol == "udp":
            sock.connect(target)
            sock.send(b"wicket trace\n")
        else:
            six = flow.destination.version == 6
            ends = Ends(flow.destination, flow.destination, ICMPV6 if six else ICMP)
            sock.sendto(octets.build(ends, os.getpid() & 0xFFFF)[40 if six else 20 :], (str(flow.destination), 0))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def told(code: int, protocol: str) -> str:
    """What became of it, in words: ETIMEDOUT is silence."""
    if not code:
        return "connected" if protocol == "tcp" else "answered"
    return "no answer" if code == errno.ETIMEDOUT else os.strerror(code)
