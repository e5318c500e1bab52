# SPDX-License-Identifier: Apache-2.0
"""A single packet sent into an interface from inside: it leaves by it, tc turns it round, it comes in as a stranger's.

A packet socket needs CAP_NET_RAW besides CAP_NET_ADMIN; in return it passes by this host's own output chains, and the
packet is the very one that was asked for: addresses, ports, mark. mirred drops route and connection on the way, so the
kernel routes, filters and tracks it as any that came by the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.tc import EGRESS, INGRESS, Redirect, TrafficControl
from wicketgate.netpath.packet import TCP, UDP, Ends

_COOKIE = b"wicket-livedoor"  # and one octet more: whether the qdisc was made for it; a door's own begins otherwise
_PRIORITY = 60_200  # after every door's
_ETH_P = {4: 0x0800, 6: 0x86DD}
_ETHERNET = 1  # ARPHRD_ETHER
_SO_MARK = 36


class LiveDoor:
    """The way in for one flow's packets. A context manager; those that are open end together, with the innermost.

    Args:
        ifname: by which they come in.
        ends: theirs; nothing else is turned round.
        number: of the one packet that is turned round instead, whatever its source and ports are by then: what
            `octets.build` gave it.

    Raises:
        StateError: on entering, with everything undone.
    """

    def __init__(self, ifname: str, ends: Ends, *, number: int | None = None) -> None:
        self._number = number
        self._ifname = ifname
        self._ends = ends
        self._sock: socket.socket | None = None

    def __enter__(self) -> Self:
        version = 4 if self._ends.source.version == 4 else 6
        try:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise StateError(
                f"no packet socket: {error.strerror}; sending a stranger's packet needs CAP_NET_RAW besides CAP_NET_ADMIN"
            ) from error
        try:
            self._sock.bind((self._ifname, 0))
            self._address = self._sock.getsockname()
            self._protocol = _ETH_P[version]
            asyncio.run(self._put_up())
        except BaseException as error:
            self._sock.close()
            asyncio.run(remove_leftovers())
            if isinstance(error, OSError):
                raise StateError(f"nothing can be sent into {self._ifname}: {error.strerror}") from error
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._sock is not None:
            self._sock.close()
        asyncio.run(remove_leftovers())

    def send(self, packet: bytes, mark: int = 0) -> None:
        """Send an IP packet. Raises StateError."""
        if self._sock is None:
            raise StateError("this door is closed")
        _, _, _, hardware, own = self._address
        frame = own + own + struct.pack("!H", self._protocol) if hardware == _ETHERNET else b""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
            self._sock.sendto(frame + packet, (self._ifname, self._protocol, 0, 0, own))
        except OSError as error:
            raise StateError(f"nothing can be sent into {self._ifname}: {error.strerror}") from error

    async def _put_up(self) -> None:
        index = socket.if_nametoindex(self._ifname)
        async with TrafficControl() as tc:
            present = [each for each in await tc.qdiscs(index) if each.at_the_door]
            if present and present[0].kind != "clsact":
                raise StateError(f"{self._ifname} has somebody's {present[0].kind} qdisc where clsact belongs")
            # Whoever is asked before us might let it out onto the wire.
            earlier = [each for each in await tc.filters(index) if each.priority < _PRIORITY and not each.empty]
            if thief := next((each for each in earlier if not each.cookie.startswith(b"wicketgate")), None):
                raise StateError(
                    f"no packet is sent into {self._ifname}: another tc filter might take it first: {thief.spell(self._ifname)}"
                )
            ends = self._ends
            ports = (ends.source_port, ends.destination_port) if ends.protocol in (TCP, UDP) else None
            cookie = _COOKIE + bytes([not present])
            redirect = Redirect(ends.destination, ends.source, _PRIORITY, cookie, ends.protocol, ports)
            if self._number is not None:
                word = number_at(ends), self._number
                redirect = Redirect(ends.destination, None, _PRIORITY, cookie, ends.protocol, None, word)
            await tc.add(index, self._ifname, [redirect], clsact=not present)


def number_at(ends: Ends) -> int:
    """Where `octets.build` puts a packet's number: TCP's sequence, or behind the tag of UDP's payload."""
    return (20 if ends.source.version == 4 else 40) + (4 if ends.protocol == TCP else 20)


async def remove_leftovers() -> int:
    """Remove the filters of this kind wherever they are, and a qdisc that was made for them; how many there were."""
    count = 0
    async with TrafficControl() as tc:
        for index in sorted({each.ifindex for each in await tc.qdiscs() if each.at_the_door}):
            name = ""
            with contextlib.suppress(OSError):
                name = socket.if_indextoname(index)
            made = False
            for each in await tc.filters(index):
                if each.cookie.startswith(_COOKIE):
                    made = made or bool(each.cookie[-1])
                    count += 1
                    with contextlib.suppress(KernelRefused):
                        await tc.delete_filter(each, name)
            if made and not await tc.filters(index, EGRESS) and not await tc.filters(index, INGRESS):
                with contextlib.suppress(KernelRefused):
                    await tc.delete_clsact(index, name)
    return count
