# SPDX-License-Identifier: Apache-2.0
"""What nft's statements do, made into functions of the run.

An effect gives None (the next statement), False (the rule ends here, NFT_BREAK), a `Verdict`, or an `End`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.conntrack import SIDE
from wicketgate.netpath.netfilter.nft.compile import Compiler, find
from wicketgate.netpath.netfilter.nft.model import (
    Concat,
    Conditional,
    Constant,
    Ct,
    Effectless,
    Expression,
    Mangle,
    MapLookup,
    MatchStatement,
    Meta,
    Nat,
    Notrack,
    Other,
    Payload,
    Prefix,
    Range,
    Reject,
    Statement,
    Unknown,
    Unpredictable,
    Verdict,
    VerdictMap,
)
from wicketgate.netpath.netfilter.nft.values import NotKnownError, Type, constant, interval
from wicketgate.netpath.netfilter.run import Doubt, End, Run, UnknowableError
from wicketgate.netpath.netfilter.targets import Goal, masquerade, redirect, reject, translate_to
from wicketgate.netpath.packet import RST, TCP, ConnState
from wicketgate.netpath.snapshot import IPAddress

Outcome = Verdict | End | Literal[False] | None
Effect = Callable[[Run, str], Outcome]

ACCEPT = Verdict("accept")
# Changes of these do not move the packet; the rest of what `set` may change could.
_IDLE_META = frozenset({"nftrace", "priority", "rtclassid", "secmark"})
_IDLE_CT = frozenset({"event", "label", "secmark", "helper", "timeout", "expectation", "eventmask"})


def compile_statement(statement: Statement, compiler: Compiler, family: str) -> Effect | None:
    """The effect of a statement; None where it has none.

    Raises:
        NotKnownError: the model does not know it.
    """
    match statement:
        case MatchStatement():
            test = compiler.test(statement)

            def match(run: Run, _where: str) -> Outcome:
                answer = test(run)
                return None if answer is True else False if answer is False or not run.believes(answer) else None

            return match
        case Verdict("continue"):
            return None
        case Verdict():
            return lambda _run, _where: statement
        case VerdictMap():
            return _verdict_map(statement, compiler)
        case Mangle():
            return _mangle(statement, compiler)
        case Reject():
            return _reject(statement)
        case Nat():
            return _nat(statement, compiler, family)
        case Notrack():
            return _notrack
        case Effectless():
            return None
        case Conditional(what, reason):
            doubt = Doubt(f"`{what}` {reason}" if what not in reason else reason)
            return lambda run, _where: None if run.believes(doubt) else False
        case Unpredictable(_, reason):
            return _unknowable(reason)
        case Unknown(what, text):
            raise NotKnownError(f"{what}: {text[:120]}")


def writes(statement: Statement) -> bool:
    """It changes the packet or the connection, or tells the sender: the order of chains may matter."""
    return isinstance(statement, (Mangle, Reject, Nat, Notrack, Unpredictable, Unknown))


def _unknowable(reason: str) -> Effect:
    def effect(_run: Run, where: str) -> Outcome:
        raise UnknowableError(where, reason)

    return effect


def _verdict_map(statement: VerdictMap, compiler: Compiler) -> Effect:
    getter, kinds = compiler.key(statement.key)
    index = compiler.index(statement.data, kinds)

    def effect(run: Run, where: str) -> Outcome:
        found = find(run, getter, index)
        if found is None:
            return False  # no element: nft_lookup_eval gives NFT_BREAK
        if isinstance(found, Verdict):
            return None if found.kind == "continue" else found
        raise UnknowableError(where, found.reason if isinstance(found, Doubt) else f"no verdict: {found}")

    return effect


def _mangle(statement: Mangle, compiler: Compiler) -> Effect | None:
    key = statement.key
    if isinstance(key, Meta) and key.key in _IDLE_META:
        return None
    if isinstance(key, Ct) and key.key in _IDLE_CT:
        return None
    if isinstance(key, Other):  # tcp option maxseg size set rt mtu
        return None
    if isinstance(key, Meta) and key.key == "mark":
        return _setting(compiler, statement.value, Type.NUMBER, lambda run, mark, where: run.set_mark(mark, where))
    if isinstance(key, Ct) and key.key == "mark":
        return _setting(
            compiler, statement.value, Type.NUMBER, lambda run, mark, where: run.set_connection_mark(mark, where)
        )
    if isinstance(key, Ct) and key.key == "zone":
        return _setting(compiler, statement.value, Type.NUMBER, _set_zone)
    if isinstance(key, Payload) and (key.protocol, key.field) in _HEADER:
        kind = {"dscp": Type.DSCP, "ecn": Type.ECN}.get(key.field, Type.NUMBER)
        return _of_family(
            {"ip": 4, "ip6": 6}[key.protocol],
            _setting(compiler, statement.value, kind, _HEADER[key.protocol, key.field]),
        )
    return _unknowable(f"the rule changes {key}, which the model does not follow")


def _setting(compiler: Compiler, value: Expression, kind: Type, apply: Callable[[Run, int, str], None]) -> Effect:
    getter, _ = compiler.value(value, kind)

    def effect(run: Run, where: str) -> Outcome:
        found = getter(run)
        if found is None:
            return False
        if not isinstance(found, int):
            raise UnknowableError(where, found.reason if isinstance(found, Doubt) else f"no number: {found}")
        apply(run, found, where)
        return None

    return effect


def _of_family(version: int, effect: Effect) -> Effect:
    """There is a `meta nfproto` before a change of a header, as before a match; nft prints neither."""

    def only(run: Run, where: str) -> Outcome:
        return effect(run, where) if run.version == version else False

    return only


def _set_zone(run: Run, zone: int, _where: str) -> None:
    if not run.tracked and run.connection.state is not ConnState.UNTRACKED:
        run.connection = replace(run.connection, zone=zone)


def _set_hop_limit(run: Run, value: int, _where: str) -> None:
    run.set_packet(replace(run.packet, hop_limit=value & 0xFF))


def _set_dscp(run: Run, value: int, _where: str) -> None:
    run.set_packet(replace(run.packet, tos=(value << 2 & 0xFF) | run.packet.tos & 3))


def _set_ecn(run: Run, value: int, _where: str) -> None:
    run.set_packet(replace(run.packet, tos=run.packet.tos & 0xFC | value & 3))


_HEADER: dict[tuple[str, str], Callable[[Run, int, str], None]] = {
    ("ip", "ttl"): _set_hop_limit, ("ip6", "hoplimit"): _set_hop_limit, ("ip", "dscp"): _set_dscp,
    ("ip6", "dscp"): _set_dscp, ("ip", "ecn"): _set_ecn, ("ip6", "ecn"): _set_ecn,
}  # fmt: skip


def _notrack(run: Run, _where: str) -> Outcome:
    # nft_notrack_eval: a packet that tracking has seen keeps what it has
    if not run.tracked:
        run.connection = replace(run.connection, state=ConnState.UNTRACKED)
    return None


def _reject(statement: Reject) -> Effect:
    kind, code = statement.type, statement.code

    def effect(run: Run, where: str) -> Outcome:
        if kind == "tcp reset":
            if run.protocol != TCP:
                return False
            if run.packet.tcp_flags & RST:
                return End(HookVerdict.DROP, where, "a reset is not answered by a reset")
            return reject(where, "tcp-reset")
        if (kind == "icmp" and run.version != 4) or (kind == "icmpv6" and run.version != 6):
            return False
        name = code
        if kind == "icmpx":  # NFT_REJECT_ICMPX_*, nft_reject_icmp_code and nft_reject_icmpv6_code
            name = {
                "host-unreachable": "addr-unreachable" if run.version == 6 else code,
                "no-route": "net-unreachable" if run.version == 4 else code,
            }.get(code, code)
        return reject(where, f"icmp{'v6' if run.version == 6 else ''}-{name}")

    return effect


def _nat(statement: Nat, compiler: Compiler, family: str) -> Effect:
    of = statement.family or (family if family in ("ip", "ip6") else "")
    version = {"ip": 4, "ip6": 6}.get(of, 0)
    kind = statement.kind
    goal = _goal(statement, compiler)

    def effect(run: Run, where: str) -> Outcome:
        if version and run.version != version:
            return False
        wanted = goal(run, where)
        if wanted is None:
            return False
        if kind == "masquerade":
            return masquerade(run, wanted.ports, where, random=wanted.random) or ACCEPT
        if kind == "redirect":
            return redirect(run, wanted.ports, where) or ACCEPT
        translate_to(run, "source" if kind == "snat" else "destination", wanted, where)
        return ACCEPT

    return effect


def _goal(statement: Nat, compiler: Compiler) -> Callable[[Run, str], Goal | None]:
    address = _resolver(statement.address, compiler)
    port = _resolver(statement.port, compiler)
    random = bool({"random", "fully-random"} & set(statement.flags))

    def goal(run: Run, where: str) -> Goal | None:
        to, through = address(run, where), port(run, where)
        if to is False or through is False:
            return None
        try:
            ports = _ports(through, compiler)
            if isinstance(to, Concat):
                if len(to.parts) != 2:
                    raise NotKnownError(f"no address and port: {to}")
                ports = _ports(to.parts[1], compiler)
                to = to.parts[0]
            if to is None:
                return Goal(None, ports, random)
            if isinstance(to, Prefix) and statement.prefix:
                mapped = _mapped(run, to, compiler)
                return Goal((mapped, mapped), ports, random)
            low, high = interval(to, Type.ADDRESS, compiler.facts)
            return Goal((_address(low, run), _address(high, run)), ports, random)
        except (NotKnownError, ValueError) as error:
            raise UnknowableError(where, str(error)) from error

    return goal


Resolver = Callable[[Run, str], "Expression | Literal[False] | None"]


def _resolver(expression: Expression | None, compiler: Compiler) -> Resolver:
    """Constants stay as they are; maps and fields are looked up. False ends the rule, None is no value at all."""
    if expression is None or isinstance(expression, (Constant, Prefix, Range, Concat)):
        return lambda _run, _where: expression
    if isinstance(expression, MapLookup):
        getter, kinds = compiler.key(expression.key)
        index = compiler.index(expression.data, kinds)

        def mapped(run: Run, where: str) -> Expression | Literal[False]:
            found = find(run, getter, index)
            if found is None:
                return False
            if isinstance(found, (Doubt, Verdict)):
                raise UnknowableError(where, found.reason if isinstance(found, Doubt) else "a verdict for an address")
            return found

        return mapped
    getter, _ = compiler.value(expression)

    def field(run: Run, where: str) -> Expression | Literal[False]:
        found = getter(run)
        if isinstance(found, Doubt):
            raise UnknowableError(where, found.reason)
        return False if found is None else Constant(found)

    return field


def _ports(expression: Expression | None, compiler: Compiler) -> tuple[int, int] | None:
    if expression is None:
        return None
    if isinstance(expression, Range):
        return interval(expression, Type.NUMBER, compiler.facts)
    value = constant(expression, Type.NUMBER, compiler.facts)
    if not isinstance(value, int):
        raise NotKnownError(f"no port: {value}")
    return value, value


def _address(value: int, run: Run) -> IPAddress:
    return IPv4Address(value) if run.version == 4 else IPv6Address(value)


def _mapped(run: Run, prefix: Prefix, compiler: Compiler) -> IPAddress:
    """NF_NAT_RANGE_NETMAP: the host part stays."""
    low, high = interval(prefix, Type.ADDRESS, compiler.facts)
    now = run.source if SIDE[run.hook] == "source" else run.destination
    return _address(low | now & (high - low), run)
