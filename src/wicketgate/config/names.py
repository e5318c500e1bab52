# SPDX-License-Identifier: Apache-2.0
"""The name of a peer, from the comments that people and scripts write beside it.

WireGuard has no names for peers. In this order the first comment that gives one is taken:

1. `# Name = x`, `# friendly_name = x` or `# Client = x` (also with `:`) inside the section, up to its last setting;
2. the same in the comment lines right above `[Peer]`, without a blank line between;
3. a plain comment right above, the nearest line first: `# x`, `### Client x`, `# BEGIN_PEER x`;
4. a plain comment behind `[Peer]` on its line, or directly below it.

A setting or section that is commented out (`# AllowedIPs = ...`, `#[Peer]`) is no name, and nor is what looks like a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from wicketgate.config.problems import looks_secret

NAME_CHARACTERS = 64  # a guess: longer comments are prose

_EXPLICIT = re.compile(r"(?:friendly_name|name|client)\s*[=:]\s*(.*)", re.IGNORECASE | re.ASCII)
_OFF = re.compile(r"\[|\w+\s*=", re.ASCII)
_WORDS = re.compile(r"(?:client|peer|begin_peer|begin)\s+", re.IGNORECASE)
_END = re.compile(r"end_peer\b", re.IGNORECASE)


def _text(comment: str) -> str:
    return comment.strip("# \t\v\f\r\n")


def _clean(name: str) -> str | None:
    name = name.strip("\"'# \t")
    if not name or len(name) > NAME_CHARACTERS or not name.isprintable() or looks_secret(name):
        return None
    return name


def explicit_name(comment: str) -> str | None:
    """The name in `# Name = x` and its like."""
    match = _EXPLICIT.fullmatch(_text(comment))
    return _clean(match[1]) if match else None


def plain_name(comment: str) -> str | None:
    """The name in `# x` and `### Client x`."""
    text = _text(comment)
    if _OFF.match(text) or _END.match(text):
        return None
    return _clean(_WORDS.sub("", text, count=1))


def is_commented_out(comment: str) -> bool:
    """Whether a comment is a setting or a section that was switched off."""
    text = _text(comment)
    return bool(_OFF.match(text)) and not _EXPLICIT.fullmatch(text)


def peer_name(*, above: Iterable[str], header: str, below: Iterable[str], inside: Iterable[str]) -> str | None:
    """The name, as the module's text says.

    Args:
        above: comment lines right above the header, top to bottom.
        header: the comment on the header's own line, or "".
        below: comment lines directly below the header.
        inside: every comment of the section up to its last setting, those behind settings too.
    """
    above = list(above)
    for comments, read in (
        ([*inside], explicit_name),
        (above[::-1], explicit_name),
        (above[::-1], plain_name),
        ([header, *below], plain_name),
    ):
        for comment in comments:
            if name := read(comment):
                return name
    return None
