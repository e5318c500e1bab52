# SPDX-License-Identifier: Apache-2.0
"""Whether connections are tracked at all, for each family.

A namespace tracks connections only while a rule in it needs that: every expression, match and target that looks at a
connection, or translates, counts itself as a user (nf_ct_netns_get, since Linux 4.10). A nat chain does not
(nf_nat_register_fn): without a user it is registered and never called, because nf_nat_inet_fn finds no connection.
"""

from __future__ import annotations

import re

from wicketgate.netpath.netfilter.ipt.parse import parse_rule
from wicketgate.netpath.snapshot import Family, Firewall

# Keys of libnftables-json(5) behind whose kernel part nf_ct_netns_get stands; a string in JSON has no bare quotes, so
# no comment looks like a key. `notrack` and `tproxy` are not among them.
_NFT = re.compile(
    r'"family"\s*:\s*"(\w+)"|'
    r'"(?:ct|ct count|ct helper|ct timeout|ct expectation|snat|dnat|masquerade|redirect|synproxy|flow)"\s*:'
)
_NFT_FAMILIES: dict[str, tuple[Family, ...]] = {"ip": (4,), "ip6": (6,), "inet": (4, 6), "bridge": (4, 6)}
_MATCHES = frozenset({"conntrack", "state", "connmark", "connbytes", "connlabel", "connlimit", "cluster", "helper"})
_TARGETS = frozenset({
    "CONNMARK", "CONNSECMARK", "CT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "SYNPROXY", "CLUSTERIP",
})  # fmt: skip
_IPT = re.compile(rf"^.* -(?:m (?:{'|'.join(_MATCHES)})|j (?:{'|'.join(_TARGETS)}))\b.*$", re.MULTILINE)


def tracked_families(firewall: Firewall) -> frozenset[Family]:
    """The families whose connections some rule of the listings has tracked."""
    found: set[Family] = set()
    for text, family in (
        (firewall.iptables_nft, 4),
        (firewall.iptables_legacy, 4),
        (firewall.ip6tables_nft, 6),
        (firewall.ip6tables_legacy, 6),
    ):
        if family not in found and any(_needs(line.group()) for line in _IPT.finditer(text or "")):
            found.add(4 if family == 4 else 6)
    families: tuple[Family, ...] = ()
    for each in _NFT.finditer(firewall.nft_json or ""):
        if len(found) == 2:
            break
        if each.group(1):
            families = _NFT_FAMILIES.get(each.group(1), ())
        else:
            found.update(families)
    return frozenset(found)


def _needs(line: str) -> bool:
    """The words may be a comment's: the rule is read."""
    _, _, text = line.partition("-A ")
    rule = parse_rule(f"-A {text}")
    if any(match.module in _MATCHES for match in rule.matches):
        return True
    target = rule.target
    return target.name in _TARGETS and not (
        target.name == "CT" and any(each.name == "notrack" for each in target.options)
    )
