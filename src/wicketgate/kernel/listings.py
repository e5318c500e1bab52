# SPDX-License-Identifier: Apache-2.0
"""Firewall listings as the tools print them, read without changing anything.

Three sources, because none shows all: `nft -j` is blind to what iptables-nft's extensions do, and legacy iptables
shows in neither. What cannot be read is said, never raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from wicketgate.errors import StateError
from wicketgate.kernel.hidden_matches import reveal
from wicketgate.kernel.process import run
from wicketgate.netpath.snapshot import Firewall, Unread

# Written by the modules ip_tables and ip6_tables for each network namespace; readable by root alone.
_LEGACY_TABLES = {
    "iptables_legacy": "/proc/thread-self/net/ip_tables_names",
    "ip6tables_legacy": "/proc/thread-self/net/ip6_tables_names",
}
_COMMANDS: dict[str, tuple[str, ...]] = {
    "nft_json": ("nft", "-j", "list", "ruleset"),
    "nft_text": ("nft", "list", "ruleset"),
    "iptables_nft": ("iptables-nft-save", "-c"),
    "ip6tables_nft": ("ip6tables-nft-save", "-c"),
    "iptables_legacy": ("iptables-legacy-save", "-c"),
    "ip6tables_legacy": ("ip6tables-legacy-save", "-c"),
}


def legacy_tables(path: str) -> tuple[str, ...]:
    """The legacy tables that exist. Asking `iptables-legacy-save` for one that does not would make it.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return tuple(file.read().split())
    except FileNotFoundError:
        return ()  # the module is not loaded: there are none


async def read_firewall() -> tuple[Firewall, tuple[Unread, ...]]:
    """All listings, and what could not be read."""
    unread: list[Unread] = []
    names = list(_COMMANDS)
    # Quick programs, but not free: the calls run side by side.
    texts = await asyncio.gather(*(_listing(name, unread) for name in names))
    firewall = Firewall(**dict(zip(names, texts, strict=True)))
    nft_json, nft_text = await reveal(firewall.nft_json, firewall.nft_text)
    return replace(firewall, nft_json=nft_json, nft_text=nft_text), tuple(unread)


async def _listing(name: str, unread: list[Unread]) -> str | None:
    argv = _COMMANDS[name]
    try:
        if name in _LEGACY_TABLES and not legacy_tables(_LEGACY_TABLES[name]):
            return ""
        return await _output(argv)
    except StateError as error:
        why = str(error)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}; only root may see whether there are legacy tables"
    unread.append(Unread(" ".join(argv), why))
    return None


async def _output(argv: Sequence[str]) -> str:
    done = await run(argv)
    if done.code != 0:
        raise StateError(done.said.splitlines()[0])
    return done.stdout
