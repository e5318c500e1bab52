# SPDX-License-Identifier: Apache-2.0
"""A twin is read back by the eyes that read the original, and what differs is named: pure comparison.

What must differ is not compared: interface numbers, kinds that are stood in for, counters, inodes, neighbours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from wicketgate.kernel.twin.rebuild import routes_in_order, rules_in_order, settable
from wicketgate.kernel.twin.walls import managed, tables_of
from wicketgate.netpath.lookup import route_line, rule_line
from wicketgate.netpath.netfilter.ipsets import settled
from wicketgate.netpath.snapshot import Firewall, ListeningSocket, Snapshot

_COUNTED = re.compile(r" ?counter packets \d+ bytes \d+| expires [0-9a-z]+| ?last used \S+| used \d+ \w*bytes")
_IPT_COUNTED = re.compile(r"^\[\d+:\d+\] |(?<=\S) \[\d+:\d+\]$", re.MULTILINE)
_DEPRECATED = 0x20  # IFA_F_DEPRECATED
_MOST = 12  # differences that are told


def differences(original: Snapshot, twin: Snapshot) -> tuple[str, ...]:
    """What the twin lacks or has too much, in words; empty when it is the same.

    What concerns one family alone begins with it: `IPv6: `.
    """
    found: list[str] = []
    for part in (_links, _addresses, _rules, _routes, _settings, _sockets):
        found += part(original, twin)
    found += _firewall(original.firewall, twin.firewall)
    return tuple(found[:_MOST]) + ((f"and {len(found) - _MOST} more",) if len(found) > _MOST else ())


def _links(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    there = {link.name: link for link in twin.links}
    for link in original.links:
        made = there.get(link.name)
        if made is None:
            yield f"the interface {link.name}"
            continue
        for key in ("up", "mtu", "group", "loopback") + (("lower_up",) if link.up else ()):
            if getattr(link, key) != getattr(made, key):
                yield f"{link.name}: {key} is {getattr(made, key)}, not {getattr(link, key)}"


def _addresses(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    def spelled(snapshot: Snapshot) -> Mapping[tuple[str, int], list[str]]:
        found: dict[tuple[str, int], list[str]] = {}
        for each in snapshot.addresses:
            words = f"{each.interface} scope {each.scope}"
            words += f" peer {each.peer}" if each.peer is not None else ""
            words += " deprecated" if each.flags & _DEPRECATED else ""
            found.setdefault((each.ifname, each.family), []).append(words)
        # IPv6 lists the last first; which it chooses as a source is not told by the order.
        return {key: sorted(words) if key[1] == 6 else words for key, words in found.items()}

    wanted, there = spelled(original), spelled(twin)
    for key in {**wanted, **there}:
        if wanted.get(key, []) != there.get(key, []):
            has, had = (", ".join(each.get(key, [])) or "none" for each in (there, wanted))
            yield f"IPv{key[1]}: addresses of {key[0]}: {has}, not {had}"


def _rules(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    wanted, there = rules_in_order(original.rules), rules_in_order(twin.rules)
    for family, rules in wanted.items():
        if rules == there[family]:
            continue
        lacking = [each for each in rules if each not in there[family]]
        surplus = [each for each in there[family] if each not in rules]
        yield from (f"IPv{family}: the rule {rule_line(each)}" for each in lacking)
        yield from (f"IPv{family}: a rule too many: {rule_line(each)}" for each in surplus)
        if not lacking and not surplus:
            yield f"IPv{family}: the order of the rules"


def _routes(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    wanted, there = routes_in_order(original.routes), routes_in_order(twin.routes)
    for key, routes in wanted.items():
        if routes != there.get(key):
            yield f"IPv{routes[0].family}: the route {route_line(routes[0])} (table {routes[0].table})"
    for key, routes in there.items():
        if key not in wanted:
            yield f"IPv{routes[0].family}: a route too many: {route_line(routes[0])} (table {routes[0].table})"


def _settings(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    for name, value in twin.sysctls.items():
        if not settable(name):
            continue
        wanted = original.sysctls.get(name)
        family = f"IPv{name[len('net.ipv')]}: " if name.startswith("net.ipv") else ""
        if wanted is None:
            yield f"{family}{name} is not in the snapshot"
        elif wanted.split() != value.split():
            yield f"{family}{name} is {value}, not {wanted}"


def _sockets(original: Snapshot, twin: Snapshot) -> Iterator[str]:
    def spelled(each: ListeningSocket) -> str:
        only = f" v6only {int(each.v6only is not False)}" if each.address.version == 6 else ""
        device = f"%{each.bound_device}" if each.bound_device else ""
        return f"{each.protocol} {each.address}{device} {each.port}{only} mark {each.mark or 0}"

    wanted, there = Counter(map(spelled, original.sockets)), Counter(map(spelled, twin.sockets))
    yield from (f"the socket {each}" for each in wanted - there)
    yield from (f"a socket too many: {each}" for each in there - wanted)


def _firewall(original: Firewall, twin: Firewall) -> Iterator[str]:
    wanted, there = plain_tables(original), plain_tables(twin)
    for key, text in wanted.items():
        if there.get(key) != text:
            yield f"the firewall table {' '.join(key)}{_first_difference(text, there.get(key, ''))}"
    yield from (f"a firewall table too many: {' '.join(key)}" for key in there if key not in wanted)
    if settled(original.ipset or "") != settled(twin.ipset or ""):
        yield "the ipsets"
    # Those of iptables run by their priorities alone, and legacy ones are listed the other way round each time.
    order = [key for key in wanted if key in there and key[0] == "nft"]
    if order != [key for key in there if key in wanted and key[0] == "nft"]:
        yield "the order of the nftables tables"


def _first_difference(wanted: str, there: str) -> str:
    mine = there.splitlines()
    for line in wanted.splitlines():
        if line not in mine:
            return f": {line.strip()}"
    return ""


def plain_tables(firewall: Firewall) -> dict[tuple[str, ...], str]:
    """Each table's text without what counts: of nft, then of each kind of iptables. Empty tables are none."""
    kept = managed(firewall)
    found: dict[tuple[str, ...], str] = {}
    for key, text in tables_of(firewall.nft_text or ""):
        if key not in kept:
            found["nft", *key] = _COUNTED.sub("", text)
    for tool, listing in (
        ("iptables", firewall.iptables_nft),
        ("ip6tables", firewall.ip6tables_nft),
        ("iptables-legacy", firewall.iptables_legacy),
        ("ip6tables-legacy", firewall.ip6tables_legacy),
    ):
        for name, text in _restore_tables(listing or ""):
            found[tool, name] = text
    return found


def _restore_tables(listing: str) -> Iterator[tuple[str, str]]:
    name, lines = "", list[str]()
    for line in _IPT_COUNTED.sub("", listing).splitlines():
        if line.startswith("*"):
            name, lines = line[1:], []
        elif line == "COMMIT":
            if any(each.startswith("-A") or not each.endswith(" ACCEPT") for each in lines):
                yield name, "\n".join(lines)
        elif line and not line.startswith("#"):
            lines.append(line)
