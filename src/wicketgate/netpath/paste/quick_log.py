# SPDX-License-Identifier: Apache-2.0
"""The lines that wg-quick prints of what it does: `[#] ip -4 rule add not fwmark 51820 table 51820`.

They tell what it changed, and nothing of what was there before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_interface

from wicketgate.netpath.paste.routes import route_of
from wicketgate.netpath.paste.rules import selector_of
from wicketgate.netpath.paste.tables import TableNames
from wicketgate.netpath.snapshot import Address, Family, Link, Route, Rule

_LINE = re.compile(r"^\s*\[#\] (.+)$")
_FIRST_INDEX = 1_000_000  # of an interface whose number the log does not tell
_FIRST_PRIORITY = 32765  # the kernel puts a rule without a priority before those that are there (fib_default_rule_pref)


_FAILED = re.compile(
    r"(Read-only file system|Operation not permitted|Permission denied|No such (?:file|device)|not supported|Unknown device type|"
    r"File exists|command not found|Table does not exist|Cannot find device|Address already in use|can't initialize iptables|"
    r"RTNETLINK answers)", re.IGNORECASE,
)  # fmt: skip


def is_complaint(line: str) -> bool:
    """What stands below a line of the log when its command failed: wg-quick then takes back what it did."""
    return _FAILED.search(line) is not None


def is_log_line(line: str) -> bool:
    """`[#] ip link add wg0 type wireguard`."""
    return _LINE.match(line) is not None


@dataclass
class QuickLog:
    """What wg-quick said that it did.

    Attributes:
        links: interfaces that it made.
        addresses: that it gave them.
        routes: that it added.
        rules: that it added, by family, in the order of the listing.
        sysctls: that it set.
        marks: the fwmark of a device.
        firewall: commands that changed the firewall.
        unread: lines that were not understood.
    """

    links: dict[str, Link] = field(default_factory=dict)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    rules: dict[Family, list[Rule]] = field(default_factory=lambda: {4: [], 6: []})
    sysctls: dict[str, str] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    firewall: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_log(lines: Iterable[str], tables: TableNames) -> QuickLog:
    """What these lines did, one after the other."""
    log = QuickLog()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        for command in match[1].split(";"):
            try:
                _do(command.split(), log, tables)
            except (ValueError, IndexError):
                log.unread.append(command.strip())
    return log


def _do(words: list[str], log: QuickLog, tables: TableNames) -> None:
    if not words:
        return
    program = words[0].rsplit("/", 1)[-1]
    if program == "ip":
        _ip(words[1:], log, tables)
    elif program == "sysctl":
        for word in words[1:]:
            name, sign, value = word.partition("=")
            if sign:
                log.sysctls[name.replace("/", ".")] = value
    elif words[:2] == ["wg", "set"] and "fwmark" in words:
        mark = words[words.index("fwmark") + 1]
        log.marks[words[2]] = 0 if mark == "off" else int(mark, 0)
    elif program.startswith(("iptables", "ip6tables", "nft")):
        log.firewall.append(" ".join(words))


def _ip(words: list[str], log: QuickLog, tables: TableNames) -> None:
    family: Family = 4
    while words and words[0].startswith("-"):
        family = 6 if words[0] == "-6" else family
        words = words[1:]
    what, verb, rest = words[0], words[1], words[2:]
    if what.startswith("l"):
        _link(verb, rest, log)
    elif what.startswith("a") and verb in ("add", "replace"):
        interface, name = ip_interface(rest[0]), rest[rest.index("dev") + 1]
        log.addresses.append(Address(name, log.links[name].index if name in log.links else _FIRST_INDEX, interface))
    elif what == "route" and verb in ("add", "replace"):
        log.routes.append(route_of(" ".join(rest), [], tables, family=family))
    elif what == "rule" and verb == "add":
        _rule(rest, family, log, tables)
    elif what == "rule" and verb in ("del", "delete"):
        # The kernel takes away the first rule that has what the request names (fib_nl_delrule): `rule del table 51820`
        asked, blank = selector_of(rest, Rule(family, -1, table=-1), tables), Rule(family, -1, table=-1)
        named = [each.name for each in fields(Rule) if getattr(asked, each.name) != getattr(blank, each.name)]
        for rule in log.rules[family]:
            if all(getattr(rule, name) == getattr(asked, name) for name in named):
                log.rules[family].remove(rule)
                break


def _link(verb: str, rest: list[str], log: QuickLog) -> None:
    if verb == "add":
        name = rest[rest.index("dev") + 1] if rest[0] == "dev" else rest[0]
        kind = rest[rest.index("type") + 1] if "type" in rest else ""
        log.links[name] = Link(_FIRST_INDEX + len(log.links), name, kind, mtu=1420)
    elif verb == "set":
        name = rest[rest.index("dev") + 1] if "dev" in rest else rest[0]
        link = log.links.get(name)
        if link is not None:
            mtu = int(rest[rest.index("mtu") + 1]) if "mtu" in rest else link.mtu
            up = link.up or "up" in rest
            log.links[name] = replace(link, mtu=mtu, up=up, lower_up=up)
    elif verb in ("del", "delete"):
        name = rest[rest.index("dev") + 1] if "dev" in rest else rest[0]
        log.links.pop(name, None)
        log.addresses = [each for each in log.addresses if each.ifname != name]
        log.routes = [each for each in log.routes if each.oif != name]


def _rule(rest: list[str], family: Family, log: QuickLog, tables: TableNames) -> None:
    made = selector_of(rest, Rule(family, 0, table=254), tables)
    if not made.priority:
        lowest = min((each.priority for each in log.rules[family]), default=_FIRST_PRIORITY + 1)
        made = replace(made, priority=lowest - 1)
    log.rules[family].append(made)
    log.rules[family].sort(key=lambda each: each.priority)
