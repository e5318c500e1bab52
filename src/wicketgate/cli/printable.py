# SPDX-License-Identifier: Apache-2.0
"""Words of a place, as a terminal may have them: a comment in a rule could move its cursor, or name its window."""

from __future__ import annotations

import re

# What the doctor's own pen writes: red, bold, plain.
_OURS = re.compile(r"(\x1b\[(?:31|1|0)m)")


def printable(text: str, *, coloured: bool = False) -> str:
    """The text with every control and format character spelled out as Python spells it, but for the ends of lines.

    Args:
        text: of any origin.
        coloured: leave red, bold and plain as they are.
    """
    if not coloured:
        return "".join(each if each.isprintable() or each == "\n" else _spelled(each) for each in text)
    return "".join(part if _OURS.fullmatch(part) else printable(part) for part in _OURS.split(text))


def _spelled(character: str) -> str:
    return "  " if character == "\t" else character.encode("unicode_escape").decode("ascii")
