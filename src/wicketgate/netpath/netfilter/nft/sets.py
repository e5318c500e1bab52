# SPDX-License-Identifier: Apache-2.0
"""Sets and maps, laid out so that a lookup does not go through all elements."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.netfilter.nft.model import Concat, Constant, Element, Expression, Prefix, Range, Verdict
from wicketgate.netpath.netfilter.nft.values import Key, NotKnownError, Type, Value, constant, interval
from wicketgate.netpath.netfilter.run import Doubt


class Missing:
    """The key is in no element."""


@dataclass(frozen=True, slots=True)
class Partial(Doubt):
    """A concatenation of which parts are not known.

    Attributes:
        values: its parts; a doubt in the place of each that is not known.
    """

    values: tuple[Value | Doubt, ...] = ()


MISSING = Missing()
Data = Expression | Verdict | None
Found = Data | Doubt | Missing


class Index:
    """The elements of one set, for keys of given types.

    Args:
        elements: of the set.
        kinds: the types of the key; several for a concatenation.
        facts: for interface numbers.
        filling: rules add to the set, so what is not in it now may be later.
    """

    def __init__(self, elements: Sequence[Element], kinds: tuple[Type, ...], facts: Facts, *, filling: bool) -> None:
        self._kinds = kinds
        self._facts = facts
        self._exact: dict[Key, Data] = {}
        self._intervals: list[tuple[int, int, Data]] = []
        self._boxes: list[tuple[tuple[tuple[Value, Value], ...], Data]] = []
        self._wildcards: list[tuple[str, Data]] = []
        self._default: Found = MISSING
        self._doubt: Doubt | None = Doubt("rules add to the set", "") if filling else None
        for element in elements:
            try:
                self._add(element)
            except (NotKnownError, ValueError) as error:
                self._doubt = Doubt(f"an element that could not be read ({str(error)[:100]})", f"element {element.key}")
        self._intervals.sort(key=lambda each: each[0])
        self._starts = [low for low, _, _ in self._intervals]

    def _add(self, element: Element) -> None:
        key, data = element.key, element.data
        if key == Constant("*"):
            self._default = data
        elif len(self._kinds) > 1:
            self._add_concat(key, data)
        elif isinstance(key, (Prefix, Range)):
            self._intervals.append((*interval(key, self._kinds[0], self._facts), data))
        else:
            value = constant(key, self._kinds[0], self._facts)
            if self._kinds[0] is Type.NAME and isinstance(value, str) and value.endswith("*"):
                self._wildcards.append((value[:-1], data))
            else:
                self._exact[value] = data

    def _add_concat(self, key: Expression, data: Data) -> None:
        if not isinstance(key, Concat) or len(key.parts) != len(self._kinds):
            raise NotKnownError(f"an element of other parts: {key}")
        plain = True
        box: list[tuple[Value, Value]] = []
        for part, kind in zip(key.parts, self._kinds, strict=True):
            if isinstance(part, (Prefix, Range)):
                plain = False
                box.append(interval(part, kind, self._facts))
                continue
            value = constant(part, kind, self._facts)
            if kind is Type.NAME and isinstance(value, str) and value.endswith("*"):
                plain = False
                box.append((value[:-1], value[:-1] + "\U0010ffff"))
            else:
                box.append((value, value))
        if plain:
            self._exact[tuple(low for low, _ in box)] = data
        else:
            self._boxes.append((tuple(box), data))

    def lacks(self, parts: Sequence[Value | Doubt]) -> bool:
        """No element fits what is known of a concatenation: an echo request is in no set of services."""
        if self._doubt is not None or self._default is not MISSING:
            return False
        known = [(at, part) for at, part in enumerate(parts) if not isinstance(part, Doubt)]
        exact = (key for key in self._exact if isinstance(key, tuple))
        if any(all(key[at] == part for at, part in known) for key in exact):
            return False
        return not any(
            all(box[at][0] <= part <= box[at][1] for at, part in known)  # type: ignore[operator]
            for box, _ in self._boxes
        )

    def lookup(self, key: Key) -> Found:
        """What the set holds under this key; None for an element without data."""
        if key in self._exact:
            return self._exact[key]
        if isinstance(key, int) and self._intervals:
            at = bisect_right(self._starts, key) - 1
            if at >= 0 and key <= self._intervals[at][1]:
                return self._intervals[at][2]
        if isinstance(key, str):
            for head, data in self._wildcards:
                if key.startswith(head):
                    return data
        if isinstance(key, tuple):
            for box, data in self._boxes:
                if all(low <= value <= high for value, (low, high) in zip(key, box, strict=True)):  # type: ignore[operator]
                    return data
        return self._doubt if self._doubt is not None else self._default
