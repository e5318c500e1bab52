# SPDX-License-Identifier: Apache-2.0
r"""A wg-quick file as lines that put together are the file again, byte for byte.

Lines end at `\n` alone: wg takes every other blank of the C locale (a `\r` too) for a space. A `#` begins a comment
anywhere, also inside a PostUp: wg-quick knows no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from wicketgate.config.names import is_commented_out
from wicketgate.config.values import SPACE, squeeze

BOM = "\ufeff"
INTERFACE = "Interface"
PEER = "Peer"
SECTIONS = (INTERFACE, PEER)


class Kind(Enum):
    """What a line is."""

    BLANK = "blank"  # nothing, or blanks
    COMMENT = "comment"  # nothing but a comment
    SECTION = "section"  # [Something]
    SETTING = "setting"  # key = value
    UNREADABLE = "unreadable"  # neither


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        raw: the text with its newline. It may hold a key, so it stays out of the repr.
        kind: what it is.
        name: of a section without its brackets, of a setting its key as written; "" otherwise.
        value: of a setting, without blanks around it and without the comment.
        start, end: where the value stands in `raw`.
        comment: from `#` to the end, without the newline; "" when there is none.
    """

    raw: str = field(repr=False)
    kind: Kind
    name: str = field(default="", repr=False)
    value: str = field(default="", repr=False)
    start: int = 0
    end: int = 0
    comment: str = field(default="", repr=False)

    @classmethod
    def read(cls, raw: str) -> Line:
        """Take a line apart. Any text is some kind of line."""
        offset = 1 if raw.startswith(BOM) else 0
        mark = raw.find("#", offset)
        stop = len(raw) if mark < 0 else mark
        comment = "" if mark < 0 else raw[mark:].rstrip("\r\n")
        body = raw[offset:stop].strip(SPACE)
        if not body:
            return cls(raw, Kind.COMMENT if comment else Kind.BLANK, comment=comment)
        if body.startswith("["):
            name = squeeze(body)
            known = {f"[{s.lower()}]": s for s in SECTIONS}.get(name.lower() if name.isascii() else "")
            return cls(raw, Kind.SECTION, known or name.strip("[]"), comment=comment)
        equals = raw.find("=", offset, stop)
        if equals < 0:
            return cls(raw, Kind.UNREADABLE, comment=comment)
        tail = raw[equals + 1 : stop]
        value = tail.strip(SPACE)
        start = equals + 1 + (len(tail) - len(tail.lstrip(SPACE)) if value else 0)
        return cls(raw, Kind.SETTING, raw[offset:equals].strip(SPACE), value, start, start + len(value), comment)

    @property
    def newline(self) -> str:
        """How it ends: a newline of one of the two common kinds, or "" at the end of some files."""
        return "\r\n" if self.raw.endswith("\r\n") else "\n" if self.raw.endswith("\n") else ""

    def with_value(self, value: str) -> Line:
        """The same line with another value; blanks and comment stay."""
        gap = "" if self.value or self.raw[self.start - 1] in SPACE else " "
        after = " " if not self.value and self.comment and self.start == self.raw.find("#") else ""
        return Line.read(self.raw[: self.start] + gap + value + after + self.raw[self.end :])


@dataclass(frozen=True, slots=True)
class Block:
    """A section's place: `lines[header]` is its header, `lines[header + 1 : stop]` what follows.

    Attributes:
        section: its name; "Interface", "Peer", or something unknown.
        above: the first of the comment lines right above the header that belong to it.
        header: index of the header.
        last: index of its last setting; the header when it has none.
        stop: one past its last line: the `above` of the next block, or the end of the file.
    """

    section: str
    above: int
    header: int
    last: int
    stop: int


def split(text: str) -> tuple[Line, ...]:
    """The lines of a file; `join` makes the same text of them, whatever it is."""
    return tuple(Line.read(raw) for raw in re.findall(r"[^\n]*\n|[^\n]+", text))


def join(lines: Iterable[Line]) -> str:
    """The file again."""
    return "".join(line.raw for line in lines)


def blocks(lines: tuple[Line, ...]) -> tuple[Block, ...]:
    """The sections in order."""
    headers = [i for i, line in enumerate(lines) if line.kind is Kind.SECTION]
    above = [_first_comment(lines, i) for i in headers]
    found = []
    for n, header in enumerate(headers):
        stop = above[n + 1] if n + 1 < len(headers) else len(lines)
        last = next((i for i in range(stop - 1, header, -1) if lines[i].kind is Kind.SETTING), header)
        found.append(Block(lines[header].name, above[n], header, last, stop))
    return tuple(found)


def _first_comment(lines: tuple[Line, ...], header: int) -> int:
    # What is commented out above a header is not about it, and must not go when the section goes.
    first = header
    while first and lines[first - 1].kind is Kind.COMMENT and not is_commented_out(lines[first - 1].comment):
        first -= 1
    return first
