# SPDX-License-Identifier: Apache-2.0
"""Expressions of nft's text, made into those of libnftables-json(5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wicketgate.netpath.paste.nft_words import NotReadError, Quoted, Words, literal

Json = Any

_BARE_META = frozenset({
    "iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "iifgroup", "oifgroup", "iifkind", "oifkind", "skuid",
    "skgid", "nftrace", "rtclassid", "ibrname", "obrname", "pkttype", "cpu", "cgroup", "mark",
})  # fmt: skip
HEADERS = frozenset({
    "ether", "vlan", "arp", "ip", "ip6", "icmp", "icmpv6", "igmp", "tcp", "udp", "udplite", "sctp", "dccp", "th", "ah",
    "esp", "comp", "gre", "gretap", "vxlan", "geneve",
})  # fmt: skip
_EXTENSIONS = frozenset({"frag", "hbh", "dst", "mh", "rt0", "rt2", "srh"})
_CT_DIRECTIONS = ("original", "reply")
_CT_ADDRESSED = frozenset({"ip", "ip6"})
_MOST_OPERATORS = 32  # one behind the other: each bit of a mark
_BITWISE = ("&", "|", "^", "<<", ">>")
_MARKS = frozenset({"ct state", "ct status", "tcp flags", "ct label", "ct event"})  # bits: `in` is implied
COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">=", "!"})
_ELEMENT_WORDS = frozenset({"timeout", "expires", "comment", "counter", "limit", "quota", "ct", "last"})


def expression(words: Words) -> Json:
    """A calculation, a map, a concatenation or a single field.

    Raises:
        NotReadError: it is none that is known.
    """
    found = _concatenation(words)
    if words.skip("map"):
        found = {"map": {"key": found, "data": set_value(words)}}
        if words.peek() in (".", "map"):  # nobody prints it, and it must not be misread
            raise NotReadError("more behind a map")
    return found


def _concatenation(words: Words) -> Json:
    parts = [_calculation(words)]
    while words.skip("."):
        parts.append(_calculation(words))
    return {"concat": parts} if len(parts) > 1 else parts[0]


def _calculation(words: Words) -> Json:
    """Of one strength and from the left: nft prints parentheses where it should be read otherwise."""
    left = _primary(words)
    for _ in range(_MOST_OPERATORS):
        if words.peek() not in _BITWISE or isinstance(words.peek(), Quoted):
            return left
        operator = words.take()
        left = {operator: [left, _primary(words)]}
    raise NotReadError("too many operators")


def _primary(words: Words) -> Json:
    word = words.take()
    if isinstance(word, Quoted):
        return str(word)
    if word == "(":
        words.go_in()
        found = _calculation(words)
        words.go_out()
        words.expect(")")
        return found
    if word in "{};,)":
        raise NotReadError(f"{word!r} where a value should be")
    if word in HEADERS:
        return _header(word, words)
    reader = _READERS.get(word)
    if reader is not None:
        return reader(words)
    if word in _BARE_META:
        return {"meta": {"key": word}}
    if word == "exthdr":  # exthdr frag exists
        return {"exthdr": {"name": str(words.take())}}
    if word in _EXTENSIONS:
        return {"exthdr": {"name": word, "field": str(words.take())}}
    if word.startswith("@") and "," in word:
        base, offset, length = word[1:].split(",")
        return {"payload": {"base": base, "offset": int(offset), "len": int(length)}}
    return literal(word)


def _header(protocol: str, words: Words) -> Json:
    name = words.take()
    if name == "option" and protocol in ("tcp", "ip", "dccp"):
        option = {"name": str(words.take())}
        if words.peek() in (
            "kind",
            "length",
            "size",
            "count",
            "left",
            "right",
            "addr",
            "ptr",
            "type",
            "value",
            "tsval",
        ):
            option["field"] = words.take()
        return {f"{protocol} option": option}
    if name == "chunk":
        return {"sctp chunk": {"name": str(words.take())}}
    if isinstance(name, Quoted) or not name.replace("-", "").isalnum():
        raise NotReadError(f"{protocol} {name[:40]}")
    return {"payload": {"protocol": protocol, "field": name}}


def _meta(words: Words) -> Json:
    return {"meta": {"key": str(words.take())}}


def _ct(words: Words) -> Json:
    if words.peek() in _CT_DIRECTIONS:
        direction, key = words.take(), words.take()
        if key in _CT_ADDRESSED:
            key += " " + words.take()
        return {"ct": {"key": str(key), "dir": direction}}
    return {"ct": {"key": str(words.take())}}


def _fib(words: Words) -> Json:
    flags = [words.take()]
    while words.skip("."):
        flags.append(words.take())
    return {"fib": {"result": str(words.take()), "flags": flags}}


def _modulus(words: Words) -> dict[str, Json]:
    words.expect("mod")
    found: dict[str, Json] = {"mod": literal(words.take())}
    while words.peek() in ("seed", "offset"):
        name = words.take()
        found[name] = literal(words.take())
    return found


def _numgen(words: Words) -> Json:
    return {"numgen": {"mode": str(words.take()), "offset": 0} | _modulus(words)}


def _jhash(words: Words) -> Json:
    return {"jhash": {"expr": _concatenation(words), "offset": 0} | _modulus(words)}


def _symhash(words: Words) -> Json:
    return {"symhash": {"offset": 0} | _modulus(words)}


def _socket(words: Words) -> Json:
    key = str(words.take())
    if key == "cgroupv2" and words.skip("level"):
        words.take()
    return {"socket": {"key": key}}


def _rt(words: Words) -> Json:
    family = words.take() if words.peek() in ("ip", "ip6") else None
    return {"rt": {"key": str(words.take())} | ({"family": family} if family else {})}


def _ipsec(words: Words) -> Json:
    found = {"dir": str(words.take())}
    if words.skip("spnum"):
        words.take()
    if words.peek() in ("ip", "ip6"):
        found["family"] = words.take()
    return {"ipsec": found | {"key": str(words.take())}}


def _osf(words: Words) -> Json:
    if words.skip("ttl"):
        words.take()
    return {"osf": {"key": str(words.take())}}


def _tunnel(words: Words) -> Json:
    return {"tunnel": {"key": str(words.take())}}


_READERS = {
    "meta": _meta, "ct": _ct, "fib": _fib, "numgen": _numgen, "jhash": _jhash, "symhash": _symhash, "socket": _socket,
    "rt": _rt, "ipsec": _ipsec, "osf": _osf, "tunnel": _tunnel,
}  # fmt: skip


def set_value(words: Words) -> Json:
    """`@name` or `{ 80, 443-445 }`, with data or without.

    Raises:
        NotReadError: neither.
    """
    if words.skip("{"):
        return {"set": elements(words)}
    word = words.take()
    if not word.startswith("@") or isinstance(word, Quoted):
        raise NotReadError(f"{word[:40]!r} where a set should be")
    return str(word)


def elements(words: Words, key: Callable[[Words], Json] | None = None) -> list[Json]:
    """What stands in braces, to the closing one.

    Args:
        words: behind the opening brace.
        key: reads an element's key; a constant without one.

    Raises:
        NotReadError: they are not closed, or hold what is not known.
    """
    words.go_in()
    found: list[Json] = []
    while not words.skip("}"):
        found.append(_element(words, key or value))
        if not words.skip(","):
            words.expect("}")
            break
    words.go_out()
    return found


def _element(words: Words, read: Callable[[Words], Json]) -> Json:
    key = read(words)
    extra: dict[str, Json] = {}
    while words.peek() in _ELEMENT_WORDS and not isinstance(words.peek(), Quoted):
        name = words.take()
        if name == "ct":
            words.expect("count")
            name = "ct count"
        extra[name] = _until_next(words)
    if extra:
        key = {"elem": {"val": key} | extra}
    if words.skip(":"):
        return [key, data(words)]
    return key


def _until_next(words: Words) -> str:
    taken: list[str] = []
    while words and words.peek() not in (",", "}", ":") and words.peek() not in _ELEMENT_WORDS:
        taken.append(words.take())
    return " ".join(taken)


def data(words: Words) -> Json:
    """What a map holds: a verdict, or a value."""
    return verdict(words) or value(words)


def verdict(words: Words) -> Json | None:
    """`accept`, `jump x`; None where none stands."""
    word = words.peek()
    if isinstance(word, Quoted):
        return None
    if word in ("accept", "drop", "continue", "return"):
        words.take()
        return {str(word): None}
    if word in ("jump", "goto"):
        words.take()
        return {str(word): {"target": str(words.take())}}
    return None


def value(words: Words) -> Json:
    """A constant: one, several whose bits are meant (`a | b`), or a concatenation."""
    parts = [_one_value(words)]
    while words.skip("."):
        parts.append(_one_value(words))
    return {"concat": parts} if len(parts) > 1 else parts[0]


def _one_value(words: Words) -> Json:
    found = _constant(words)
    for _ in range(_MOST_OPERATORS):
        if not words.skip("|"):
            return found
        found = {"|": [found, _constant(words)]}
    raise NotReadError("too many operators")


def _constant(words: Words) -> Json:
    """A literal: `tcp` here is a protocol's name, and no header."""
    word = words.take()
    if isinstance(word, Quoted):
        return str(word)
    if word == "(":
        words.go_in()
        found = _one_value(words)
        words.go_out()
        words.expect(")")
        return found
    if word in "{};,)" or word.startswith("@"):
        raise NotReadError(f"{word[:40]!r} where a value should be")
    if word in ("meta", "ct") and words.peek() == "mark":
        raise NotReadError("a comparison of two fields")
    return literal(word)


