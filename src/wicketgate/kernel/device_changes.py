# SPDX-License-Identifier: Apache-2.0
"""Changes of WireGuard devices and of our nftables tables, each able to take itself back."""

from __future__ import annotations

import shlex

from wicketgate.kernel.nft import NftFamily, as_script, delete_script, nft_apply, nft_delete_table, nft_list_table
from wicketgate.kernel.wg_common import LinkControl, differences, link_named
from wicketgate.kernel.wg_spelling import spell_remove_peer, spell_set
from wicketgate.kernel.wireguard import WireGuardBackend
from wicketgate.netpath.snapshot import PeerState, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey


class CreateDevice:
    """A WireGuard device, made or taken over; only one that was made is removed by undo."""

    def __init__(self, backend: WireGuardBackend, netlink: LinkControl, ifname: str) -> None:
        self._backend = backend
        self._netlink = netlink
        self.ifname = ifname
        self.made = False

    @property
    def spelled(self) -> str:
        """The iproute2 or wireguard-go command."""
        if self._backend.kind == "userspace":
            return f"wireguard-go {self.ifname}"
        return f"ip link add dev {self.ifname} type wireguard"

    async def apply(self) -> None:
        """Make it, or take it over."""
        # Asked first: a cancelled creation may still have made it.
        self.made = await link_named(self._netlink, self.ifname) is None
        self.made = await self._backend.create(self.ifname)

    async def undo(self) -> None:
        """Remove it."""
        if self.made:
            await self._backend.destroy(self.ifname)
            self.made = False


async def _secrets(backend: WireGuardBackend, ifname: str) -> tuple[PrivateKey | None, dict[PublicKey, PresharedKey]]:
    return await backend.private_key(ifname), dict(await backend.preshared_keys(ifname))


def _restored(peer: PeerState, preshared: dict[PublicKey, PresharedKey]) -> PeerConfig:
    key = PublicKey.parse(peer.public_key)
    return PeerConfig(
        public_key=key,
        preshared_key=preshared.get(key),
        clear_preshared_key=key not in preshared,
        endpoint=peer.endpoint,
        allowed_ips=peer.allowed_ips,
        persistent_keepalive=peer.persistent_keepalive,
    )


class ConfigureDevice:
    """`wg set`: keys, port, mark, peers. Undo restores what was changed, and touches no other peer's session."""

    def __init__(self, backend: WireGuardBackend, ifname: str, config: DeviceConfig) -> None:
        self._backend = backend
        self.ifname = ifname
        self.config = config
        self._before: WireGuardState | None = None
        self._private: PrivateKey | None = None
        self._preshared: dict[PublicKey, PresharedKey] = {}

    @property
    def spelled(self) -> str:
        """The wg(8) command, secrets hidden."""
        return spell_set(self.ifname, self.config)

    async def apply(self) -> None:
        """Set it; the backend reads it back."""
        before = await self._backend.get(self.ifname)
        self._private, self._preshared = await _secrets(self._backend, self.ifname)
        self._before = before
        await self._backend.configure(self.ifname, self.config)

    async def undo(self) -> None:
        """Set the old values, remove the peers that were not there, give back networks that moved."""
        before, self._before = self._before, None
        if before is None:
            return
        try:
            now = await self._backend.get(self.ifname)
            known = {peer.public_key for peer in before.peers}
            for peer in now.peers:
                if peer.public_key not in known:
                    await self._backend.remove_peer(self.ifname, PublicKey.parse(peer.public_key))
            # A device without a key cannot be told to have none again through every backend; one that was so has no
            # sessions, and CreateDevice removes it.
            old = DeviceConfig(
                private_key=self._private if self.config.private_key is not None else None,
                listen_port=before.listen_port if self.config.listen_port is not None else None,
                fwmark=before.fwmark if self.config.fwmark is not None else None,
                peers=tuple(self._changed_peers(before, now)),
            )
            if differences(now, old) or old.peers:
                await self._backend.configure(self.ifname, old)
        except BaseException:
            self._before = before
            raise

    def _changed_peers(self, before: WireGuardState, now: WireGuardState) -> list[PeerConfig]:
        named = {str(peer.public_key) for peer in self.config.peers}
        shown = {peer.public_key: frozenset(peer.allowed_ips) for peer in now.peers}
        return [
            _restored(peer, self._preshared)
            for peer in before.peers
            if peer.public_key in named or shown.get(peer.public_key) != frozenset(peer.allowed_ips)
        ]


class RemovePeer:
    """`wg set ... peer KEY remove`. Undo adds it again; its session is made anew by its next handshake."""

    def __init__(self, backend: WireGuardBackend, ifname: str, public_key: PublicKey) -> None:
        self._backend = backend
        self.ifname = ifname
        self.public_key = public_key
        self._before: PeerConfig | None = None

    @property
    def spelled(self) -> str:
        """The wg(8) command."""
        return spell_remove_peer(self.ifname, self.public_key)

    async def apply(self) -> None:
        """Remove it."""
        state = await self._backend.get(self.ifname)
        peer = next((peer for peer in state.peers if peer.public_key == str(self.public_key)), None)
        if peer is None:
            return
        self._before = _restored(peer, dict(await self._backend.preshared_keys(self.ifname)))
        await self._backend.remove_peer(self.ifname, self.public_key)

    async def undo(self) -> None:
        """Add it again as it was."""
        if self._before is not None:
            await self._backend.configure(self.ifname, DeviceConfig(peers=(self._before,)))
            self._before = None


class ReplaceNftTable:
    """One of our nftables tables put in place atomically. Undo restores the table that was there, or removes it.

    Args:
        family: nft's.
        name: must be one of ours.
        script: a whole transaction, as `nft.replace_script` makes it.
    """

    def __init__(self, family: NftFamily, name: str, script: str) -> None:
        self.family: NftFamily = family
        self.name = name
        self.script = script
        self._undo: str | None = None
        self._remove = delete_script(family, name)

    @property
    def spelled(self) -> str:
        """One line that a shell takes."""
        return spell_script(self.script)

    async def apply(self) -> None:
        """Commit it."""
        listing = await nft_list_table(self.family, self.name)
        self._undo = self._remove if listing is None else as_script(listing)
        await nft_apply(self.script)

    async def undo(self) -> None:
        """Commit the opposite."""
        if self._undo is not None:
            await nft_apply(self._undo)
            self._undo = None


class DeleteNftTable:
    """One of our nftables tables removed; one that has gone already is as good as removed."""

    def __init__(self, family: NftFamily, name: str) -> None:
        self.family: NftFamily = family
        self.name = name
        self._script = delete_script(family, name)  # refuses a name that is not ours
        self._undo: str | None = None

    @property
    def spelled(self) -> str:
        """The nft command."""
        return f"nft delete table {self.family} {self.name}"

    async def apply(self) -> None:
        """Remove it."""
        listing = await nft_list_table(self.family, self.name)
        if listing is not None:
            self._undo = as_script(listing)
            await nft_delete_table(self.family, self.name)

    async def undo(self) -> None:
        """Put it back."""
        if self._undo is not None:
            await nft_apply(self._undo)
            self._undo = None


def spell_script(script: str) -> str:
    """A script of several lines as one `nft` command line, without its comment lines."""
    parts: list[str] = []
    for line in script.splitlines():
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        separator = "" if not parts else (" " if parts[-1].endswith(("{", ",", "\\")) else "; ")
        parts.append(separator + words)
    return f"nft {shlex.quote(''.join(parts))}"
