# SPDX-License-Identifier: Apache-2.0
"""Userspace WireGuard: wireguard-go and whatever else answers on a UAPI socket.

The socket is named after the device alone and is not per network namespace: two namespaces that share /run share it.
So its owner's namespace is compared with ours where /proc lets us see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Mapping
from typing import Literal

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel import process, uapi
from wicketgate.kernel.wg_common import UAPI_DIR, LinkControl, check_read_back, device_missing, link_named, name_taken
from wicketgate.kernel.wg_process import WireGuardGo
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import WireGuardState
from wicketgate.wireguard.device import DeviceConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

_log = get_logger("wireguard")

REPLY_LIMIT = 64 * 2**20  # bytes; 10,000 peers with ten allowed-ips each are about 6 MB
POLL = 0.01  # seconds between looks for a socket that another process makes
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


def socket_path(uapi_dir: str, ifname: str) -> str:
    """Where a device's UAPI socket is."""
    return f"{uapi_dir}/{ifname}.sock"


def has_socket(uapi_dir: str, ifname: str) -> bool:
    """Whether there is a socket of that name, alive or dead."""
    return os.path.lexists(socket_path(uapi_dir, ifname))


class UapiClient:
    """One device's UAPI socket. A connection serves one question: that is what wg(8) does too.

    Args:
        path: the socket.
        timeout: seconds for a whole question and answer.
    """

    def __init__(self, path: str, *, timeout: float = 5.0) -> None:
        self.path = path
        self.timeout = timeout

    async def ask(self, request: bytes) -> bytes:
        """Send a request, read up to the empty line.

        Raises:
            StateError: no socket, nobody behind it, no right, no answer in time, or none that ends.
        """
        try:
            async with asyncio.timeout(self.timeout):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=REPLY_LIMIT)
                try:
                    writer.write(request)
                    await writer.drain()
                    return await reader.readuntil(b"\n\n")
                finally:
                    # Closing is local; waiting for it would let a stuck server hold us.
                    writer.transport.abort()
        except TimeoutError:
            raise StateError(
                f"{self.path}: no answer within {self.timeout:g} s; is the process behind it stopped?"
            ) from None
        except asyncio.IncompleteReadError as error:
            raise StateError(
                f"{self.path}: the answer broke off after {len(error.partial)} bytes; the process behind it has ended or is "
                "no WireGuard"
            ) from None
        except asyncio.LimitOverrunError:
            raise StateError(f"{self.path}: an answer of more than {REPLY_LIMIT} bytes without an end") from None
        except OSError as error:
            raise StateError(self._why(error)) from error

    def _why(self, error: OSError) -> str:
        match error.errno:
            case errno.ENOENT:
                return f"{self.path}: no such socket; no userspace WireGuard of this name runs here"
            case errno.ECONNREFUSED:
                return f"{self.path}: nobody behind this socket; the process that made it has ended (remove the file)"
            case errno.EACCES | errno.EPERM:
                return f"{self.path}: permission denied; it belongs to another user (wireguard-go makes it for its own user only)"
            case _:
                return f"{self.path}: {os.strerror(error.errno) if error.errno else error}"

    async def get(self, ifname: str) -> uapi.UapiDevice:
        """The whole device. Raises StateError, also for a reply that breaks the protocol."""
        reply = await self.ask(uapi.GET)
        try:
            device = uapi.parse_device(ifname, reply)
        except uapi.MalformedReplyError as error:
            raise StateError(f"{self.path}: what answers there breaks the UAPI protocol: {error}") from None
        if device.errno:
            raise KernelRefused(f"{ifname}: UAPI get", device.errno, os.strerror(device.errno))
        return device

    async def set(self, ifname: str, request: bytes) -> None:
        """Apply a request. Raises KernelRefused with the errno of the reply, StateError for a malformed one."""
        reply = await self.ask(request)
        try:
            refused = uapi.parse_errno(uapi.split_lines(reply))
        except uapi.MalformedReplyError as error:
            raise StateError(f"{self.path}: what answers there breaks the UAPI protocol: {error}") from None
        if refused:
            raise KernelRefused(f"{ifname}: UAPI set", refused, os.strerror(refused))


