# SPDX-License-Identifier: Apache-2.0
"""Changes to a file that leave every other line as it is: what SaveConfig writes.

Each function takes a config and gives a new one; the text is `wgquick.render` of it. A value that already says the
same is not touched, so its spelling (`25` beside `0x19`, the order of a list) stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import Literal, TypeAlias

from wicketgate.config.document import INTERFACE, PEER, Block, Kind, Line, blocks, split
from wicketgate.config.model import Peer
from wicketgate.config.names import explicit_name
from wicketgate.config.reader import canonical
from wicketgate.config.spelling import name_comment, peer_section, peer_settings, spell_fwmark
from wicketgate.config.wgquick import WgQuickConfig, parse, render
from wicketgate.errors import InputError
from wicketgate.wireguard.keys import PrivateKey, PublicKey


class _Keep(Enum):
    KEEP = "keep"


KEEP = _Keep.KEEP
Keep: TypeAlias = Literal[_Keep.KEEP]


def update(
    config: WgQuickConfig,
    *,
    listen_port: int | Keep | None = KEEP,
    fwmark: int | Keep | None = KEEP,
    private_key: PrivateKey | Keep | None = KEEP,
    peers: Iterable[Peer] | Keep = KEEP,
) -> WgQuickConfig:
    """Change what is given and differs.

    Args:
        config: what was read.
        listen_port: the new value; None takes the line away.
        fwmark: as above; 0 writes `off`.
        private_key: as above.
        peers: all the peers there shall be. Those missing here go, those that differ change, new ones come last.
            The name of a peer that is already there stays when the new one has none.

    Raises:
        InputError: two peers have one key, or a value cannot be written.
    """
    draft = _Draft(render(config))
    now = config.interface
    if listen_port is not KEEP and listen_port != now.listen_port:
        draft.set_interface("ListenPort", None if listen_port is None else str(listen_port))
    if fwmark is not KEEP and fwmark != now.fwmark:
        draft.set_interface("FwMark", None if fwmark is None else spell_fwmark(fwmark))
    if private_key is not KEEP and private_key != now.private_key:
        draft.set_interface("PrivateKey", None if private_key is None else private_key.expose_base64())
    if peers is KEEP:
        return parse(draft.text(), path=config.path)
    listed = list(peers)
    wanted = {p.public_key: p for p in listed}
    if len(wanted) != len(listed):
        raise InputError("peers: a public key is given twice; allowed: one peer a key")
    draft.set_peers(config.peers, wanted)
    result = parse(draft.text(), path=config.path)
    # A prefix that two sections claimed falls to the other one when its holder goes or gives it up: say so there too.
    if not _same(result, wanted):
        draft = _Draft(render(result))
        draft.set_peers(result.peers, wanted)
        result = parse(draft.text(), path=config.path)
    if not _same(result, wanted):
        raise InputError("peers: no file can say this; allowed: each prefix with one peer, no peer with the own key")
    return result


def _same(config: WgQuickConfig, wanted: dict[PublicKey, Peer]) -> bool:
    def device(peers: Iterable[Peer]) -> set[Peer]:
        return {replace(p, name=None, allowed_ips=tuple(sorted(p.allowed_ips, key=str))) for p in peers}

    return device(config.peers) == device(wanted.values())


def add_peer(config: WgQuickConfig, peer: Peer) -> WgQuickConfig:
    """Append a peer.

    Raises:
        InputError: there is one with this key.
    """
    if config.peer(peer.public_key) is not None:
        raise InputError(f"peer {peer.public_key}: is there already; replace it instead")
    return update(config, peers=[*config.peers, peer])


def remove_peer(config: WgQuickConfig, public_key: PublicKey) -> WgQuickConfig:
    """Take a peer away, with the comment lines right above it.

    Raises:
        InputError: there is none with this key.
    """
    if config.peer(public_key) is None:
        raise InputError(f"peer {public_key}: is not in {config.path or 'the configuration'}")
    return update(config, peers=[p for p in config.peers if p.public_key != public_key])


def replace_peer(config: WgQuickConfig, peer: Peer) -> WgQuickConfig:
    """Change the peer with this key to these values.

    Raises:
        InputError: there is none with this key.
    """
    if config.peer(peer.public_key) is None:
        raise InputError(f"peer {peer.public_key}: is not in {config.path or 'the configuration'}; add it instead")
    return update(config, peers=[peer if p.public_key == peer.public_key else p for p in config.peers])


class _Draft:
    """The lines while they change. A line that went is None until the end, so that indices stay true."""

    def __init__(self, text: str) -> None:
        lines = split(text)
        self._lines: list[Line | None] = list(lines)
        self._after: dict[int, list[str]] = {}  # index of a line -> raw lines to put behind it
        self._tail: list[list[str]] = []  # sections to append
        self._newline = next((line.newline for line in lines if line.newline), "\n")
        self._interfaces: list[Block] = []
        self._peers: dict[PublicKey, list[Block]] = {}
        for block in blocks(lines):
            if block.section == INTERFACE:
                self._interfaces.append(block)
            elif block.section == PEER:
                key = next(line.value for _, line in reversed(self._settings(block, "PublicKey")))
                self._peers.setdefault(PublicKey.parse("".join(key.split())), []).append(block)

    def text(self) -> str:
        """The file."""
        parts: list[str] = []
        for index, line in enumerate(self._lines):
            if line is not None:
                parts.append(line.raw)
            parts.extend(self._after.get(index, ()))
        if self._tail or self._after:
            parts = self._ended(parts)
        for section in self._tail:
            if parts and parts[-1].strip():
                parts.append(self._newline)
            parts.extend(line + self._newline for line in section)
        return "".join(parts)

    def _ended(self, parts: list[str]) -> list[str]:
        # Only the very last line of a file may lack its newline; what comes behind it must not be glued to it.
        return [part if part.endswith("\n") else part + self._newline for part in parts]

    def _settings(self, block: Block, key: str) -> list[tuple[int, Line]]:
        found = []
        for index in range(block.header + 1, block.stop):
            line = self._lines[index]
            if line is not None and line.kind is Kind.SETTING and canonical(block.section, line.name) == key:
                found.append((index, line))
        return found

    def set_interface(self, key: str, value: str | None) -> None:
        """Set a key that may stand in any of the [Interface] sections; the last place counts."""
        self._set(self._interfaces, key, value)

    def _set(self, places: list[Block], key: str, value: str | None) -> None:
        found = [hit for block in places for hit in self._settings(block, key)]
        if value is None:
            for index, _ in found:
                self._lines[index] = None
        elif found:
            # Earlier lines with the key do not count, except in a list, where this value is the whole of it.
            index, line = found[-1]
            self._lines[index] = line.with_value(value)
            if key == "AllowedIPs":
                for earlier, _ in found[:-1]:
                    self._lines[earlier] = None
        else:
            self._after.setdefault(places[0].last, []).append(f"{key} = {value}{self._newline}")

    def set_peers(self, there: Iterable[Peer], wanted: dict[PublicKey, Peer]) -> None:
        """Make the peers what they shall be."""
        old = {p.public_key: p for p in there}
        for key, places in self._peers.items():
            if key not in wanted:
                for block in places:
                    self._drop(block)
        for key, peer in wanted.items():
            if key not in self._peers:
                self._tail.append(peer_section(peer))
            elif key not in old or peer != old[key]:  # not in old: it has the interface's own key
                self._change_peer(old.get(key, Peer(key)), peer)

    def _drop(self, block: Block) -> None:
        last = block.last
        # Comments without a gap below the last setting belong to the peer; what stands behind a gap does not.
        while last + 1 < block.stop and (line := self._lines[last + 1]) is not None and line.kind is Kind.COMMENT:
            last += 1
        # One gap goes with it: the one behind, or at the end of the file the one before.
        first = block.above
        if block.stop == len(self._lines) and all(
            line is None or line.kind is Kind.BLANK for line in self._lines[last + 1 :]
        ):
            last = len(self._lines) - 1
            while first and ((line := self._lines[first - 1]) is None or line.kind is Kind.BLANK):
                first -= 1
        else:
            while last + 1 < block.stop and (line := self._lines[last + 1]) is not None and line.kind is Kind.BLANK:
                last += 1
        for index in range(first, last + 1):
            self._lines[index] = None

    def _change_peer(self, before: Peer, after: Peer) -> None:
        # Only what differs. A peer with several sections is drawn together into its first.
        places = self._peers[after.public_key]
        old, new = dict(peer_settings(before)), dict(peer_settings(after))
        several = len(places) > 1
        for block in places[1:]:
            self._drop(block)
        for key in ("PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"):
            if several or old.get(key) != new.get(key):
                self._set(places[:1], key, new.get(key))
        name = after.name or before.name
        if name is not None and (several or name != before.name):
            self._rename(places[0], name)

    def _rename(self, block: Block, name: str) -> None:
        inside = range(block.header + 1, block.last + 1)
        above = range(block.header - 1, block.above - 1, -1)
        for place in (inside, above):
            index = next((i for i in place if (at := self._lines[i]) is not None and explicit_name(at.comment)), None)
            if index is not None:
                line = self._lines[index]
                if line is not None and line.kind is Kind.COMMENT:
                    indent = line.raw[: line.raw.find("#")]
                    self._lines[index] = Line.read(indent + name_comment(name) + (line.newline or self._newline))
                    return
                break
        self._after.setdefault(block.header, []).insert(0, name_comment(name) + self._newline)
