# SPDX-License-Identifier: Apache-2.0
"""`dataclasses.replace` in a third of its time, for the walk: it makes some forty values anew for each packet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def _parts(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(field.name for field in fields(kind))
    assert len(names) > 1  # attrgetter of one name gives no tuple
    return names, attrgetter(*names)


def replaced(value: T, **changes: Any) -> T:
    """The value with some fields changed, for dataclasses all of whose fields are arguments.

    Raises:
        TypeError: there is no such field.
    """
    kind: Any = type(value)
    names, of = _parts(kind)
    made: T = kind(**(dict(zip(names, of(value), strict=True)) | changes))
    return made
