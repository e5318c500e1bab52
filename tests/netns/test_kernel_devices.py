# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices: one contract for the fake and for wireguard-go (the kernel's own: tests/vm/test_kernel_devices.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import unique
from netns.device_contract import CHECKS, Check, refused
from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel import wireguard
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.kernel.wg_fake import FakeWireGuard
from wicketgate.kernel.wg_netlink import KernelWireGuard
from wicketgate.kernel.wg_process import WireGuardGo
from wicketgate.kernel.wg_uapi import UapiClient, UserspaceWireGuard, owner_of, socket_path
from wicketgate.kernel.wireguard import choose_backend, find_backend, list_devices
from wicketgate.lab.host import Host
from wicketgate.netpath.snapshot import Link
from wicketgate.wireguard.device import DeviceConfig
from wicketgate.wireguard.keys import PrivateKey

NewHost = Callable[..., Host]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def running(host: Host) -> list[int]:
    """The wireguard-go processes of a host."""
    found = []
    for pid in host.pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "wireguard-go":
                found.append(pid)
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["kernel", "userspace"])
def test_the_fake_keeps_the_contract(check: Check, kind: Any) -> None:
    """What stands above may be tested with the fake."""
    asyncio.run(check(FakeWireGuard(kind), "wg0"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_wireguard_go_keeps_the_contract(check: Check, new_host: NewHost) -> None:
    """The real program, started, driven and ended by us; neither process nor socket stays."""
    host, name = new_host("pod"), unique("wg")

    async def scenario() -> None:
        async with Netlink() as netlink:
            backend = UserspaceWireGuard(UAPI_DIR, netlink)
            try:
                await check(backend, name)
            finally:
                await backend.destroy(name)
                await backend.close()
            assert [link.name for link in await netlink.links()] == ["lo"]

    host.acall(scenario)
    assert running(host) == []
    assert not os.path.lexists(socket_path(UAPI_DIR, name))


def in_host(host: Host, work: Callable[[Netlink], Coroutine[Any, Any, Any]]) -> Any:
    async def scenario() -> Any:
        async with Netlink() as netlink:
            return await work(netlink)

    return host.acall(scenario)


def test_the_choice_falls_on_wireguard_go_where_the_kernel_has_none(new_host: NewHost) -> None:
    """auto: the kernel answers EOPNOTSUPP, wireguard-go stands in; nothing stays of the attempt."""
    host = new_host("pod")

    async def choose(netlink: Netlink) -> None:
        refusal = await wireguard.kernel_refusal(netlink)
        assert [link.name for link in await netlink.links()] == ["lo"]
        backend = await choose_backend("auto", netlink=netlink)
        if refusal is None:
            assert backend.kind == "kernel"
            assert (await choose_backend("never", netlink=netlink)).kind == "kernel"
        else:
            assert refusal.errno == 95
            assert backend.kind == "userspace"
            said = await refused(choose_backend("never", netlink=netlink))
            assert "modprobe wireguard" in said
            assert "--userspace never" in said
        assert (await choose_backend("always", netlink=netlink)).kind == "userspace"
        assert "wireguard-go" in await backend.version() or backend.kind == "kernel"

    in_host(host, choose)


def test_without_the_module_the_kernels_family_is_said_to_be_missing(new_host: NewHost) -> None:
    """Generic netlink has no family `wireguard` here: a StateError that names the module, and a socket that is closed."""

    async def ask(netlink: Netlink) -> None:
        if await wireguard.kernel_refusal(netlink) is None:
            pytest.skip("this kernel has WireGuard: the VM lane asks it")
        backend = KernelWireGuard(ThereIsOne())
        for _ in range(3):
            assert "module is not loaded" in await refused(backend.get("wg0"))
        await backend.close()

    in_host(new_host("pod"), ask)


class ThereIsOne:
    """A namespace with a link that claims to be the kernel's WireGuard."""

    async def links(self) -> tuple[Link, ...]:
        return (Link(5, "wg0", "wireguard"),)

    async def add_link(self, name: str, kind: str) -> None:
        raise AssertionError(name)

    async def delete_link(self, name: str) -> None:
        raise AssertionError(name)


class NoWireGuardInTheKernel:
    """A kernel that refuses the link."""

    def __init__(self, code: int) -> None:
        self.code = code

    async def links(self) -> tuple[Link, ...]:
        return ()

    async def add_link(self, name: str, kind: str) -> None:
        raise KernelRefused(f"ip link add {name} type {kind}", self.code, os.strerror(self.code))

    async def delete_link(self, name: str) -> None:
        raise AssertionError("there is nothing to delete")


@pytest.mark.parametrize("missing", ["program", "device"])
async def test_with_neither_the_error_says_what_each_lacks(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Module, package and /dev/net/tun, each with what to do."""
    if missing == "program":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("wicketgate.kernel.process._SBIN", str(tmp_path))
    else:
        monkeypatch.setattr(wireguard, "TUN_DEVICE", str(tmp_path / "tun"))
    said = await refused(choose_backend("auto", netlink=NoWireGuardInTheKernel(95)))
    assert "modprobe wireguard" in said
    assert ("apt-get install wireguard-go" if missing == "program" else "/dev/net/tun") in said


async def test_without_the_right_no_program_is_tried() -> None:
    """EPERM: wireguard-go could not do it either; the error names the capability."""
    said = await refused(choose_backend("auto", netlink=NoWireGuardInTheKernel(1)))
    assert "CAP_NET_ADMIN" in said


def test_a_name_that_is_taken_is_left_alone(new_host: NewHost) -> None:
    """A bridge, a veth or somebody's tun of that name: an error, and the interface is as it was."""
    host, name = new_host("pod"), unique("wg")
    host.run("ip", "link", "add", name, "type", "bridge")
    tun = unique("tn")
    host.run("ip", "tuntap", "add", tun, "mode", "tun")

    async def attempt(netlink: Netlink) -> None:
        before = await netlink.links()
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        for work in (
            backend.create(name),
            backend.destroy(name),
            backend.get(name),
            find_backend(name, netlink=netlink),
        ):
            assert "bridge" in await refused(work)
        assert "socket" in await refused(backend.create(tun))
        assert await netlink.links() == before
        assert await list_devices(netlink=netlink) == ((), ())
        assert await find_backend("nothing", netlink=netlink) is None

    in_host(host, attempt)


KILLED = """
import asyncio, os, signal, sys
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.kernel.wg_uapi import UserspaceWireGuard
from wicketgate.wireguard.device import DeviceConfig
from wicketgate.wireguard.keys import PrivateKey
async def main():
    async with Netlink() as netlink:
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        await backend.create(sys.argv[1])
        await backend.configure(sys.argv[1], DeviceConfig(PrivateKey(bytes([8] * 31 + [64])), fwmark=9))
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_a_device_outlives_a_kill_and_is_taken_over(new_host: NewHost) -> None:
    """Kill -9 of the agent drops no peer: the next one finds the device, its key and its settings, and can end it."""
    host, name = new_host("pod"), unique("wg")
    died = host.run(sys.executable, "-c", KILLED, name, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert host.run("ip", "-o", "link", "show", name).returncode == 0
    # The host's own mount namespace holds the socket: the second life runs there too.
    script = KILLED.split("async def main", maxsplit=1)[0] + (
        "async def main():\n"
        "    async with Netlink() as netlink:\n"
        "        backend = UserspaceWireGuard(UAPI_DIR, netlink)\n"
        "        assert await backend.create(sys.argv[1]) is False\n"
        "        assert (await backend.get(sys.argv[1])).fwmark == 9\n"
        "        assert await backend.private_key(sys.argv[1]) == PrivateKey(bytes([8] * 31 + [64]))\n"
        "        await backend.destroy(sys.argv[1])\n"
        "        assert not os.listdir(UAPI_DIR), os.listdir(UAPI_DIR)\n"
        "asyncio.run(main())\n"
    )
    host.run(sys.executable, "-c", script, name)
    wait_for(lambda: running(host) == [], "wireguard-go has ended")


def test_one_that_went_into_the_background_is_taken_over(new_host: NewHost) -> None:
    """As wg-quick starts it: its socket was made by a process that is gone; it is found, used and ended."""
    host, name = new_host("pod"), unique("wg")
    # In our mount namespace, so that its socket is within reach.
    host.call(lambda: subprocess.run(["wireguard-go", name], check=True, capture_output=True, timeout=30))

    async def scenario(netlink: Netlink) -> None:
        found = await find_backend(name, netlink=netlink)
        assert found is not None
        assert await found.create(name) is False
        await found.configure(name, DeviceConfig(PrivateKey.generate(), fwmark=3))
        assert (await found.get(name)).fwmark == 3
        await found.destroy(name)
        assert [link.name for link in await netlink.links()] == ["lo"]

    in_host(host, scenario)
    wait_for(lambda: running(host) == [], "wireguard-go has ended")
    assert not os.path.lexists(socket_path(UAPI_DIR, name))


def test_it_survives_our_terminal_and_a_flood_of_its_own_words(new_host: NewHost) -> None:
    """Its session is its own, and what it says goes to memory that is full one day without stopping it."""
    host, name = new_host("pod"), unique("wg")

    def start() -> tuple[WireGuardGo, int]:
        child = WireGuardGo.start(name)
        return child, os.getsid(child.pid)

    child, session = host.call(start)
    try:
        assert session == child.pid != os.getsid(0)
        path = socket_path(UAPI_DIR, name)
        wait_for(lambda: owner_of(path) == child.pid, "the socket answers")
        # Every refused line is an error in its log; 64 KiB are full long before 3,000 of them.
        for _ in range(3000):
            with socket.socket(socket.AF_UNIX) as talk:
                talk.connect(path)
                talk.sendall(b"set=1\nlisten_port=what\n\n")
                assert b"errno=-22" in talk.recv(1000)
        assert len(os.readlink(f"/proc/{child.pid}/fd/2")) > 0
        assert os.stat(f"/proc/{child.pid}/fd/2").st_size == 64 * 1024
        assert "listen_port" in child.output()
        assert child.exit_code() is None
    finally:
        asyncio.run(child.stop())
        child.abandon()


def test_a_dead_socket_is_said_and_replaced(new_host: NewHost, tmp_path: Path) -> None:
    """wireguard-go killed with -9 leaves its file: asking says so, a new device takes its place."""
    host, name = new_host("pod"), unique("wg")

    async def scenario(netlink: Netlink) -> None:
        path = socket_path(UAPI_DIR, name)
        first = UserspaceWireGuard(UAPI_DIR, netlink)
        await first.create(name)
        owner = owner_of(path)
        assert owner is not None
        os.kill(owner, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(link.name == name for link in await netlink.links()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert "nobody behind" in await refused(UapiClient(path).get(name))
        await first.close()
        second = UserspaceWireGuard(UAPI_DIR, netlink)
        assert await second.create(name) is True
        await second.destroy(name)
        assert not os.path.lexists(path)

    in_host(host, scenario)


def test_a_socket_of_another_namespace_is_not_ours(new_host: NewHost) -> None:
    """Sockets are per machine, not per namespace: the other's device is neither configured nor replaced."""
    mine, other, name = new_host("mine"), new_host("other"), unique("wg")
    key = PrivateKey.generate()

    async def occupy(netlink: Netlink) -> None:
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        await backend.create(name)
        await backend.configure(name, DeviceConfig(key))
        await backend.close()

    async def intrude(netlink: Netlink) -> None:
        assert "another network namespace" in await refused(UserspaceWireGuard(UAPI_DIR, netlink).create(name))
        assert [link.name for link in await netlink.links()] == ["lo"]

    async def leave(netlink: Netlink) -> None:
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        assert await backend.private_key(name) == key
        await backend.destroy(name)

    in_host(other, occupy)
    # The same name as a tun here: even then the socket is not taken for its own.
    in_host(mine, intrude)
    mine.run("ip", "tuntap", "add", name, "mode", "tun")

    async def read(netlink: Netlink) -> None:
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        assert "another network namespace" in await refused(backend.get(name))
        assert "another network namespace" in await refused(
            backend.configure(name, DeviceConfig(PrivateKey.generate()))
        )

    in_host(mine, read)
    in_host(other, leave)


def test_a_read_only_place_for_the_socket_is_said(new_host: NewHost) -> None:
    """A read-only root filesystem: the error names the mount that cures it."""
    host = new_host("pod")
    script = (
        "import asyncio\n"
        "from wicketgate.kernel.netlink import Netlink\n"
        "from wicketgate.kernel.wg_uapi import UserspaceWireGuard\n"
        "async def main():\n"
        "    async with Netlink() as netlink:\n"
        "        await UserspaceWireGuard('/run/wireguard', netlink).create('wg0')\n"
        "asyncio.run(main())\n"
    )
    host.run("mount", "-o", "remount,ro", "/run/wireguard")
    done = host.run(sys.executable, "-c", script, check=False)
    assert done.returncode != 0
    assert "emptyDir" in done.stderr.splitlines()[-1]
    assert host.run("ip", "-o", "link").stdout.count("\n") == 1
    assert running(host) == []


def test_a_socket_we_may_not_open_is_said() -> None:
    """Another user's socket: permission denied, in words."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as server:
        os.chmod(place, 0o755)
        path = f"{place}/wg9.sock"
        server.bind(path)
        server.listen()
        os.chmod(path, 0o600)
        os.seteuid(65534)
        try:
            said = asyncio.run(refused(UapiClient(path).get("wg9")))
        finally:
            os.seteuid(0)
    assert "permission denied; it belongs to another user" in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "broke off"),
        (b"listen_port=1\n", "broke off"),
        (b"listen_port=what\nerrno=0\n\n", "line 1: listen_port"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\n\n", "breaks the UAPI protocol"),
        (b"errno=-13\n\n", "Permission denied"),
        (None, "no answer within"),
    ],
)
async def test_whatever_answers_there_the_error_is_clear(answer: bytes | None, said: str, tmp_path: Path) -> None:
    """Nothing, half, nonsense, a refusal, silence: a StateError within the deadline, never a hang or a traceback."""
    path = str(tmp_path / "wg9.sock")
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n")
        if answer is None:
            await silent.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        with pytest.raises(StateError, match=said):
            await UapiClient(path, timeout=0.3 if answer is None else 5).get("wg9")
    finally:
        silent.set()
        server.close()


async def test_no_socket_at_all_is_said(tmp_path: Path) -> None:
    """The path is named."""
    assert "no such socket" in await refused(UapiClient(str(tmp_path / "none.sock")).get("none"))


def test_listing_names_each_device_and_each_that_cannot_be_read(new_host: NewHost) -> None:
    """A snapshot carries the devices, and says what it could not read instead of leaving it out."""
    host, good, dead = new_host("pod"), unique("wg"), unique("wg")
    host.run("ip", "tuntap", "add", dead, "mode", "tun")
    path = socket_path(UAPI_DIR, dead)

    async def scenario(netlink: Netlink) -> None:
        backend = UserspaceWireGuard(UAPI_DIR, netlink)
        await backend.create(good)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
        try:
            states, unread = await list_devices(netlink=netlink)
            assert [state.ifname for state in states] == [good]
            (entry,) = unread
            assert dead in entry.what
            assert "nobody behind" in entry.why
            found = await find_backend(good, netlink=netlink)
            assert found is not None
            assert found.kind == "userspace"
        finally:
            os.unlink(path)
            await backend.destroy(good)

    in_host(host, scenario)
