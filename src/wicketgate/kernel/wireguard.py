# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices, whoever implements them: the contract, and the choice between the kernel and wireguard-go."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from typing import Literal, Protocol

from wicketgate.errors import KernelRefused, StateError, ToolMissing
from wicketgate.kernel.process import find_tool
from wicketgate.kernel.wg_common import UAPI_DIR, LinkControl, link_named, name_taken
from wicketgate.kernel.wg_netlink import KernelWireGuard
from wicketgate.kernel.wg_uapi import UserspaceWireGuard, has_socket
from wicketgate.netpath.snapshot import Unread, WireGuardState
from wicketgate.wireguard.device import DeviceConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

BackendKind = Literal["kernel", "userspace"]
UserspaceMode = Literal["auto", "always", "never"]

TUN_DEVICE = "/dev/net/tun"


class WireGuardBackend(Protocol):
    """One way to have WireGuard devices. Every failure is a StateError that says what to do."""

    kind: BackendKind

    async def version(self) -> str:
        """For people: `kernel 6.12.41` or `wireguard-go v0.0.20220316`."""
        ...

    async def create(self, ifname: str) -> bool:
        """Make a device, or take over one of this kind that is there.

        Returns:
            True when it was made, False when it was there.

        Raises:
            StateError: the name belongs to another kind of interface, or a right, module or program is missing.
        """
        ...

    async def get(self, ifname: str) -> WireGuardState:
        """The device as it is. Secrets are never in it."""
        ...

    async def configure(self, ifname: str, config: DeviceConfig) -> None:
        """Add to and change a device and read back what came of it; peers that are not named stay as they are."""
        ...

    async def remove_peer(self, ifname: str, public_key: PublicKey) -> None:
        """Remove a peer; one that is not there is as good as removed."""
        ...

    async def private_key(self, ifname: str) -> PrivateKey | None:
        """The device's key, for take-over and SaveConfig; None when it has none."""
        ...

    async def preshared_keys(self, ifname: str) -> Mapping[PublicKey, PresharedKey]:
        """The preshared keys that are set, for comparison and SaveConfig."""
        ...

    async def destroy(self, ifname: str) -> None:
        """Remove the device and wait until it is gone; one that is not there is as good as removed."""
        ...

    async def close(self) -> None:
        """Give back sockets. Devices stay."""
        ...


async def find_backend(ifname: str, *, netlink: LinkControl, uapi_dir: str = UAPI_DIR) -> WireGuardBackend | None:
    """The backend of a device that exists.

    Returns:
        None when there is no interface of that name.

    Raises:
        StateError: the interface is no WireGuard device, or its UAPI socket cannot be reached from here.
    """
    link = await link_named(netlink, ifname)
    if link is None:
        return None
    if link.kind == "wireguard":
        return KernelWireGuard(netlink)
    if link.kind == "tun":
        backend = UserspaceWireGuard(uapi_dir, netlink)
        await backend.get(ifname)
        return backend
    raise name_taken(ifname, link)


async def list_devices(
    *, netlink: LinkControl, uapi_dir: str = UAPI_DIR
) -> tuple[tuple[WireGuardState, ...], tuple[Unread, ...]]:
    """Every WireGuard device of this network namespace, and those that could not be read.

    A tun device without a UAPI socket is somebody else's (a VPN of another make) and is not mentioned.
    """
    states: list[WireGuardState] = []
    unread: list[Unread] = []
    kernel = KernelWireGuard(netlink)
    userspace = UserspaceWireGuard(uapi_dir, netlink)
    try:
        for link in await netlink.links():
            backend: WireGuardBackend
            if link.kind == "wireguard":
                backend = kernel
            elif link.kind == "tun" and has_socket(uapi_dir, link.name):
                backend = userspace
            else:
                continue
            try:
                states.append(await backend.get(link.name))
            except StateError as error:
                unread.append(Unread(f"wireguard {link.name}", str(error)))
    finally:
        await kernel.close()
        await userspace.close()
    return tuple(states), tuple(unread)


async def kernel_refusal(netlink: LinkControl) -> KernelRefused | None:
    """Whether the kernel makes WireGuard devices here, found by making one and removing it at once.

    Returns:
        None when it does; otherwise its refusal: EOPNOTSUPP (95) without the module, EPERM without CAP_NET_ADMIN.
    """
    name = f"wkt{secrets.token_hex(4)}"
    try:
        await netlink.add_link(name, "wireguard")
    except KernelRefused as refused:
        return refused
    await netlink.delete_link(name)
    return None


def userspace_obstacles() -> tuple[str, ...]:
    """Why wireguard-go could not make a device here; empty when nothing is in its way."""
    missing = []
    try:
        find_tool("wireguard-go")
    except ToolMissing as error:
        missing.append(str(error))
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        step = (
            "give the container the device /dev/net/tun (its major and minor number are 10 200)"
            if error.errno == errno.ENOENT
            else "allow the container to open it (device cgroup), or run as a user that may"
        )
        missing.append(f"{TUN_DEVICE} cannot be opened: {error.strerror}; {step}")
    return tuple(missing)


async def choose_backend(
    mode: UserspaceMode = "auto", *, netlink: LinkControl, uapi_dir: str = UAPI_DIR
) -> WireGuardBackend:
    """The backend for a new device.

    Args:
        mode: `auto` = the kernel, and wireguard-go where it has no WireGuard; `always` = wireguard-go; `never` = kernel.
        netlink: of the namespace the device will live in.
        uapi_dir: where wireguard-go makes its sockets.

    Raises:
        StateError: neither is possible; the text says what each lacks and what to do.
    """
    problems = []
    if mode != "always":
        refused = await kernel_refusal(netlink)
        if refused is None:
            return KernelWireGuard(netlink)
        if refused.errno == errno.EPERM:
            raise StateError(
                f"no WireGuard device can be made: {refused}; CAP_NET_ADMIN is missing in this network namespace: "
                "run as root, or add NET_ADMIN to the container's capabilities"
            ) from refused
        if refused.errno == errno.EOPNOTSUPP:
            problems.append(
                "the kernel has no WireGuard (module `wireguard` is neither built in nor loadable; "
                "load it on the node: modprobe wireguard)"
            )
        else:
            problems.append(f"the kernel refused a WireGuard device: {refused}")
    if mode != "never":
        obstacles = userspace_obstacles()
        if not obstacles:
            return UserspaceWireGuard(uapi_dir, netlink)
        problems += [f"wireguard-go cannot stand in: {obstacle}" for obstacle in obstacles]
    else:
        problems.append("wireguard-go was ruled out (--userspace never)")
    raise StateError("no WireGuard device can be made: " + "; ".join(problems))
