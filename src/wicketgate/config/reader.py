# SPDX-License-Identifier: Apache-2.0
"""From lines to values: finds every problem of a file before it says that there is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wicketgate.config import values
from wicketgate.config.document import INTERFACE, PEER, SECTIONS, Block, Kind, Line, blocks
from wicketgate.config.merge import PeerSection, merge
from wicketgate.config.model import Interface, IPAddress, IPInterface, Peer
from wicketgate.config.names import peer_name
from wicketgate.config.problems import (
    HIDDEN,
    MAX_PROBLEMS,
    ConfigWarning,
    Problem,
    did_you_mean,
    looks_secret,
    shown,
)
from wicketgate.config.values import BadValue
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

K = TypeVar("K", PublicKey, PrivateKey, PresharedKey)

# wg reads these without any blank; wg-quick compares its own as they stand.
WG_KEYS = {
    INTERFACE: ("ListenPort", "FwMark", "PrivateKey"),
    PEER: (
        "PublicKey",
        "PresharedKey",
        "AllowedIPs",
        "Endpoint",
        "PersistentKeepalive",
    ),
}
HOOKS = ("PreUp", "PostUp", "PreDown", "PostDown")
QUICK_KEYS = ("Address", "MTU", "DNS", "Table", *HOOKS, "SaveConfig")
KEYS = {INTERFACE: (*QUICK_KEYS, *WG_KEYS[INTERFACE]), PEER: WG_KEYS[PEER]}
_LOWERED = {(section, key.lower()): key for section, keys in KEYS.items() for key in keys}
_LOWERED_WG = {(section, key.lower()): key for section, keys in WG_KEYS.items() for key in keys}
_LISTS = {"Address", "DNS", "AllowedIPs", *HOOKS}
_MAY_BE_EMPTY = {"Address", "DNS"}  # wg-quick; wg itself knows no empty value
_UNSET_WHEN_EMPTY = {"MTU", "Table", *HOOKS}  # so does wg-quick
_UNREADABLE = re.compile(r"[\ud800-\udfff\0]")

# Of a whole file, guesses with room: 65,536 peers with a /32 and a /128 each, and more addresses than anyone gave.
MAX_ALLOWED_IPS = 200_000
MAX_ADDRESSES = 10_000

_KEY_ALLOWED = {
    "PrivateKey": "44 characters of base64, as wg genkey prints",
    "PublicKey": "44 characters of base64, as wg pubkey prints",
    "PresharedKey": "44 characters of base64, as wg genpsk prints",
}
_READ_ONE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ListenPort": ("listen_port", values.port),
    "FwMark": ("fwmark", values.fwmark),
    "MTU": ("mtu", values.mtu),
    "Table": ("table", values.table),
    "SaveConfig": ("save_config", values.boolean),
}


def canonical(section: str, key: str) -> str | None:
    """The key as wg(8) and wg-quick(8) spell it, or None when the section has none of that name."""
    if not key.isascii():  # a Kelvin sign is a k to str.lower, but not to wg
        return None
    lowered = key.lower()
    return _LOWERED.get((section, lowered)) or _LOWERED_WG.get((section, values.squeeze(lowered)))


@dataclass(slots=True)
class _Section:
    """What the lines of one section gave so far."""

    name: str
    line: int
    single: dict[str, Any] = field(default_factory=dict)  # attribute of the model -> value
    seen: dict[str, int] = field(default_factory=dict)  # key -> line
    addresses: dict[IPInterface, int] = field(default_factory=dict)
    dns: dict[IPAddress, None] = field(default_factory=dict)
    dns_search: dict[str, None] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=lambda: {h: [] for h in HOOKS})
    peer: PeerSection | None = None


class Reader:
    """Reads the lines of one file.

    Attributes:
        problems: what makes the file unusable, at most `MAX_PROBLEMS`.
        more: how many further problems there were.
        warnings: what is hardly meant, at most as many.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.more = 0
        self.warnings: list[ConfigWarning] = []
        self._count: dict[str, int] = {}

    def read(self, lines: tuple[Line, ...]) -> tuple[Interface, tuple[Peer, ...]]:
        """The values. They mean nothing when `problems` is not empty afterwards."""
        interface: _Section | None = None
        current: _Section | None = None
        peers: list[PeerSection] = []
        places = {block.header: block for block in blocks(lines)}
        for number, line in enumerate(lines, 1):
            if _UNREADABLE.search(line.raw):
                what = "a NUL byte" if "\0" in line.raw else "bytes that are not UTF-8"
                self._problem(number, current, "", what, "text in UTF-8")
                if line.kind is not Kind.SECTION:
                    continue
            if line.kind is Kind.SECTION:
                current = self._enter(number, line, interface)
                if current.name == INTERFACE:
                    interface = current
                elif current.name == PEER:
                    current.peer = PeerSection(number, name=_name(lines, places[number - 1]))
                    peers.append(current.peer)
            elif line.kind is Kind.SETTING:
                self._setting(number, line, current)
            elif line.kind is Kind.UNREADABLE:
                self._problem(number, current, "", "a line that is neither [Section] nor Key = value", "# for comments")
        if interface is None:
            self._problem(0, None, "", "no [Interface] section", "exactly one")
        for peer in peers:
            if not peer.has_public_key:
                where = _Section(PEER, peer.line)
                self._problem(peer.line, where, "PublicKey", "none in this section", _KEY_ALLOWED["PublicKey"])
        built = self._interface(interface) if interface else Interface()
        if self.problems:
            return built, ()
        merged = merge(peers, built.private_key, self._warn)
        for line_number, key in merged.exposed:
            where = _Section(PEER, line_number)
            read = "the same value as a PrivateKey or PresharedKey of this file, which must stay secret"
            self._problem(line_number, where, key, read, "the peer's public key, as wg pubkey prints")
        return built, merged.peers

    # Lines

    def _enter(self, number: int, line: Line, interface: _Section | None) -> _Section:
        if line.name not in SECTIONS:
            near = did_you_mean(line.name, SECTIONS) if self._room() else None  # slow, and not kept
            hint = f"; did you mean [{near}]?" if near else ""
            self._problem(number, None, "", f"unknown section {shown(line.name)}{hint}", "[Interface] or [Peer]")
        if line.name == INTERFACE and interface is not None:
            self._warn(number, f"a second [Interface] section: it goes on with the one of line {interface.line}")
            return interface
        return _Section(line.name, number)

    def _setting(self, number: int, line: Line, section: _Section | None) -> None:
        if section is None:
            self._problem(number, None, line.name, "a setting before any section", "[Interface] or [Peer] above it")
            return
        if section.name not in SECTIONS:
            return  # its header was the problem
        key = canonical(section.name, line.name)
        if key is None:
            self._unknown(number, line, section)
            return
        value = values.squeeze(line.value) if key in WG_KEYS[section.name] else line.value
        if not value and key in _UNSET_WHEN_EMPTY:
            self._warn(number, f"[{section.name}] {key}: an empty value, taken as if the line were not there")
            return
        if key in section.seen and key not in _LISTS:
            self._warn(
                number,
                f"[{section.name}] {key}: given again, line {section.seen[key]} no longer counts",
            )
        section.seen[key] = number
        if not value and key in _MAY_BE_EMPTY:
            return
        try:
            self._value(number, line, section, key, value)
        except BadValue as bad:
            if self._room():
                read = (
                    f"{len(value)} characters that are no key"
                    if key in _KEY_ALLOWED
                    else (f"{shown(bad.part)} in the list" if bad.part not in {None, value} else shown(value))
                )
                self._problem(number, section, key, read, bad.allowed)
            else:
                self.more += 1

    def _value(self, number: int, line: Line, section: _Section, key: str, value: str) -> None:
        if key in _READ_ONE:
            attribute, read = _READ_ONE[key]
            section.single[attribute] = read(value)
        elif key == "PrivateKey":
            section.single["private_key"] = _key(PrivateKey, value)
        elif key == "Address":
            for word in self._counted(values.words(value), "addresses", MAX_ADDRESSES):
                address = values.address(word)
                if address in section.addresses:
                    self._warn(number, f"[Interface] Address: {address} again, as in line {section.addresses[address]}")
                section.addresses.setdefault(address, number)
        elif key == "DNS":
            for word in self._counted(values.words(value), "DNS servers and domains", MAX_ADDRESSES):
                server = values.dns(word)
                if isinstance(server, str):
                    section.dns_search[server] = None
                else:
                    section.dns[server] = None
        elif key in HOOKS:
            if line.comment and (line.raw[line.raw.find("#") - 1] not in values.SPACE or _open_quote(value)):
                self._warn(number, f"[Interface] {key}: the command ends at #, which begins a comment even in quotes")
            section.hooks[key].append(value)
        elif section.peer is not None:
            self._peer_value(number, section.peer, key, value)

    def _peer_value(self, number: int, peer: PeerSection, key: str, value: str) -> None:
        if key == "PublicKey":
            peer.has_public_key = True  # given, if only badly: one problem is enough
            peer.public_key, peer.public_key_line = _key(PublicKey, value), number
        elif key == "PresharedKey":
            peer.preshared_key = _key(PresharedKey, value)
        elif key == "Endpoint":
            peer.endpoint, bare = values.endpoint(value)
            if bare:
                self._warn(number, f"[Peer] Endpoint: IPv6 without brackets, taken as {peer.endpoint}")
        elif key == "PersistentKeepalive":
            peer.persistent_keepalive = values.keepalive(value)
        elif key == "AllowedIPs":
            for part in self._counted(value.split(","), "prefixes", MAX_ALLOWED_IPS):
                network, masked = values.allowed_ip(part)
                if masked:
                    self._warn(number, f"[Peer] AllowedIPs: {shown(part)} has host bits set, taken as {network}")
                peer.allowed_ips.setdefault(network, number)

    def _counted(self, items: list[str], what: str, most: int) -> list[str]:
        self._count[what] = self._count.get(what, 0) + len(items)
        if self._count[what] > most:
            raise BadValue(f"at most {most} {what} in a file")
        return items

    def _unknown(self, number: int, line: Line, section: _Section) -> None:
        if not self._room():
            self.more += 1
            return
        known = KEYS[section.name]
        other = PEER if section.name == INTERFACE else INTERFACE
        near = did_you_mean(line.name, known)
        elsewhere = canonical(other, line.name) or (None if near else did_you_mean(line.name, KEYS[other]))
        hint = f"; {elsewhere} belongs to [{other}]" if elsewhere else f"; did you mean {near}?" if near else ""
        if ":" in line.name:
            hint += "; a key and its value are joined by ="
        # What a hook says is not quoted: commands carry passwords.
        value = HIDDEN if {near, elsewhere} & set(HOOKS) else shown(line.value, key=line.name)
        self._problem(number, section, line.name, f"unknown key, with the value {value}{hint}", ", ".join(known))

    # The whole

    def _interface(self, section: _Section) -> Interface:
        mtu = section.single.get("mtu")
        if mtu is not None and mtu < 1280 and any(a.version == 6 for a in section.addresses):
            self._warn(section.seen["MTU"], f"[Interface] MTU: {mtu}, but IPv6 needs 1280 (RFC 8200)")
        if "private_key" not in section.single:
            self._warn(section.line, "[Interface] no PrivateKey: until one is set, nobody is answered")
        hooks = section.hooks
        return Interface(
            addresses=tuple(section.addresses),
            dns=tuple(section.dns),
            dns_search=tuple(section.dns_search),
            pre_up=tuple(hooks["PreUp"]),
            post_up=tuple(hooks["PostUp"]),
            pre_down=tuple(hooks["PreDown"]),
            post_down=tuple(hooks["PostDown"]),
            **section.single,
        )

    def _room(self) -> bool:
        return len(self.problems) < MAX_PROBLEMS

    def _problem(self, number: int, section: _Section | None, key: str, read: str, allowed: str) -> None:
        if not self._room():
            self.more += 1
            return
        name = "" if not key else HIDDEN if looks_secret(key) else shown(key).strip('"')
        where = section.name if section and section.name in SECTIONS else ""
        self.problems.append(Problem(self.path, number, where, name, read, f"allowed: {allowed}"))

    def _warn(self, number: int, text: str) -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(ConfigWarning(self.path, number, text))


def _key(kind: type[K], value: str) -> K:
    try:
        return kind.parse(value)
    except ValueError:
        raise BadValue(_KEY_ALLOWED[kind.__name__]) from None


def _open_quote(text: str) -> bool:
    return text.count("'") % 2 == 1 or text.count('"') % 2 == 1


def _name(lines: tuple[Line, ...], block: Block) -> str | None:
    below = block.header + 1
    while below < block.stop and lines[below].kind is Kind.COMMENT:
        below += 1
    return peer_name(
        above=(line.comment for line in lines[block.above : block.header]),
        header=lines[block.header].comment,
        below=[line.comment for line in lines[block.header + 1 : below]],
        inside=(line.comment for line in lines[block.header + 1 : block.last + 1] if line.comment),
    )
