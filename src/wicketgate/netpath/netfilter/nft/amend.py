# SPDX-License-Identifier: Apache-2.0
"""A listing with one more rule: a large one is not read again for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wicketgate.netpath.netfilter.nft.model import Table, Unread
from wicketgate.netpath.netfilter.nft.parse import TableKey, rule_of
from wicketgate.netpath.replaced import replaced

_RULE = '{"rule": '


@dataclass(frozen=True, slots=True)
class Inserted:
    """One rule more.

    Attributes:
        table: family and name.
        chain: its name.
        body: as in the listing.
        before: handle of the rule that now follows it in the chain.
    """

    table: TableKey
    chain: str
    body: dict[str, Any]
    before: int


def inserted(before: str, after: str) -> Inserted | None:
    """The rule that is more in the second listing, before another of its chain; None: they differ by anything else."""
    if len(after) <= len(before):
        return None
    # What follows may begin like the new rule does, so the place where they differ is within it.
    at = after.rfind(_RULE, 0, _alike(before, after) + len(_RULE))
    if at < 0 or not before.startswith(_RULE, at):
        return None
    try:
        found, end = json.JSONDecoder().raw_decode(after, at)
        follows, _ = json.JSONDecoder().raw_decode(before, at)
        body, next_body = found["rule"], follows["rule"]
        place = (body["family"], body["table"], body["chain"])
        same_chain = place == (next_body["family"], next_body["table"], next_body["chain"])
        handle, parts = next_body["handle"], body["expr"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    more = f"{after[at:end]}, "
    if (
        not same_chain
        or len(after) != len(before) + len(more)
        or after[end + 2 :] != before[at:]
        or after[end : end + 2] != ", "
    ):
        return None
    if not isinstance(parts, list) or any(not isinstance(part, dict) or {"set", "map"} & part.keys() for part in parts):
        return None  # it fills a set
    return Inserted((place[0], place[1]), place[2], body, handle)


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def with_rule(table: Table, more: Inserted) -> Table | None:
    """The table with that rule; None where its place is not found."""
    chain = table.chains.get(more.chain)
    if chain is None or not isinstance(chain.rules, Unread):
        return None
    bodies = chain.rules.parts
    at = next((position for position, each in enumerate(bodies) if each.get("handle") == more.before), None)
    if at is None:
        return None
    rules = Unread([*bodies[:at], more.body, *bodies[at:]], rule_of)
    return replaced(table, chains={**table.chains, more.chain: replaced(chain, rules=rules)})
