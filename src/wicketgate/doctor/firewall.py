# SPDX-License-Identifier: Apache-2.0
"""The snapshot's netfilter as the walk asks for it, and the doctor's own small changes to its listings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import Any

from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.walk import Walker

# Words of listings whose rules look into policy routing, or at settings: their verdict may change with a rule.
_OF_ROUTING = ("links", "addresses", "routes", "rules", "neighbours", "sysctls", "unread")  # what `Routing` reads
_ASK_ROUTING = ("fib", "rpfilter", "socket")


def filter_of(snapshot: Snapshot, routing: Routing | None = None) -> Ruleset:
    """The filter of a snapshot.

    Raises:
        InputError: a listing is damaged.
    """
    return Ruleset(snapshot, routing=routing or Routing(snapshot))


class Walkers:
    """Walkers for a snapshot and for changed ones. A large listing is read and compiled once.

    Args:
        snapshot: as it is.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._routing = Routing(snapshot)
        self._filter = filter_of(snapshot, self._routing)
        listings = [text for text in astuple(snapshot.firewall) if text]
        self._asks_routing = any(word in text for text in listings for word in _ASK_ROUTING)

    def of(self, snapshot: Snapshot) -> Walker:
        """A walker of a snapshot that differs from the first by a fix."""
        first = self._snapshot
        same = all(getattr(snapshot, part) is getattr(first, part) for part in _OF_ROUTING)
        routing = self._routing if same else Routing(snapshot, like=self._routing)
        netfilter = self._filter if self._same_filter(snapshot) else self._filter.amended(snapshot)
        if netfilter is None:
            netfilter = filter_of(snapshot, routing)
        return Walker(snapshot, netfilter, routing=routing)

    def _same_filter(self, snapshot: Snapshot) -> bool:
        """The filter of the first snapshot would decide the same in this one."""
        first = self._snapshot
        if snapshot.firewall is not first.firewall or snapshot.unread is not first.unread:
            return False
        places = (
            (snapshot.links, first.links),
            (snapshot.addresses, first.addresses),
            (snapshot.routes, first.routes),
        )
        if any(now is not before for now, before in places):
            return False
        return snapshot is first or not self._asks_routing


def objects(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The objects of `nft -j list ruleset`; none when it was not read."""
    text = snapshot.firewall.nft_json
    if not text or not text.strip():
        return []
    found = json.loads(text).get("nftables", [])
    return [each for each in found if isinstance(each, dict)]


def with_objects(snapshot: Snapshot, changed: list[dict[str, Any]]) -> Snapshot:
    """The snapshot with other nftables objects. The printed listing no longer fits them and is left out."""
    return _with_json(snapshot, json.dumps({"nftables": changed}))


def _with_json(snapshot: Snapshot, text: str) -> Snapshot:
    return replace(snapshot, firewall=replace(snapshot.firewall, nft_json=text, nft_text=None))


def base_chain(snapshot: Snapshot, family: str, table: str, hook: str, kind: str = "filter") -> str | None:
    """The table's base chain at a hook that is of this type."""
    for chain in _chains(snapshot, family, table):
        if (chain.get("hook"), chain.get("type")) == (hook, kind):
            return str(chain["name"])
    return None


def _chains(snapshot: Snapshot, family: str, table: str) -> Iterator[dict[str, Any]]:
    """The chains of a table, in the order of the listing."""
    text = snapshot.firewall.nft_json or ""
    # As nft prints them; a quote within a string of JSON has a backslash before it, so nothing else looks like this.
    head = f'{{"chain": {{"family": {json.dumps(family)}, "table": {json.dumps(table)}, '
    found = [each.start() for each in re.finditer(re.escape(head), text)]
    if found:
        decoder = json.JSONDecoder()
        yield from (decoder.raw_decode(text, at)[0]["chain"] for at in found)
        return
    for each in objects(snapshot):
        chain = each.get("chain")
        if isinstance(chain, dict) and (chain.get("family"), chain.get("table")) == (family, table):
            yield chain


def insert_rule(snapshot: Snapshot, family: str, table: str, chain: str, expressions: list[Any]) -> Snapshot:
    """`nft insert rule`: as the first rule of a chain."""
    rule = {"rule": {"family": family, "table": table, "chain": chain, "handle": 999_999, "expr": expressions}}
    text = snapshot.firewall.nft_json or ""
    head = json.dumps({"rule": {"family": family, "table": table, "chain": chain, "handle": 0}}).removesuffix("0}}")
    at = text.find(head)
    if at >= 0:
        return _with_json(snapshot, f"{text[:at]}{json.dumps(rule)}, {text[at:]}")
    found = objects(snapshot)
    place = (family, table, chain)
    for at, each in enumerate(found):
        there = each.get("rule")
        if isinstance(there, dict) and (there.get("family"), there.get("table"), there.get("chain")) == place:
            return with_objects(snapshot, [*found[:at], rule, *found[at:]])
    return with_objects(snapshot, [*found, rule])


def insert_iptables(text: str, table: str, chain: str, rule: str) -> str | None:
    """`iptables -t TABLE -I CHAIN RULE` in the text of iptables-save; None when the table is not in it."""
    lines = text.splitlines()
    within = False
    for at, line in enumerate(lines):
        if line.startswith("*"):
            within = line == f"*{table}"
        elif within and (line.removeprefix("[").split("] ")[-1].startswith("-A ") or line == "COMMIT"):
            return "\n".join([*lines[:at], f"-A {chain} {rule}", *lines[at:]]) + "\n"
    return None
