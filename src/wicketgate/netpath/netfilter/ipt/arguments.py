# SPDX-License-Identifier: Apache-2.0
"""Small things that all matches of iptables share: arguments, ranges, marks, negation."""

from __future__ import annotations

from collections.abc import Callable

from wicketgate.netpath.netfilter import names
from wicketgate.netpath.netfilter.ipt.model import Option
from wicketgate.netpath.netfilter.run import Doubt, Run

Test = Callable[[Run], "bool | Doubt"]


class NotKnownError(Exception):
    """An option that the model does not know; the text says which."""


def unless(negated: bool, test: Test) -> Test:
    """The test, or its opposite."""
    if not negated:
        return test

    def negation(run: Run) -> bool | Doubt:
        answer = test(run)
        return answer if isinstance(answer, Doubt) else not answer

    return negation


def argument(option: Option) -> str:
    """The one argument of an option."""
    if len(option.args) != 1:
        raise NotKnownError(f"{option.spelled()}: one argument expected")
    return option.args[0]


def port_range(text: str, separator: str = ":") -> tuple[int, int]:
    """`80`, `80:90`, `:90`, `80:`."""
    low, found, high = text.partition(separator)
    if not found:
        return names.number(low), names.number(low)
    return names.number(low or "0"), names.number(high or "65535")


def mark_and_mask(text: str) -> tuple[int, int]:
    """`0x4/0xff`, or a mark alone with all bits."""
    value, _, mask = text.partition("/")
    return names.number(value), names.number(mask) if mask else 0xFFFFFFFF
