# SPDX-License-Identifier: Apache-2.0
"""What nft before 1.0.7 leaves out of its JSON and prints as text: a chain's devices, a table's dormancy."""

from __future__ import annotations

import json
from typing import Any

from wicketgate.netpath.netfilter.nft.spell import ListedRules, dormant_tables, rules_of_listing

_AT_DEVICES = ("ingress", "egress")


def completed(nft_json: str | None, nft_text: str | None) -> str | None:
    """The JSON with both; as it was where there is nothing to add, or where it cannot be read.

    Args:
        nft_json: of `nft -j list ruleset`.
        nft_text: of `nft list ruleset`, of the same moment.
    """
    if not nft_json or not nft_text:
        return nft_json
    dormant = dormant_tables(nft_text)
    if not dormant and not any(f'"hook": "{hook}"' in nft_json for hook in _AT_DEVICES):
        return nft_json
    try:
        listing = json.loads(nft_json)
        words = rules_of_listing(nft_text)
        for item in listing["nftables"]:
            _complete(item, words, dormant)
    except (ValueError, KeyError, TypeError, AttributeError):  # whoever reads the listing says what is wrong with it
        return nft_json
    return json.dumps(listing)


def _complete(item: dict[str, Any], words: ListedRules, dormant: frozenset[tuple[str, str]]) -> None:
    table, chain = item.get("table"), item.get("chain")
    if table is not None and (table["family"], table["name"]) in dormant:
        table["flags"] = ["dormant"]
    if chain is not None and chain.get("hook") in _AT_DEVICES and "dev" not in chain:
        devices = words.devices((chain["family"], chain["table"], chain["name"]))
        if devices:
            chain["dev"] = list(devices)
