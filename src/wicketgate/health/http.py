# SPDX-License-Identifier: Apache-2.0
"""HTTP for strangers: what a connection may cost, and the answers.

aiohttp meets a connection only once a complete request head has come in. Until then a connection is a buffer of at most
8 KiB and an entry in a table, so slow clients, half-open connections and garbage cost next to nothing and never stand
before a probe.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

from wicketgate.health.board import Board
from wicketgate.health.cause import Cause
from wicketgate.health.metrics import Metrics

HEAD_LIMIT = 8 * 1024  # bytes of request line and headers; a balancer's probe has about 150
REQUEST_LIMIT = 64 * 1024  # bytes a connection may send in its life: many probes, no upload
HEAD_SECONDS = 5.0  # for the request head, from accept on; probes send it at once
KEEP_ALIVE_SECONDS = 5.0  # idle between two requests; nobody here asks twice in less without being in a hurry
POLITE_SECONDS = 20.0  # from then on answers say `Connection: close`
LIFE_SECONDS = 30.0  # the end, whatever happens: for clients that do not read their answer
CONNECTION_LIMIT = 512  # at once; the oldest that has not asked anything goes first
METRICS_SECONDS = 0.2  # a scrape younger than that is given again: thousands of peers times a flood of scrapes

# The name alone: a version would tell a stranger what to try.
_HEADERS = {"Server": "wicketgate", "Cache-Control": "no-store"}

_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nServer: wicketgate\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 12\r\nConnection: close\r\n\r\nbad request\n"
)

# RFC 9112 section 3. A line without a version would be HTTP/0.9, which the parser behind us answers.
_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]\r?\n")

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


class _QuietHandler(RequestHandler):
    """aiohttp's protocol without its version, without echoing what was sent, without a log line a request."""

    __slots__ = ("born",)

    born: float

    def handle_error(
        self,
        request: BaseRequest,  # noqa: ARG002 - nothing of it is told back
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes what was sent
    ) -> StreamResponse:
        """The answer to a request that could not be parsed, or whose handler failed."""
        if status >= 500 and exc is not None:
            self.log_exception("health request failed", exc_info=exc)
        response = Response(status=status, text="bad request\n" if status < 500 else "error\n", headers=_HEADERS)
        response.force_close()
        return response


class HttpServer(Server):
    """Makes connections: it is the protocol factory of the listening sockets."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(
            handler,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=1.0,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
            read_bufsize=HEAD_LIMIT,
        )
        # Oldest first. A connection is in one of the two.
        self.waiting: dict[Connection, None] = {}
        self.asking: dict[Connection, None] = {}

    def __call__(self) -> RequestHandler:
        """A protocol that speaks HTTP, for a connection whose first request head is complete."""
        protocol = _QuietHandler(self, loop=self._loop, **self._kwargs)
        protocol.born = self._loop.time()
        return protocol

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

    async def close(self) -> None:
        """End every connection."""
        for connection in (*self.waiting, *self.asking):
            connection.abort()
        await self.shutdown(timeout=1.0)


class Connection(asyncio.Protocol):
    """One connection, from accept to its end; passes to aiohttp once there is a request."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._inner: RequestHandler | None = None
        self._head = bytearray()
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.enter(self)
        self._timer = self._loop.call_later(HEAD_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        """Collect the first request head, then hand everything on."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._received += len(data)
        if self._received > REQUEST_LIMIT:
            self.abort()
            return
        if self._inner is not None:
            self._inner.data_received(data)
            return
        self._head += data
        # A method is upper-case letters. The proxy protocol's version 2 begins with CR LF, TLS with 0x16.
        if not 0x41 <= self._head[0] <= 0x5A:
            _refuse(transport)
        elif b"\r\n\r\n" in self._head or b"\n\n" in self._head:
            if _REQUEST_LINE.match(self._head):
                self._begin(transport)
            else:
                _refuse(transport)
        elif len(self._head) > HEAD_LIMIT:
            _refuse(transport)

    def _begin(self, transport: asyncio.Transport) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LIFE_SECONDS, self.abort)
        self._server.asked(self)
        self._inner = self._server()
        self._inner.connection_made(transport)
        head = bytes(self._head)
        self._head.clear()
        self._inner.data_received(head)

    def abort(self) -> None:
        """End the connection without ceremony."""
        self._server.leave(self)
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        """The client has finished sending; it may still wait for the answer."""
        if self._inner is None:
            return None  # nothing was asked: close
        self._inner.eof_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._server.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._inner is not None:
            self._inner.resume_writing()


class Answers:
    """The endpoints. All of them are answered from what is already known; none changes anything."""

    def __init__(self, board: Board, metrics: Metrics) -> None:
        self._board = board
        self._metrics = metrics
        self._scrapes: dict[str, tuple[float, bytes, str]] = {}

    async def handle(self, request: BaseRequest) -> Response:
        """Answer a request."""
        path, _, query = request.raw_path.partition("?")
        if path.startswith("http://"):  # absolute form, RFC 9112 section 3.2.2
            path = "/" + path.removeprefix("http://").partition("/")[2]
        if path not in {"/livez", "/readyz", "/healthz", "/metrics"}:
            # Never a redirect: a balancer's default matcher takes 200-399 for healthy.
            response = _text(404, "not found: /livez /readyz /healthz /metrics\n")
        elif request.method not in {"GET", "HEAD"}:
            response = _text(405, "GET or HEAD\n", Allow="GET, HEAD")
        elif path == "/metrics":
            response = self._scrape(request.headers.get("Accept", ""))
        else:
            response = self._health(path, query, request.headers.get("Accept", ""))
        protocol = request.protocol
        if isinstance(protocol, _QuietHandler) and asyncio.get_running_loop().time() - protocol.born > POLITE_SECONDS:
            response.force_close()
        return response

    def _health(self, path: str, query: str, accept: str) -> Response:
        board = self._board
        verdict = board.verdict()
        causes: tuple[Cause, ...]
        if path == "/livez":
            good, causes = board.live, ()
        elif path == "/readyz":
            good, causes = verdict.ready, verdict.readiness_causes
        else:
            good, causes = verdict.serving, verdict.causes
        status = 200 if good else 503
        if "application/json" in accept:
            return Response(
                status=status, text=verdict.as_json(board.now()), content_type="application/json", headers=_HEADERS
            )
        if query.partition("&")[0].partition("=")[0] == "verbose":
            return _text(status, verdict.as_text(board.now()))
        if good:
            return _text(status, "ok\n")
        if path == "/livez":
            return _text(status, "the agent's probes do not turn\n")
        return _text(status, " ".join(causes) + "\n")

    def _scrape(self, accept: str) -> Response:
        now = self._board.now()
        kept = self._scrapes.get(accept)
        if kept is None or not 0 <= now - kept[0] < METRICS_SECONDS:
            if len(self._scrapes) >= 8:
                self._scrapes.clear()  # scrapers know two or three Accept headers; this is somebody else
            kept = (now, *self._metrics.render(accept))
            self._scrapes[accept] = kept
        return Response(status=200, body=kept[1], headers=_HEADERS | {"Content-Type": kept[2]})


def _refuse(transport: asyncio.Transport) -> None:
    transport.write(_BAD_REQUEST)
    transport.close()


def _text(status: int, text: str, **headers: Any) -> Response:
    return Response(status=status, text=text, headers=_HEADERS | headers)