def owner_of(path: str) -> int | None:
    """The process that listens on a UAPI socket; None when nobody does, or it is outside our pid namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return None
    pid = int(_UCRED.unpack(credentials)[0])
    return pid or None


def _holds(pid: int, path: str) -> bool:
    """Whether a process holds the listening socket of that name (the directory may have two names: /run, /var/run)."""
    name = os.path.basename(path)
    with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as table:
        rows = [line.split(maxsplit=7) for line in table]
    inodes = {row[6] for row in rows if len(row) == 8 and os.path.basename(row[7].strip()) == name}
    return any(
        os.readlink(entry.path) in {f"socket:[{inode}]" for inode in inodes} for entry in os.scandir(f"/proc/{pid}/fd")
    )


def _elsewhere(path: str) -> int | None:
    """The owner's pid when it is known to live in another network namespace than we do.

    A wireguard-go that went into the background listens on a socket that its dead parent made, and that pid may be a
    stranger's by now: so the owner must hold the socket.
    """
    pid = owner_of(path)
    if pid is None:
        return None
    try:
        theirs = os.readlink(f"/proc/{pid}/ns/net")
        mine = os.readlink("/proc/thread-self/ns/net")
        return pid if theirs != mine and _holds(pid, path) else None
    except OSError:
        return None  # not ours to see: then the device of that name is the only witness


class UserspaceWireGuard:
    """Devices of wireguard-go.

    Args:
        uapi_dir: where the sockets are; wireguard-go has its own built in, another is for devices made otherwise.
        netlink: of the namespace the devices live in.
        timeout: seconds for a device to come or to go.
    """

    kind: Literal["kernel", "userspace"] = "userspace"

    def __init__(self, uapi_dir: str, netlink: LinkControl, *, timeout: float = 10.0) -> None:
        self._dir = uapi_dir
        self._netlink = netlink
        self._timeout = timeout
        self._children: dict[str, WireGuardGo] = {}

    async def version(self) -> str:
        """As wireguard-go says it."""
        done = await process.run(["wireguard-go", "--version"], timeout=5)
        return " ".join((done.stdout.splitlines() or ["wireguard-go"])[0].split())

    def _client(self, ifname: str) -> UapiClient:
        return UapiClient(socket_path(self._dir, ifname))

    async def create(self, ifname: str) -> bool:
        """Start wireguard-go, or take over one that runs; True when it was started."""
        path = socket_path(self._dir, ifname)
        link = await link_named(self._netlink, ifname)
        if link is not None and link.kind != "tun":
            raise name_taken(ifname, link)
        stranger = _elsewhere(path)
        if stranger is not None:
            raise StateError(
                f"{path} belongs to a WireGuard in another network namespace (process {stranger}): such names are unique "
                "on a machine, not in a namespace; choose another interface name or give each its own /run/wireguard"
            )
        if link is not None:
            if not has_socket(self._dir, ifname):
                raise StateError(
                    f"{ifname}: a tun device of this name exists, but its socket {path} does not: it is another "
                    "program's, or a wireguard-go whose /run/wireguard is not shared with this container; it was left alone"
                )
            await self._client(ifname).get(ifname)
            _log.info("device taken over", interface=ifname, backend="userspace", pid=owner_of(path))
            return False
        self._make_directory()
        child = WireGuardGo.start(ifname)
        try:
            await self._await_device(ifname, child)
        except BaseException:
            await child.stop()
            child.abandon()
            raise
        self._children[ifname] = child
        return True

    def _make_directory(self) -> None:
        try:
            os.makedirs(self._dir, mode=0o700, exist_ok=True)
            writable = os.access(self._dir, os.W_OK | os.X_OK)
            why = "it is not writable"
        except OSError as error:
            writable, why = False, error.strerror or str(error)
        if not writable:
            raise StateError(
                f"{self._dir}: {why}; wireguard-go makes its socket there: with a read-only root filesystem mount an "
                "emptyDir (medium: Memory) at /run/wireguard"
            )

    async def _await_device(self, ifname: str, child: WireGuardGo) -> None:
        deadline = time.monotonic() + self._timeout
        path = socket_path(self._dir, ifname)
        why = "it made no socket"
        while time.monotonic() < deadline:
            code = child.exit_code()
            if code is not None:
                raise StateError(
                    f"wireguard-go {ifname} ended at once (exit code {code}): {child.output() or 'no word'}"
                )
            if has_socket(self._dir, ifname):
                try:
                    await UapiClient(path, timeout=1).get(ifname)
                except StateError as error:
                    why = str(error)
                else:
                    if await link_named(self._netlink, ifname) is not None:
                        return
                    why = "the device is not in this network namespace"
            await asyncio.sleep(POLL)
        raise StateError(
            f"wireguard-go {ifname} is not ready after {self._timeout:g} s: {why}: {child.output() or 'no word'}"
        )

    async def get(self, ifname: str) -> WireGuardState:
        """The device as it is."""
        return (await self._device(ifname)).state

    async def _device(self, ifname: str) -> uapi.UapiDevice:
        link = await link_named(self._netlink, ifname)
        path = socket_path(self._dir, ifname)
        if link is None:
            raise device_missing(ifname)
        if link.kind != "tun":
            raise name_taken(ifname, link)
        stranger = _elsewhere(path)
        if stranger is not None:
            raise StateError(f"{path} belongs to a WireGuard in another network namespace (process {stranger})")
        return await self._client(ifname).get(ifname)

    async def configure(self, ifname: str, config: DeviceConfig) -> None:
        """Add to and change a device in one request, and read it back."""
        await self._device(ifname)
        await self._client(ifname).set(ifname, uapi.format_set(config))
        check_read_back(await self.get(ifname), config)

    async def remove_peer(self, ifname: str, public_key: PublicKey) -> None:
        """Remove a peer and see that it is gone."""
        await self._device(ifname)
        await self._client(ifname).set(ifname, uapi.format_remove_peer(public_key))
        if any(peer.public_key == str(public_key) for peer in (await self.get(ifname)).peers):
            raise StateError(f"{ifname}: peer {public_key} is still there after it was removed")

    async def private_key(self, ifname: str) -> PrivateKey | None:
        """The device's key."""
        return (await self._device(ifname)).private_key

    async def preshared_keys(self, ifname: str) -> Mapping[PublicKey, PresharedKey]:
        """The preshared keys that are set."""
        return (await self._device(ifname)).preshared_keys

    async def destroy(self, ifname: str) -> None:
        """End the process and wait until device and socket are gone.

        One that was taken over is ended through its device: without its tun wireguard-go exits.
        """
        path = socket_path(self._dir, ifname)
        child = self._children.pop(ifname, None)
        link = await link_named(self._netlink, ifname)
        if child is None and link is None:
            return
        if link is not None and link.kind != "tun":
            raise name_taken(ifname, link)
        if child is not None:
            await child.stop()
            child.abandon()
        if await link_named(self._netlink, ifname) is not None:
            with contextlib.suppress(KernelRefused):
                await self._netlink.delete_link(ifname)
        deadline = time.monotonic() + self._timeout
        while await link_named(self._netlink, ifname) is not None or self._answers(path):
            if time.monotonic() > deadline:
                raise StateError(f"{ifname}: wireguard-go is still there {self._timeout:g} s after it was told to go")
            await asyncio.sleep(POLL)
        # After a SIGKILL the file stays; nobody is behind it any more.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)

    @staticmethod
    def _answers(path: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except BlockingIOError:
                return True
            except OSError:
                return False
            return True

    async def close(self) -> None:
        """Let go of the processes; they and their devices stay."""
        for child in self._children.values():
            child.abandon()
        self._children.clear()


__all__ = ["UAPI_DIR", "UapiClient", "UserspaceWireGuard", "has_socket", "owner_of", "socket_path"]
