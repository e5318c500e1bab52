# SPDX-License-Identifier: Apache-2.0
"""One flow watched in the place itself: sent, or waited for, and what the kernel tells of it.

nftables' trace, connection tracking's events, the drop reasons of the tracer. Only this 5-tuple is looked at, and all
that is put up for it is taken away again; what a killed predecessor left, the next one removes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from wicketgate.errors import StateError, WicketError
from wicketgate.kernel import conntrack, live_door
from wicketgate.kernel.conntrack import Tracked, TrackEvents
from wicketgate.kernel.drop_tap import DropTap
from wicketgate.kernel.live_door import LiveDoor
from wicketgate.kernel.live_sender import own_socket, send_first, told
from wicketgate.kernel.live_table import Outside, Watched, removal_script, table_script
from wicketgate.kernel.nft import nft_apply, nft_tables
from wicketgate.kernel.process import run
from wicketgate.kernel.twin import octets
from wicketgate.kernel.twin.half_open import forget, half_open
from wicketgate.kernel.twin.nft_trace import LIVE_TABLE, Rules, Traced, Tracing
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, Ends

PATIENCE = 1.0  # seconds for an answer after the packet arrived; a guess
_SETTLED = 0.05  # for what follows the last word: conntrack's events come with the next packet
_LOCK = b"\0wicketgate-live"  # abstract: of this network namespace alone, and free again when its holder is gone


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel told.

    Attributes:
        request: nftables' words about the packet, in order.
        answer: about its answer.
        tracked: connection tracking's events.
        reasons: why the tracer says that packets of the sending thread were thrown away, in order.
        untold: what the kernel could not be asked, and why, in sentences.
        sender: what became of a socket of this host that sent it: `connected`, `answered`, or an error; empty else.
        ends: addresses and ports of the packet; of one that was waited for, as it came.
        iif: the interface it came in by.
    """

    request: tuple[Traced, ...] = ()
    answer: tuple[Traced, ...] = ()
    tracked: tuple[Tracked, ...] = ()
    reasons: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    sender: str = ""
    ends: Ends | None = None
    iif: str = ""


