# SPDX-License-Identifier: Apache-2.0
"""Netlink messages built from checked keywords.

pyroute2 drops a keyword that it does not know in silence: `suppress_prefixlength=0`, iproute2's spelling, would
install `from all lookup 51820`, a default route for the whole host. So no message leaves that was not made here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any


class UnknownKeyword(ValueError):  # noqa: N818 - it names what was met
    """A field or attribute that the message class does not have: a programmer's slip, met before the kernel is."""


def field_names(message_class: Any) -> tuple[str, ...]:
    """The names of a message's fixed header fields."""
    return tuple(field[0] for field in message_class.fields)


def attribute_names(message_class: Any) -> tuple[str, ...]:
    """The names of a message's attributes. pyroute2 has two forms of map: (number, name, type) and (name, type)."""
    return tuple(entry[1] if isinstance(entry[0], int) else entry[0] for entry in message_class.nla_map)


def compose(message_class: Any, fields: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    """A message with these header fields and attributes.

    Args:
        message_class: a pyroute2 message class.
        fields: header fields by name; the others are 0.
        attributes: attributes by the kernel's full name (`FRA_FWMARK`); None leaves one out.

    Raises:
        UnknownKeyword: the class has no such field or attribute.
    """
    _check(message_class, "field", fields, field_names(message_class))
    _check(message_class, "attribute", attributes, attribute_names(message_class))
    message = message_class()
    for name in field_names(message_class):
        if not name.startswith("_"):
            message[name] = 0
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [[name, value] for name, value in attributes.items() if value is not None]
    return message


def _check(message_class: Any, what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnknownKeyword(f"{message_class.__name__} has no {what} {name!r}{hint}")
