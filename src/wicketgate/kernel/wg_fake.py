# SPDX-License-Identifier: Apache-2.0
"""A WireGuard backend in memory, held to the same contract as the real ones (tests/netns/test_kernel_devices.py)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from wicketgate.errors import KernelRefused
from wicketgate.kernel.wg_common import check_read_back, device_missing, name_taken
from wicketgate.netpath.snapshot import IPAddress, IPNetwork, Link, PeerState, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey


@dataclass(slots=True)
class _Peer:
    endpoint: tuple[IPAddress, int] | None = None
    allowed_ips: list[IPNetwork] = field(default_factory=list)
    persistent_keepalive: int = 0
    preshared_key: PresharedKey | None = None
    latest_handshake: float = 0.0


@dataclass(slots=True)
class _Device:
    private_key: PrivateKey | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: dict[PublicKey, _Peer] = field(default_factory=dict)


class FakeWireGuard:
    """Devices that exist in this object alone.

    Args:
        kind: which backend it plays.
        foreign: names that other kinds of interfaces have.

    Attributes:
        refuse: set to an errno, the next change is refused with it.
    """

    def __init__(self, kind: Literal["kernel", "userspace"] = "kernel", *, foreign: Iterable[Link] = ()) -> None:
        self.kind: Literal["kernel", "userspace"] = kind
        self.refuse: int = 0
        self._foreign = {link.name: link for link in foreign}
        self._devices: dict[str, _Device] = {}

    async def version(self) -> str:
        """Says what it is."""
        return f"fake {self.kind}"

    def _may(self, what: str) -> None:
        if self.refuse:
            code, self.refuse = self.refuse, 0
            raise KernelRefused(what, code, errno.errorcode.get(code, "refused"))

    def _device(self, ifname: str) -> _Device:
        if ifname in self._foreign:
            raise name_taken(ifname, self._foreign[ifname])
        device = self._devices.get(ifname)
        if device is None:
            raise device_missing(ifname)
        return device

    async def create(self, ifname: str) -> bool:
        """As the contract says."""
        if ifname in self._foreign:
            raise name_taken(ifname, self._foreign[ifname])
        if ifname in self._devices:
            return False
        self._may(f"ip link add {ifname} type wireguard")
        self._devices[ifname] = _Device()
        return True

    async def get(self, ifname: str) -> WireGuardState:
        """As the contract says."""
        device = self._device(ifname)
        return WireGuardState(
            ifname=ifname,
            backend=self.kind,
            public_key=str(device.private_key.public()) if device.private_key else "",
            listen_port=device.listen_port,
            fwmark=device.fwmark,
            peers=tuple(
                PeerState(
                    public_key=str(key),
                    endpoint=peer.endpoint,
                    allowed_ips=tuple(peer.allowed_ips),
                    latest_handshake=peer.latest_handshake,
                    persistent_keepalive=peer.persistent_keepalive,
                    has_preshared_key=peer.preshared_key is not None,
                )
                for key, peer in device.peers.items()
            ),
        )

    async def configure(self, ifname: str, config: DeviceConfig) -> None:
        """As the contract says: a network moves to the last peer that claims it, the device's own key is no peer."""
        device = self._device(ifname)
        self._may(f"wg set {ifname}")
        if config.private_key is not None:
            device.private_key = config.private_key
            device.peers.pop(config.private_key.public(), None)
        if config.listen_port is not None:
            device.listen_port = config.listen_port
        if config.fwmark is not None:
            device.fwmark = config.fwmark
        own = device.private_key.public() if device.private_key else None
        for peer in config.peers:
            if peer.public_key != own:
                self._configure_peer(device, peer)
        check_read_back(await self.get(ifname), config)

    @staticmethod
    def _configure_peer(device: _Device, config: PeerConfig) -> None:
        peer = device.peers.setdefault(config.public_key, _Peer())
        if config.clear_preshared_key:
            peer.preshared_key = None
        elif config.preshared_key is not None:
            peer.preshared_key = config.preshared_key if any(config.preshared_key.expose()) else None
        if config.endpoint is not None:
            peer.endpoint = config.endpoint
        if config.persistent_keepalive is not None:
            peer.persistent_keepalive = config.persistent_keepalive
        if config.allowed_ips is not None:
            claimed = dict.fromkeys(config.allowed_ips)
            for other in device.peers.values():
                other.allowed_ips = [network for network in other.allowed_ips if network not in claimed]
            peer.allowed_ips = list(claimed)

    async def remove_peer(self, ifname: str, public_key: PublicKey) -> None:
        """As the contract says."""
        device = self._device(ifname)
        self._may(f"wg set {ifname} peer {public_key} remove")
        device.peers.pop(public_key, None)

    async def private_key(self, ifname: str) -> PrivateKey | None:
        """As the contract says."""
        return self._device(ifname).private_key

    async def preshared_keys(self, ifname: str) -> Mapping[PublicKey, PresharedKey]:
        """As the contract says."""
        return {key: peer.preshared_key for key, peer in self._device(ifname).peers.items() if peer.preshared_key}

    async def destroy(self, ifname: str) -> None:
        """As the contract says."""
        if ifname in self._foreign:
            raise name_taken(ifname, self._foreign[ifname])
        self._devices.pop(ifname, None)

    async def close(self) -> None:
        """Nothing to give back."""

    def shake_hands(self, ifname: str, public_key: PublicKey, *, at: float, endpoint: tuple[IPAddress, int]) -> None:
        """For tests of what stands above: a peer that has just completed a handshake.

        Args:
            ifname: the device.
            public_key: the peer.
            at: seconds since the epoch.
            endpoint: where it came from.
        """
        peer = self._device(ifname).peers[public_key]
        peer.latest_handshake, peer.endpoint = at, endpoint
