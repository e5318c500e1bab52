# SPDX-License-Identifier: Apache-2.0
"""The words of nft's text, and the values they stand for in libnftables-json(5)."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

_TOKEN = re.compile(
    r"""
      "(?P<quoted>[^"]*)"
    | (?P<raw>@(?:ll|nh|th|ih),\d+,\d+)
    | (?P<comment>\#.*)
    | (?P<sign>[{}();,]|<<|>>|[=!<>]=|[<>&|^](?=\s|$))
    | (?P<word>[^\s{}();,"]+)
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_SPAN = re.compile(r"(?=\d)(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SPAN_SECONDS = (604800, 86400, 3600, 60, 1)
_DEEPEST = 24  # braces and parentheses within each other: nft itself prints three


class NotReadError(Exception):
    """Words that are not understood; the text says which."""


class Quoted(str):
    """A word that stood in quotation marks."""

    __slots__ = ()


def tokens(text: str) -> list[str]:
    """Words and signs; what stood in quotation marks is `Quoted`. A `#` ends the line, unless it is quoted."""
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "quoted":
            found.append(Quoted(match["quoted"]))
        else:
            found.append(match[0])
    return found


class Words:
    """The words of one rule or declaration, taken from the left.

    Args:
        found: as `tokens` gave them.
    """

    def __init__(self, found: list[str]) -> None:
        self._found = found
        self._at = 0
        self._depth = 0

    def __bool__(self) -> bool:
        return self._at < len(self._found)

    def peek(self, ahead: int = 0) -> str:
        """The next word; empty at the end."""
        at = self._at + ahead
        return self._found[at] if at < len(self._found) else ""

    def is_sign(self, sign: str) -> bool:
        """The next word is this one, and was not quoted."""
        word = self.peek()
        return word == sign and not isinstance(word, Quoted)

    def take(self) -> str:
        """The next word.

        Raises:
            NotReadError: there is none.
        """
        if not self:
            raise NotReadError("it ends too early")
        self._at += 1
        return self._found[self._at - 1]

    def skip(self, *wanted: str) -> bool:
        """Take the next words when they are these."""
        for ahead, word in enumerate(wanted):
            found = self.peek(ahead)
            if found != word or isinstance(found, Quoted):
                return False
        self._at += len(wanted)
        return True

    def expect(self, word: str) -> None:
        """Take this word.

        Raises:
            NotReadError: another one stands there.
        """
        if not self.skip(word):
            raise NotReadError(f"{self.peek()[:40]!r} where {word!r} should be")

    def go_in(self) -> None:
        """Into braces or parentheses.

        Raises:
            NotReadError: too deep.
        """
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotReadError("nested too deeply")

    def go_out(self) -> None:
        """Out of them."""
        self._depth -= 1


def literal(word: str) -> Any:
    """A number, prefix, range or name, as JSON has it."""
    if isinstance(word, Quoted):
        return str(word)
    if _NUMBER.fullmatch(word):
        return int(word, 16 if word[1:2] in ("x", "X") else 10) if len(word) <= 40 else word
    span = _SPAN.fullmatch(word) if len(word) <= 40 else None
    if span is not None:  # 1h30m, of `ct expiration`
        return sum(int(number) * unit for number, unit in zip(span.groups("0"), _SPAN_SECONDS, strict=True))
    head, slash, tail = word.rpartition("/")
    if slash and tail.isdigit() and len(tail) <= 3 and _is_address(head):
        return {"prefix": {"addr": head, "len": int(tail)}}
    low, dash, high = word.partition("-")
    if dash and _orders(low) and _orders(high):
        return {"range": [literal(low), literal(high)]}
    return word


def _orders(word: str) -> bool:
    return bool(_NUMBER.fullmatch(word)) or (len(word) <= 40 and bool(_SPAN.fullmatch(word))) or _is_address(word)


def _is_address(word: str) -> bool:
    if "." not in word and ":" not in word:
        return False
    try:
        ip_address(word)
    except ValueError:
        return False
    return True
