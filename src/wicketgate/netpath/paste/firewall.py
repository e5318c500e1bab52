# SPDX-License-Identifier: Apache-2.0
"""The firewall listings of a paste, and those that it lacks."""

from __future__ import annotations

from typing import Literal

from wicketgate.netpath.netfilter.ipsets import asks_for_sets
from wicketgate.netpath.paste.holes import Holes
from wicketgate.netpath.paste.nft_text import PasteCutError, depth_of, is_complete, nft_json
from wicketgate.netpath.paste.sort import Sorted
from wicketgate.netpath.paste.tables_text import Saved
from wicketgate.netpath.snapshot import Family, Firewall

_Part = Literal["iptables_nft", "ip6tables_nft", "iptables_legacy", "ip6tables_legacy"]
_FAMILIES: tuple[Family, ...] = (4, 6)
NFT = "nft -j list ruleset"  # as `Snapshot.unread` has it
EMPTY = '{"nftables": []}'


def firewall_of(found: Sorted, holes: Holes, words: list[str], families: set[Family]) -> Firewall:
    """The listings. One that was not pasted is None, and `holes` is told."""
    parts: dict[_Part, str | None] = {}
    for family in _FAMILIES:
        parts |= _tables(family, found, holes, told=family in families or not families)
    json_text, text = _nftables(found, holes)
    if found.saved:
        rules = sum(line.startswith("-A") for each in found.saved for line in each.lines)
        words.append(f"{rules} rule{'' if rules == 1 else 's'} of iptables")
    if json_text is not None:
        rules = json_text.count('{"rule":')
        words.append(f"nftables, {rules} rule{'' if rules == 1 else 's'}")
    ipset = "\n".join(found.ipsets) + "\n" if found.ipsets else None
    if ipset is None and any(asks_for_sets(each or "") for each in parts.values()):
        holes.add("ipset save", "ipset save")
    return Firewall(nft_json=json_text, nft_text=text, **parts, ipset=ipset)


def _tables(family: Family, found: Sorted, holes: Holes, *, told: bool) -> dict[_Part, str | None]:
    tool = "iptables" if family == 4 else "ip6tables"
    nft: _Part = "iptables_nft" if family == 4 else "ip6tables_nft"
    legacy: _Part = "iptables_legacy" if family == 4 else "ip6tables_legacy"
    parts: dict[_Part, str | None] = {nft: None, legacy: None}
    theirs = [each for each in found.saved if each.family == family]
    for backend, name in (("nft", nft), ("legacy", legacy), ("", nft)):
        listings = [each for each in theirs if each.origin.backend == backend]
        whole = [each for each in listings if each.is_save]
        if len(whole) > 1:
            holes.doubt(tool, "iptables-save was pasted twice; the last one counts")
        tables = {each.table: each for each in listings if not each.is_save}
        if not whole and len(tables) < len(listings):
            holes.doubt(tool, "one table was listed twice; its last listing counts")
        text = (whole[-1].text() if whole else "") or "".join(each.text() for each in tables.values())
        if whole and sum(line.startswith("*") for line in whole[-1].lines) > whole[-1].lines.count("COMMIT"):
            holes.doubt(tool, "iptables-save was cut off: its last table has no COMMIT")
            return {nft: None, legacy: None}
        if text:
            parts[name] = (parts[name] or "") + text
    if parts[legacy] is None and _legacy_is_empty(theirs):
        parts[legacy] = ""
    if not theirs and _printed_nothing(found, family):
        parts[nft] = parts[legacy] = ""
    if not told:
        return parts
    if parts[legacy] is None and not theirs:
        holes.add(f"{tool}-legacy-save -c", f"{tool}-save")
    elif parts[legacy] is None:
        holes.add(f"{tool}-legacy-save -c", f"{tool}-legacy-save")
    return parts


def _printed_nothing(found: Sorted, family: Family) -> bool:
    """iptables-save without any output: neither kind has tables, as iptables-nft-save would warn of legacy ones."""
    return any(each.program.endswith("-save") and each.family == family for each in found.commands)


def _legacy_is_empty(listings: list[Saved]) -> bool:
    """iptables-nft-save warns where legacy tables exist; without the warning there are none (nft_check_xt_legacy)."""
    return any(each.origin.backend == "nft" and each.is_save and not each.legacy_too for each in listings)


def _nftables(found: Sorted, holes: Holes) -> tuple[str | None, str | None]:
    lines = [line for table in found.nft.values() for line in table]
    if found.nft_json:
        return found.nft_json, "\n".join(_indented(lines))
    if not found.nft_seen:
        holes.add(NFT, "nft list ruleset")
        return None, None
    text = "\n".join(_indented(lines))
    if not is_complete(text):
        holes.doubt(NFT, "nft's listing was cut off: a brace is not closed; paste nft list ruleset again")
        return None, None
    try:
        return nft_json(text), text + "\n"
    except PasteCutError as error:
        holes.doubt(NFT, f"not understood: {error}")
        return None, None


def _indented(lines: list[str]) -> list[str]:
    """As nft indents: forums take blanks away, and turn tabs into blanks."""
    depth = 0
    found = []
    for line in lines:
        stripped = line.strip()
        change = depth_of(stripped)
        level = depth - 1 if stripped.startswith("}") else depth
        found.append("\t" * max(level, 0) + stripped)
        depth = max(0, depth + change)
    return found
