# SPDX-License-Identifier: Apache-2.0
"""The snapshot's netfilter as the walk asks for it, and the doctor's own small changes to its listings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from wicketgate.netpath.filter import Filter
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.walk import Walker


def filter_of(snapshot: Snapshot) -> Filter:
    """The filter of a snapshot.

    Raises:
        InputError: a listing is damaged.
    """
    return Ruleset(snapshot, routing=Routing(snapshot))


def walker_of(snapshot: Snapshot) -> Walker:
    """A walker with the snapshot's netfilter."""
    return Walker(snapshot, filter_of(snapshot))


def objects(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The objects of `nft -j list ruleset`; none when it was not read."""
    text = snapshot.firewall.nft_json
    if not text or not text.strip():
        return []
    found = json.loads(text).get("nftables", [])
    return [each for each in found if isinstance(each, dict)]


def with_objects(snapshot: Snapshot, changed: list[dict[str, Any]]) -> Snapshot:
    """The snapshot with other nftables objects. The printed listing no longer fits them and is left out."""
    text = json.dumps({"nftables": changed})
    return replace(snapshot, firewall=replace(snapshot.firewall, nft_json=text, nft_text=None))


def base_chain(snapshot: Snapshot, family: str, table: str, hook: str) -> str | None:
    """The table's base chain at a hook that is of type filter."""
    for each in objects(snapshot):
        chain = each.get("chain")
        if (
            isinstance(chain, dict)
            and (chain.get("family"), chain.get("table"), chain.get("hook")) == (family, table, hook)
            and chain.get("type") == "filter"
        ):
            return str(chain["name"])
    return None


def insert_rule(snapshot: Snapshot, family: str, table: str, chain: str, expressions: list[Any]) -> Snapshot:
    """`nft insert rule`: as the first rule of a chain."""
    rule = {"rule": {"family": family, "table": table, "chain": chain, "handle": 999_999, "expr": expressions}}
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
