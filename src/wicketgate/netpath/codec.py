# SPDX-License-Identifier: Apache-2.0
"""Snapshots as JSON: written in full, read strictly.

The form follows the dataclasses of `netpath.snapshot` field by field; addresses and networks are strings. An error
names the JSON path, what was read there and what is allowed, so that a file edited by hand can be mended by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from wicketgate.errors import InputError
from wicketgate.netpath.snapshot import Snapshot

VERSION = 1
_LONGEST_QUOTE = 60  # characters of a bad value that an error shows
_INT_BITS = 64  # the widest number that netlink carries

_ADDRESS = frozenset({IPv4Address, IPv6Address})
_INTERFACE = frozenset({IPv4Interface, IPv6Interface})
_NETWORK = frozenset({IPv4Network, IPv6Network})
_PLAIN: dict[Any, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def to_json(snapshot: Snapshot) -> str:
    """The snapshot as JSON text: one line for each link, address, route ..., so that `diff` reads well."""
    plain = {"version": VERSION} | _plain(snapshot)
    lines = []
    for key, value in plain.items():
        if isinstance(value, list) and value:
            items = ",\n".join("    " + json.dumps(item) for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{items}\n  ]")
        else:
            indented = json.dumps(value, indent=2).replace("\n", "\n  ") if key == "sysctls" else json.dumps(value)
            lines.append(f"  {json.dumps(key)}: {indented}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    if value is None or type(value) in _PLAIN:  # first: of 100,000 routes a million values are
        return value
    if type(value) is tuple:
        return [_plain(item) for item in value]
    kind: type = type(value)
    names = _names(kind)
    if names:
        return {name: _plain(getattr(value, name)) for name in names}
    return dict(value) if isinstance(value, Mapping) else str(value)


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    """A dataclass's fields; none for another type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def from_json(text: str) -> Snapshot:
    """Read what `to_json` wrote.

    Raises:
        InputError: no JSON, another version, or a value that is not allowed where it stands.
    """
    try:
        read = json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"snapshot: line {error.lineno} column {error.colno}: no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"snapshot: no JSON that can be read: {error}") from None
    if not isinstance(read, dict):
        _refuse("$", read, "an object as `wicket snapshot` prints it")
    version = read.pop("version", None)
    if type(version) is not int or version != VERSION:
        _refuse("$.version", version, f"{VERSION}: take the snapshot again with this release")
    return typing.cast("Snapshot", _read(Snapshot, read, "$"))


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"snapshot: the key {_quote(key)} stands twice in one object; allowed: once")
        found[key] = value
    return found


def _no_constants(name: str) -> NoReturn:
    raise InputError(f"snapshot: {name} is no JSON number; allowed: finite numbers")


def _short(key: str) -> str:
    """A key as a path shows it: bounded, and printable."""
    shown = key if key.isprintable() else json.dumps(key)
    return shown if len(shown) <= _LONGEST_QUOTE else shown[:_LONGEST_QUOTE] + "..."


def _quote(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."


def _refuse(path: str, value: Any, allowed: str) -> NoReturn:
    raise InputError(f"snapshot: {path}: read {_quote(value)}; allowed: {allowed}")


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """A dataclass's fields: type, and whether it must be given."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    }


def _read(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_object(kind, value, path)
    if kind in _PLAIN:
        return _read_plain(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if type(value) not in {type(a) for a in arguments} or value not in arguments:
            _refuse(path, value, " or ".join(json.dumps(a) for a in arguments))
        return value
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, path)
    if origin is tuple:
        return _read_tuple(arguments, value, path)
    # Mapping[str, str] is the last form there is; a new one in snapshot.py fails the round-trip test.
    if not isinstance(value, dict):
        _refuse(path, value, "an object of strings")
    return MappingProxyType({key: _read_plain(str, item, f"{path}.{_short(key)}") for key, item in value.items()})


def _read_object(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        _refuse(path, value, f"an object ({kind.__name__})")
    fields = _fields(kind)
    for key in value:
        if key not in fields:
            _refuse(f"{path}.{_short(key)}", value[key], f"no such key here; known: {', '.join(fields)}")
    for name, (_, needed) in fields.items():
        if needed and name not in value:
            raise InputError(f"snapshot: {path}.{name}: missing; it must be given")
    return kind(**{name: _read(fields[name][0], item, f"{path}.{name}") for name, item in value.items()})


def _read_plain(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            _refuse(path, value, "a number that a double can hold")
    if type(value) is not kind:
        _refuse(path, value, _PLAIN[kind])
    if isinstance(value, int) and value.bit_length() > _INT_BITS:
        _refuse(path, value, f"a whole number of at most {_INT_BITS} bits")
    return value


def _read_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    kinds = frozenset(arguments) - {type(None)}
    if value is None and len(kinds) < len(arguments):
        return None
    if kinds == _ADDRESS:
        return _parse(ip_address, value, path, "an IPv4 or IPv6 address")
    if kinds == _INTERFACE:
        return _parse(ip_interface, value, path, "an address with its prefix length, as 10.8.0.1/24")
    if kinds == _NETWORK:
        return _parse(ip_network, value, path, "a network without host bits, as 10.8.0.0/24")
    (kind,) = kinds
    return _read(kind, value, path)


def _parse(parser: Callable[[str], Any], value: Any, path: str, allowed: str) -> Any:
    if not isinstance(value, str):
        _refuse(path, value, allowed)
    try:
        return parser(value)
    except ValueError:
        _refuse(path, value, allowed)


def _read_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list):
        _refuse(path, value, "a list")
    if arguments[-1] is Ellipsis:
        return tuple(_read(arguments[0], item, f"{path}[{number}]") for number, item in enumerate(value))
    if len(value) != len(arguments):
        _refuse(path, value, f"a list of {len(arguments)}")
    return tuple(
        _read(kind, item, f"{path}[{number}]") for number, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )
