# SPDX-License-Identifier: Apache-2.0
"""`-m conntrack` and `-m state`, as xt_conntrack.c and xt_state.c answer them."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

from wicketgate.netpath.netfilter import drawn, names
from wicketgate.netpath.netfilter.conntrack import is_destination_nat, is_source_nat
from wicketgate.netpath.netfilter.ipt.model import Option
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.packet import Ends
from wicketgate.netpath.snapshot import Family

Test = Callable[[Run], "bool | Doubt"]
_STATES = frozenset({"INVALID", "ESTABLISHED", "RELATED", "NEW", "UNTRACKED", "SNAT", "DNAT"})


def state(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m state --state NEW,ESTABLISHED`."""
    return [_states(option) for option in options if _is(option, "state")]


def conntrack(options: tuple[Option, ...], family: Family) -> list[Test]:
    """`-m conntrack`. Without a connection nothing but --ctstate is looked at."""
    states = [_states(option) for option in options if option.name == "ctstate"]
    others = [_other(option, family) for option in options if option.name != "ctstate"]

    def test(run: Run) -> bool | Doubt:
        if not run.has_connection:
            return bool(states)
        doubt: Doubt | None = None
        for each in others:
            answer = each(run)
            if answer is False:
                return False
            doubt = answer if isinstance(answer, Doubt) else doubt
        return doubt or True

    return [*states, test] if others or not states else states


def _is(option: Option, name: str) -> bool:
    if option.name != name or len(option.args) != 1:
        raise ValueError(option.spelled())
    return True


def _states(option: Option) -> Test:
    wanted = frozenset(option.args[0].split(","))
    if len(option.args) != 1 or not wanted <= _STATES:
        raise ValueError(option.spelled())
    plain = frozenset(each.lower() for each in wanted)

    def test(run: Run) -> bool:
        found = run.ct_state.value in plain
        if not found and run.has_connection:
            found = ("SNAT" in wanted and is_source_nat(run)) or ("DNAT" in wanted and is_destination_nat(run))
        return found != option.negated

    return test


def _other(option: Option, family: Family) -> Test:
    name = option.name
    if len(option.args) != 1:
        raise ValueError(option.spelled())
    text = option.args[0]
    if name == "ctdir":
        wanted = {"ORIGINAL": "original", "REPLY": "reply"}[text]
        return lambda run: (run.connection.direction == wanted) != option.negated
    if name == "ctproto":
        protocol = names.PROTOCOLS.get(text)
        number = names.number(text) if protocol is None else protocol
        return lambda run: (run.connection.original.protocol == number) != option.negated
    if name == "ctstatus":
        return _status(option)
    if name == "ctexpire":
        doubt = Doubt(f"`{option.spelled()}` asks how long the connection still lives", option.spelled())
        return lambda _run: doubt
    if name.startswith(("ctorig", "ctrepl")):
        return _ends(option, family)
    raise ValueError(option.spelled())


def _status(option: Option) -> Test:
    bits = 0
    for each in option.args[0].split(","):
        bits |= {"NONE": 0, "EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8}[each]

    def test(run: Run) -> bool | Doubt:
        known, value = status(run)
        if value & bits:
            return not option.negated
        if bits & ~known:
            return Doubt(f"`{option.spelled()}`: whether the connection is assured is not known", "ct assured")
        return option.negated

    return test


def status(run: Run) -> tuple[int, int]:
    """`ct status`: which bits are known, and their values."""
    fresh = run.connection.state.value in ("new", "related") and run.connection.direction == "original"
    known = 0xFFFF if fresh else 0xFFFF & ~names.CT_STATUS["assured"]
    value = 0
    if not fresh:
        value |= names.CT_STATUS["confirmed"] | names.CT_STATUS["seen-reply"]
    elif run.iif == "lo":
        # On its way out to `lo` it was confirmed, behind POSTROUTING (nf_confirm), and kept its connection.
        value |= names.CT_STATUS["confirmed"]
    if is_source_nat(run):
        value |= names.CT_STATUS["snat"]
    if is_destination_nat(run):
        value |= names.CT_STATUS["dnat"]
    return known, value


def _ends(option: Option, family: Family) -> Test:
    rest = option.name[len("ctorig") :]
    original = option.name.startswith("ctorig")
    text = option.args[0]

    def side(run: Run) -> Ends:
        return run.connection.original if original else run.connection.answer

    if rest in ("src", "dst"):
        network = ip_network(text, strict=False)
        if network.version != family:
            raise ValueError(option.spelled())
        source = rest == "src"
        return lambda run: ((side(run).source if source else side(run).destination) in network) != option.negated
    if rest in ("srcport", "dstport"):
        low, _, high = text.partition(":")
        first, last = names.number(low), names.number(high or low)
        source = rest == "srcport"

        def test(run: Run) -> bool | Doubt:
            if not original and not source and run.connection.drawn is not None:
                held = drawn.within(run.connection.drawn, first, last)
                return Doubt(drawn.REASON) if held is None else held != option.negated
            port = side(run).source_port if source else side(run).destination_port
            return (first <= port <= last) != option.negated

        return test
    raise ValueError(option.spelled())


__all__ = ["conntrack", "state", "status"]
