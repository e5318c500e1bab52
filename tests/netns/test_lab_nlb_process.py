# SPDX-License-Identifier: Apache-2.0
"""The load balancer stand-in as a process of its host, asked from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nlb_world import DEADLINE, NET4, World, ask, build, until
from wicketgate.errors import InputError, StateError
from wicketgate.lab.nlb.client import NlbControl, launch
from wicketgate.lab.nlb.settings import Target
from wicketgate.lab.nlb.target import State
from wicketgate.lab.nlb.view import watch


@pytest.fixture
def world(new_host):
    made = build(new_host, NET4)
    yield made
    made.close()


@contextlib.contextmanager
def process(world: World, folder: Path, **changes):
    """A running one; killed if it still runs at the end."""
    started = launch(world.nlb, replace(world.settings, **changes), folder / "nlb.sock", log=folder / "nlb.log")
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def state(control: NlbControl, target: Target) -> State | None:
    with contextlib.suppress(InputError):
        return (await control.status()).target(target.address).state
    return None


def outside(world: World, story) -> None:
    """Run a story in the tester's own namespace: nothing but the unix socket reaches the load balancer."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            tasks = [asyncio.create_task(pod.echo()) for pod in world.pods]
            tasks += [asyncio.create_task(pod.serve_health()) for pod in world.pods]
            try:
                await story()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    for pod in world.pods:
        pod.listen()
    asyncio.run(bounded())


def test_status_and_commands_from_outside(world, tmp_path):
    """From another network namespace: register, status with states and flows, deregister, and errors as sentences."""
    one, two = world.pods
    one.good()

    async def story():
        control = NlbControl(tmp_path / "nlb.sock")
        assert (await control.status()).targets == ()
        await control.register(one.target)

        async def healthy() -> bool:
            return await state(control, one.target) is State.HEALTHY

        assert await until(healthy)

        async def answered() -> bool:
            return await ask(world.flow(), world.net.vips[0], timeout=0.2) == "one"

        assert await until(answered)
        status = await control.status()
        assert {str(flow.target) for flow in status.flows} == {one.address}
        assert {str(flow.client) for flow in status.flows} == {world.net.client}

        async def serving() -> bool:  # a new state reaches the data path a moment later
            return (await control.status()).target(one.address).serving

        assert await until(serving)
        with pytest.raises(InputError, match=f"target {two.target} is not registered; registered: {one.target}"):
            await control.deregister(two.target)
        with pytest.raises(InputError, match="IPv6"):
            await control.register(Target.parse("[fd00::1]:1"))
        await control.deregister(one.target)
        assert await state(control, one.target) is State.DRAINING

        async def gone() -> bool:
            return await state(control, one.target) is None

        assert await until(gone)

    with process(world, tmp_path, deregistration_delay=1.0):
        outside(world, story)


def test_bad_commands_are_answered(world, tmp_path):
    """Garbage, unknown commands, missing fields and endless lines are refused, and the process goes on."""
    with process(world, tmp_path) as running:
        for line, says in (
            (b"\xff\xfe\n", "JSON"),
            (b"[]\n", "command None"),
            (b'{"command": "drop tables"}\n', "allowed are status, register and deregister"),
            (b'{"command": "register"}\n', "target"),
            (b'{"command": "register", "target": {"address": "x", "port": 1}}\n', "address"),
            (b'{"command": "register", "target": {"address": "10.0.0.1", "port": 0}}\n', "1 to 65535"),
            (b"x" * 200_000, "a command of more than"),
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(tmp_path / "nlb.sock"))
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(line)
                answer = json.loads(sock.makefile().readline())
            assert not answer["ok"]
            assert says in answer["error"]
        assert running.poll() is None
        assert asyncio.run(NlbControl(tmp_path / "nlb.sock").status()).name == "nlb"


def test_sigterm_leaves_nothing(world, tmp_path):
    """SIGTERM ends it with 0; table, entries and socket file are gone, also while somebody holds a connection."""
    with process(world, tmp_path, targets=(world.pods[0].target,)) as running:
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(str(tmp_path / "nlb.sock"))
            running.terminate()
            assert running.wait(timeout=DEADLINE) == 0
    assert world.nlb.run("nft", "list", "ruleset").stdout == ""
    assert not (tmp_path / "nlb.sock").exists()
    with pytest.raises(StateError, match="no load balancer answers"):
        asyncio.run(NlbControl(tmp_path / "nlb.sock").status())


