# SPDX-License-Identifier: Apache-2.0
"""Inside the machine: the device contract on wireguard.ko, each part in a device of its own; results as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from netns.device_contract import CHECKS, refused  # noqa: E402
from wicketgate.errors import StateError  # noqa: E402
from wicketgate.kernel.netlink import Netlink  # noqa: E402
from wicketgate.kernel.wg_netlink import KernelWireGuard  # noqa: E402
from wicketgate.kernel.wireguard import choose_backend, find_backend, list_devices  # noqa: E402
from wicketgate.wireguard.device import DeviceConfig, PeerConfig  # noqa: E402
from wicketgate.wireguard.keys import PresharedKey, PrivateKey  # noqa: E402


async def as_wg_shows(netlink: Netlink) -> None:
    """wg(8), which speaks to the kernel by itself, shows what we wrote, the secrets too."""
    backend = KernelWireGuard(netlink)
    private, psk, key = PrivateKey.generate(), PresharedKey.generate(), PrivateKey.generate().public()
    await backend.create("show0")
    await backend.configure(
        "show0", DeviceConfig(private, 51820, 0xCA6C, (PeerConfig(key, psk, persistent_keepalive=25),))
    )
    shown = subprocess.run(["wg", "show", "show0", "dump"], capture_output=True, text=True, check=True).stdout.split()
    assert shown == [
        private.expose_base64(), str(private.public()), "51820", "0xca6c",
        str(key), psk.expose_base64(), "(none)", "(none)", "0", "0", "0", "25",
    ], shown  # fmt: skip
    await backend.destroy("show0")
    await backend.close()


async def four_at_once(netlink: Netlink) -> None:
    """Writes and reads at the same time on one object do not get each other's answers."""
    backend = KernelWireGuard(netlink)
    names = [f"par{n}" for n in range(4)]
    keys = {}
    for name in names:
        await backend.create(name)
        keys[name] = PrivateKey.generate()

    async def drive(name: str) -> None:
        for mark in range(1, 6):
            await backend.configure(name, DeviceConfig(keys[name], fwmark=mark))
            state = await backend.get(name)
            assert (state.ifname, state.public_key, state.fwmark) == (name, str(keys[name].public()), mark)

    await asyncio.gather(*map(drive, names))
    for name in names:
        await backend.destroy(name)
    await backend.close()


async def names_and_choice(netlink: Netlink) -> None:
    """Auto chooses the kernel here; its devices are found and listed; a bridge's name is left alone."""
    backend = await choose_backend("auto", netlink=netlink)
    assert backend.kind == "kernel"
    await backend.create("pick0")
    found = await find_backend("pick0", netlink=netlink)
    assert found is not None
    assert found.kind == "kernel"
    states, unread = await list_devices(netlink=netlink)
    assert ([state.ifname for state in states], unread) == (["pick0"], ())
    await netlink.add_link("br9", "bridge")
    for work in (
        backend.create("br9"),
        backend.get("br9"),
        backend.destroy("br9"),
        backend.configure("br9", DeviceConfig()),
    ):
        assert "bridge" in await refused(work)
    await netlink.delete_link("br9")
    await backend.destroy("pick0")
    await backend.close()
    await found.close()


async def a_busy_port(netlink: Netlink) -> None:
    """Two devices that are up cannot share a port: the kernel's EADDRINUSE reaches the error."""
    backend = KernelWireGuard(netlink)
    for name in ("busy0", "busy1"):
        await backend.create(name)
        await netlink.set_link(name, up=True)
    await backend.configure("busy0", DeviceConfig(listen_port=4000))
    assert "Address already in use" in await refused(backend.configure("busy1", DeviceConfig(listen_port=4000)))
    for name in ("busy0", "busy1"):
        await backend.destroy(name)
    await backend.close()


async def without_the_right(netlink: Netlink) -> None:
    """Without CAP_NET_ADMIN reading a device is refused, and the capability is named."""
    backend = KernelWireGuard(netlink)
    await backend.create("right0")
    # A socket of its own: the kernel also asks who opened it. A second interpreter would take a minute to start here.
    other = KernelWireGuard(netlink)
    os.seteuid(65534)
    try:
        said = await refused(other.get("right0"))
    finally:
        os.seteuid(0)
    assert "CAP_NET_ADMIN" in said, said
    await other.close()
    await backend.destroy("right0")
    await backend.close()


async def contract(check, backend: KernelWireGuard, name: str) -> None:
    try:
        await check(backend, name)
    finally:
        await backend.destroy(name)
        await backend.close()


async def main() -> None:
    results: dict[str, str] = {}
    async with Netlink() as netlink:
        for check in CHECKS:
            backend, name = KernelWireGuard(netlink), f"c{secrets.token_hex(4)}"
            print(check.__name__, flush=True)
            results[check.__name__] = await outcome(contract(check, backend, name))
        for scenario in (as_wg_shows, four_at_once, names_and_choice, a_busy_port, without_the_right):
            results[scenario.__name__] = await outcome(scenario(netlink))
        results["left"] = ",".join(link.name for link in await netlink.links() if link.kind == "wireguard")
    Path(sys.argv[1]).write_text(json.dumps(results))


async def outcome(work) -> str:
    started = time.monotonic()
    try:
        # Emulated, and beside other tests: only a hang is a fault here.
        async with asyncio.timeout(120):
            await work
    except (AssertionError, StateError, Exception):  # noqa: BLE001 - told outside, one by one
        return traceback.format_exc()
    print(f"{work.__name__}: {time.monotonic() - started:.1f} s", flush=True)
    return "ok"


if __name__ == "__main__":
    os.chdir("/")
    asyncio.run(main())
