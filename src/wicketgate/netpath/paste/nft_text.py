# SPDX-License-Identifier: Apache-2.0
"""The text of `nft list ruleset`, made into what `nft -j list ruleset` prints (libnftables-json(5)).

nft itself could do that where it is installed, has the right and knows every interface that is named; a paste is read
on any machine. tests/netns/test_paste_nft.py compares the two listings of the same rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wicketgate.netpath.paste.nft_expression import elements
from wicketgate.netpath.paste.nft_rule import statements
from wicketgate.netpath.paste.nft_words import NotReadError, Quoted, Words, tokens

Json = Any

_TABLE = re.compile(r"table (?:(ip|ip6|inet|arp|bridge|netdev) )?(\S+) \{")
_BLOCK = re.compile(r"(ct helper|ct timeout|ct expectation|[a-z]+) (\S+) \{")
_HANDLE = re.compile(r"#\s*handle (\d+)\s*$")
_QUOTED = re.compile(r'"[^"]*"')
_NAMED = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100, "out": 100}
_NAMED_BRIDGE = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}


def is_table_line(line: str) -> bool:
    """`table inet filter {` opens a table."""
    return _TABLE.match(line.strip()) is not None


def depth_of(line: str) -> int:
    """How many braces a line opens more than it closes; those in quotation marks and comments do not count."""
    if "{" not in line and "}" not in line:
        return 0
    plain = _QUOTED.sub("", line).split("#", 1)[0]
    return plain.count("{") - plain.count("}")


def nft_json(text: str) -> str:
    """The listing as JSON. A rule that is not understood becomes a statement that the model doubts.

    Args:
        text: what nft printed, with or without `-a`. What was cut off at its end is missing from the JSON too;
            `is_complete` tells.

    Raises:
        PasteCutError: see there.
    """
    listing = _Listing()
    for line in _logical_lines(text):
        listing.read(line)
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *listing.found]})


def is_complete(text: str) -> bool:
    """Every brace is closed."""
    return sum(map(depth_of, text.split("\n"))) == 0


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with what goes on over several of them (sets) in one; those that open or close a block stay alone."""
    pending: list[str] = []
    depth = 0
    for line in text.split("\n"):
        stripped = line.strip()
        if pending:
            pending.append(stripped)
            depth += depth_of(line)
            if depth <= 0:
                yield " ".join(pending)
                pending = []
            continue
        if _opens_block(stripped) or depth_of(line) <= 0:
            yield stripped
        else:
            pending, depth = [stripped], depth_of(line)
    if pending:
        yield " ".join(pending)


def _opens_block(line: str) -> bool:
    head = line.split("#", 1)[0].rstrip()
    return head.endswith("{") and bool(_TABLE.fullmatch(head) or _BLOCK.fullmatch(head))


