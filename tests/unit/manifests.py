# SPDX-License-Identifier: Apache-2.0
"""Reads the manifests of deploy/: the part of YAML that they are written in, and an error for everything else.

Block mappings and sequences, flow lists of plain words, `|` scalars, quoted and plain scalars, comments. Scalars are
typed as Kubernetes' own reader does it: true and false, whole numbers (octal with a leading 0), else text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_KEY = re.compile(r'(?P<key>"[^"]*"|[^\s"#:\[\]{}-][^\s#:]*|[^\s"#:]+):(?: +(?P<value>.*))?$')


def load_all(path: Path) -> list[dict[str, Any]]:
    """Every document of a file.

    Raises:
        ValueError: something that this reader does not know, with file and line.
    """
    documents, lines = [], []
    for number, line in enumerate([*path.read_text().splitlines(), "---"], 1):
        if line == "---":
            reader = _Reader(lines, path)
            if reader.more():
                documents.append(reader.block(0))
                reader.expect_end()
            lines = []
        else:
            lines.append((number, line.rstrip()))
    return documents


class _Reader:
    def __init__(self, lines: list[tuple[int, str]], path: Path) -> None:
        self._lines, self._path, self._at = lines, path, 0

    def more(self) -> bool:
        """Skip blank lines and comments; whether anything is left."""
        while self._at < len(self._lines) and re.fullmatch(r"\s*(#.*)?", self._lines[self._at][1]):
            self._at += 1
        return self._at < len(self._lines)

    def expect_end(self) -> None:
        if self.more():
            raise self._error("a line that belongs to nothing")

    def _error(self, what: str) -> ValueError:
        number, line = self._lines[min(self._at, len(self._lines) - 1)]
        return ValueError(f"{self._path}:{number}: {what}: {line!r}")

    def _indent(self) -> int:
        line = self._lines[self._at][1]
        return len(line) - len(line.lstrip(" "))

    def block(self, indent: int) -> Any:
        """A mapping or a sequence at this indentation."""
        return self._sequence(indent) if self._lines[self._at][1][indent:].startswith("- ") else self._mapping(indent)

    def _sequence(self, indent: int) -> list[Any]:
        items = []
        while self.more() and self._indent() == indent and self._lines[self._at][1][indent:].startswith("- "):
            number, line = self._lines[self._at]
            rest = line[indent + 2 :]
            if _KEY.match(rest):
                # `- name: x` opens a mapping whose other keys stand below `name`.
                self._lines[self._at] = (number, " " * (indent + 2) + rest)
                items.append(self._mapping(indent + 2))
            else:
                items.append(self._scalar(rest))
                self._at += 1
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.more() and self._indent() == indent:
            match = _KEY.match(self._lines[self._at][1][indent:])
            if match is None:
                raise self._error("neither `key:` nor `key: value`")
            key, value = match["key"].strip('"'), (match["value"] or "").strip()
            if key in found:
                raise self._error(f"{key} a second time")
            if value == "|":
                self._at += 1
                found[key] = self._text(indent)
            elif value and not value.startswith("#"):
                found[key] = self._scalar(value)
                self._at += 1
            else:
                self._at += 1
                if not self.more() or self._indent() <= indent:
                    raise self._error(f"{key} without a value before")
                found[key] = self.block(self._indent())
        if self.more() and self._indent() > indent:
            raise self._error("deeper than what it could belong to")
        return found

    def _text(self, outer: int) -> str:
        taken: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at][1]
            if line and len(line) - len(line.lstrip(" ")) <= outer:
                break
            taken.append(line)
            self._at += 1
        indent = len(taken[0]) - len(taken[0].lstrip(" "))
        return "\n".join(line[indent:] for line in taken).rstrip("\n") + "\n"

    def _scalar(self, text: str) -> Any:
        quoted = re.fullmatch(r'"([^"\\]*)"(?:\s+#.*)?', text)
        if quoted:
            return quoted[1]
        text = re.sub(r"\s+#.*$", "", text)
        if text.startswith("[") and text.endswith("]"):
            return [self._scalar(part.strip()) for part in text[1:-1].split(",")]
        if re.match(r"[\[\]{}&*!|>'%@`\"]", text) or ": " in text:
            raise self._error("YAML that this reader does not know")
        if text in {"true", "false"}:
            return text == "true"
        if re.fullmatch(r"0[0-7]+", text):
            return int(text, 8)
        return int(text) if re.fullmatch(r"\d+", text) else text
