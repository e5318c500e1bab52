# SPDX-License-Identifier: Apache-2.0
"""One rtnetlink socket: requests with their answers, dumps that are whole or started again.

pyroute2 0.9.7 never raises NLM_F_DUMP_INTR, ignores an error that a dump ends with, leaks a sequence number for every
answer that is not read to its end, and a second dump while one runs is refused (EBUSY). All four are dealt with here.
"""

# pyroute2 carries no types.
# mypy: disable-error-code="no-untyped-call,attr-defined,misc"

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink import (
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    SOL_NETLINK,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkRequest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.keywords import compose
from wicketgate.kernel.messages import POLICY
from wicketgate.kernel.plain_routes import RTM_NEWROUTE, plain_route

NLM_F_DUMP_INTR = 0x10  # linux/netlink.h: the tables changed while the dump was written
DUMP_ATTEMPTS = 20  # a guess: a table that changes during each of 20 dumps in a row is a flood


class CheckingMarshal(MarshalRtnl):
    """pyroute2's decoder, which also minds how a dump ended."""

    def __init__(self) -> None:
        super().__init__()
        self.msg_map.update(POLICY)
        self.interrupted: set[int] = set()
        self.parts: dict[int, int] = {}
        self._last: dict[str, Any] = {}

    def _header(self, key: int, flags: int, sequence_number: int) -> dict[str, Any]:
        """One for all messages of a dump."""
        if (self._last.get("sequence_number"), self._last.get("flags")) != (sequence_number, flags):
            self._last = {"type": key, "flags": flags, "sequence_number": sequence_number, "error": None}
        return self._last

    def parse(self, data: bytes, *arguments: Any, **options: Any) -> Any:
        """Decode a datagram, and count those of each answer that carry more than the closing message."""
        if len(data) >= 16:
            _, kind, _, sequence = struct.unpack_from("=IHHI", data)
            if kind != NLMSG_DONE and sequence:
                self.parts[sequence] = self.parts.get(sequence, 0) + 1
        return super().parse(data, *arguments, **options)

    def parse_one_message(  # noqa: PLR0917 - pyroute2's signature
        self, key: int, flags: int, sequence_number: int, data: bytes, offset: int, length: int
    ) -> Any:
        """Decode one message; NLMSG_DONE may carry an error (a negative int) and the interruption flag too."""
        if flags & NLM_F_DUMP_INTR:
            self.interrupted.add(sequence_number)
        if key == RTM_NEWROUTE and flags & NLM_F_MULTI:
            plain = plain_route(data, offset, length, self._header(key, flags, sequence_number))
            if plain is not None:
                return plain
        message = super().parse_one_message(key, flags, sequence_number, data, offset, length)
        if key == NLMSG_DONE and length >= 20 and message["header"].get("error") is None:
            (code,) = struct.unpack_from("i", data, offset + 16)
            if code < 0:
                message["header"]["error"] = NetlinkError(-code)
        return message


class Connection:
    """A socket to rtnetlink in the network namespace of the calling thread, on the running loop.

    Attributes:
        ipr: pyroute2's own object, for message families that have no verb here (tc).
        interrupted_dumps: how many dumps were started again because the tables changed meanwhile.
    """

    def __init__(self) -> None:
        self.ipr: Any = None
        self.interrupted_dumps = 0
        self._marshal = CheckingMarshal()
        self._dump_lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def open(self) -> Self:
        """Open the socket.

        Raises:
            StateError: none can be had.
        """
        try:
            ipr: Any = AsyncIPRoute(ext_ack=True)
            self.ipr = ipr
            self.ipr.set_marshal(self._marshal)
            await self.ipr.setup_endpoint()
            self.ipr.socket.bind((0, 0))
        except OSError as error:
            await self.close()
            raise StateError(f"no netlink socket can be had: {error.strerror or error}") from error
        with contextlib.suppress(OSError):  # Linux >= 4.20: the kernel filters dumps, and refuses what it would ignore
            self.ipr.socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        return self

    async def close(self) -> None:
        """Wait for what is under way, then close."""
        if self._running:
            await asyncio.wait(self._running, timeout=5)
        if self.ipr is not None:
            self.ipr.close()
            self.ipr = None

    @property
    def port(self) -> int:
        """The socket's netlink port: the kernel names it in the events that our requests cause."""
        return int(self.ipr.socket.getsockname()[0])

    async def request(
        self,
        message_class: Any,
        message_type: int,
        fields: Mapping[str, Any],
        attributes: Mapping[str, Any],
        *,
        flags: int = 0,
        what: str,
    ) -> list[Any]:
        """Ask for one thing; the kernel's answer, or its acknowledgement (an empty list).

        Args:
            message_class: pyroute2's or ours.
            message_type: RTM_*.
            fields: header fields.
            attributes: attributes by their full names.
            flags: NLM_F_* beside REQUEST and ACK.
            what: the request in iproute2 spelling, for the error.

        Raises:
            KernelRefused: with the kernel's own sentence where it gave one.
            UnknownKeyword: a field or attribute that does not exist.
        """
        message = compose(message_class, fields, attributes)
        answers: list[Any]
        answers, _, _ = await self._shielded(
            self._exchange(message, message_type, NLM_F_REQUEST | NLM_F_ACK | flags, what)
        )
        return answers

    async def dump(
        self,
        message_class: Any,
        message_type: int,
        fields: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        witness_groups: Iterable[int] = (),
        what: str,
    ) -> list[Any]:
        """Everything of a kind, whole: a dump whose tables changed between its parts is started again.

        The kernel marks such dumps of links and addresses. It does not for rules, which it counts off by their place
        in the list (a rule that goes makes the next part skip one), nor for IPv6 routes: there a witness socket hears
        whether something changed meanwhile. IPv4 routes are dumped by key, and none that stays is ever skipped.

        Args:
            message_class: pyroute2's or ours.
            message_type: RTM_GET*.
            fields: header fields.
            attributes: attributes by their full names; where the kernel is new enough it sends only what agrees.
            witness_groups: RTNLGRP_* whose events spoil a dump of more than one part.
            what: the request in iproute2 spelling, for the error.

        Raises:
            KernelRefused: the kernel's error, or EAGAIN when the tables change too fast to be read.
        """
        compose(message_class, fields, attributes or {})
        answers: list[Any] = await self._shielded(
            self._whole_dump(message_class, message_type, fields, attributes or {}, tuple(witness_groups), what)
        )
        return answers

    async def _whole_dump(  # noqa: PLR0917 - the arguments of `dump`
        self,
        message_class: Any,
        message_type: int,
        fields: Mapping[str, Any],
        attributes: Mapping[str, Any],
        witness_groups: tuple[int, ...],
        what: str,
    ) -> list[Any]:
        async with self._dump_lock:
            for _ in range(DUMP_ATTEMPTS):
                message = compose(message_class, fields, attributes)
                with _witness(witness_groups) as something_changed:
                    answers, interrupted, parts = await self._exchange(
                        message, message_type, NLM_F_REQUEST | NLM_F_DUMP, what
                    )
                    spoiled = parts > 1 and something_changed()
                if not interrupted and not spoiled:
                    return answers
                self.interrupted_dumps += 1
        raise KernelRefused(
            what, errno.EAGAIN, f"the tables changed during each of {DUMP_ATTEMPTS} readings; somebody floods them"
        )

    async def _exchange(self, message: Any, message_type: int, flags: int, what: str) -> tuple[list[Any], bool, int]:
        try:
            request = NetlinkRequest(self.ipr, message, msg_type=message_type, msg_flags=flags)
            self._marshal.interrupted.discard(request.msg_seq)
            self._marshal.parts.pop(request.msg_seq, None)
            await request.send()
            # Read to the end, errors too: an answer that is left lying costs a sequence number for good.
            answers = [answer async for answer in request.response()]
        except NetlinkError as error:
            raise KernelRefused(what, error.code, sentence(error)) from error
        except OSError as error:
            raise KernelRefused(what, error.errno or errno.EIO, error.strerror or str(error)) from error
        finally:
            self._drop_strays()
        interrupted = request.msg_seq in self._marshal.interrupted
        self._marshal.interrupted.discard(request.msg_seq)
        return answers, interrupted, self._marshal.parts.pop(request.msg_seq, 0)

    async def _shielded(self, coroutine: Any) -> Any:
        # A cancelled caller must not leave half an answer in the socket: the exchange goes on to its end.
        task = asyncio.ensure_future(coroutine)
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also when the caller has gone

    def _drop_strays(self) -> None:
        # Parts of an answer whose request is over end up in pyroute2's queue 0, which nobody reads.
        queue = self.ipr.msg_queue.root
        while not queue.empty():
            queue.get_nowait()
            queue.task_done()


@contextlib.contextmanager
def _witness(groups: tuple[int, ...]) -> Iterator[Callable[[], bool]]:
    """A socket that hears the events of some groups; the answer is whether there was one."""
    if not groups:
        yield lambda: False
        return
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, kind, 0) as sock:  # 0 = NETLINK_ROUTE
        sock.bind((0, sum(1 << (group - 1) for group in groups)))

        def heard() -> bool:
            try:
                return bool(sock.recv(1))
            except BlockingIOError:
                return False
            except OSError:  # ENOBUFS: more than it could keep
                return True

        yield heard


def sentence(error: NetlinkError) -> str:
    """The kernel's own words (extended acknowledgement), or the error number's."""
    text = str(error.args[1]) if len(error.args) > 1 else ""
    return text.rstrip("\0. ") or os.strerror(error.code)