def test_next_start_cleans_up_after_a_kill(world, tmp_path):
    """After kill -9 the next process takes the socket, the table and the old flows over."""
    one, _ = world.pods
    one.good()

    async def story():
        control = NlbControl(tmp_path / "nlb.sock")

        async def served() -> bool:
            return await state(control, one.target) is State.HEALTHY and (await control.status()).targets[0].serving

        with process(world, tmp_path, targets=(one.target,)) as first:
            assert await until(served)
            assert await ask(world.flow(), world.net.vips[0]) == "one"
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        assert (tmp_path / "nlb.sock").exists()
        with process(world, tmp_path, targets=(one.target,)):
            assert (await control.status()).flows == ()
            assert await until(served)
            assert await ask(world.sockets[0], world.net.vips[0], b"2") == "one"
            assert world.nlb.run("nft", "list", "tables").stdout.count("wicketgate") == 1

    outside(world, story)


def test_second_process_on_one_socket_is_refused(world, tmp_path):
    """A second start on the same socket ends with code 3 and says why; the first goes on."""
    with process(world, tmp_path):
        with pytest.raises(StateError, match=r"exit code 3.*listens there already"):
            launch(world.nlb, world.settings, tmp_path / "nlb.sock", log=tmp_path / "second.log")
        assert asyncio.run(NlbControl(tmp_path / "nlb.sock").status()).targets == ()


def test_bad_settings_end_with_two(world, tmp_path):
    """Settings that cannot be read end the process with code 2 and name the field, without a traceback."""
    done = world.nlb.run(
        *launch_argv(tmp_path / "nlb.sock"), stdin='{"addresses": ["x"], "listeners": [], "checkers": []}', check=False
    )
    assert done.returncode == 2
    assert "addresses.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("tool", "package"), [("nft", "nftables"), ("conntrack", "conntrack")])
def test_missing_tool_is_named(world, tmp_path, tool, package):
    """Without nft or conntrack it ends with code 3 and the name of the package, and no table stays."""
    for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        if (Path(folder) / tool).exists():
            # In this host's own mount namespace alone the file is no program any more.
            world.nlb.run("mount", "--bind", "/dev/null", f"{folder}/{tool}")
    done = world.nlb.run(*launch_argv(tmp_path / "nlb.sock"), stdin=world.settings.to_json(), check=False)
    assert done.returncode == 3
    assert f"{tool} is not installed" in done.stderr
    assert package in done.stderr
    assert "Traceback" not in done.stderr
    if tool != "nft":
        assert world.nlb.run("nft", "list", "tables").stdout == ""


def launch_argv(path: Path) -> list[str]:
    import sys

    return [sys.executable, "-m", "wicketgate.lab.nlb", "--socket", str(path)]


def test_live_view(world, tmp_path):
    """`watch` shows a target that turns unhealthy while it looks."""
    one, _ = world.pods
    one.good()

    async def story():
        control = NlbControl(tmp_path / "nlb.sock")

        async def healthy() -> bool:
            return await state(control, one.target) is State.HEALTHY

        async def unhealthy() -> bool:
            return await state(control, one.target) is State.UNHEALTHY

        with (tmp_path / "screen").open("w+") as screen:
            console = Console(file=screen, width=200, force_terminal=True)
            assert await until(healthy)
            showing = asyncio.create_task(watch(control.status, console, interval=0.02))
            one.bad()
            assert await until(unhealthy)

            async def shown() -> bool:
                return "ResponseCodeMismatch" in (tmp_path / "screen").read_text() or bool(screen.flush())

            assert await until(shown)
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            text = (tmp_path / "screen").read_text()
        assert text.index("healthy") < text.index("ResponseCodeMismatch")
        assert "fail-open" in text

    with process(world, tmp_path, targets=(one.target,)):
        outside(world, story)
