# SPDX-License-Identifier: Apache-2.0
"""Firewall listings as the tools print them, read without changing anything.

Three sources, because none shows all: `nft -j` is blind to what iptables-nft's extensions do, and legacy iptables
shows in neither. What cannot be read is said, never raised.

A table that iptables-nft-save prints in full is not listed by nft once more: nothing would be read there, and on a node
with thousands of services nft takes two seconds for it (bench/doctor_large.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence

from wicketgate.errors import StateError
from wicketgate.kernel.hidden_matches import reveal
from wicketgate.kernel.ipsets import ipsets
from wicketgate.kernel.nft_tables import TableKey, nft_tables
from wicketgate.kernel.process import run
from wicketgate.netpath.netfilter.ipsets import asks_for_sets
from wicketgate.netpath.netfilter.ipt.parse import BUILT_IN, mixed_tables, table_names
from wicketgate.netpath.netfilter.nft.told_by_text import completed
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

_MOST_TABLES = 16  # a program for each; with more, one lists them all
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]*")


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
    theirs = {name: asyncio.ensure_future(_listing(name, unread)) for name in _COMMANDS if not name.startswith("nft")}
    # Quick programs, but not free: the calls run side by side.
    nft_json, nft_text, *_ = await asyncio.gather(
        _nft(("nft", "-j"), theirs, unread), _nft(("nft",), theirs, unread), *theirs.values()
    )
    nft_json, nft_text = await reveal(completed(nft_json, nft_text), nft_text)
    texts = {name: listing.result() for name, listing in theirs.items()}
    sets = _ipsets(texts.values(), unread)
    return Firewall(nft_json=nft_json, nft_text=nft_text, **texts, ipset=sets), tuple(unread)


def _ipsets(texts: Iterable[str | None], unread: list[Unread]) -> str | None:
    if not any(asks_for_sets(text or "") for text in texts):
        return None
    try:
        return ipsets()
    except StateError as error:
        unread.append(Unread("ipset save", str(error)))
        return None


_Listings = Mapping[str, "asyncio.Future[str | None]"]


async def _nft(argv: tuple[str, ...], theirs: _Listings, unread: list[Unread]) -> str | None:
    """What nft lists, but for tables that iptables-nft-save prints."""
    try:
        tables = nft_tables()
        if any(_may_be_iptables(table) for table in tables) and len(tables) <= _MOST_TABLES:
            return await _nft_others(argv, tables, theirs)
    except StateError:
        pass  # Said below, in nft's own words; or nft can do what was tried here otherwise.
    return await _listing("nft_json" if "-j" in argv else "nft_text", unread)


async def _nft_others(argv: tuple[str, ...], tables: Sequence[TableKey], theirs: _Listings) -> str:
    at_once = {table: asyncio.ensure_future(_nft_table(argv, table)) for table in tables if not _may_be_iptables(table)}
    try:
        printed: set[TableKey] = set()
        for family, name in (("ip", "iptables_nft"), ("ip6", "ip6tables_nft")):
            text = await theirs[name] or ""
            mixed = mixed_tables(text)
            printed |= {(family, each) for each in table_names(text) if each not in mixed}
        found = [await (at_once.get(table) or _nft_table(argv, table)) for table in tables if table not in printed]
    finally:
        for listing in at_once.values():
            listing.cancel()
        await asyncio.gather(*at_once.values(), return_exceptions=True)
    if "-j" not in argv:
        return "".join(found)
    head, tail = '{"nftables": [', "]}"
    bodies = [text.strip() for text in found]
    if not all(text.startswith(head) and text.endswith(tail) for text in bodies):
        raise StateError("nft prints JSON otherwise than it used to")
    return head + ", ".join(text[len(head) : -len(tail)] for text in bodies) + tail + "\n"


def _may_be_iptables(table: TableKey) -> bool:
    return table[0] in ("ip", "ip6") and table[1] in BUILT_IN


async def _nft_table(argv: tuple[str, ...], table: TableKey) -> str:
    if not _PLAIN_NAME.fullmatch(table[1]):
        raise StateError(f"the name {table[1]!r} cannot be handed to nft")
    return await _output((*argv, "list", "table", *table))


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
