# SPDX-License-Identifier: Apache-2.0
"""Pings that are counted one by one, for as long as somebody wants, over whatever route there is at the moment.

ping(8) cannot say at its end which of the last answers were still on their way; this waits for them.

Usage: python -m wicketgate.lab.stream SOURCE DESTINATION INTERVAL

It sends an echo request every INTERVAL seconds until SIGTERM, waits for the stragglers, and prints one JSON object:
{"sent": n, "received": n, "lost": [numbers], "longest_gap": s}; before that, "started" once the first is answered.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from types import FrameType

STRAGGLERS = 2.0  # s that the last answers may take
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence (RFC 792)
_NUMBER = struct.Struct("!Q")
ECHO_REQUEST = 8
ECHO_REPLY = 0


@dataclass(slots=True)
class Count:
    """What was sent and what came back.

    Attributes:
        sent: requests.
        received: requests that were answered.
        lost: numbers of those that were not, from 0; at most a hundred of them.
        longest_gap: seconds between two answers that followed each other.
    """

    sent: int = 0
    received: int = 0
    lost: list[int] = field(default_factory=list)
    longest_gap: float = 0.0

    def __str__(self) -> str:
        return f"{self.received} of {self.sent} pings answered, longest silence {self.longest_gap * 1000:.0f} ms"


def request(identifier: int, number: int) -> bytes:
    """An ICMP echo request that carries its number, which does not wrap as the sequence does."""
    payload = _NUMBER.pack(number) + bytes(48)
    without = _HEADER.pack(ECHO_REQUEST, 0, 0, identifier, number & 0xFFFF) + payload
    return _HEADER.pack(ECHO_REQUEST, 0, checksum(without), identifier, number & 0xFFFF) + payload


def number_of(packet: bytes, identifier: int) -> int | None:
    """The number in an answer to one of our requests, IPv4 header and all; None for anything else."""
    start = (packet[0] & 0xF) * 4
    if len(packet) < start + _HEADER.size + _NUMBER.size:
        return None
    kind, _code, _sum, their, _sequence = _HEADER.unpack_from(packet, start)
    if kind != ECHO_REPLY or their != identifier:
        return None
    number: int = _NUMBER.unpack_from(packet, start + _HEADER.size)[0]
    return number


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def stream(source: str, destination: str, interval: float) -> Count:
    """Ping until SIGTERM; the count."""
    ending: list[bool] = []

    def end(_number: int, _frame: FrameType | None) -> None:
        ending.append(True)

    signal.signal(signal.SIGTERM, end)
    identifier = os.getpid() & 0xFFFF
    waiting: set[int] = set()
    count = Count()
    last = 0.0
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock,
        selectors.DefaultSelector() as selector,
    ):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((source, 0))
        selector.register(sock, selectors.EVENT_READ)
        due = time.monotonic()
        stop: float | None = None
        while stop is None or (waiting and time.monotonic() < stop):
            now = time.monotonic()
            if ending and stop is None:
                stop = now + STRAGGLERS
                continue
            if stop is None and now >= due:
                waiting.add(count.sent)
                try:
                    sock.sendto(request(identifier, count.sent), (destination, 0))
                except OSError as error:  # no route just now: that ping is lost
                    print(f"ping {count.sent}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                count.sent += 1
                due += interval
                continue
            if not selector.select(max(0.0, (due if stop is None else stop) - now)):
                continue
            while True:
                try:
                    number = number_of(sock.recv(2048), identifier)
                except BlockingIOError:
                    break
                if number in waiting:
                    waiting.discard(number)
                    count.received += 1
                    now = time.monotonic()
                    if count.received == 1:
                        print("started", flush=True)  # noqa: T201
                    else:
                        count.longest_gap = max(count.longest_gap, now - last)
                    last = now
    count.lost = sorted(waiting)[:100]
    return count


def read(text: str) -> Count:
    """The count from the program's output; ValueError when it has not printed any."""
    for line in text.splitlines():
        if line.startswith("{"):
            return Count(**json.loads(line))
    raise ValueError(f"no count in {text!r}")


def main(arguments: list[str]) -> int:
    """Run; exit code 0 when nothing was lost, 1 when something was, 2 when the arguments make no sense."""
    try:
        source, destination, interval = arguments[0], arguments[1], float(arguments[2])
    except (IndexError, ValueError):
        print("usage: stream SOURCE DESTINATION INTERVAL", file=sys.stderr)  # noqa: T201
        return 2
    count = stream(source, destination, interval)
    print(json.dumps(asdict(count)), flush=True)  # noqa: T201
    return 1 if count.lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
