# SPDX-License-Identifier: Apache-2.0
"""In-kernel WireGuard through generic netlink (linux/uapi/wireguard.h).

pyroute2's own `set()` sends one peer a call, matches replies by luck and makes one attribute of any number of
allowed-ips; so the messages are composed here, and its socket and codecs are used.
"""

from __future__ import annotations

import asyncio
import errno
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Any, Literal

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import (
    WG_CMD_GET_DEVICE,
    WG_CMD_SET_DEVICE,
    WG_GENL_VERSION,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    WGPEER_F_UPDATE_ONLY,
    AsyncWireGuard,
    wgmsg,
)

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.wg_common import LinkControl, check_read_back, device_missing, link_named, name_taken
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import IPAddress, IPNetwork, PeerState, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import KEY_LENGTH, PresharedKey, PrivateKey, PublicKey

_log = get_logger("wireguard")

NLM_F_DUMP_INTR = 0x10  # linux/netlink.h: the list changed while it was dumped
# A nested attribute's length has 16 bits. An IPv6 allowed-ip takes 44 bytes with its three attributes, so 1,400 would
# still fit; 500 leaves room for the peer around them and keeps a message below the socket's usual buffer.
ALLOWED_IPS_PER_MESSAGE = 500
PEERS_PER_MESSAGE = 50
_DUMP_ATTEMPTS = 10

Attributes = list[list[Any]]
# pyroute2 is untyped; this is where that ends.
_new_message: Any = wgmsg
_new_socket: Any = AsyncWireGuard


def _allowed_ip(network: IPNetwork) -> dict[str, Attributes]:
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", AF_INET6 if network.version == 6 else AF_INET],
            ["WGALLOWEDIP_A_IPADDR", network.network_address.packed],
            ["WGALLOWEDIP_A_CIDR_MASK", network.prefixlen],
        ]
    }


def _peer_attributes(peer: PeerConfig, networks: Sequence[IPNetwork] | None, *, first: bool) -> Attributes:
    attributes: Attributes = [["WGPEER_A_PUBLIC_KEY", str(peer.public_key)]]
    # Later pieces of a long list must not make a peer anew that somebody has removed in between.
    flags = 0 if first else WGPEER_F_UPDATE_ONLY
    if first:
        if peer.clear_preshared_key:
            attributes.append(["WGPEER_A_PRESHARED_KEY", PresharedKey(bytes(KEY_LENGTH)).expose_base64()])
        elif peer.preshared_key is not None:
            attributes.append(["WGPEER_A_PRESHARED_KEY", peer.preshared_key.expose_base64()])
        if peer.endpoint is not None:
            address, port = peer.endpoint
            attributes.append(["WGPEER_A_ENDPOINT", {"addr": str(address), "port": port}])
        if peer.persistent_keepalive is not None:
            attributes.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.persistent_keepalive])
        if networks is not None:
            flags |= WGPEER_F_REPLACE_ALLOWEDIPS
    attributes.append(["WGPEER_A_FLAGS", flags])
    if networks:
        attributes.append(["WGPEER_A_ALLOWEDIPS", [_allowed_ip(network) for network in networks]])
    return attributes


def _pieces(peers: Iterable[PeerConfig]) -> Iterator[tuple[Attributes, int]]:
    """Peers cut to size, each piece with its number of allowed-ips; only a peer's first piece replaces its list."""
    for peer in peers:
        networks = peer.allowed_ips
        if networks is None or len(networks) <= ALLOWED_IPS_PER_MESSAGE:
            yield _peer_attributes(peer, networks, first=True), len(networks or ())
            continue
        for start in range(0, len(networks), ALLOWED_IPS_PER_MESSAGE):
            piece = networks[start : start + ALLOWED_IPS_PER_MESSAGE]
            yield _peer_attributes(peer, piece, first=start == 0), len(piece)


def _message(ifname: str, command: int) -> Any:
    message = _new_message()
    message["cmd"] = command
    message["version"] = WG_GENL_VERSION
    message["attrs"].append(["WGDEVICE_A_IFNAME", ifname])
    return message


def set_messages(ifname: str, config: DeviceConfig) -> list[Any]:
    """The WG_CMD_SET_DEVICE messages of a configuration, none of them too long for its attributes."""
    first = _message(ifname, WG_CMD_SET_DEVICE)
    if config.private_key is not None:
        first["attrs"].append(["WGDEVICE_A_PRIVATE_KEY", config.private_key.expose_base64()])
    if config.listen_port is not None:
        first["attrs"].append(["WGDEVICE_A_LISTEN_PORT", config.listen_port])
    if config.fwmark is not None:
        first["attrs"].append(["WGDEVICE_A_FWMARK", config.fwmark])
    messages = [first]
    batch: list[dict[str, Attributes]] = []
    weight = 0

    def flush() -> None:
        if batch:
            target = messages[0] if len(messages) == 1 and not _has_peers(messages[0]) else None
            if target is None:
                target = _message(ifname, WG_CMD_SET_DEVICE)
                messages.append(target)
            target["attrs"].append(["WGDEVICE_A_PEERS", list(batch)])
            batch.clear()

    for attributes, size in _pieces(config.peers):
        if batch and (len(batch) >= PEERS_PER_MESSAGE or weight + size > ALLOWED_IPS_PER_MESSAGE):
            flush()
            weight = 0
        batch.append({"attrs": attributes})
        weight += size
    flush()
    return messages


