# SPDX-License-Identifier: Apache-2.0
"""One rule of nft's text, made into the statements of libnftables-json(5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wicketgate.netpath.paste.nft_expression import (
    HEADERS,
    elements,
    expression,
    match,
    set_value,
    verdict,
)
from wicketgate.netpath.paste.nft_words import NotReadError, Quoted, Words, literal, tokens

Json = Any

NOT_READ = "not read"  # the key of a statement that could not be: no JSON of nft has it, so the model calls it unknown
HIDDEN = "hidden family"  # see `_doubt_rejects`

_NAT_FLAGS = frozenset({"random", "fully-random", "persistent"})
_LOG_WORDS = frozenset({"prefix", "level", "group", "snaplen", "queue-threshold"})
_REJECTS = {"ip": "icmp", "ip6": "icmpv6"}  # what a bare `reject` sends in a table of one family
_FAMILY_HEADERS = frozenset({"ip", "ip6", "icmp", "icmpv6"})


def statements(text: str, *, family: str) -> tuple[list[Json], str]:
    """The statements of a rule, and its comment. It never raises: what is not understood is said in its place.

    Args:
        text: the rule as nft prints it, in one line.
        family: of its table.
    """
    found: list[Json] = []
    comment = ""
    words = Words(tokens(text))
    try:
        while words:
            if words.peek().startswith("#") and not isinstance(words.peek(), Quoted):
                note = words.take()[1:].strip()
                if not note.startswith("handle "):  # older nft: `# xt_MASQUERADE`
                    found.append({"xt": {"type": "extension", "name": note[:60]}})
            elif words.skip(";"):
                pass
            elif words.skip("comment"):
                comment = str(words.take())
            else:
                found.append(_statement(words))
    except (NotReadError, RecursionError, ValueError) as error:
        found.append({NOT_READ: f"{text[:160]} ({error})"})
    whole: Json = {"type": _REJECTS.get(family, "icmpx"), "expr": "port-unreachable"}
    found = [{"reject": whole} if each == {"reject": None} else each for each in found]
    return (_doubt_rejects(found) if family == "inet" else found), comment


def _doubt_rejects(found: list[Json]) -> list[Json]:
    """The text of nft does not show a `meta nfproto` that stands before a `reject` in a table of both families.

    What it shows of one family, or a reject that is of one, settles it (stmt_reject_postprocess, nft 1.0.6).
    """
    settled = False
    told: list[Json] = []
    for each in found:
        if "match" in each and _names_family(each["match"]):
            settled = True
        body = each.get("reject", False)
        if body is not False and not settled and (body or {}).get("type") not in ("icmp", "icmpv6"):
            told.append({HIDDEN: None})
        told.append(each)
    return told


def _names_family(body: Json) -> bool:
    left = body["left"]
    parts = left["concat"] if isinstance(left, dict) and "concat" in left else [left]
    for part in parts:
        if not isinstance(part, dict):
            continue
        if part.get("payload", {}).get("protocol") in _FAMILY_HEADERS or part.get("meta", {}).get("key") == "nfproto":
            return True
    return False


def _statement(words: Words) -> Json:
    found = verdict(words)
    if found is not None:
        return found
    word = words.peek()
    reader = None if isinstance(word, Quoted) else _READERS.get(word)
    if reader is not None:
        words.take()
        return reader(words)
    if word == "ct" and words.peek(1) == "count":
        words.skip("ct", "count")
        words.skip("over")
        return {"ct count": {"val": literal(words.take())}}
    if word == "tcp" and words.skip("tcp", "reset"):
        raise NotReadError("tcp reset")
    return _of_expression(words)


def _of_expression(words: Words) -> Json:
    left = expression(words)
    if words.skip("vmap"):
        return {"vmap": {"key": left, "data": set_value(words)}}
    if words.skip("set"):
        if isinstance(left, dict) and "ct" in left and left["ct"]["key"] in ("helper", "timeout", "expectation"):
            return {f"ct {left['ct']['key']}": str(words.take())}
        return {"mangle": {"key": left, "value": _set_to(words)}}
    if not isinstance(left, dict):
        raise NotReadError(f"{str(left)[:60]!r} where a statement should be")
    return match(left, words)


def _set_to(words: Words) -> Json:
    found = expression(words)
    if words.is_sign(","):  # ct event set new,related
        found = [found]
        while words.skip(","):
            found.append(expression(words))
    return found


def _counter(words: Words) -> Json:
    if words.skip("name"):
        return {"counter": str(words.take())}
    body = {}
    while words.peek() in ("packets", "bytes"):
        name = words.take()
        body[name] = literal(words.take())
    return {"counter": body or None}


def _limit(words: Words) -> Json:
    if words.skip("name"):
        return {"limit": str(words.take())}
    words.expect("rate")
    words.skip("over")
    body: dict[str, Json] = {"rate": str(words.take())}
    _skip_unit(words)
    if words.skip("burst"):
        body["burst"] = literal(words.take())
        _skip_unit(words)
    return {"limit": body}


def _skip_unit(words: Words) -> None:
    if words.peek().split("/")[0] in ("packets", "bytes", "kbytes", "mbytes"):
        words.take()


def _quota(words: Words) -> Json:
    if words.skip("name"):
        return {"quota": str(words.take())}
    words.skip("over")
    words.skip("until")
    body = {"val": literal(words.take())}
    _skip_unit(words)
    if words.skip("used"):
        words.take()
        _skip_unit(words)
    return {"quota": body}


def _log(words: Words) -> Json:
    body: dict[str, Json] = {}
    while words.peek() in _LOG_WORDS or words.peek() == "flags":
        name = words.take()
        if name == "flags":
            _log_flags(words)
        else:
            body[name] = literal(words.take())
    return {"log": body or None}


def _log_flags(words: Words) -> None:
    if words.peek() in ("all", "skuid", "ether"):
        words.take()
        return
    words.take()  # tcp, ip
    words.take()
    while words.skip(","):
        words.take()


def _reject(words: Words) -> Json:
    if not words.skip("with"):
        return {"reject": None}
    kind = words.take()
    if kind == "tcp":
        words.expect("reset")
        return {"reject": {"type": "tcp reset"}}
    if kind not in ("icmp", "icmpv6", "icmpx"):
        raise NotReadError(f"reject with {kind[:40]}")
    words.skip("type")
    return {"reject": {"type": kind, "expr": literal(words.take())}}


def _nat(kind: str) -> Callable[[Words], Json]:
    def read(words: Words) -> Json:
        body: dict[str, Json] = {}
        if words.peek() in ("ip", "ip6") and words.peek(1) in ("to", "prefix", "addr", "interval"):
            body["family"] = words.take()
        types = []
        while words.peek() in ("prefix", "interval", "addr", "."):
            kind_word = words.take()
            if kind_word == "prefix":
                types.append("prefix")
            if kind_word == ".":
                words.expect("port")
        if types:
            body["type_flags"] = types if len(types) > 1 else types[0]
        if words.skip("to"):
            body |= _goal(words)
        flags = []
        while words.peek() in _NAT_FLAGS:
            flags.append(words.take())
            words.skip(",")
        if "prefix" in types:
            flags.append("netmap")  # as nft's JSON has it (NF_NAT_RANGE_NETMAP)
        if flags:
            body["flags"] = flags if len(flags) > 1 else flags[0]
        return {kind: body or None}

    return read


def _goal(words: Words) -> dict[str, Json]:
    """Address, port or both: `10.0.0.1:80-90`, `[fd00::1]:80`, `:80`, or a field, a map, a concatenation."""
    word = words.peek()
    if isinstance(word, Quoted) or word in HEADERS or word in ("meta", "ct", "numgen", "jhash", "symhash", "("):
        found = expression(words)
        if words.peek().startswith(":") and words.peek() != ":":
            return {"addr": found, "port": literal(words.take()[1:])}
        if words.skip(":"):
            return {"addr": found, "port": expression(words)}
        return {"addr": found}
    words.take()
    if word == ":":  # `redirect to :tcp dport map {...}` is printed with the colon apart in some versions
        return {"port": expression(words)}
    if word.startswith(":"):
        rest = word[1:]
        if rest in HEADERS:
            return {"port": expression(_with(rest, words))}
        return {"port": literal(rest)}
    if word.startswith("["):
        return _bracketed(word)
    address, colon, port = word.rpartition(":")
    if colon and "." in address and address.count(":") == 0:
        return {"addr": literal(address), "port": literal(port)}
    return {"addr": literal(word)}


def _with(first: str, words: Words) -> Words:
    """The words with one more before them."""
    rest = [first]
    while words:
        rest.append(words.take())
    return Words(rest)


def _bracketed(word: str) -> dict[str, Json]:
    """`[fd00::1]:80`, `[fd00::1]-[fd00::9]:80`, `[fd00::1]`."""
    inside, bracket, rest = word.rpartition("]")
    if not bracket:
        raise NotReadError(word[:60])
    address = inside.replace("[", "").replace("]", "")
    found = {"addr": literal(address)}
    if rest.startswith(":"):
        found["port"] = literal(rest[1:])
    elif rest:
        raise NotReadError(word[:60])
    return found


def _update(operation: str) -> Callable[[Words], Json]:
    def read(words: Words) -> Json:
        name = words.take()
        if not name.startswith("@"):
            raise NotReadError(f"{operation} {name[:40]}")
        words.expect("{")
        body: dict[str, Json] = {"op": operation, "set": str(name)}
        found = elements(words, expression)
        key = found[0] if found else None
        kind = "map" if isinstance(key, list) else "set"
        if isinstance(key, dict) and "elem" in key and {"limit", "quota", "ct count"} & set(key["elem"]):
            body["stmt"] = [{"limit": None}]
        if kind == "map":
            body["map"] = body.pop("set")
        return {kind: body | {"elem": key}}

    return read


def _rest_of(kind: str) -> Callable[[Words], Json]:
    """A statement that takes the packet out of sight: its words do not matter."""

    def read(words: Words) -> Json:
        depth = 0
        while words and not (depth == 0 and words.peek() in ("comment", ";")):
            word = words.take()
            depth += (word == "{") - (word == "}")
        return {kind: None}

    return read


def _flow(words: Words) -> Json:
    words.take()
    return {"flow": {"op": "add", "flowtable": str(words.take())}}


def _last(words: Words) -> Json:
    if words.skip("used"):
        words.take()
        words.skip("ago")
    return {"last": None}


def _xt(words: Words) -> Json:
    kind = str(words.take())
    return {"xt": {"type": kind, "name": str(words.take())}}


_READERS: dict[str, Callable[[Words], Json]] = {
    "counter": _counter, "limit": _limit, "quota": _quota, "log": _log, "reject": _reject, "snat": _nat("snat"),
    "dnat": _nat("dnat"), "masquerade": _nat("masquerade"), "redirect": _nat("redirect"),
    "notrack": lambda _words: {"notrack": None}, "last": _last, "add": _update("add"),
    "update": _update("update"), "delete": _update("delete"), "queue": _rest_of("queue"), "tproxy": _rest_of("tproxy"),
    "dup": _rest_of("dup"), "fwd": _rest_of("fwd"), "synproxy": _rest_of("synproxy"), "meter": _rest_of("meter"),
    "flow": _flow, "xt": _xt,
}  # fmt: skip