class _Listing:
    def __init__(self) -> None:
        self.found: list[Json] = []
        self._table: tuple[str, str] | None = None
        self._block: dict[str, Json] | None = None
        self._kind = ""
        self._handle = 0
        self._notes: list[Json] = []  # rules stand behind all chains and sets, as nft prints JSON
        self._flags: dict[str, Json] = {}
        self._seen: set[tuple[str, str]] = set()

    def read(self, line: str) -> None:
        if not line or (line.startswith("#") and self._kind != "chain"):
            return
        if self._table is None:
            self._open_table(line)
        elif self._block is None:
            self._in_table(line)
        elif line == "}":
            self._close_block()
        elif self._kind == "chain":
            self._in_chain(line)
        elif self._kind in ("set", "map"):
            self._in_set(line)

    def _next_handle(self, line: str) -> int:
        told = _HANDLE.search(line)
        # Without -a: in the order of the listing, which is that of their making.
        self._handle = int(told[1]) if told else self._handle + 1
        return self._handle

    def _open_table(self, line: str) -> None:
        opened = _TABLE.match(line)
        if opened:
            self._table = opened[1] or "ip", opened[2]
            if self._table in self._seen:
                raise PasteCutError(f"table {self._table[0]} {self._table[1]} stands there twice")
            self._seen.add(self._table)
            self._flags = {"family": self._table[0], "name": self._table[1], "handle": self._next_handle(line)}
            self.found.append({"table": self._flags})

    def _in_table(self, line: str) -> None:
        assert self._table is not None
        if line == "}":
            self.found += self._notes
            self._notes = []
            self._table = None
            return
        opened = _BLOCK.match(line)
        if opened and _opens_block(line):
            self._kind = opened[1]
            self._block = {
                "family": self._table[0], "table": self._table[1], "name": opened[2], "handle": self._next_handle(line),
            }  # fmt: skip
            if self._kind in ("chain", "set", "map"):  # at once: what a paste cuts off is still a chain
                self.found.append({self._kind: self._block})
        elif line.startswith("flags "):
            self._flags["flags"] = line[6:].rstrip(";").split(",")

    def _close_block(self) -> None:
        self._block, self._kind = None, ""

    def _in_chain(self, line: str) -> None:
        assert self._block is not None
        assert self._table is not None
        words = Words(tokens(line))
        if words.peek() == "type" and words.peek(2) == "hook":
            _declaration(self._block, words, self._table[0])
            return
        if words.peek() in ("comment", "policy", "flags") and len(line.split(" ")) > 1 and words.peek(1) != "":
            if words.skip("policy"):
                self._block["policy"] = str(words.take())
            return
        if line.startswith("# ") and not line.startswith("# handle"):
            return  # a person's, or iptables-nft's warning
        expr, comment = statements(line, family=self._table[0])
        if not expr:
            return
        rule = {
            "family": self._table[0], "table": self._table[1], "chain": self._block["name"],
            "handle": self._next_handle(line), "expr": expr,
        }  # fmt: skip
        self._notes.append({"rule": rule | ({"comment": comment} if comment else {})})

    def _in_set(self, line: str) -> None:
        assert self._block is not None
        block = self._block
        if line.startswith("elements = {"):
            words = Words(tokens(line))
            words.skip("elements", "=", "{")
            try:
                block["elem"] = elements(words)
            except (NotReadError, RecursionError, ValueError) as error:
                unread: Json = {"not read": f"{line[:160]} ({error})"}
                block["elem"] = [[unread, {"drop": None}] if self._kind == "map" else unread]
        elif line.startswith(("type ", "typeof ")):
            kind, _, held = line.split(" ", 1)[1].partition(" : ")
            block["type"] = kind
            if self._kind == "map":
                block["map"] = held
        elif line.startswith("flags "):
            block["flags"] = line[6:].rstrip(";").split(",")


def _declaration(block: dict[str, Json], words: Words, family: str) -> None:
    """`type filter hook input priority filter + 10; policy drop;`."""
    block["policy"] = "accept"
    names = _NAMED_BRIDGE if family == "bridge" else _NAMED
    try:
        while words:
            word = words.take()
            if word in ("type", "hook", "policy"):
                block[str(word)] = str(words.take())
            elif word == "device":
                block["dev"] = str(words.take())
            elif word == "devices":
                words.skip("=")
                words.expect("{")
                block["dev"] = [str(each) for each in elements(words)]
            elif word == "priority":
                block["prio"] = _priority(words, names)
    except (NotReadError, ValueError) as error:
        # A chain of which it is not known where it hangs may be anywhere.
        raise PasteCutError(f"chain {block['name']}: {error}") from error


class PasteCutError(Exception):
    """Where a chain hangs was not read, or a table stands there twice: nothing can be said of the whole listing."""


def _priority(words: Words, names: dict[str, int]) -> int:
    word = words.take()
    if isinstance(word, Quoted) or word not in names:
        return int(word)
    found = names[word]
    if words.peek() in ("+", "-"):
        sign = 1 if words.take() == "+" else -1
        found += sign * int(words.take())
    return found