def _has_peers(message: Any) -> bool:
    return any(name == "WGDEVICE_A_PEERS" for name, _ in message["attrs"])


def remove_message(ifname: str, public_key: PublicKey) -> Any:
    """The message that removes one peer; UPDATE_ONLY keeps an unknown one from being made first."""
    message = _message(ifname, WG_CMD_SET_DEVICE)
    attributes: Attributes = [
        ["WGPEER_A_PUBLIC_KEY", str(public_key)],
        ["WGPEER_A_FLAGS", WGPEER_F_REMOVE_ME | WGPEER_F_UPDATE_ONLY],
    ]
    message["attrs"].append(["WGDEVICE_A_PEERS", [{"attrs": attributes}]])
    return message


def _raw_key(value: Any) -> bytes:
    """A key of a dump: base64 text as bytes."""
    text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    return PublicKey.parse(text).raw


def _endpoint(value: Any) -> tuple[IPAddress, int] | None:
    if not value or not value.get("addr"):
        return None
    return ip_address(value["addr"]), int(value["port"])


class _Device:
    """A dump's fragments put together: one peer may come in several messages, each with a part of its allowed-ips."""

    def __init__(self, ifname: str) -> None:
        self.ifname = ifname
        self.public_key = ""
        self.private_key: PrivateKey | None = None
        self.listen_port = 0
        self.fwmark = 0
        self.peers: dict[bytes, PeerState] = {}
        self.preshared: dict[PublicKey, PresharedKey] = {}

    def add(self, message: Any) -> None:
        private = message.get_attr("WGDEVICE_A_PRIVATE_KEY")
        if private is not None and any(raw := _raw_key(private)):
            self.private_key = PrivateKey(raw)
        public = message.get_attr("WGDEVICE_A_PUBLIC_KEY")
        # Without a private key the kernel leaves both out; zeros are no key either.
        if public is not None and any(raw := _raw_key(public)):
            self.public_key = str(PublicKey(raw))
        self.listen_port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or self.listen_port
        self.fwmark = message.get_attr("WGDEVICE_A_FWMARK") or self.fwmark
        for peer in message.get_attr("WGDEVICE_A_PEERS") or ():
            self._add_peer(peer)

    def _add_peer(self, peer: Any) -> None:
        key = peer.get_attr("WGPEER_A_PUBLIC_KEY")
        if key is None:
            raise ValueError("a peer without a public key")
        raw = _raw_key(key)
        networks = tuple(
            ip_network(entry["addr"], strict=False)
            for entry in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()
            if entry.get("addr")
        )
        known = self.peers.get(raw)
        if known is not None:
            # Only the first fragment has the rest of the attributes (drivers/net/wireguard/netlink.c, get_peer).
            self.peers[raw] = PeerState(
                known.public_key,
                known.endpoint,
                known.allowed_ips + networks,
                known.latest_handshake,
                known.rx_bytes,
                known.tx_bytes,
                known.persistent_keepalive,
                known.has_preshared_key,
            )
            return
        preshared = peer.get_attr("WGPEER_A_PRESHARED_KEY")
        secret = _raw_key(preshared) if preshared is not None else bytes(KEY_LENGTH)
        if any(secret):
            self.preshared[PublicKey(raw)] = PresharedKey(secret)
        handshake = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
        self.peers[raw] = PeerState(
            public_key=str(PublicKey(raw)),
            endpoint=_endpoint(peer.get_attr("WGPEER_A_ENDPOINT")),
            allowed_ips=networks,
            latest_handshake=handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0.0,
            rx_bytes=peer.get_attr("WGPEER_A_RX_BYTES") or 0,
            tx_bytes=peer.get_attr("WGPEER_A_TX_BYTES") or 0,
            persistent_keepalive=peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
            has_preshared_key=any(secret),
        )

    def state(self) -> WireGuardState:
        return WireGuardState(
            self.ifname, "kernel", self.public_key, self.listen_port, self.fwmark, tuple(self.peers.values())
        )


def merge_dump(ifname: str, messages: Iterable[Any]) -> _Device:
    """Put a dump together. Raises StateError when it makes no sense."""
    device = _Device(ifname)
    try:
        for message in messages:
            device.add(message)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{ifname}: the kernel's description of this device cannot be read: {error}") from None
    return device


