# SPDX-License-Identifier: Apache-2.0
"""Expressions made into functions of the run, once for each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.netfilter.nft import fields
from wicketgate.netpath.netfilter.nft.fields import Field, Getter, Got
from wicketgate.netpath.netfilter.nft.model import (
    Binary,
    Concat,
    Constant,
    Ct,
    Element,
    Expression,
    Fib,
    Flags,
    MapLookup,
    MatchStatement,
    Meta,
    Other,
    Payload,
    Pick,
    Prefix,
    Range,
    RawPayload,
    Set,
    SetLiteral,
    SetReference,
    Unknown,
    Verdict,
)
from wicketgate.netpath.netfilter.nft.sets import MISSING, Index, Missing, Partial
from wicketgate.netpath.netfilter.nft.values import Key, NotKnownError, Type, Value, constant, interval
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.netfilter.targets import MOST_CHOICES

Test = Callable[[Run], "bool | Doubt"]
Read = tuple[Callable[[Run], "Key | Doubt | None"], tuple[Type, ...]]

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
_BITWISE: dict[str, Callable[[int, int], int]] = {
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: (left << right) & 0xFFFFFFFF if right < 128 else 0,  # marks: 32 bits
    ">>": lambda left, right: left >> right,
}


class Compiler:
    """Makes functions for the rules of one table.

    Args:
        sets: of the table.
        facts: of the namespace.
        filling: names of the sets that rules of the table add to.
    """

    def __init__(self, sets: Mapping[str, Set], facts: Facts, filling: frozenset[str]) -> None:
        self._sets = sets
        self.facts = facts
        self._filling = filling
        self._indexes: dict[tuple[str, tuple[Type, ...]], Index] = {}

    def value(self, expression: Expression, wanted: Type | None = None) -> Field:
        """A single value.

        Args:
            expression: a field, a calculation, a map, a constant.
            wanted: the type a constant is of.

        Raises:
            NotKnownError: the model does not know it.
        """
        match expression:
            case Payload():
                return fields.payload(expression)
            case RawPayload():
                return fields.raw_payload(expression)
            case Meta():
                return fields.meta(expression)
            case Ct():
                return fields.ct(expression)
            case Fib():
                return fields.fib(expression)
            case Pick():
                return _pick(expression), Type.NUMBER
            case Binary():
                return self._binary(expression, wanted)
            case MapLookup():
                return self._mapped(expression, wanted)
            case Other():
                doubt = Doubt(expression.what, expression.text)
                return (lambda _run: doubt), Type.OTHER
            case Constant() | Flags():
                number = constant(expression, wanted or Type.NUMBER, self.facts)
                return (lambda _run: number), wanted or Type.NUMBER
            case Unknown():
                raise NotKnownError(f"{expression.what} {expression.text[:100]}")
            case _:
                raise NotKnownError(f"no single value: {expression}")

    def key(self, expression: Expression) -> Read:
        """What a set is asked for: a value, or a tuple of them."""
        if not isinstance(expression, Concat):
            getter, kind = self.value(expression)
            return getter, (kind,)
        parts = [self.value(part) for part in expression.parts]
        getters = tuple(getter for getter, _ in parts)

        def get(run: Run) -> Key | Doubt | None:
            values: list[Value | Doubt] = []
            doubt: Doubt | None = None
            for getter in getters:
                value = getter(run)
                if value is None:
                    return None
                if isinstance(value, Doubt):
                    doubt = value
                values.append(value)
            return tuple(values) if doubt is None else Partial(doubt.reason, doubt.key, tuple(values))  # type: ignore[arg-type]

        return get, tuple(kind for _, kind in parts)

    def index(self, held: SetLiteral | SetReference, kinds: tuple[Type, ...]) -> Index:
        """The elements of a set for keys of these types."""
        if isinstance(held, SetLiteral):
            return Index(held.elements, kinds, self.facts, filling=False)
        if (held.name, kinds) not in self._indexes:
            found = self._sets.get(held.name)
            if found is None:
                raise NotKnownError(f"there is no set @{held.name}")
            self._indexes[held.name, kinds] = Index(
                found.elements, kinds, self.facts, filling=held.name in self._filling
            )
        return self._indexes[held.name, kinds]

    def map_data(self, held: SetLiteral | SetReference) -> Sequence[Element]:
        """All elements of a map."""
        if isinstance(held, SetLiteral):
            return held.elements
        found = self._sets.get(held.name)
        return found.elements if found is not None else ()

    def test(self, statement: MatchStatement) -> Test:
        """Whether a match holds.

        Raises:
            NotKnownError: the model does not know it.
        """
        op, right = statement.op, statement.right
        left = statement.left
        getter, kinds = self.key(left)
        if isinstance(left, Fib) and left.result != "type" and right in (Constant(0), Constant(1)):
            getter, kinds = fields.fib(left, presence=True)[0], (Type.NUMBER,)
        if isinstance(left, Ct) and left.key == "status" and op in ("in", "!"):
            mask = constant(right, Type.CT_STATUS, self.facts)
            assert isinstance(mask, int)
            getter = lambda run: fields.status_bits(run, mask)  # noqa: E731
        if isinstance(right, (SetLiteral, SetReference)):
            return _membership(getter, self.index(right, kinds), negated=op == "!=")
        if len(kinds) > 1:
            index = Index((Element(right),), kinds, self.facts, filling=False)
            return _membership(getter, index, negated=op == "!=")
        return self._comparison(getter, kinds[0], op, right)

    def _comparison(self, getter: Callable[[Run], Key | Doubt | None], kind: Type, op: str, right: Expression) -> Test:
        if kind is Type.OTHER:  # a field that no snapshot tells: its values need not be read
            return _test(getter, lambda _value: False)
        if op in ("in", "!") and kind is not Type.NAME and not isinstance(right, (Prefix, Range)):
            mask = constant(right, kind, self.facts)
            return _test(getter, lambda value: bool(value & mask) == (op == "in"))  # type: ignore[operator]
        if isinstance(right, (Prefix, Range)):
            low, high = interval(right, kind, self.facts)
            if op not in ("==", "!=", "in"):
                raise NotKnownError(f"{op} with a range")
            return _test(getter, lambda value: (low <= value <= high) != (op == "!="))  # type: ignore[operator]
        if not isinstance(right, (Constant, Flags)) and not (isinstance(right, Binary) and right.operator == "|"):
            return self._dynamic(getter, op, right)
        wanted = constant(right, kind, self.facts)
        if isinstance(wanted, str):
            if op not in ("==", "!=", "in"):
                raise NotKnownError(f"{op} with a name")
            if wanted.endswith("*"):
                head = wanted[:-1]
                return _test(getter, lambda value: str(value).startswith(head) != (op == "!="))
            return _test(getter, lambda value: (value == wanted) != (op == "!="))
        compare = _COMPARE.get("==" if op == "in" else op)
        if compare is None:
            raise NotKnownError(f"{op} with {wanted}")
        if op == "==":
            return _test(getter, lambda value: value == wanted)
        return _test(getter, lambda value: compare(value, wanted))  # type: ignore[arg-type]

    def _dynamic(self, getter: Callable[[Run], Key | Doubt | None], op: str, right: Expression) -> Test:
        other, _ = self.value(right)
        compare = _COMPARE.get(op)
        if compare is None:
            raise NotKnownError(f"{op} with a field")

        def test(run: Run) -> bool | Doubt:
            one, two = getter(run), other(run)
            if one is None or two is None:
                return False
            if isinstance(one, Doubt) or isinstance(two, Doubt):
                return one if isinstance(one, Doubt) else two  # type: ignore[return-value]
            return compare(one, two)  # type: ignore[arg-type]

        return test

    def _binary(self, expression: Binary, wanted: Type | None) -> Field:
        first, *rest = expression.operands
        getter, kind = self.value(first, wanted)
        if expression.operator == "&" and first == Payload("ip", "frag-off") and len(rest) == 1:
            mask = constant(rest[0], Type.NUMBER, self.facts)
            if isinstance(mask, int) and fields.fragment_offset(mask):
                return (lambda run: 0 if run.version == 4 else None), Type.NUMBER
        if expression.operator == "&" and isinstance(first, Ct) and first.key == "status" and len(rest) == 1:
            bits = constant(rest[0], Type.CT_STATUS, self.facts)
            assert isinstance(bits, int)
            return (lambda run: fields.status_bits(run, bits)), kind
        others = [self.value(each, kind)[0] for each in rest]
        operate = _BITWISE[expression.operator]

        def get(run: Run) -> Got:
            values = [getter(run), *(other(run) for other in others)]
            if any(value is None for value in values):
                return None
            for value in values:
                if isinstance(value, Doubt):
                    return value
            return reduce(operate, values)  # type: ignore[arg-type]

        return get, kind

    def _mapped(self, expression: MapLookup, wanted: Type | None) -> Field:
        getter, kinds = self.key(expression.key)
        index = self.index(expression.data, kinds)
        kind = wanted or Type.NUMBER

        def get(run: Run) -> Got:
            found = find(run, getter, index)
            if isinstance(found, Doubt) or found is None:
                return found
            if isinstance(found, Verdict):
                return Doubt("a map of verdicts where a value is asked for", "vmap")
            try:
                return constant(found, kind, self.facts)
            except NotKnownError as error:
                return Doubt(f"a map's value could not be read: {error}", str(found))

        return get, kind


def find(run: Run, getter: Callable[[Run], Key | Doubt | None], index: Index) -> Expression | Verdict | Doubt | None:
    """What a map holds for this packet; None where it has no element, which ends the rule."""
    key = getter(run)
    if isinstance(key, Partial) and index.lacks(key.values):
        return None
    if key is None or isinstance(key, Doubt):
        return key
    found = index.lookup(key)
    return None if isinstance(found, Missing) else found


def _membership(getter: Callable[[Run], Key | Doubt | None], index: Index, *, negated: bool) -> Test:
    def test(run: Run) -> bool | Doubt:
        key = getter(run)
        if key is None:
            return False
        if isinstance(key, Partial) and index.lacks(key.values):
            return negated
        if isinstance(key, Doubt):
            return key
        found = index.lookup(key)
        if isinstance(found, Doubt):
            return found
        return (found is MISSING) == negated

    return test


def _test(getter: Callable[[Run], Key | Doubt | None], holds: Callable[[Key], bool]) -> Test:
    def test(run: Run) -> bool | Doubt:
        value = getter(run)
        if value is None:
            return False
        return value if isinstance(value, Doubt) else holds(value)

    return test


def _pick(expression: Pick) -> Getter:
    modulus, offset = expression.modulus, expression.offset
    # A hash gives the same for the whole flow; a counter or a die does not.
    key = "" if expression.kind == "numgen" else f"{expression}"
    doubt = Doubt(f"`{expression.kind}` picks one of {modulus}", key)
    if modulus > MOST_CHOICES:
        return lambda _run: doubt
    return lambda run: offset + run.choose(modulus, doubt)
