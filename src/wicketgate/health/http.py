# SPDX-License-Identifier: Apache-2.0
"""HTTP for strangers: what a connection may cost.

A connection is a parser (llhttp, by httptools), an entry in a table and a timer. A request is answered in the very call
in which its head is complete, without a task of its own: the answers are known already. So slow clients, half-open
connections and garbage cost next to nothing and never stand before a probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from wicketgate.logs import get_logger

HEAD_LIMIT = 8 * 1024  # bytes of request line and headers; a balancer's probe has about 150
HEADER_LIMIT = 100  # headers of a request; a guess, proxies send some twenty
REQUEST_LIMIT = 64 * 1024  # bytes a connection may send in its life: many probes, no upload
UNREAD_LIMIT = 1024 * 1024  # bytes of answers that a client has not taken; /metrics of a large gateway is a tenth
HEAD_SECONDS = 5.0  # for the request head, from accept on; probes send it at once
KEEP_ALIVE_SECONDS = 5.0  # idle between two requests; nobody here asks twice in less without being in a hurry
LINGER_SECONDS = 1.0  # for the client to take a refusal before what it still sends makes the kernel reset
POLITE_SECONDS = 20.0  # from then on answers say `Connection: close`
LIFE_SECONDS = 30.0  # the end, whatever happens: for clients that do not read their answer
CONNECTION_LIMIT = 512  # at once; the oldest that has not asked anything goes first

_TEXT = "text/plain; charset=utf-8"
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_VERSIONS = ("1.0", "1.1")

_log = get_logger("health")


@dataclass(frozen=True, slots=True)
class Request:
    """What a stranger asks. Everything else that it sent is forgotten."""

    method: str
    target: str  # path and query, or the absolute form
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is told."""

    status: int
    body: bytes
    content_type: str = _TEXT
    allow: str = ""

    def encode(self, *, version: str, keep: bool, head_only: bool) -> bytes:
        """As it goes over the wire (RFC 9112)."""
        # The name alone: a version would tell a stranger what to try.
        lines = [
            f"HTTP/{version} {self.status} {_REASONS[self.status]}",
            "Server: wicketgate",
            "Cache-Control: no-store",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
        ]
        if self.allow:
            lines.append(f"Allow: {self.allow}")
        if not keep:
            lines.append("Connection: close")
        elif version == "1.0":
            lines.append("Connection: keep-alive")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else self.body)


Handler = Callable[[Request], Answer]
_BAD_REQUEST = Answer(400, b"bad request\n")
_ERROR = Answer(500, b"error\n")


class HttpServer:
    """Makes connections, and counts them.

    Args:
        handler: answers a request at once, from what is known; it may neither wait nor change anything.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self._loop = asyncio.get_running_loop()
        # Oldest first. A connection is in one of the two.
        self.waiting: dict[Connection, None] = {}
        self.asking: dict[Connection, None] = {}

    def connection(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self, self._loop)

    def enter(self, connection: Connection) -> None:
        """Count a new connection; at the limit the oldest goes, first of all one that has not asked anything."""
        if len(self.waiting) + len(self.asking) >= CONNECTION_LIMIT:
            oldest = next(iter(self.waiting), None) or next(iter(self.asking))
            oldest.abort()
        self.waiting[connection] = None

    def asked(self, connection: Connection) -> None:
        """A connection has sent its first request."""
        self.waiting.pop(connection, None)
        self.asking[connection] = None

    def leave(self, connection: Connection) -> None:
        """A connection is over."""
        self.waiting.pop(connection, None)
        self.asking.pop(connection, None)

    def close(self) -> None:
        """End every connection."""
        for connection in (*self.waiting, *self.asking):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection, from accept to its end. The parser calls the `on_...` methods."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._born = loop.time()
        self._transport: asyncio.Transport | None = None
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._unfinished = 0  # bytes since the last whole request, as far as chunks tell
        self._over = False  # nothing more is answered
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.enter(self)
        self._timer = self._loop.call_later(HEAD_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        """Read on; the answers are written meanwhile."""
        first = not self._received
        self._received += len(data)
        if self._received > REQUEST_LIMIT:
            self.abort()
            return
        if self._over or self._parser is None:
            return
        self._unfinished += len(data)
        # A method is upper-case letters. The proxy protocol's version 2 begins with CR LF, which the parser passes over.
        if first and not 0x41 <= data[0] <= 0x5A:
            self._refuse(_BAD_REQUEST)
            return
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._end()  # answered as what it also was; the other protocol is not spoken here
        except HttpParserError as error:
            if isinstance(error, HttpParserCallbackError):
                _log.error("health request failed", exc_info=error.__context__)
                self._refuse(_ERROR)
            else:
                self._refuse(_BAD_REQUEST)
        if self._unfinished > HEAD_LIMIT:
            self._refuse(_BAD_REQUEST)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target = bytearray()
        self._accept = ""
        self._headers = 0
        self._header_bytes = 0
        self._has_body = False

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole."""
        self._headers += 1
        self._header_bytes += len(name) + len(value)
        name = name.lower()
        if name == b"accept":
            self._accept = value.decode("latin-1")
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            self._has_body = True

    def on_headers_complete(self) -> None:
        """The head is complete: that is all that matters here."""
        parser, transport = self._parser, self._transport
        if self._over or parser is None or transport is None or transport.is_closing():
            return
        self._server.asked(self)
        version = parser.get_http_version()
        size = len(self._target) + self._header_bytes
        if size > HEAD_LIMIT or self._headers > HEADER_LIMIT or version not in _VERSIONS:
            self._refuse(_BAD_REQUEST)
            return
        request = Request(parser.get_method().decode("latin-1"), self._target.decode("latin-1"), self._accept)
        answer = self._server.handler(request)
        age = self._loop.time() - self._born
        keep = parser.should_keep_alive() and not self._has_body and age < POLITE_SECONDS
        transport.write(answer.encode(version=version, keep=keep, head_only=request.method == "HEAD"))
        if transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.abort()
        elif keep:
            self._arm(min(KEEP_ALIVE_SECONDS, LIFE_SECONDS - age))
        elif self._has_body:
            self._linger()
        else:
            self._end()

    def on_message_complete(self) -> None:
        """What comes next is another request's."""
        self._unfinished = 0

    def eof_received(self) -> bool | None:
        """The client has finished sending; answers that are under way still reach it."""
        return None

    def abort(self) -> None:
        """End the connection without ceremony."""
        self._over = True
        self._server.leave(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended
        """The connection is over."""
        self._over = True
        self._server.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        self._parser = None  # it holds this object: a thousand such rings a second are work for the collector

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, seconds), self.abort)

    def _end(self) -> None:
        self._over = True
        if self._transport is not None:
            self._arm(LIFE_SECONDS - (self._loop.time() - self._born))
            self._transport.close()

    def _refuse(self, answer: Answer) -> None:
        if self._transport is not None and not self._over:
            self._transport.write(answer.encode(version="1.1", keep=False, head_only=False))
            self._linger()

    def _linger(self) -> None:
        """Finish sending, and throw away what comes: a reset would overtake the answer."""
        self._over = True
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
            self._arm(LINGER_SECONDS)
