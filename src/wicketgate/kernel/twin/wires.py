# SPDX-License-Identifier: Apache-2.0
"""The world around a twin: what is put into its interfaces, and what is seen to leave them.

An uplink is a veth whose far end has no stack behind it: this process reads its frames and answers every ARP request
and neighbour solicitation. A tunnel is a tun device whose other end this process holds. What leaves is seen by a packet
socket in the twin, with the interface.

Nothing is waited for by the clock. This process stays on one CPU, so packets that it sends, their answers, and a frame
that is sent to `lo` behind them pass through one queue of the kernel: when that frame arrives, all before it are
handled. That is repeated until nothing more happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from dataclasses import dataclass, field

from wicketgate.errors import StateError
from wicketgate.kernel.twin import octets
from wicketgate.kernel.twin.octets import Sighting
from wicketgate.kernel.twin.room import Netns
from wicketgate.netpath.snapshot import IPAddress

_TUNSETIFF, _TUNSETCARRIER, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x400454E2, 0x0001, 0x1000  # linux/if_tun.h
_TUN = "/dev/net/tun"
_SO_MARK, _SO_RCVMARK = 36, 75  # asm-generic/socket.h; SO_RCVMARK since Linux 5.19
_LARGEST = 65536
_ROUNDS = 64  # a reply to a reply to a reply ...: a guess that is never reached
_PATIENCE = 5.0  # seconds for one fence: only a machine that stands still needs them
FAR_MAC = bytes.fromhex("02d0c7000001")


def to_one_cpu() -> None:
    """Keep this process, and what it starts, on one CPU."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@dataclass(slots=True)
class _Far:
    """The far end of an uplink."""

    sock: socket.socket
    near_mac: bytes


@dataclass(slots=True)
class Wires:
    """What is around one twin.

    Args:
        home: the twin's namespace; the calling thread is in it.
        far: where the far ends are.

    Attributes:
        asked: who was looked for on which wire, and answered for.
    """

    home: Netns
    far: Netns
    asked: set[tuple[str, IPAddress]] = field(default_factory=set)
    _fars: dict[str, _Far] = field(default_factory=dict)
    _tuns: dict[str, int] = field(default_factory=dict)
    _tap: socket.socket = field(init=False)
    _fences: int = 0

    def __post_init__(self) -> None:
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(octets.ETH_P_ALL))
        self._tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        with contextlib.suppress(OSError):
            self._tap.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
        self._tap.setblocking(False)

    def add_tun(self, ifname: str, *, carrier: bool) -> None:
        """Make a tunnel device, with or without a carrier.

        Raises:
            StateError: /dev/net/tun cannot be used.
        """
        try:
            descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise StateError(f"the tunnel {ifname}: {_TUN}: {error.strerror}") from error
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", ifname.encode(), _IFF_TUN | _IFF_NO_PI))
            if not carrier:
                fcntl.ioctl(descriptor, _TUNSETCARRIER, struct.pack("i", 0))
        except OSError as error:
            os.close(descriptor)
            raise StateError(f"the tunnel {ifname}: {_TUN}: {error.strerror}") from error
        self._tuns[ifname] = descriptor

    def add_far(self, ifname: str, peer: str, near_mac: bytes) -> None:
        """Watch the far end of an uplink."""
        with self.far.inside(self.home):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(octets.ETH_P_ALL))
            sock.bind((peer, octets.ETH_P_ALL))
        sock.setblocking(False)
        self._fars[ifname] = _Far(sock, near_mac)

    def close(self) -> None:
        """Let go of every end."""
        self._tap.close()
        for far in self._fars.values():
            far.sock.close()
        for descriptor in (*self._tuns.values(), self.home.descriptor, self.far.descriptor):
            os.close(descriptor)

    def reaches(self, ifname: str) -> bool:
        """Whether packets can be put into that interface."""
        return ifname in self._fars or ifname in self._tuns

    def is_tun(self, ifname: str) -> bool:
        """A tunnel device."""
        return ifname in self._tuns

    def put(self, ifname: str, packet: bytes) -> None:
        """Let an IP packet come in by an interface.

        Raises:
            StateError: the interface takes none.
        """
        try:
            if ifname in self._tuns:
                os.write(self._tuns[ifname], packet)
            else:
                far = self._fars[ifname]
                far.sock.send(octets.frame(far.near_mac, FAR_MAC, octets.ethertype_of(packet), packet))
        except OSError as error:
            raise StateError(f"nothing can be sent into {ifname}: {error.strerror}") from error

    def settle(self, seen: list[Sighting], others: list[socket.socket], on_ready: object = None) -> None:
        """Let the kernel handle everything that was sent, and answer for the neighbours meanwhile.

        Args:
            seen: gets what leaves the twin.
            others: sockets in the twin that something may arrive at.
            on_ready: called with each of them that has something; what it sends is handled too.
        """
        for _ in range(_ROUNDS):
            self._fence(seen)
            happened = self._neighbours()
            for each in select.select(others, [], [], 0)[0] if others else ():
                assert callable(on_ready)
                happened |= bool(on_ready(each))
            if not happened:
                return
        raise StateError("the packets in the twin do not come to rest")

    def _fence(self, seen: list[Sighting]) -> None:
        self._fences += 1
        mark = struct.pack("!I", self._fences)
        try:
            self._tap.sendto(mark, ("lo", octets.ETH_P_FENCE, 0, 0, b"\0" * 6))
        except OSError as error:
            raise StateError(f"the twin's lo carries nothing: {error.strerror}") from error
        while True:
            if not select.select([self._tap], [], [], _PATIENCE)[0]:
                raise StateError("the twin's kernel does not hand packets on")
            data, ancillary, _, (ifname, ethertype, kind, *_) = self._tap.recvmsg(_LARGEST, 64)
            if ethertype == octets.ETH_P_FENCE:
                if kind == socket.PACKET_HOST and data.startswith(mark):
                    return
            elif kind == socket.PACKET_OUTGOING and ifname != "lo":
                found = octets.sighting(data, ifname, _mark(ancillary))
                if found is not None:
                    seen.append(found)

    def _neighbours(self) -> bool:
        happened = False
        for ifname, far in self._fars.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, (_, _, kind, *_) = far.sock.recvfrom(_LARGEST)
                    if kind == socket.PACKET_OUTGOING:
                        continue
                    answer = octets.neighbour_answer(data, FAR_MAC)
                    if answer is not None:
                        far.sock.send(answer[0])
                        self.asked.add((ifname, answer[1]))
                        happened = True
        for descriptor in self._tuns.values():
            with contextlib.suppress(BlockingIOError):
                while os.read(descriptor, _LARGEST):
                    pass
        return happened


def _mark(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_MARK):
            return int(struct.unpack("I", data[:4])[0])
    return 0
