# SPDX-License-Identifier: Apache-2.0
"""The firewall of a snapshot, loaded as its listings have it.

A listing may come from elsewhere, so it is looked through before it is handed to nft or iptables, which read other
files and start other programs when they are told to.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator

from wicketgate.errors import StateError
from wicketgate.kernel.process import Completed, run
from wicketgate.netpath.snapshot import Firewall

_SECONDS = 20.0
# Legacy iptables takes this file's lock; /run/xtables.lock is root's, and the machine's own.
ENVIRONMENT = {"XTABLES_LOCKFILE": "/dev/null"}
_RESTORES = (
    ("iptables_nft", "iptables-nft-restore", "ip"),
    ("ip6tables_nft", "ip6tables-nft-restore", "ip6"),
    ("iptables_legacy", "iptables-legacy-restore", ""),
    ("ip6tables_legacy", "ip6tables-legacy-restore", ""),
)
_NFT_WORDS = re.compile(r"(^|[\s;{])(include|define|redefine|undefine)\b")
_QUOTED = re.compile(r'"[^"\n]*"')
_HEADER = re.compile(r"^table (?P<family>ip|ip6|inet|arp|bridge|netdev) (?P<name>[^\s{]+) \{", re.MULTILINE)
_RESET = re.compile(r"reject with tcp reset")


def tables_of(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The tables of `nft list ruleset`: (family, name) and the table's text."""
    current: tuple[str, str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            current, lines = (header["family"], header["name"]), []
        if current is not None:
            lines.append(line)
            if line == "}" or (line.endswith("}") and header is not None):
                yield current, "\n".join(lines) + "\n"
                current = None


def managed(firewall: Firewall) -> frozenset[tuple[str, str]]:
    """The nftables tables that iptables-nft keeps, and prints in its own way."""
    found = set()
    for name, _, family in _RESTORES:
        text = getattr(firewall, name) if family else None
        found |= {(family, line[1:].strip()) for line in (text or "").splitlines() if line.startswith("*")}
    return frozenset(found)


def nft_text(firewall: Firewall) -> str:
    """What is loaded with nft.

    Raises:
        StateError: it holds what no listing holds.
    """
    kept = managed(firewall)
    text = "".join(table for key, table in tables_of(firewall.nft_text or "") if key not in kept)
    if _NFT_WORDS.search(_QUOTED.sub('""', text)):
        raise StateError("the nftables listing has a word that no listing has (include, define)")
    return text


def lacks_of(firewall: Firewall) -> Iterator[str]:
    """What a listing does not tell of its rules, in words."""
    if firewall.nft_text is None and '"rule"' in (firewall.nft_json or ""):
        yield "nftables: `nft list ruleset` is not in the snapshot"
    kept = managed(firewall)
    for key, table in tables_of(firewall.nft_text or ""):
        if key not in kept and key[0] == "inet" and _RESET.search(table):
            yield f"table inet {key[1]}: nft lists no family before `reject with tcp reset`, so it may hold for one alone"
        if key not in kept and re.search(r"# xt_| xt (target|match) ", table):
            yield f"table {key[0]} {key[1]}: rules that only iptables can print"


def check_restore(text: str, tool: str) -> None:
    """Refuse what would start a program.

    Raises:
        StateError: there is such a line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("#", ":", "*")) or line.strip() in ("", "COMMIT"):
            continue
        if not re.match(r"(\[\d+:\d+\] )?-A ", line):
            raise StateError(f"{tool}: line {number} is no rule")
        check_iptables_words(_words(line, tool, number), f"{tool}: line {number}")


def _words(line: str, tool: str, number: int) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise StateError(f"{tool}: line {number}: {error}") from error


def check_iptables_words(words: list[str], where: str) -> None:
    """`--modprobe` names a program that iptables then starts; it may be shortened, and written as -M.

    Raises:
        StateError: it is there.
    """
    for word in words:
        name = word.split("=")[0]
        long = (len(name) > 3 and "--modprobe".startswith(name)) or name.startswith("--modprobe")
        if long or re.match(r"-[A-Za-z0-9]*M", word):
            raise StateError(f"{where}: {word!r} is not taken over into a twin")
        if "/" in word and words[max(0, words.index(word) - 1)] in ("-m", "--match", "-j", "--jump"):
            raise StateError(f"{where}: {word!r} is no extension's name")


def check_ipsets(text: str) -> None:
    """Refuse what is not made of sets and elements.

    Raises:
        StateError: there is such a line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and (words[0] not in ("create", "add") or any(each.startswith("-") for each in words)):
            raise StateError(f"ipset restore: line {number} neither makes a set nor adds to one")


def load(firewall: Firewall) -> tuple[str, ...]:
    """Load it; what was refused, in words.

    Raises:
        StateError: it must not be loaded.
    """
    complaints: list[str] = list(lacks_of(firewall))
    text = nft_text(firewall)
    if text:
        complaints += _complaint("nft -f", _run(["nft", "-f", "-"], text))
    if firewall.ipset:
        check_ipsets(firewall.ipset)
        complaints += _complaint("ipset restore", _run(["ipset", "restore"], firewall.ipset))
    for name, tool, _ in _RESTORES:
        listing = getattr(firewall, name)
        if listing and "*" in listing:
            check_restore(listing, tool)
            complaints += _complaint(tool, _run([tool], listing))
    return tuple(complaints)


def _complaint(tool: str, done: Completed) -> list[str]:
    return [f"{tool}: {done.said.splitlines()[0]}"] if done.code != 0 else []


def _run(argv: list[str], text: str) -> Completed:
    return asyncio.run(run(argv, stdin=text, timeout=_SECONDS))
