# SPDX-License-Identifier: Apache-2.0
"""The TCP port that is open only while a client would be served, and where both ports listen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from unit.health.server_rig import LO, V4, Rig, ask, connect, refused, send, served, until
from wicketgate.clock import SystemClock
from wicketgate.health import tcp_port
from wicketgate.health.board import Board
from wicketgate.health.metrics import Metrics
from wicketgate.health.server import HealthServer
from wicketgate.health.uplinks import PortBusy, Uplink


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with served() as made:
        yield made


class TestTcpPort:
    async def test_it_accepts_only_while_serving(self, rig: Rig):
        """Refused while starting, open at the first success, refused the moment it turns red or drains."""
        assert refused(rig.tcp_port)
        rig.green()
        port = rig.tcp_port
        assert not refused(port)
        rig.red()
        assert rig.tcp_port == port, "the port is not lost meanwhile"
        assert refused(port)
        rig.green()
        assert not refused(port)
        rig.board.begin_drain()
        assert refused(port)

    async def test_stale_evidence_closes_it_without_being_asked(self):
        """When the prober falls silent nobody publishes and nobody asks: the port closes all the same."""
        board = Board(SystemClock(), 0.05)
        async with HealthServer(board, Metrics(board), port=0, tcp_port=0, any_tcp_port=True) as server:
            await server.set_uplinks((LO,))
            Rig(board, server).green()
            assert server.tcp_listening()
            await until(lambda: not server.tcp_listening(), "the port is still open on stale evidence")
            assert refused(server.tcp_bound()[0][1])

    async def test_it_says_nothing_and_ends(self, rig: Rig, monkeypatch: pytest.MonkeyPatch):
        """What is sent is thrown away, nothing comes back, and the connection ends by itself."""
        monkeypatch.setattr(tcp_port, "CONNECTION_SECONDS", 0.05)
        rig.green()
        assert await send(rig.tcp_port, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
        monkeypatch.setattr(tcp_port, "CONNECTION_SECONDS", 60.0)
        assert await send(rig.tcp_port, b"x" * 100_000) == b""

    async def test_open_connections_end_with_the_green(self, rig: Rig):
        """A balancer that keeps its connection open learns of the red as well."""
        rig.green()
        async with asyncio.timeout(20), connect(rig.tcp_port) as (reader, _):
            await until(lambda: len(rig.server._tcp._connections) == 1, "it was not accepted")
            rig.red()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""

    async def test_idle_connections_are_capped(self, rig: Rig):
        """Hundreds of idle connections: the oldest go, new ones are accepted."""
        rig.green()
        async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
            idle = [
                await stack.enter_async_context(connect(rig.tcp_port)) for _ in range(tcp_port.CONNECTION_LIMIT + 20)
            ]
            with contextlib.suppress(ConnectionError):
                assert await idle[0][0].read() == b""
            assert len(rig.server._tcp._connections) <= tcp_port.CONNECTION_LIMIT
            assert not refused(rig.tcp_port)

    async def test_no_tcp_port_when_none_is_wanted(self):
        """0 or None means that there is none."""
        for none in (0, None):
            board = Board(SystemClock(), 60.0)
            async with HealthServer(board, Metrics(board), port=0, tcp_port=none) as server:
                await server.set_uplinks((LO,))
                Rig(board, server).green()
                assert server.tcp_bound() == ()


class TestUplinks:
    async def test_uplinks_come_and_go(self, rig: Rig):
        """Listeners follow what is given; what stays is not touched, and what goes stops listening."""
        port = rig.port
        await rig.server.set_uplinks((LO,))
        assert rig.port == port
        await rig.server.set_uplinks(())
        assert rig.server.listening() == ()
        assert refused(port)
        await rig.server.set_uplinks((LO,))
        rig.green()
        assert (await ask(rig.port, "/healthz"))[0] == 200

    async def test_an_interface_that_does_not_exist_is_left_out(self, rig: Rig):
        """It may come back; the others are served meanwhile."""
        await rig.server.set_uplinks((Uplink("nosuch0", (V4,)), LO))
        assert [place.ifname for place, _ in rig.server.listening()] == ["lo"]

    async def test_a_busy_port_is_named_with_its_holder(self):
        """The error says which port, where, and who has it; once it is free the same call works."""
        board = Board(SystemClock(), 60.0)
        with socket.socket() as other:
            other.bind(("0.0.0.0", 0))
            other.listen()
            port = other.getsockname()[1]
            async with HealthServer(board, Metrics(board), port=port, tcp_port=0, any_tcp_port=True) as server:
                with pytest.raises(
                    PortBusy, match=rf"TCP port {port} on lo \(IPv4\) is taken by .*pid {os.getpid()}\)"
                ):
                    await server.set_uplinks((LO,))
                assert len(server.tcp_bound()) == 1, "what can be served is served"
                other.close()
                await server.set_uplinks((LO,))
                assert server.listening()[0][1] == port

    async def test_loopback_is_an_option(self):
        """`loopback=True` answers on lo without its being an uplink; without it nobody on lo is answered."""
        board = Board(SystemClock(), 60.0)
        async with HealthServer(board, Metrics(board), port=0, tcp_port=None, loopback=True) as server:
            await server.set_uplinks(())
            assert {place.ifname for place, _ in server.listening()} == {"lo"}
            assert (await ask(server.listening()[0][1], "/livez"))[0] == 200

    async def test_closing_twice_is_fine(self, rig: Rig):
        """Shutdown may come from two sides."""
        await rig.server.close()
        await rig.server.close()
