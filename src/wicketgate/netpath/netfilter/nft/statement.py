# SPDX-License-Identifier: Apache-2.0
"""Statements of libnftables-json(5), read into the model."""

from __future__ import annotations

from typing import Any

from wicketgate.netpath.netfilter.nft.expression import expression, set_of, shown, verdict
from wicketgate.netpath.netfilter.nft.model import (
    Conditional,
    Constant,
    Effectless,
    Fib,
    Mangle,
    MatchStatement,
    Nat,
    Notrack,
    Reject,
    Statement,
    Unknown,
    Unpredictable,
    VerdictMap,
)

OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">=", "in", "!"})
_EFFECTLESS = frozenset({"counter", "log", "comment", "last", "ct helper", "ct timeout", "ct expectation", "secmark"})
_CONDITIONAL = {
    "limit": "a limit: counts packets",
    "quota": "a quota: counts bytes",
    "ct count": "counts connections",
    "connlimit": "counts connections",
    "meter": "a limit: counts packets",
    # made by netpath.paste: nft's text hides a `meta nfproto` before a reject
    "hidden family": "may hold for IPv4 or IPv6 alone: nft's text does not show it before a reject, its JSON does not either",
}
_UNPREDICTABLE = {
    "queue": "a program decides (queue)",
    "tproxy": "tproxy gives the packet to another socket",
    "dup": "the packet is doubled",
    "fwd": "the packet is sent out by another interface",
    "synproxy": "synproxy answers in the server's place",
}
_NAT = frozenset({"snat", "dnat", "masquerade", "redirect"})


def statement(value: Any) -> Statement:
    """Any statement; what is not understood is `Unknown`."""
    found = verdict(value)
    if found is not None:
        return found
    if isinstance(value, dict) and len(value) == 1:
        ((kind, body),) = value.items()
        read = _statement(kind, body)
        if read is not None:
            return read
    return Unknown("statement", shown(value))


def _statement(kind: str, body: Any) -> Statement | None:
    if kind in _EFFECTLESS:
        return Effectless(kind)
    if kind in _CONDITIONAL:
        return Conditional(kind, _CONDITIONAL[kind])
    if kind in _UNPREDICTABLE:
        return Unpredictable(kind, _UNPREDICTABLE[kind])
    if kind == "notrack":
        return Notrack()
    if kind == "flow":
        # Later packets of the connection take a short cut past the hooks; the first one does not.
        return Effectless(kind)
    if kind in ("set", "map"):
        return _update(kind, body)
    if kind in _NAT:
        return _nat(kind, body)
    if kind == "reject":
        return _reject(body)
    if kind == "xt":
        name = body.get("name") if isinstance(body, dict) else None
        return Unknown("an extension of iptables, which nft does not show", str(name)[:60])
    return _with_body(kind, body) if isinstance(body, dict) else None


def _with_body(kind: str, body: dict[str, Any]) -> Statement | None:
    if kind == "match":
        op = body.get("op", "==")
        if op not in OPERATORS or "left" not in body or "right" not in body:
            return None
        left, right = expression(body["left"]), expression(body["right"])
        if isinstance(left, Fib) and left.result == "oif" and right == Constant("0"):
            right = Constant(0)  # libnftables writes an interface that has no name as text
        return MatchStatement(op, left, right)
    if kind == "mangle" and "key" in body and "value" in body:
        return Mangle(expression(body["key"]), expression(body["value"]))
    if kind == "vmap":
        held = set_of(body.get("data"))
        return VerdictMap(expression(body.get("key")), held) if held is not None else None
    return None


def _update(kind: str, body: Any) -> Statement | None:
    if not isinstance(body, dict):
        return None
    if body.get("stmt"):
        return Conditional(f"{kind} with statements", "counts for each element")
    # add and update go on when the element is in the set afterwards; a full set is not foreseen
    return Effectless(f"{body.get('op', 'add')} {body.get(kind, '')}")


def _nat(kind: str, body: Any) -> Statement | None:
    if body is None:
        return Nat(kind)
    if not isinstance(body, dict) or not set(body) <= {"family", "addr", "port", "flags", "type_flags"}:
        return None
    flags = body.get("flags", [])
    flags = [flags] if isinstance(flags, str) else flags
    kinds = body.get("type_flags", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    family = body.get("family", "")
    if not isinstance(flags, list) or not isinstance(kinds, list) or family not in ("", "ip", "ip6"):
        return None
    return Nat(
        kind,
        family,
        expression(body["addr"]) if "addr" in body else None,
        expression(body["port"]) if "port" in body else None,
        tuple(map(str, flags)),
        "prefix" in kinds,
    )


def _reject(body: Any) -> Statement | None:
    if body is None:
        return Reject()
    if not isinstance(body, dict) or not set(body) <= {"type", "expr"}:
        return None
    kind, code = body.get("type", "icmpx"), body.get("expr", "port-unreachable")
    if kind not in ("icmp", "icmpv6", "icmpx", "tcp reset") or not isinstance(code, (str, int)):
        return None
    return Reject(kind, str(code))