@dataclass(slots=True)
class LiveWatch:
    """The only live watch of its network namespace. A context manager.

    Raises:
        StateError: on entering: another one is at work here, or a right is missing.
    """

    _lock: socket.socket = field(init=False)

    def __enter__(self) -> Self:
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._lock.bind(_LOCK)
        except OSError as error:
            self._lock.close()
            if error.errno == errno.EADDRINUSE:
                raise StateError(
                    "another live trace is at work in this network namespace; try again when it is done"
                ) from None
            raise StateError(f"no lock for a live trace: {error.strerror}") from error
        try:
            asyncio.run(_clean())
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            asyncio.run(_clean())
        finally:
            self._lock.close()

    def send_into(self, flow: Flow, *, patience: float = PATIENCE) -> Observed:
        """Send a flow's first packet into its interface, and see what becomes of it and of an answer of this host's.

        Neither leaves an interface again: what would is ended right before. A packet that is forwarded is sent a second
        time, caught where it leaves, and answered from there.

        Raises:
            StateError: it cannot be sent, or a connection with these addresses exists.
        """
        iif = flow.iif or ""
        ends = octets.ends_of(flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port)
        tracks = _free(ends)
        number = int.from_bytes(os.urandom(4))
        packet = octets.build(ends, number, length=flow.length, tos=flow.tos)
        with _Look(Watched(ends, iif, kept_in=True)) as look, LiveDoor(iif, ends) as door:
            try:
                look.begin()
                door.send(packet, flow.mark)
                look.listen(ends, patience)
            finally:
                # While the table still stands: a SYN-ACK that is sent again would else get out.
                if not _end_half_open(ends):
                    door.send(octets.reset(ends, number), flow.mark)
                if tracks:
                    conntrack.forget(ends, number & 0xFFFF)
            first = look.observed(ends, iif)
        left = _left_by(first)
        if left is None or flow.protocol == "icmp" or not tracks:
            return first
        try:
            return self._answered(flow, ends, left, patience)
        except StateError as error:
            return replace(first, untold=(*first.untold, f"no answer from outside was played: {error}"))

    def _answered(self, flow: Flow, ends: Ends, left: tuple[str, Ends], patience: float) -> Observed:
        """Send it again, let it go where it left, catch it there, and answer it.

        Raises:
            StateError: it cannot be caught there, or it left otherwise this time.
        """
        iif, (ifname, outside) = flow.iif or "", left
        number = int.from_bytes(os.urandom(4))
        watched = Watched(ends, iif, kept_in=True, outside=Outside(ifname, outside, number))
        with (
            _Look(watched) as look,
            LiveDoor(iif, ends) as door,
            LiveDoor(ifname, outside, number=number),
            LiveDoor(ifname, outside.turned()) as far,
        ):
            try:
                look.begin()
                door.send(octets.build(ends, number, length=flow.length, tos=flow.tos), flow.mark)
                look.listen(ends, patience)
                if _left_by(look.observed(ends, iif)) != left:
                    raise StateError("it left otherwise when it was sent again")
                far.send(octets.build(outside.turned(), number, answer=True))
                look.listen(ends, patience, answered=True)
            finally:
                conntrack.forget(ends)
            return look.observed(ends, iif)

    def send_from_here(self, flow: Flow, *, patience: float = PATIENCE) -> Observed:
        """Let a socket of this host send the flow's first packet. It really leaves.

        Raises:
            StateError: there can be no such socket.
        """
        with own_socket(flow) as sock:
            port = sock.getsockname()[1] if flow.protocol != "icmp" else 0
            ends = octets.ends_of(flow.source, flow.destination, flow.protocol, port, flow.destination_port)
            with _Look(Watched(ends)) as look:
                look.begin()
                code = send_first(sock, flow)
                if not code:
                    code = _await_answer(sock, look, patience)
                look.listen(ends, 0.0)
                return replace(look.observed(ends, ""), sender=told(code, flow.protocol))

    def wait_for(self, watched: Watched, seconds: float, *, patience: float = PATIENCE) -> Observed:
        """Wait for a real packet, and for its answer; nothing is kept in.

        Raises:
            StateError: none came.
        """
        with _Look(watched) as look:
            look.begin()
            if not look.listen_for_request(seconds):
                raise StateError(f"no such packet came within {seconds:g} s: {watched.ends.spelled()}")
            ends = look.first_ends() or watched.ends
            look.listen(ends, patience)
            return look.observed(ends, watched.iif)