def match(left: Json, words: Words) -> Json:
    """The rest of a match behind its left side.

    Raises:
        NotReadError: it is none.
    """
    operator = words.take() if words.peek() in COMPARISONS and not isinstance(words.peek(), Quoted) else ""
    right = _right(left, words)
    if words.skip("/"):  # tcp flags syn / fin,syn,rst,ack
        left, operator = {"&": [left, _listed(words)]}, operator or "=="
    if not operator:
        bits = _name(left) in _MARKS and not (isinstance(right, dict) and "set" in right)
        operator = "in" if bits and not (isinstance(right, str) and right.startswith("@")) else "=="
    return {"match": {"op": operator, "left": left, "right": right}}


def _right(left: Json, words: Words) -> Json:
    if words.is_sign("{") or (words.peek().startswith("@") and "," not in words.peek()):
        return set_value(words)
    found = value(words)
    if words.is_sign(","):
        found = [found]
        while words.skip(","):
            found.append(_constant(words))
    if isinstance(left, dict) and "fib" in left and found in ("exists", "missing"):
        return found == "exists"
    if _is_presence(left) and found in ("exists", "missing"):
        return found == "exists"
    return found


def _listed(words: Words) -> Json:
    found = [_constant(words)]
    while words.skip(","):
        found.append(_constant(words))
    return found if len(found) > 1 else found[0]


def _is_presence(left: Json) -> bool:
    return isinstance(left, dict) and bool({"exthdr", "tcp option", "ip option", "sctp chunk"} & set(left))


def _name(left: Json) -> str:
    if not isinstance(left, dict):
        return ""
    if "ct" in left and "dir" not in left["ct"]:
        return f"ct {left['ct']['key']}"
    if "payload" in left and "protocol" in left["payload"]:
        return f"{left['payload']['protocol']} {left['payload']['field']}"
    return ""
