# SPDX-License-Identifier: Apache-2.0
"""The listing that people paste most, `iptables -L`, put into the words of `iptables -S`.

It is made for eyes: without -v it leaves out interfaces, without -n it has names for numbers, and each match prints itself in a
form of its own (the `print` function of its libxt_*.c). What is left out or not understood becomes a match that nobody knows, so
that no verdict rests on it.
"""

from __future__ import annotations

import re

from wicketgate.netpath.netfilter.names import INTERFACES_NOT_LISTED, NOT_UNDERSTOOD
from wicketgate.netpath.paste.printed_match import typed

_CHAIN = re.compile(r"^Chain (\S+) \((?:policy (ACCEPT|DROP|QUEUE|RETURN)\b[^)]*|\d+ references)\)$")
_HEAD = re.compile(r"^(num +)?(pkts +bytes +)?target +prot +opt +(in +out +)?source +destination *$")
_COUNT = r"\d+[KMGTP]?"
_PROTOCOL = re.compile(
    r"!?(?:all|tcp|udp|udplite|icmp|icmpv6|ipv6-icmp|igmp|esp|ah|gre|sctp|dccp|ipv6|ipencap|ipip|vrrp|ospf|pim|mh|\d{1,3})$"
)
_OPT = frozenset({"--", "-f", "!f"})
_ANY = frozenset({"0.0.0.0/0", "::/0", "anywhere", "*", "any", "all", "0"})
_ADDRESS = re.compile(r"!?(?:[\d.]+(?:/[\d.]+)?|[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:/\S+)?)$")


class ChainReader:
    """Reads the lines of such listings, one after the other.

    Attributes:
        hides_interfaces: a listing without -v was read.
        broken: the chain that the last line ended, although it stands right below its rules: it may have been one of them.
    """

    def __init__(self) -> None:
        self.hides_interfaces = False
        self.broken = ""
        self._chain = ""
        self._spaced = False
        self._numbered = self._counted = self._interfaces = False

    def space(self) -> None:
        """A blank line: rules may follow, and so may anything else."""
        self._spaced = True

    def take(self, line: str) -> list[str] | None:
        """What `iptables -S` has for this line; None where it is of no such listing."""
        self.broken = ""
        chain = _CHAIN.match(line)
        if chain is not None:
            self._chain, self._spaced = chain[1], False
            self._numbered = self._counted = self._interfaces = False
            return [f"-P {chain[1]} {chain[2]}" if chain[2] else f"-N {chain[1]}"]
        head = _HEAD.match(line) if self._chain else None
        if head is not None:
            self._numbered, self._counted, self._interfaces = (bool(head[each]) for each in (1, 2, 3))
            return []
        rule = self._rule(line) if self._chain else None
        if rule is None:
            self.broken = "" if self._spaced else self._chain
            self._chain = ""
            return None
        self.hides_interfaces |= not self._interfaces
        return [rule]

    def _rule(self, line: str) -> str | None:
        words = line.split()
        for wanted, pattern in ((self._numbered, r"\d+"), (self._counted, _COUNT), (self._counted, _COUNT)):
            if wanted and (not words or re.fullmatch(pattern, words.pop(0)) is None):
                return None
        for target in (words[:1], []):
            found = self._columns(words[len(target) :], " ".join(target))
            if found is not None:
                return found
        return None

    def _columns(self, words: list[str], target: str) -> str | None:
        if not words or _PROTOCOL.match(words[0]) is None:
            return None
        protocol, rest = words[0], words[1:]
        opt = rest.pop(0) if rest[:1] and rest[0] in _OPT else "--"
        width = 4 if self._interfaces else 2
        if len(rest) < width:
            return None
        *between, source, destination = rest[:width]
        if any(
            each not in _ANY and _ADDRESS.match(each) is None and not self._is_name(each)
            for each in (source, destination)
        ):
            return None
        parts = [f"-A {self._chain}"]
        doubts: list[str] = []
        for option, said in (("-s", source), ("-d", destination)):
            if said in _ANY:
                continue
            if _ADDRESS.match(said) is None:
                doubts.append(f"-m {NOT_UNDERSTOOD}")  # a host's name: without -n
            else:
                parts.append(_option(option, said))
        if between:
            parts += [
                _option(option, said) for option, said in zip(("-i", "-o"), between, strict=True) if said not in _ANY
            ]
        else:
            doubts.append(f"-m {INTERFACES_NOT_LISTED}")
        if protocol not in _ANY:
            parts.append(_option("-p", protocol))
        if opt != "--":
            parts.append("-f" if opt == "-f" else "! -f")
        printed = rest[width:]
        goto = printed[:1] == ["[goto]"]
        matches, options = typed(" ".join(printed[goto:]), target)
        jump = [f"{'-g' if goto else '-j'} {target}"] if target else []
        return " ".join([*parts, *matches, *dict.fromkeys(doubts), *jump, *options])

    @staticmethod
    def _is_name(word: str) -> bool:
        """A host's name, as it stands without -n."""
        return re.fullmatch(r"!?[A-Za-z][\w.-]*(?:/\S+)?", word) is not None


def _option(name: str, said: str) -> str:
    return f"! {name} {said[1:]}" if said.startswith("!") else f"{name} {said}"
