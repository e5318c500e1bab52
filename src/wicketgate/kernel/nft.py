# SPDX-License-Identifier: Apache-2.0
"""nftables through nft(8): one transaction a call, and never another's table.

Old versions of nft want each rule on a line of its own; so do people.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel.process import Completed, run

NftFamily = Literal["inet", "ip", "ip6", "arp", "bridge", "netdev"]

TABLE_PREFIX = "wicketgate-"  # our tag: only tables of such names are ever replaced or removed
# /dev/stdin:3:12-20: Error: ...   (nftables' erec_print; some 1.0 versions leave out the column range)
_LOCATION = re.compile(r"^(?:/dev/stdin|<cmdline>|-|internal):(\d+):(\d+)(?:-(\d+))?: (?:Error: )?(.*)$")
_IDENTIFIER = r"[A-Za-z][A-Za-z0-9_/\\.-]*"  # nftables' scanner.l, without quotes
# What nft prints for the errno of its socket.
_ERRNO_WORDS = {
    "Operation not permitted": errno.EPERM,
    "No such file or directory": errno.ENOENT,
    "File exists": errno.EEXIST,
    "Device or resource busy": errno.EBUSY,
    "Operation not supported": errno.EOPNOTSUPP,
    "Invalid argument": errno.EINVAL,
    "No buffer space available": errno.ENOBUFS,
    "Protocol error": errno.EPROTO,
}


class NftRefused(KernelRefused):
    """nft or the kernel refused a script; nothing of it was applied.

    Attributes:
        line: number of the offending line in the script, 0 where nft did not say.
        text: that line.
        reason: nft's own sentence.
    """

    def __init__(self, reason: str, *, line: int = 0, text: str = "", code: int = 0) -> None:
        where = f" in line {line}: {text}" if line else ""
        step = "; CAP_NET_ADMIN is missing in this network namespace" if code == errno.EPERM else ""
        super().__init__("nft", code, f"{reason}{where}{step}")
        self.line = line
        self.text = text
        self.reason = reason


def table_name(ifname: str, prefix: str = TABLE_PREFIX) -> str:
    """Our table for an interface. wg-quick also allows `=` and `+` in names, nft does not."""
    return prefix + re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"_{ord(found.group()):x}", ifname)


def _is_json(script: str) -> bool:
    return script.lstrip().startswith("{")


def _refusal(script: str, done: Completed) -> NftRefused:
    said = done.said
    code = next((number for words, number in _ERRNO_WORDS.items() if words in said), 0)
    lines = script.splitlines()
    for line in said.splitlines():
        found = _LOCATION.match(line.strip())
        if found is None:
            continue
        if _is_json(script):
            # Positions in JSON mean nothing: nft counts them in what it made of it.
            return NftRefused(found.group(4), code=code)
        number = int(found.group(1))
        text = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        return NftRefused(found.group(4), line=number, text=text, code=code)
    first = next((line.strip() for line in said.splitlines() if line.strip()), said)
    return NftRefused(first, code=code)


async def nft_apply(script: str, *, check: bool = False, timeout: float = 10.0) -> None:
    """Apply a script, all of it or nothing.

    Args:
        script: nft's language or its JSON (told by the first character). Prefer the language: nft 1.0.6 takes a JSON
            chain with a hook but without `prio` for a chain without a hook, and says nothing.
        check: only ask whether it would be taken (`nft -c`).
        timeout: seconds.

    Raises:
        NftRefused: with nft's words and the offending line.
        ToolMissing: nft is not installed.
    """
    argv = ["nft", *(["-c"] if check else []), *(["-j"] if _is_json(script) else []), "-f", "-"]
    done = await run(argv, stdin=script, timeout=timeout)
    if done.code != 0:
        raise _refusal(script, done)


async def _list(*words: str, as_json: bool, timeout: float) -> str:
    argv = ["nft", *(["-j"] if as_json else ["-a"] if "-a" in words else []), "list", *(w for w in words if w != "-a")]
    done = await run(argv, timeout=timeout)
    if done.code != 0:
        raise _refusal("", done)
    return done.stdout


async def nft_list(*, as_json: bool = True, timeout: float = 10.0) -> str:
    """The whole ruleset as nft prints it. Raises NftRefused, ToolMissing."""
    return await _list("ruleset", as_json=as_json, timeout=timeout)


async def nft_list_table(family: NftFamily, name: str, *, as_json: bool = False, timeout: float = 10.0) -> str | None:
    """One table as nft prints it; None when there is none. Raises NftRefused, ToolMissing."""
    try:
        return await _list("table", family, name, as_json=as_json, timeout=timeout)
    except NftRefused as refused:
        if refused.errno == errno.ENOENT:
            return None
        raise


async def nft_tables() -> tuple[tuple[str, str], ...]:
    """Every table's family and name."""
    return tuple(
        (entry["table"]["family"], entry["table"]["name"])
        for entry in parse_listing(await _list("tables", as_json=True, timeout=10.0))
        if "table" in entry
    )


def parse_listing(text: str) -> list[Mapping[str, Any]]:
    """The objects of an `nft -j` listing. Raises StateError when it is none."""
    try:
        entries = json.loads(text)["nftables"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise StateError("nft -j printed something that is no listing") from None
    return entries


def _ours(name: str) -> str:
    if not name.startswith(TABLE_PREFIX):
        raise ValueError(f"nft table {name}: only tables named {TABLE_PREFIX}... are ours to change")
    if not re.fullmatch(_IDENTIFIER, name):
        raise ValueError(f"nft table {name}: nft does not take such a name")
    return name


def replace_script(family: NftFamily, name: str, body: str) -> str:
    """The transaction that puts a table in place of whatever was there under its name.

    Args:
        family: nft's.
        name: must be one of ours.
        body: chains, sets and rules, as they stand between the table's braces.
    """
    _ours(name)
    # `add` first: deleting what is not there would fail the transaction, and `destroy` is younger than nft 1.0.6.
    return (
        f"add table {family} {name}\n"
        f"delete table {family} {name}\n"
        f"table {family} {name} {{\n"
        f"{body.strip(chr(10))}\n"
        "}\n"
    )


def delete_script(family: NftFamily, name: str) -> str:
    """The transaction after which one of our tables is not there, whether it was or not."""
    _ours(name)
    return f"add table {family} {name}\ndelete table {family} {name}\n"


async def nft_replace_table(family: NftFamily, name: str, body: str, *, check: bool = False) -> None:
    """Replace one of our tables atomically; no packet sees a moment without it."""
    await nft_apply(replace_script(family, name, body), check=check)


async def nft_delete_table(family: NftFamily, name: str) -> None:
    """Remove one of our tables; one that is not there is as good as removed."""
    await nft_apply(delete_script(family, name))


def as_script(listing: str) -> str:
    """A listing of one table as a script that restores it, in place of what has that name by then."""
    head = re.match(r"\s*table (\w+) (\S+) \{\n(.*)\}\s*$", listing, re.DOTALL)
    if head is None:
        raise StateError("nft printed something that is no table")
    family, name, body = head.groups()
    return f"add table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n{body}}}\n"
