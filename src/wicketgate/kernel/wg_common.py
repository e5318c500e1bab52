# SPDX-License-Identifier: Apache-2.0
"""What every WireGuard backend shares: names that are taken, and reading back what was written."""

from __future__ import annotations

from typing import Protocol

from wicketgate.errors import StateError
from wicketgate.netpath.snapshot import IPNetwork, Link, WireGuardState
from wicketgate.wireguard.device import DeviceConfig

# wireguard-go's ipc/uapi_unix.go has /var/run/wireguard built in; /var/run is a link to /run nearly everywhere.
UAPI_DIR = "/run/wireguard"


class LinkControl(Protocol):
    """The part of `kernel.netlink.Netlink` that device backends need."""

    async def links(self) -> tuple[Link, ...]:
        """Every interface of the namespace."""
        ...

    async def add_link(self, name: str, kind: str) -> None:
        """Make one. Raises KernelRefused."""
        ...

    async def delete_link(self, name: str) -> None:
        """Remove one. Raises KernelRefused."""
        ...


def device_missing(ifname: str) -> StateError:
    """The error for a device that is not there."""
    return StateError(f"{ifname}: no such WireGuard device in this network namespace")


def name_taken(ifname: str, link: Link) -> StateError:
    """The error for a name that another kind of interface has."""
    kind = f"of kind {link.kind}" if link.kind else "no virtual one"
    return StateError(
        f"{ifname}: there is an interface of this name already, {kind}, and it is no WireGuard device; "
        f"it was left alone: rename the configuration file, or remove it (ip link delete {ifname})"
    )


async def link_named(links: LinkControl, ifname: str) -> Link | None:
    """The interface of that name, None when there is none."""
    return next((link for link in await links.links() if link.name == ifname), None)


def expected_allowed_ips(config: DeviceConfig) -> dict[str, frozenset[IPNetwork]]:
    """What each named peer's allowed-ips must contain afterwards: a network belongs to the last peer that claims it."""
    owner: dict[IPNetwork, str] = {}
    for peer in config.peers:
        for network in peer.allowed_ips or ():
            owner[network] = str(peer.public_key)
    result: dict[str, set[IPNetwork]] = {
        str(peer.public_key): set() for peer in config.peers if peer.allowed_ips is not None
    }
    for network, key in owner.items():
        result[key].add(network)
    return {key: frozenset(networks) for key, networks in result.items()}


def differences(state: WireGuardState, config: DeviceConfig) -> tuple[str, ...]:
    """What `configure` asked for and the device does not show; sentences without secrets, empty when all is well.

    Endpoints are not compared: a peer that roams moves its own.
    """
    wrong = []
    if config.private_key is not None:
        public = str(config.private_key.public())
        if state.public_key != public:
            wrong.append(f"public key is {state.public_key or '(none)'}, expected {public}")
    if config.listen_port and state.listen_port != config.listen_port:
        wrong.append(f"listen port is {state.listen_port}, expected {config.listen_port}")
    if config.fwmark is not None and state.fwmark != config.fwmark:
        wrong.append(f"fwmark is {state.fwmark:#x}, expected {config.fwmark:#x}")
    peers = {peer.public_key: peer for peer in state.peers}
    expected = expected_allowed_ips(config)
    last = {str(peer.public_key): peer for peer in config.peers}
    for key, peer in last.items():
        shown = peers.get(key)
        if shown is None:
            own = " (it is the device's own key)" if key == state.public_key else ""
            wrong.append(f"peer {key} is not there{own}")
            continue
        if key in expected and frozenset(shown.allowed_ips) != expected[key]:
            got = ", ".join(sorted(map(str, shown.allowed_ips))) or "(none)"
            want = ", ".join(sorted(map(str, expected[key]))) or "(none)"
            wrong.append(f"peer {key}: allowed-ips are {got}, expected {want}")
        if peer.persistent_keepalive is not None and shown.persistent_keepalive != peer.persistent_keepalive:
            wrong.append(
                f"peer {key}: persistent-keepalive is {shown.persistent_keepalive}, expected {peer.persistent_keepalive}"
            )
        has_psk = peer.preshared_key is not None and any(peer.preshared_key.expose())
        if (peer.preshared_key is not None or peer.clear_preshared_key) and shown.has_preshared_key != has_psk:
            wrong.append(f"peer {key}: preshared key is {'set' if shown.has_preshared_key else 'not set'}")
        if peer.endpoint is not None and shown.endpoint is None:
            wrong.append(f"peer {key}: no endpoint is set")
    return tuple(wrong)


def check_read_back(state: WireGuardState, config: DeviceConfig) -> None:
    """Raise StateError when the device does not show what it was told."""
    wrong = differences(state, config)
    if wrong:
        raise StateError(f"{state.ifname}: the device took the settings but shows others: {'; '.join(wrong)}")
