# SPDX-License-Identifier: Apache-2.0
"""Names that iproute2 prints for numbers, read back."""

from __future__ import annotations

from wicketgate.netpath.spelling import protocol_name

_TABLES = {"unspec": 0, "default": 253, "main": 254, "local": 255}
_SCOPES = {"global": 0, "universe": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}
_PROTOCOLS = {protocol_name(number): number for number in range(256)}
_FIRST_NAMED = 0xF0000000  # far from what people choose


class TableNames:
    """Tables by name. A name of /etc/iproute2/rt_tables, which a paste does not hold, gets a number of its own."""

    def __init__(self) -> None:
        self._own: dict[str, int] = {}

    def number(self, word: str) -> int:
        """The table of a number or name."""
        if word in _TABLES:
            return _TABLES[word]
        if word.isascii() and word.isdigit() and len(word) <= 10:
            return int(word) & 0xFFFFFFFF
        return self._own.setdefault(word, _FIRST_NAMED + len(self._own))

    @property
    def own(self) -> dict[str, int]:
        """Names that got a number here."""
        return self._own


def scope_number(word: str) -> int:
    """0 global, 253 link, 254 host ... (rt_scopes).

    Raises:
        ValueError: no such scope.
    """
    return _SCOPES[word] if word in _SCOPES else int(word)


def protocol_number(word: str) -> int:
    """2 kernel, 3 boot, 4 static ... (rt_protos); 0 for a name that this machine does not know.

    It says who put a route there, and decides nothing.
    """
    return _PROTOCOLS.get(word, 0)