class _Look:
    """The table, and the kernel's words from when it stands."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._words: list[Traced] = []
        self._untold: list[str] = []
        self._tap: DropTap | None = None
        self._events: TrackEvents | None = None
        self._reasons: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._tracing = Tracing()
        try:
            asyncio.run(nft_apply(table_script(self._watched)))
            listing = asyncio.run(run(["nft", "-a", "list", "ruleset"]))
            self._rules = Rules(listing.stdout if listing.code == 0 else "")
            try:
                self._events = TrackEvents()
            except StateError as error:
                self._untold.append(str(error))
            try:
                self._tap = DropTap().__enter__()
            except OSError as error:
                self._untold.append(f"drop reasons cannot be had: tracefs: {error.strerror}")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._tracing.close()
        if self._events is not None:
            self._events.close()
        if self._tap is not None:
            self._tap.__exit__(None, None, None)
        asyncio.run(nft_apply(removal_script()))

    def begin(self) -> None:
        """What comes now is about the packet."""
        if self._tap is not None:
            self._tap.mark(1)

    def listen_for_request(self, seconds: float) -> bool:
        """Until a packet is seen; whether one was."""
        deadline = time.monotonic() + seconds
        while not self._words:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._read(left)
        return True

    def first_ends(self) -> Ends | None:
        """Addresses of the first packet that was seen."""
        return next((each.ends for each in self._words if each.ends is not None), None)

    def listen(self, ends: Ends, patience: float, *, answered: bool = False) -> None:
        """Until the packet and its answer have come to their end, or nothing more comes."""
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            request, answer = self._split(ends)
            if request and (_ended(answer) or (not answer and not answered and _will_not_be_answered(request))):
                break
            if not self._read(left) and not request:
                break
        # The last words are followed by nothing that could be waited for.
        while self._read(_SETTLED):
            pass
        if self._tap is not None:
            self._reasons = tuple(self._tap.read().get(1, ()))

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._tracing], [], [], seconds)
        if ready:
            self._words += self._tracing.read(self._rules)
        return bool(ready)

    def read_now(self) -> None:
        """What is there."""
        self._read(0)

    def observed(self, ends: Ends, iif: str) -> Observed:
        """All of it."""
        request, answer = self._split(ends)
        tracked: tuple[Tracked, ...] = ()
        if self._events is not None:
            tracked = tuple(
                each for each in self._events.read() if _same(each.original, ends) and each.action != "DESTROY"
            )
        return Observed(request, answer, tracked, self._reasons, tuple(self._untold), "", ends, iif)

    def _split(self, ends: Ends) -> tuple[tuple[Traced, ...], tuple[Traced, ...]]:
        """The first packet's words and its answer's: what is sent again is not looked at."""
        inwards = bool(self._watched.iif)
        packets: list[list[Traced]] = []
        current: dict[int, list[Traced]] = {}
        for each in self._words:
            begins = each.ours and each.handle and each.chain in ("prerouting_first", "output_first")
            if begins or each.number not in current:
                current[each.number] = []
                packets.append(current[each.number])
            current[each.number].append(each)
        found: dict[bool, tuple[Traced, ...]] = {}
        for words in packets:
            came = words[0].hook == "prerouting"
            outside = self._watched.outside
            is_request = came == inwards and (outside is None or words[0].ends != outside.ends.turned())
            if is_request and words[0].ends is not None and not _same(words[0].ends, ends):
                continue
            if not is_request and True not in found:
                continue
            found.setdefault(is_request, tuple(words))
        return found.get(True, ()), found.get(False, ())


def _left_by(observed: Observed) -> tuple[str, Ends] | None:
    """By which interface the packet was forwarded, and as what; None when it was not."""
    word = next((each for each in observed.request if each.ours and each.chain == "postrouting_last"), None)
    if word is None or word.ends is None or not word.oif:
        return None
    try:
        return socket.if_indextoname(word.oif), word.ends
    except OSError:
        return None


def _same(one: Ends, other: Ends) -> bool:
    """Whether it may be the same packet; an unspecified source is any."""
    alike = one.destination == other.destination and one.protocol == other.protocol
    ports = one.destination_port == other.destination_port and other.source_port in (0, one.source_port)
    return alike and ports and (other.source.is_unspecified or one.source == other.source)


def _ended(words: Sequence[Traced]) -> bool:
    """Whether a packet's way is seen to its end."""
    return bool(words) and (
        any(each.verdict == "drop" for each in words)
        or any(each.ours and each.chain in ("postrouting_last", "input_last") for each in words)
    )


def _will_not_be_answered(words: Sequence[Traced]) -> bool:
    """It was dropped, or left by an interface: no answer of this host follows."""
    return any(each.verdict == "drop" for each in words) or any(
        each.ours and each.chain == "postrouting_last" for each in words
    )


def _free(ends: Ends) -> bool:
    """Whether connections are tracked here at all; that one of these addresses is not, is made sure."""
    if ends.protocol in (ICMP, ICMPV6):
        return True  # its identifier is a new one each time
    try:
        there = conntrack.known(ends)
    except WicketError:
        return False
    if there:
        raise StateError(
            f"a connection {ends.spelled()} exists; a packet of ours would meddle with it: name another source port with --from"
        )
    return True


def _end_half_open(ends: Ends) -> bool:
    """Let the kernel forget that a connection began; whether it could."""
    if ends.protocol != TCP:
        return True
    # struct inet_diag_sockid { __be16 sport, dport; __be32 src[4], dst[4]; ... }
    port = ends.source_port.to_bytes(2)
    try:
        begun = half_open()
    except OSError:
        return False
    return forget(
        tuple(each for each in begun if each.identity[2:4] == port and ends.source.packed in each.identity[20:36])
    )


def _await_answer(sock: socket.socket, look: _Look, patience: float) -> int:
    """0 answered; an errno; ETIMEDOUT for silence."""
    deadline = time.monotonic() + patience
    stream = sock.type == socket.SOCK_STREAM
    while (left := deadline - time.monotonic()) > 0:
        readable, writable, _ = select.select(
            [sock] if not stream else [], [sock] if stream else [], [], min(left, 0.05)
        )
        look.read_now()
        if readable or writable:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.ETIMEDOUT


async def _clean() -> None:
    if ("inet", LIVE_TABLE) in await nft_tables():
        await nft_apply(removal_script())
    await live_door.remove_leftovers()
