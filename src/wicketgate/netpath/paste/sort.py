# SPDX-License-Identifier: Apache-2.0
"""The lines of a paste, sorted by the program that printed them.

A line's own form says what it is; the command above it, where one was pasted, says what the form does not: the family,
the table, which iptables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from wicketgate.netpath.netfilter.names import NOT_UNDERSTOOD
from wicketgate.netpath.paste import links, quick_log, routes, rules, sockets, sysctls, tables_text, wireguard
from wicketgate.netpath.paste.chains_text import ChainReader
from wicketgate.netpath.paste.lines import Command, clean, command_of, quotable
from wicketgate.netpath.paste.nft_text import depth_of, is_table_line
from wicketgate.netpath.paste.route_table import RouteTableReader
from wicketgate.netpath.paste.tables_text import Origin, Saved
from wicketgate.netpath.snapshot import Family

_IPSET = re.compile(
    r"create \S+ (?:hash|bitmap|list):[a-z,]+\b|add \S+ [^\s-]\S*(?: (?:timeout|nomatch|wildcard|packets|bytes|comment)\b.*)?$"
)
# What people paste instead, and what says more.
_LESS = (
    ("Chain ", "`iptables -L` was not understood: paste iptables-save"),
    ("[Interface]", "a configuration says what should be, not what is: paste wg show, without keys"),
    ("PrivateKey", "a private key was in the paste: it was not read; whoever saw it has it"),
)
_PROMPT_ALONE = re.compile(r"[#$%>]$")
_WITHOUT_V = "`iptables -L` leaves out interfaces: paste iptables-save"


@dataclass
class RuleListing:
    """Lines of one `ip rule`."""

    command: Command | None
    at: int
    lines: list[str] = field(default_factory=list)


@dataclass
class RouteListing:
    """Lines of one `ip route`, each with the lines of its ways."""

    command: Command | None
    at: int
    lines: list[tuple[str, list[str]]] = field(default_factory=list)


@dataclass
class Sorted:
    """The lines of a paste by kind; `at` are line numbers, from 1."""

    interfaces: links.Interfaces = field(default_factory=links.Interfaces)
    rules: list[RuleListing] = field(default_factory=list)
    routes: list[RouteListing] = field(default_factory=list)
    old_routes: list[str] = field(default_factory=list)  # of `route -n`, as `ip route` has them
    old_routes_broken: bool = False  # there may be more of them
    nft: dict[str, list[str]] = field(default_factory=dict)  # by the line that opens a table
    nft_seen: bool = False
    nft_json: str = ""
    saved: list[Saved] = field(default_factory=list)
    ipsets: list[str] = field(default_factory=list)
    wireguard: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    sockets_of: set[str] = field(default_factory=set)
    sysctls: dict[str, str] = field(default_factory=dict)
    quick: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # of wg-quick's commands
    commands: list[Command] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sort(text: str) -> Sorted:
    """Sort the lines of a paste."""
    sorter = _Sorter()
    for at, line in enumerate(clean(text), 1):
        sorter.take(at, line)
    return sorter.found


class _Sorter:
    def __init__(self) -> None:
        self.found = Sorted()
        self._command: Command | None = None
        self._nft_depth = 0
        self._nft_table: list[str] = []
        self._saved: Saved | None = None
        self._in_link = False
        self._in_wireguard = False
        self._legacy_too: set[Family] = set()
        self._origin = Origin()
        self._chains = ChainReader()
        self._after_log = False
        self._route_table = RouteTableReader()

    def take(self, at: int, line: str) -> None:
        """The next line."""
        if self._nft_depth:
            self._in_nft(line)
            return
        stripped = line.strip()
        if not stripped:
            self._in_wireguard = self._in_wireguard and bool(self.found.wireguard)
            self._chains.space()
            self._route_table.space()
            return
        if self._tables(at, line, stripped) or self._interfaces(line):
            return
        if self._wireguard(line) or self._old_route(stripped) or self._routing(at, line) or self._rest(stripped, line):
            return
        command = command_of(line)
        if command is not None:
            self._typed(command)
            return
        self._broken(stripped)
        for start, words in _LESS:
            if stripped.startswith(start) and words not in self.found.notes:
                self.found.notes.append(words)

    def _broken(self, stripped: str) -> None:
        """A line right below a listing that nothing understood: it may be a part of it, and more may be lost behind it."""
        if _PROMPT_ALONE.search(stripped):
            return
        if self._chains.broken:
            self._listing(save=False).lines.append(f"-A {self._chains.broken} -j {NOT_UNDERSTOOD}")
        self.found.old_routes_broken |= self._route_table.broken

    def _typed(self, command: Command) -> None:
        self._command = command
        self.found.commands.append(command)
        self._saved, self._in_link, self._origin = None, False, Origin()
        if command.program == "nft" and "list" in command.arguments and "ruleset" in command.arguments:
            self.found.nft_seen = True
        if command.program in ("ss", "netstat"):
            letters = "".join(each for each in command.arguments if each.startswith("-") and not each.startswith("--"))
            both = not {"t", "u"} & set(letters)
            self.found.sockets_of |= {"tcp"} if "t" in letters or both else set()
            self.found.sockets_of |= {"udp"} if "u" in letters or both else set()

    def _in_nft(self, line: str) -> None:
        self._nft_table.append(line)
        self._nft_depth = max(0, self._nft_depth + depth_of(line))

    def _tables(self, at: int, line: str, stripped: str) -> bool:
        """Of nftables or iptables."""
        if is_table_line(stripped):
            self.found.nft_seen = True
            opening = stripped.partition("#")[0].rstrip()
            if opening in self.found.nft:
                self.found.notes.append(f"{quotable(opening)} stands there twice: the one from line {at} on counts")
            self.found.nft[opening] = self._nft_table = [line]
            self._nft_depth = max(0, depth_of(line))
            return True
        if stripped.startswith(('{"nftables"', '{ "nftables"')):
            self.found.nft_json = stripped
            return True
        if tables_text.is_header(stripped):
            if tables_text.warns_of_legacy(stripped):
                family: Family = 6 if "ip6tables" in stripped else 4
                self._legacy_too.add(family)
                for each in self.found.saved:
                    each.legacy_too |= each.family == family
            else:
                self._origin = tables_text.header_of(stripped)
                self._saved = None
            return True
        if tables_text.is_table_start(stripped) or tables_text.is_table_line(stripped):
            self._listing(save=stripped.startswith(("*", ":", "["))).lines.append(stripped)
            return True
        if stripped == "COMMIT" and self._saved is not None:
            self._saved.lines.append(stripped)
            return True
        return self._listed_chains(stripped)

    def _listed_chains(self, stripped: str) -> bool:
        """Of `iptables -L`."""
        spelled = self._chains.take(stripped)
        if spelled is None:
            return False
        for each in spelled:
            begins = each.startswith("-P ")
            if begins and self._saved is not None and self._begins_anew(each.split()[1], self._saved):
                self._saved = None
            self._listing(save=False).lines.append(each)
        if self._chains.hides_interfaces and _WITHOUT_V not in self.found.notes:
            self.found.notes.append(_WITHOUT_V)
        return True

    @staticmethod
    def _begins_anew(chain: str, saved: Saved) -> bool:
        """The next table's listing, with no command before it: PREROUTING is always the first chain."""
        listed = {line.split()[1] for line in saved.lines if line.startswith("-P ")}
        return chain in listed or (chain == "PREROUTING" and bool(listed))

    def _listing(self, *, save: bool) -> Saved:
        command = self._command
        by_command = Origin()
        if command is not None and "tables" in command.program:
            backend = "nft" if "-nft" in command.program else "legacy" if "-legacy" in command.program else ""
            by_command = Origin(6 if command.program.startswith("ip6") else 4, backend)
        origin = self._origin if self._origin != Origin() else by_command
        if self._saved is None:
            self._saved = Saved(origin, legacy_too=origin.family in self._legacy_too)
            self.found.saved.append(self._saved)
            if not save and command is not None:
                self._saved.listed_table = command.after("-t", "--table") or "filter"
        return self._saved

    def _interfaces(self, line: str) -> bool:
        found = self.found.interfaces
        try:
            if links.is_link_line(line):
                found.head(line)
                self._in_link = True
            elif links.is_address_line(line):
                found.one_line(line)
            elif self._in_link and links.is_inside_link(line):
                found.inside(line)
            else:
                self._in_link = False
                return False
        except (ValueError, IndexError, KeyError) as error:
            self.found.notes.append(f"not understood: {quotable(line)} ({quotable(str(error))})")
        return True

    def _wireguard(self, line: str) -> bool:
        if quick_log.is_log_line(line):
            self.found.quick.append(line)
            self._after_log = True
            return True
        if self._after_log and quick_log.is_complaint(line):
            if self.found.quick:
                failed = self.found.quick.pop().strip().removeprefix("[#] ")
                words = f"`{quotable(failed)}` failed, and wg-quick takes back what it did: {quotable(line, 120)}"
                self.found.failures.append(words)
            return True
        self._after_log = False
        if wireguard.is_interface_line(line):
            self._in_wireguard = True
        elif not (self._in_wireguard and wireguard.is_field_line(line)):
            return False
        self.found.wireguard.append(line)
        return True

    def _routing(self, at: int, line: str) -> bool:
        command = self._command if self._command is not None and self._command.program == "ip" else None
        found = self.found
        if rules.is_rule_line(line):
            command = command if command is not None and command.about("rule") else None
            self._end_of_lists()
            last = found.rules[-1] if found.rules else None
            # The first rule of a listing is table local's; another one of that priority begins the next listing.
            again = last is not None and line.strip().startswith("0:") and "lookup local" in line
            if last is None or last.command is not command or again:
                last = RuleListing(command, at)
                found.rules.append(last)
            last.lines.append(line)
            return True
        if routes.is_nexthop_line(line) and found.routes and found.routes[-1].lines:
            found.routes[-1].lines[-1][1].append(line)
            return True
        if routes.is_route_line(line):
            self._end_of_lists()
            command = command if command is not None and command.about("route") else None
            if not found.routes or found.routes[-1].command is not command:
                found.routes.append(RouteListing(command, at))
            found.routes[-1].lines.append((line, []))
            return True
        return False

    def _old_route(self, stripped: str) -> bool:
        """Of `route -n`."""
        try:
            said = self._route_table.take(stripped)
        except ValueError:
            self.found.notes.append(f"not understood: {quotable(stripped)}")
            return True
        if said:
            self._end_of_lists()
            self.found.old_routes.append(said)
        return said is not None

    def _end_of_lists(self) -> None:
        self._in_link, self._in_wireguard = False, False

    def _rest(self, stripped: str, line: str) -> bool:
        if sockets.is_socket_line(line):
            self.found.sockets.append(line)
            return True
        if _IPSET.match(stripped):
            self.found.ipsets.append(stripped)
            return True
        said = sysctls.setting_of(stripped)
        if said is not None:
            self.found.sysctls[said[0]] = said[1]
            return True
        return False
