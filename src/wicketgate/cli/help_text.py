# SPDX-License-Identifier: Apache-2.0
"""Docstrings as help: paragraphs that the terminal's width breaks, not the source's."""

from __future__ import annotations

import re
from inspect import cleandoc

_ENTRY = re.compile(r"    \S[^:]*: ")  # of a section such as Args


def reflowed(docstring: str) -> str:
    """The docstring with each paragraph, and each entry of a section, on one line; what is indented otherwise stays as it is."""
    found: list[str] = []
    within = ""  # what the line before was: a paragraph's, an entry's
    for line in cleandoc(docstring).splitlines():
        plain = bool(line) and not line[0].isspace()
        section = plain and line.endswith(":") and line[:-1] in ("Args", "Returns", "Raises")
        if within == "paragraph" and plain and not section:
            found[-1] += f" {line}"
        elif within == "entry" and line.startswith("        "):
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
            within = "section" if section else "paragraph" if plain else _kind(line, within)
    return "\n".join(found)


def _kind(line: str, within: str) -> str:
    return "entry" if within in ("section", "entry") and _ENTRY.match(line) else ""