class KernelWireGuard:
    """Devices of the kernel's own WireGuard.

    Args:
        netlink: of the namespace the devices live in; call everything from a task inside that namespace.
    """

    kind: Literal["kernel", "userspace"] = "kernel"

    def __init__(self, netlink: LinkControl) -> None:
        self._netlink = netlink
        self._socket: Any = None
        # pyroute2 does not match generic netlink replies by sequence number: one question at a time.
        self._lock = asyncio.Lock()

    async def version(self) -> str:
        """The kernel's release: WireGuard has no other version since Linux 5.6."""
        return f"kernel {platform.release()}"

    async def _ensure_socket(self) -> Any:
        if self._socket is None:
            wire = _new_socket()
            try:
                # Without this the family's number is unknown: "protocol id is not obtained yet".
                await wire.setup_endpoint()
            except NetlinkError as error:
                wire.close()
                raise StateError(
                    f"the kernel does not know generic netlink family `wireguard` (errno {error.code}): "
                    "the module is not loaded"
                ) from error
            except BaseException:
                wire.close()
                raise
            self._socket = wire
        return self._socket

    async def _request(self, what: str, ifname: str, message: Any, flags: int) -> list[Any]:
        wire = await self._ensure_socket()
        try:
            answer = await wire.nlm_request(message, msg_type=wire.prid, msg_flags=NLM_F_REQUEST | flags)
            return [part async for part in answer]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                raise device_missing(ifname) from error
            if error.code == errno.EOPNOTSUPP:
                raise StateError(f"{ifname} is no device of the kernel's WireGuard") from error
            step = "; CAP_NET_ADMIN is missing" if error.code == errno.EPERM else ""
            raise KernelRefused(what, error.code, f"{os.strerror(error.code)}{step}") from error
        except OSError as error:
            await self._drop_socket()
            raise StateError(f"{what}: the netlink socket failed: {error}") from error

    async def _drop_socket(self) -> None:
        wire, self._socket = self._socket, None
        if wire is not None:
            wire.close()

    async def _dump(self, ifname: str) -> _Device:
        for _ in range(_DUMP_ATTEMPTS):
            message = _message(ifname, WG_CMD_GET_DEVICE)
            parts = await self._request(f"wg show {ifname}", ifname, message, NLM_F_DUMP)
            if not any(part["header"]["flags"] & NLM_F_DUMP_INTR for part in parts):
                return merge_dump(ifname, parts)
        raise StateError(f"{ifname}: the device changed during each of {_DUMP_ATTEMPTS} readings")

    async def create(self, ifname: str) -> bool:
        """Make a device, or take over one that is there."""
        link = await link_named(self._netlink, ifname)
        if link is not None:
            if link.kind != "wireguard":
                raise name_taken(ifname, link)
            _log.info("device taken over", interface=ifname, backend="kernel")
            return False
        await self._netlink.add_link(ifname, "wireguard")
        return True

    async def _checked(self, ifname: str) -> None:
        link = await link_named(self._netlink, ifname)
        if link is None:
            raise device_missing(ifname)
        if link.kind != "wireguard":
            raise name_taken(ifname, link)

    async def _device(self, ifname: str) -> _Device:
        await self._checked(ifname)
        async with self._lock:
            return await self._dump(ifname)

    async def get(self, ifname: str) -> WireGuardState:
        """The device as it is."""
        return (await self._device(ifname)).state()

    async def configure(self, ifname: str, config: DeviceConfig) -> None:
        """Add to and change a device, in as many messages as it takes, and read it back."""
        await self._checked(ifname)
        async with self._lock:
            for message in set_messages(ifname, config):
                await self._request(f"wg set {ifname}", ifname, message, NLM_F_ACK)
            device = await self._dump(ifname)
        check_read_back(device.state(), config)

    async def remove_peer(self, ifname: str, public_key: PublicKey) -> None:
        """Remove a peer and see that it is gone."""
        await self._checked(ifname)
        async with self._lock:
            what = f"wg set {ifname} peer {public_key} remove"
            await self._request(what, ifname, remove_message(ifname, public_key), NLM_F_ACK)
            device = await self._dump(ifname)
        if public_key.raw in device.peers:
            raise StateError(f"{ifname}: peer {public_key} is still there after it was removed")

    async def private_key(self, ifname: str) -> PrivateKey | None:
        """The device's key."""
        return (await self._device(ifname)).private_key

    async def preshared_keys(self, ifname: str) -> Mapping[PublicKey, PresharedKey]:
        """The preshared keys that are set."""
        return (await self._device(ifname)).preshared

    async def destroy(self, ifname: str) -> None:
        """Delete the link; the kernel has it gone when it answers."""
        link = await link_named(self._netlink, ifname)
        if link is None:
            return
        if link.kind != "wireguard":
            raise name_taken(ifname, link)
        await self._netlink.delete_link(ifname)

    async def close(self) -> None:
        """Close the socket."""
        await self._drop_socket()
