# SPDX-License-Identifier: Apache-2.0
"""The health ports, with real sockets bound to `lo`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from unit.health.server_rig import Rig, ask, connect, send, served, until
from wicketgate.health import http
from wicketgate.health.cause import Cause


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with served() as made:
        yield made


class TestAnswers:
    async def test_who_is_told_what(self, rig: Rig):
        """Starting, green, red and draining, as each endpoint tells them; a red names its cause code."""

        async def all_three() -> list[tuple[int, str]]:
            return [((a := await ask(rig.port, path))[0], a[2]) for path in ("/livez", "/readyz", "/healthz")]

        assert await all_three() == [(200, "ok\n"), (503, "agent-starting\n"), (503, "agent-starting\n")]
        rig.green()
        assert await all_three() == [(200, "ok\n"), (200, "ok\n"), (200, "ok\n")]
        rig.red()
        assert await all_three() == [(200, "ok\n"), (503, "tunnel-silent\n"), (503, "tunnel-silent\n")]
        rig.green()
        rig.board.begin_drain()
        assert await all_three() == [(200, "ok\n"), (200, "ok\n"), (503, "agent-draining\n")]

    async def test_json_has_its_documented_fields(self, rig: Rig):
        """`Accept: application/json` gives every check with its evidence and age, green or red."""
        rig.red()
        status, headers, body = await ask(rig.port, "/healthz", Accept="application/json")
        assert status == 503
        assert headers["content-type"].startswith("application/json")
        answer = json.loads(body)
        age = answer["checks"][0].pop("age_seconds")
        assert 0 <= age < 60
        assert answer == {
            "ready": False,
            "serving": False,
            "draining": False,
            "starting": True,
            "level": "tunnel",
            "evidence": "door",
            "backend": "",
            "causes": ["tunnel-silent", "agent-starting"],
            "checks": [
                {
                    "name": "tunnel-v4",
                    "state": "fail",
                    "cause": "tunnel-silent",
                    "where": None,
                    "evidence": "no echo within 1 s",
                    "seconds": None,
                    "detail": {},
                }
            ],
        }
        rig.green()
        status, _, body = await ask(rig.port, "/readyz", Accept="text/html, application/json;q=0.9")
        assert status == 200
        assert json.loads(body)["backend"] == "userspace"

    async def test_verbose_lists_every_check_in_words(self, rig: Rig):
        """`?verbose` is for people: check, evidence, age, and what the cause means."""
        rig.red()
        status, _, body = await ask(rig.port, "/healthz?verbose")
        assert status == 503
        assert "[-] tunnel-v4  fail     no echo within 1 s (tunnel-silent), " in body
        assert f"tunnel-silent: {Cause.TUNNEL_SILENT.sentence}" in body
        assert "not ready, level tunnel, evidence door" in body

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
    async def test_head_is_get_without_a_body(self, rig: Rig, path: str):
        """HEAD has the status and length of GET and no body."""
        rig.green()
        status, headers, body = await ask(rig.port, path, method="HEAD")
        assert status == 200
        assert int(headers["content-length"]) > 0
        assert body == ""

    @pytest.mark.parametrize(
        "path",
        ["/", "/healthz/", "//healthz", "/HEALTHZ", "/healthz/x", "/../healthz", "/health%7A", "*", "/a?b=/healthz"],
    )
    async def test_other_paths_are_404_and_never_a_redirect(self, rig: Rig, path: str):
        """A balancer's default matcher takes 200-399 for healthy: nothing but the four endpoints may be below 400."""
        rig.green()
        assert (await ask(rig.port, path))[0] in {400, 404}

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
    async def test_other_methods_are_405(self, rig: Rig, method: str):
        """Nothing can be done here but asking."""
        rig.green()
        status, headers, _ = await ask(rig.port, "/healthz", method=method)
        assert status == 405
        assert headers["allow"] == "GET, HEAD"

    @pytest.mark.parametrize("host", ["10.0.1.77:51820", "evil.example", "[fd00::1]:9000", "", "*"])
    async def test_any_host_is_answered(self, rig: Rig, host: str):
        """The balancer sends its own node's address and the listener's port as Host."""
        rig.green()
        assert (await ask(rig.port, "/healthz", Host=host))[0] == 200

    async def test_absolute_form_and_http_1_0(self, rig: Rig):
        """Proxies ask with the whole address, old checkers with HTTP/1.0 and no Host."""
        rig.green()
        assert (await ask(rig.port, "http://10.0.0.1:8080/healthz"))[0] == 200
        assert (await send(rig.port, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")

    async def test_it_gives_away_nothing_but_health(self, rig: Rig):
        """No version of anything, no echo of what was sent, in good answers and bad."""
        rig.green()
        for raw in (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /nothing<script> HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /healthz HTTP/9.9\r\n<script>: x\r\n\r\n",
            b"<script>\r\n\r\n",
        ):
            answer = (await send(rig.port, raw)).lower()
            assert b"server: wicketgate\r\n" in answer
            assert b"aiohttp" not in answer
            assert b"python" not in answer
            assert b"script" not in answer

    async def test_one_connection_carries_several_probes(self, rig: Rig):
        """Keep-alive works, also when probes are sent before the answers are read."""
        rig.green()
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        async with asyncio.timeout(20), connect(rig.port) as (reader, writer):
            writer.write(request * 3)
            for _ in range(3):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(3) == b"ok\n"

    async def test_a_client_that_closes_its_half_is_answered(self, rig: Rig):
        """`printf ... | nc -N` ends its sending side before it reads."""
        rig.green()
        async with asyncio.timeout(20), connect(rig.port) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            writer.write_eof()
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")

    async def test_a_burst_computes_nothing(self, rig: Rig):
        """A thousand requests at once are all answered, from one verdict, and change nothing."""
        rig.green()
        before = rig.board.computations
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

        async def client() -> None:
            async with connect(rig.port) as (reader, writer):
                for _ in range(20):
                    writer.write(request)
                    assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(client())
        assert rig.board.computations == before

    async def test_no_line_is_logged_for_a_request(self, rig: Rig, caplog: pytest.LogCaptureFixture):
        """More probes arrive than anybody expects: neither good ones nor garbage are logged."""
        with capture_logs() as lines:
            await ask(rig.port, "/healthz")
            await ask(rig.port, "/nothing", method="POST")
            await send(rig.port, b"\x16\x03\x01\x02\x00")
            await send(rig.port, b"GET / HTTP/9\r\n\r\n")
        assert lines == []
        assert caplog.records == []


GARBAGE = {
    "proxy protocol v2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + b"GET /healthz HTTP/1.1\r\n\r\n",
    "proxy protocol v1": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /healthz HTTP/1.1\r\n\r\n",
    "a TLS ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a WireGuard initiation": b"\x01\x00\x00\x00" + bytes(144),
    "zeros": bytes(3000),
    "a lower-case method": b"get /healthz HTTP/1.1\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "a bad version": b"GET /healthz HTTP/x.y\r\n\r\n",
    "a header without a colon": b"GET /healthz HTTP/1.1\r\nnonsense\r\n\r\n",
    "two lengths": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a giant request line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "a giant header": b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "an endless head": b"GET /healthz HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 300,
}


class TestBadClients:
    @pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
    async def test_garbage_is_400_and_the_end(self, rig: Rig, raw: bytes):
        """What is no HTTP request gets 400 and a closed connection, never a 200, and the next probe its answer."""
        rig.green()
        answer = await send(rig.port, raw)
        # Bytes that were not read when the connection is closed make the kernel send a reset, which may overtake the 400.
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")) or (answer == b"" and len(raw) > 8192), answer
        assert b" 200 " not in answer
        assert (await ask(rig.port, "/healthz"))[0] == 200

    async def test_slow_clients_do_not_stand_before_a_probe(self, rig: Rig):
        """With 200 clients in the middle of their request head, and all of them still there, probes are answered."""
        rig.green()
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(connect(rig.port)) for _ in range(200)]
            for _, writer in slow:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: ")
            await until(lambda: rig.server.connections == 200, "not all slow clients were accepted")
            for _ in range(10):
                assert (await ask(rig.port, "/healthz"))[0] == 200
            assert not any(reader.at_eof() for reader, _ in slow), "probes were answered while the slow ones waited"

    async def test_idle_connections_are_capped_and_the_oldest_goes(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """Far more idle connections than allowed: the oldest are closed, probes are answered, the cap holds."""
        rig.green()
        monkeypatch.setattr(http, "CONNECTION_LIMIT", 256)
        extra = 40
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connect(rig.port)) for _ in range(http.CONNECTION_LIMIT + extra)]
            assert (await ask(rig.port, "/healthz"))[0] == 200
            assert rig.server.connections <= http.CONNECTION_LIMIT
            for reader, _ in idle[:extra]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
            assert not idle[-1][0].at_eof()

    async def test_probes_that_waited_are_all_answered(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """More probes than the cap come in while the loop is busy: none is pushed out before its request was read."""
        rig.green()
        monkeypatch.setattr(http, "CONNECTION_LIMIT", 256)  # both ends are here, and often 1024 files are allowed
        count = http.CONNECTION_LIMIT + 200
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in range(count):  # blocking: the server's loop, this one, does not turn meanwhile
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", rig.port), timeout=20))
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                sock.setblocking(False)
                sockets.append(sock)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(60):
                answers = [await loop.sock_recv(sock, 4096) for sock in sockets]
        assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == count

    async def test_a_client_that_never_asks_is_closed(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """The request head has a deadline, however slowly its bytes drip in."""
        monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)
        assert await send(rig.port, b"") == b""
        assert await send(rig.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n") == b""
        await until(lambda: rig.server.connections == 0, "a connection is left")

    async def test_a_client_that_never_reads_is_closed(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """Answers that nobody takes end with the connection's life."""
        monkeypatch.setattr(http, "LIFE_SECONDS", 0.2)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
            await asyncio.get_running_loop().sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1500)
            await until(lambda: rig.server.connections == 1, "it was not accepted")
            await until(lambda: rig.server.connections == 0, "the connection is still there")

    async def test_a_wish_for_another_protocol_is_answered_as_the_request_it_also_is(self, rig: Rig):
        """`Upgrade` is passed over, and what follows it is not read as a request."""
        rig.green()
        head = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        answer = await send(rig.port, b"GET /healthz HTTP/1.1\r\n" + head + b"GET /livez HTTP/1.1\r\n\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.slow
    async def test_answers_that_pile_up_unread_end_the_connection(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """A client that asks on without reading costs a bounded amount of memory."""
        monkeypatch.setattr(http, "UNREAD_LIMIT", 10_000)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
            await asyncio.get_running_loop().sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1500)
            await until(lambda: rig.server.connections == 1, "it was not accepted")
            await until(lambda: rig.server.connections == 0, "the connection is still there")

    async def test_a_slip_of_ours_is_500_and_logged(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """A handler that fails tells nothing of why to the stranger, and the next request is served."""
        rig.green()
        good = rig.server._http.handler

        def fail(_request: http.Request) -> http.Answer:
            raise RuntimeError("secret")

        rig.server._http.handler = fail
        with capture_logs() as lines:
            answer = await send(rig.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in answer
        assert [line["event"] for line in lines] == ["health request failed"]
        rig.server._http.handler = good
        assert (await ask(rig.port, "/healthz"))[0] == 200

    async def test_old_clients_keep_their_connection_when_they_ask_to(self, rig: Rig):
        """HTTP/1.0 with `Connection: keep-alive` is told so, and its next request is answered."""
        rig.green()
        request = b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        async with asyncio.timeout(20), connect(rig.port) as (reader, writer):
            for _ in range(2):
                writer.write(request)
                assert b"Connection: keep-alive\r\n" in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(3) == b"ok\n"

    async def test_a_body_is_neither_read_nor_waited_for(self, rig: Rig):
        """An upload is refused, and ends at a few kilobytes."""
        async with asyncio.timeout(20), connect(rig.port) as (reader, writer):
            writer.write(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"x" * 8192)
                    await writer.drain()
            await until(lambda: rig.server.connections == 0, "the upload goes on")
