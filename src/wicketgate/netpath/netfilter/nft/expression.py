# SPDX-License-Identifier: Apache-2.0
"""Expressions of libnftables-json(5), read into the model."""

from __future__ import annotations

import json
from typing import Any

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
    Meta,
    Other,
    Payload,
    Pick,
    Prefix,
    Range,
    RawPayload,
    SetLiteral,
    SetReference,
    Unknown,
    Verdict,
)

_OPERATORS = frozenset({"&", "|", "^", "<<", ">>"})
_OTHERS = {
    "socket": "asks which socket would take the packet",
    "rt": "asks the route's next hop or MTU",
    "exthdr": "asks for an extension header",
    "tcp option": "asks a TCP option",
    "ip option": "asks an IP option",
    "sctp chunk": "asks SCTP's chunks",
    "dccp option": "asks DCCP's options",
    "ipsec": "asks the IPsec state",
    "osf": "guesses the sender's operating system",
    "tunnel": "asks the tunnel metadata",
}
VERDICTS = frozenset({"accept", "drop", "continue", "return", "jump", "goto"})


def shown(value: Any) -> str:
    """JSON as text, bounded."""
    try:
        return json.dumps(value, ensure_ascii=True)[:400]
    except (ValueError, TypeError, RecursionError):
        return "(too deep)"


def expression(value: Any) -> Expression:
    """Any expression; what is not understood is `Unknown`."""
    if isinstance(value, bool):
        return Constant(int(value))
    if isinstance(value, int):
        return Constant(value)
    if isinstance(value, str):
        return SetReference(value[1:]) if value.startswith("@") and len(value) > 1 else Constant(value)
    if isinstance(value, list):
        return Flags(tuple(expression(each) for each in value))
    if isinstance(value, dict) and len(value) == 1:
        ((kind, body),) = value.items()
        read = _object(kind, body)
        if read is not None:
            return read
    return Unknown("expression", shown(value))


def data_of(value: Any) -> Expression | Verdict:
    """What a map holds: a verdict or a value."""
    return verdict(value) or expression(value)


def verdict(value: Any) -> Verdict | None:
    """`{"jump": {"target": "x"}}`; None where it is no verdict."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, body),) = value.items()
    if kind not in VERDICTS:
        return None
    if kind in ("jump", "goto"):
        target = body.get("target") if isinstance(body, dict) else None
        return Verdict(kind, target) if isinstance(target, str) else None
    return Verdict(kind) if body is None else None


def set_of(value: Any) -> SetLiteral | SetReference | None:
    """The right side of a map: named or anonymous."""
    read = expression(value)
    return read if isinstance(read, (SetLiteral, SetReference)) else None


def _object(kind: str, body: Any) -> Expression | None:
    if kind in _OPERATORS:
        if not isinstance(body, list) or len(body) < 2:
            return None
        return Binary(kind, tuple(expression(each) for each in body))
    if kind == "set":
        return _set(body)
    if kind == "concat":
        return Concat(tuple(expression(each) for each in body)) if isinstance(body, list) and body else None
    if kind == "range":
        return _range(body)
    if kind in _OTHERS:
        return Other(_OTHERS[kind], f"{kind} {shown(body)}")
    if kind == "elem":
        # with its timeout, expiry, comment and counter; statements may stand in it too
        if isinstance(body, dict) and "val" in body:
            if any(name in body for name in ("limit", "quota", "ct count")):
                return Unknown("an element with a limit", shown(body))
            return expression(body["val"])
        return None
    if not isinstance(body, dict):
        return None
    return _field(kind, body)


def _field(kind: str, body: dict[str, Any]) -> Expression | None:
    if kind == "payload":
        return _payload(body)
    if kind == "meta":
        key = body.get("key")
        return Meta(key) if isinstance(key, str) and set(body) == {"key"} else None
    if kind == "ct":
        return _ct(body)
    if kind == "fib":
        return _fib(body)
    if kind == "prefix":
        address, length = body.get("addr"), body.get("len")
        if isinstance(address, str) and isinstance(length, int) and not isinstance(length, bool):
            return Prefix(address, length)
        return None
    if kind in ("numgen", "jhash", "symhash"):
        modulus, offset = body.get("mod"), body.get("offset", 0)
        if isinstance(modulus, int) and isinstance(offset, int) and modulus > 0:
            return Pick(kind, modulus, offset)
        return None
    if kind == "map":
        held = set_of(body.get("data"))
        return MapLookup(expression(body.get("key")), held) if held is not None else None
    return None


def _set(body: Any) -> Expression:
    values = body if isinstance(body, list) else [body]
    elements = []
    for each in values:
        if isinstance(each, list) and len(each) == 2:
            elements.append(Element(expression(each[0]), data_of(each[1])))
        else:
            elements.append(Element(expression(each)))
    return SetLiteral(tuple(elements))


def _range(body: Any) -> Expression | None:
    if not isinstance(body, list) or len(body) != 2:
        return None
    low, high = expression(body[0]), expression(body[1])
    return Range(low, high) if isinstance(low, Constant) and isinstance(high, Constant) else None


def _payload(body: dict[str, Any]) -> Expression | None:
    protocol, name = body.get("protocol"), body.get("field")
    if isinstance(protocol, str) and isinstance(name, str):
        return Payload(protocol, name)
    base, offset, length = body.get("base"), body.get("offset"), body.get("len")
    if isinstance(base, str) and isinstance(offset, int) and isinstance(length, int):
        return RawPayload(base, offset, length)
    return None


def _ct(body: dict[str, Any]) -> Expression | None:
    key, direction = body.get("key"), body.get("dir", "")
    if (
        not isinstance(key, str)
        or direction not in ("", "original", "reply")
        or not set(body) <= {"key", "dir", "family"}
    ):
        return None
    return Ct(key, direction)


def _fib(body: dict[str, Any]) -> Expression | None:
    result, flags = body.get("result"), body.get("flags", [])
    flags = [flags] if isinstance(flags, str) else flags
    if result not in ("oif", "oifname", "type") or not isinstance(flags, list):
        return None
    if not set(map(str, flags)) <= {"saddr", "daddr", "iif", "oif", "mark"}:
        return None
    return Fib(result, tuple(flags))
