# SPDX-License-Identifier: Apache-2.0
"""What nft leaves out of its listings, put back in.

nft takes `meta nfproto` and `meta protocol` before a `reject` for something it made itself, and prints it neither as
text nor as JSON (seen with 1.0.6; stmt_reject_postprocess). The instructions that `--debug=netlink` prints have it.
Only tables of the family inet are asked, and only when they reject: in the others the family is known.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wicketgate.errors import StateError
from wicketgate.kernel.process import run

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]*")
_RULE = re.compile(r"inet (\S+) (\S+) (\d+)")
_LOAD = re.compile(r"\[ meta load (nfproto|protocol) => reg (\d+) \]")
_COMPARE = re.compile(r"\[ cmp (eq|neq) reg (\d+) (0x[0-9a-f]+) \]")
_CHANGE = re.compile(r"\[ (?:meta set|ct set|payload write) ")
# NFPROTO_*; ETH_P_* in network byte order, as a machine of either kind prints it.
_VALUES = {
    ("nfproto", 2): "ipv4", ("nfproto", 10): "ipv6",
    ("protocol", 0x0008): "ip", ("protocol", 0x0800): "ip", ("protocol", 0xDD86): "ip6", ("protocol", 0x86DD): "ip6",
}  # fmt: skip

_Place = tuple[str, str, int]  # table, chain, handle


@dataclass(frozen=True, slots=True)
class _Hidden:
    key: str
    negated: bool
    value: str
    changes: int  # so many statements that change the packet or its connection come before

    def as_json(self) -> dict[str, Any]:
        return {
            "match": {"op": "!=" if self.negated else "==", "left": {"meta": {"key": self.key}}, "right": self.value}
        }

    def as_text(self) -> str:
        return f"meta {self.key} {'!= ' if self.negated else ''}{self.value}"


async def reveal(nft_json: str | None, nft_text: str | None) -> tuple[str | None, str | None]:
    """Both listings with the hidden matches in them; as they were where nothing is hidden or nft cannot tell.

    Args:
        nft_json: of `nft -j list ruleset`.
        nft_text: of `nft list ruleset`.
    """
    if not nft_json or '"reject"' not in nft_json or '"family": "inet"' not in nft_json:
        return nft_json, nft_text
    try:
        listing = json.loads(nft_json)
        suspects = [rule for rule in map(_rule, listing["nftables"]) if rule is not None]
        tables = sorted({rule["table"] for rule in suspects if _NAME.fullmatch(rule["table"])})
        printed = await asyncio.gather(*(run(("nft", "--debug=netlink", "list", "table", "inet", t)) for t in tables))
    except (StateError, ValueError, KeyError, TypeError):  # whoever reads the listing says what is wrong with it
        return nft_json, nft_text
    code: dict[_Place, list[str]] = {}
    for done in printed:
        if done.code == 0:
            code |= instructions(done.stdout)
    found: dict[_Place, list[_Hidden]] = {}
    for rule in suspects:
        place = rule["table"], rule["chain"], rule["handle"]
        if hidden := _hidden(rule["expr"], code.get(place, ())):
            found[place] = hidden
            for each in hidden:
                rule["expr"].insert(_position(rule["expr"], each.changes), each.as_json())
    if not found:
        return nft_json, nft_text
    return json.dumps(listing), _amended(nft_text, found, _order(listing)) if nft_text else nft_text


def instructions(text: str) -> dict[_Place, list[str]]:
    """The instructions of each rule of a table of family inet, from `nft --debug=netlink`."""
    found: dict[_Place, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if head := _RULE.match(line):
            lines = found.setdefault((head.group(1), head.group(2), int(head.group(3))), [])
        elif line.startswith("  [") and lines is not None:
            lines.append(line.strip())
        else:
            lines = None
    return found


def _rule(item: Mapping[str, Any]) -> dict[str, Any] | None:
    rule = item.get("rule")
    if not isinstance(rule, dict) or rule["family"] != "inet":
        return None
    return rule if any("reject" in statement for statement in rule["expr"]) else None


def _hidden(statements: list[dict[str, Any]], lines: Iterable[str]) -> list[_Hidden]:
    shown = json.dumps(statements)
    found = []
    loaded: dict[str, str] = {}
    changes = 0
    for line in lines:
        if load := _LOAD.match(line):
            loaded = {load.group(2): load.group(1)}
            continue
        compared = _COMPARE.match(line)
        if compared and compared.group(2) in loaded:
            key = loaded[compared.group(2)]
            value = _VALUES.get((key, int(compared.group(3), 16)))
            if value and not _shown(shown, key):
                found.append(_Hidden(key, compared.group(1) == "neq", value, changes))
        loaded = {}
        changes += _CHANGE.match(line) is not None
    return found


def _shown(statements: str, key: str) -> bool:
    """The match itself, or something that cannot be without it, is in the listing."""
    if f'{{"key": "{key}"}}' in statements:
        return True
    implies = (
        '"protocol": "ip"',
        '"protocol": "ip6"',
        '"protocol": "icmp"',
        '"protocol": "icmpv6"',
        '"icmp"',
        '"icmpv6"',
    )
    return key == "nfproto" and any(each in statements for each in implies)


def _position(statements: list[dict[str, Any]], changes: int) -> int:
    if not changes:
        return 0
    places = [at for at, statement in enumerate(statements) if "mangle" in statement]
    return places[changes - 1] + 1 if len(places) >= changes else len(statements) - 1


def _order(listing: Mapping[str, Any]) -> dict[tuple[str, str], list[int]]:
    """The handles of each chain's rules, in order."""
    found: dict[tuple[str, str], list[int]] = {}
    for item in listing["nftables"]:
        rule = item.get("rule")
        if rule is not None and rule["family"] == "inet":
            found.setdefault((rule["table"], rule["chain"]), []).append(rule["handle"])
    return found


def _amended(text: str, hidden: Mapping[_Place, list[_Hidden]], handles: Mapping[tuple[str, str], list[int]]) -> str:
    """The rules stand in the same order in both listings."""
    lines = text.split("\n")
    table, chain, number, depth = "", "", 0, 0
    for at, line in enumerate(lines):
        if line.startswith("table "):
            table = line.split()[2] if line.startswith("table inet ") else ""
        elif line.startswith("\tchain "):
            chain, number, depth = line.split()[1], 0, 0
        elif line == "\t}":
            chain = ""
        elif table and chain:
            words = line.strip()
            if depth or not words or words.startswith(("type ", "comment ", "policy ")):
                pass
            else:
                known = handles.get((table, chain), [])
                if number < len(known):
                    for each in hidden.get((table, chain, known[number]), ()):
                        lines[at] = _with_words(lines[at], each)
                number += 1
            bare = re.sub(r'"[^"]*"', "", words)
            depth += bare.count("{") - bare.count("}")
    return "\n".join(lines)


def _with_words(line: str, hidden: _Hidden) -> str:
    if not hidden.changes:
        return f"\t\t{hidden.as_text()} {line.lstrip()}"
    head, reject, tail = line.rpartition(" reject")
    return f"{head} {hidden.as_text()}{reject}{tail}" if reject else line
