# SPDX-License-Identifier: Apache-2.0
"""wg-quick files, `wg-quick strip`-ed ones and the output of `wg showconf`: read, checked whole, and written back.

Nothing is read from or written to a disk here. Who writes a file that holds a key makes it mode 0600 before the
first byte is in it, beside the old one, and renames it over it. Who reads one asks for `MAX_FILE_BYTES + 1` bytes
at most; `parse` refuses the longer ones.

Where wg(8) and wg-quick(8) disagree with their manual pages, their behaviour counts (wireguard-tools 1.0.20210914,
src/config.c and src/wg-quick/linux.bash):

- Sections and keys in any case. wg ignores every blank of a line, so `Listen Port` is a key of its, `Pre Up` is none.
- A second [Interface] goes on with the first. Of a single value given twice the last counts. Both are warned about.
- Two [Peer] sections with one public key are one peer: each value from the last section that gives it, but the
  allowed-ips of the last section alone, even if it has none (each section replaces the list).
- One prefix belongs to one peer, the last that claims it.
- A file without PrivateKey loads (a PostUp may set it); one without [Interface] is no interface's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from wicketgate.config.document import Line, join, split
from wicketgate.config.model import Interface, IPNetwork, Peer
from wicketgate.config.problems import ConfigErrors, ConfigWarning, Problem
from wicketgate.config.reader import Reader
from wicketgate.config.spelling import interface_settings, peer_section
from wicketgate.errors import InputError
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PublicKey

# Guesses with room: 30,000 peers of five lines fit, a Kubernetes Secret (1 MiB) always does.
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_LINES = 200_000
MAX_LINE_BYTES = 256 * 1024

_INTERFACE_NAME = re.compile(r"(?:.*/)?([a-zA-Z0-9_=+.-]{1,15})\.conf", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class WgQuickConfig:
    """A file that was read. Two are equal when they mean the same to WireGuard and to people.

    Attributes:
        interface: the [Interface] section.
        peers: in the order WireGuard creates them.
        warnings: what loads but is hardly meant, with file and line.
        path: as it was named.
        lines: the text, for `render` and `edit`; not shown, it holds keys.
    """

    interface: Interface
    peers: tuple[Peer, ...] = ()
    warnings: tuple[ConfigWarning, ...] = field(default=(), compare=False)
    path: str = field(default="", compare=False)
    lines: tuple[Line, ...] = field(default=(), compare=False, repr=False)

    def peer(self, public_key: PublicKey) -> Peer | None:
        """The peer with this key."""
        return next((p for p in self.peers if p.public_key == public_key), None)

    def peers_claiming_default(self) -> tuple[Peer, ...]:
        """The peers with 0.0.0.0/0 or ::/0: wg-quick would send everything to them."""
        return tuple(p for p in self.peers if p.claims_default)

    def tunnel_networks(self) -> tuple[IPNetwork, ...]:
        """The networks that the interface's own addresses are in, each once."""
        return tuple(dict.fromkeys(a.network for a in self.interface.addresses))

    def device(self) -> DeviceConfig:
        """What `wg setconf` would set, but for what it makes up: without ListenPort the device keeps its port.

        An endpoint that is a host name is left out: it has to be resolved first.
        """
        return DeviceConfig(
            private_key=self.interface.private_key,
            listen_port=self.interface.listen_port,
            fwmark=self.interface.fwmark or 0,
            peers=tuple(
                PeerConfig(
                    public_key=p.public_key,
                    preshared_key=p.preshared_key,
                    endpoint=(p.endpoint.address, p.endpoint.port) if p.endpoint and p.endpoint.address else None,
                    allowed_ips=p.allowed_ips,
                    persistent_keepalive=p.persistent_keepalive or 0,
                    clear_preshared_key=p.preshared_key is None,
                )
                for p in self.peers
            ),
        )


def parse(text: str | bytes, *, path: str | PurePath) -> WgQuickConfig:
    """Read a file.

    Args:
        text: its content. Bytes are taken as UTF-8; so is a str that was read with `surrogateescape`.
        path: for messages only.

    Raises:
        ConfigErrors: with every problem of the file, and never a key.
    """
    path = str(path)
    text = _decode(text, path)
    lines = _bounded_lines(text, path)
    reader = Reader(path)
    interface, peers = reader.read(lines)
    if reader.problems:
        raise ConfigErrors(sorted(reader.problems, key=lambda p: p.line), more=reader.more)
    return WgQuickConfig(interface, peers, tuple(sorted(reader.warnings, key=lambda w: w.line)), path, lines)


def render(config: WgQuickConfig) -> str:
    """The text of a file: as it was read (and edited), or a fresh one for a config made of values.

    The result holds keys: it belongs into a file of mode 0600 only.
    """
    return join(config.lines) if config.lines else generate(config.interface, config.peers)


def generate(interface: Interface, peers: Iterable[Peer] = ()) -> str:
    """A fresh file. The result holds keys: it belongs into a file of mode 0600 only.

    Raises:
        InputError: a value that no file can say (a `#` or a newline in a hook or a name).
    """
    settings = [f"{key} = {value}" for key, value in interface_settings(interface)]
    sections = [["[Interface]", *settings], *map(peer_section, peers)]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def interface_name(path: str | PurePath) -> str:
    """The interface's name, from the file's name as wg-quick does.

    Raises:
        InputError: no name of an interface followed by .conf.
    """
    match = _INTERFACE_NAME.fullmatch(str(path))
    if not match or match[1] in {".", ".."}:
        raise InputError(
            f"{path}: the interface is named after the file: NAME.conf, "
            "with 1-15 letters, digits or any of _=+.- as NAME; rename the file"
        )
    return match[1]


def mode_warning(mode: int, *, path: str | PurePath, directory_mode: int = 0o755) -> str | None:
    """What to say about a file with keys that everybody may read (wg-quick's own test: file and directory).

    Args:
        mode: `st_mode` of the file.
        path: for the message.
        directory_mode: `st_mode` of its directory; one that keeps others out protects the file.
    """
    if not mode & directory_mode & 0o007:
        return None
    return f"{path}: its keys can be read by everybody (mode {mode & 0o7777:04o}); chmod 600, or defaultMode: 0400 of a Secret"


def _decode(text: str | bytes, path: str) -> str:
    if len(text) > MAX_FILE_BYTES:
        raise _too_much(path, 0, f"more than {MAX_FILE_BYTES} bytes", f"a file of at most {MAX_FILE_BYTES} bytes")
    if isinstance(text, str):
        return text
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _too_much(path, 1, "a file in UTF-16", "UTF-8; save it again as that")
    # What is not UTF-8 becomes lone surrogates, which the reader reports line by line.
    return text.decode("utf-8", "surrogateescape")


def _bounded_lines(text: str, path: str) -> tuple[Line, ...]:
    if text.count("\n") > MAX_LINES:
        raise _too_much(path, 0, f"more than {MAX_LINES} lines", f"at most {MAX_LINES} lines")
    long = [n for n, raw in enumerate(text.split("\n"), 1) if len(raw) > MAX_LINE_BYTES]
    if long:
        raise ConfigErrors(
            [
                Problem(path, n, "", "", "a line that is too long", f"allowed: at most {MAX_LINE_BYTES} characters")
                for n in long
            ]
        )
    return split(text)


def _too_much(path: str, line: int, read: str, allowed: str) -> ConfigErrors:
    return ConfigErrors([Problem(path, line, "", "", read, f"allowed: {allowed}")])
