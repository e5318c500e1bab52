# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration file, said all at once and without showing a key.

Whatever is quoted from a file goes through `shown`. A file holds private keys, and people paste them on the wrong
line: a value is hidden when its key names one, and also whenever the text itself looks like key material.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from wicketgate.errors import InputError

HIDDEN = "(hidden)"
SHOWN_CHARACTERS = 60  # a guess: enough to recognise a value, short enough for one line of a terminal
MAX_PROBLEMS = 1000  # a hostile file of a million bad lines must not become a message of a gigabyte

_RUN = re.compile(r"[A-Za-z0-9+/=_]{20,}")


def looks_secret(text: str) -> bool:
    """Whether a text may hold a key, whole, cut off, or split by blanks and quotes.

    A key is 44 characters of base64 or 64 of hex. Runs from 40 characters count always, runs from 20 when they mix
    upper case, lower case and digits, which addresses, host names and the names of keys do not.
    """
    for run in _RUN.findall(re.sub(r"[\s\"',;]+", "", text)):
        if len(run) >= 40 or (run.lower() != run and run.upper() != run and any(c.isdigit() for c in run)):
            return True
    return False


def names_secret(key: str) -> bool:
    """Whether a key's name, perhaps misspelt, promises key material."""
    lowered = re.sub(r"[\s_-]+", "", key.lower())
    return any(part in lowered for part in ("key", "priv", "preshare", "psk", "secret")) or bool(
        difflib.get_close_matches(lowered, ["privatekey", "presharedkey", "publickey"], 1, 0.6)
    )


def shown(text: str, *, key: str = "") -> str:
    """A value as an error may quote it: hidden, or in quotes, escaped and cut."""
    if names_secret(key) or looks_secret(text):
        return HIDDEN
    cut = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that is nearest to a misspelt one."""
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower()[:64], lowered, 1, 0.6)
    return lowered[near[0]] if near else None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the file as it was named.
        line: counted from 1; 0 for the file as a whole.
        section: "Interface", "Peer", or "" outside of both.
        key: as the file spells it, hidden where it looks like key material; "" when there is none.
        read: what was read, already safe to show.
        allowed: what would be right.
    """

    path: str
    line: int
    section: str
    key: str
    read: str
    allowed: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        where = f"[{self.section}] {self.key}".strip() if self.section else self.key
        return ": ".join(part for part in (place, where, f"{self.read}; {self.allowed}") if part)


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """Something that loads, but hardly as it was meant. The text names no key material."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class ConfigErrors(InputError):  # noqa: N818 - it is several
    """Every problem of a file.

    Attributes:
        problems: in the order of their lines; at most `MAX_PROBLEMS`.
        more: how many further ones were found and not kept.
    """

    def __init__(self, problems: Iterable[Problem], *, more: int = 0) -> None:
        self.problems = tuple(problems)
        self.more = more
        lines = [str(p) for p in self.problems]
        if more:
            lines.append(f"... and {more} more problems")
        super().__init__("\n".join(lines))
