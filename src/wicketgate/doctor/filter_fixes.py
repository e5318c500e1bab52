# SPDX-License-Identifier: Apache-2.0
"""Fixes in the firewall: an accept in the very table that drops, a masquerade where none is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from wicketgate.doctor import firewall
from wicketgate.doctor.change import Fix
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.packet import TCP, UDP, Packet
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.step import FilterStep, TranslationStep

# The tool that a step names -> the program, and the field of the snapshot with its listing
_IPTABLES = {
    "iptables": ("iptables-nft", "iptables_nft"),
    "ip6tables": ("ip6tables-nft", "ip6tables_nft"),
    "iptables-legacy": ("iptables-legacy", "iptables_legacy"),
    "ip6tables-legacy": ("ip6tables-legacy", "ip6tables_legacy"),
}
_NAMES = {TCP: "tcp", UDP: "udp"}
_TABLE = "wicket_doctor"
_NFT_PLACE = re.compile(r"table (\S+) (\S+) chain ")


def accept(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """Let this flow pass first, where it is dropped."""
    trace = diagnosis.forward if not diagnosis.forward.works else diagnosis.reply
    if trace is None:
        return
    drops = [s for s in trace.steps if isinstance(s, FilterStep) and s.object == trace.object and not s.layer]
    if not drops:
        return
    step, packet = drops[-1], trace.packet
    hook = str(step.stage)
    answer = trace.direction == "reply"
    if step.family in _IPTABLES:
        yield _iptables(step, hook, packet, answer=answer)
    elif step.family in ("ip", "ip6", "inet"):
        yield from _nft(snapshot, step, hook, packet, answer=answer)


def except_from_nat(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """Take this flow out of a translation: accepted first in the chain that translates."""
    trace, flow = diagnosis.forward, diagnosis.concern.flow
    where = diagnosis.cause.where if diagnosis.cause is not None else ""
    steps = [s for s in trace.steps if isinstance(s, TranslationStep) and s.object == where and s.before is not None]
    if not steps or not flow.iif:
        return
    before = steps[0].before
    assert before is not None
    packet = trace.packet.with_ends(before)
    packet = replace(packet, iif=flow.iif, oif="")
    place = _NFT_PLACE.match(where)
    if place is not None:
        step = FilterStep(stage=steps[0].stage, object=where, effect="", family=place[1], table=place[2])
        yield from _nft(snapshot, step, "prerouting", packet, answer=False, kind="nat")
        return
    rule = where.removeprefix("-t nat ")
    for tool, (_, field) in _IPTABLES.items():
        listing = getattr(snapshot.firewall, field) or ""
        if tool.startswith("ip6") == (packet.family == 6) and f"{rule}\n" in listing:
            step = FilterStep(stage=steps[0].stage, object=where, effect="", family=tool, table="nat")
            yield _iptables(step, "prerouting", packet, answer=False)
            return


def _ports(packet: Packet, *, answer: bool) -> tuple[str, int] | None:
    """What names the flow: the service's port, which the first packet goes to and an answer comes from."""
    if packet.protocol not in _NAMES:
        return None
    return ("sport", packet.source_port) if answer else ("dport", packet.destination_port)


def _iptables(step: FilterStep, hook: str, packet: Packet, *, answer: bool) -> Fix:
    program, field = _IPTABLES[step.family]
    chain = hook.upper()
    words = []
    if packet.iif and hook in ("prerouting", "input", "forward"):
        words += ["-i", packet.iif]
    if packet.oif and hook in ("forward", "output", "postrouting"):
        words += ["-o", packet.oif]
    ports = _ports(packet, answer=answer)
    if hook == "forward":
        words += ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"] if answer else []
    elif ports is not None:
        name = _NAMES[packet.protocol]
        words += ["-p", name, "-m", name, f"--{ports[0]}", str(ports[1])]
    else:
        words += ["-s", str(packet.source), "-d", str(packet.destination)]
    rule = " ".join([*words, "-j", "ACCEPT"])
    table = "" if step.table == "filter" else f"-t {step.table} "

    def apply(snapshot: Snapshot) -> Snapshot:
        text = firewall.insert_iptables(getattr(snapshot.firewall, field) or "", step.table, chain, rule)
        if text is None:
            return snapshot
        return replace(snapshot, firewall=replace(snapshot.firewall, **{field: text}))

    return Fix(
        "accept-rule",
        f"accept this flow first in {step.table} {chain}",
        (f"{program} {table}-I {chain} 1 {rule}",),
        (f"{program} {table}-D {chain} {rule}",),
        apply,
    )


def _nft(
    snapshot: Snapshot, step: FilterStep, hook: str, packet: Packet, *, answer: bool, kind: str = "filter"
) -> Iterator[Fix]:
    chain = firewall.base_chain(snapshot, step.family, step.table, hook, kind)
    if chain is None:
        return
    words: list[str] = []
    expressions: list[Any] = []

    def match(spelled: str, left: Any, right: Any) -> None:
        words.append(spelled)
        expressions.append({"match": {"op": "==", "left": left, "right": right}})

    if packet.iif and hook in ("prerouting", "input", "forward"):
        match(f'iifname "{packet.iif}"', {"meta": {"key": "iifname"}}, packet.iif)
    if packet.oif and hook in ("forward", "output", "postrouting"):
        match(f'oifname "{packet.oif}"', {"meta": {"key": "oifname"}}, packet.oif)
    ports = _ports(packet, answer=answer)
    if hook == "forward":
        if answer:
            words.append("ct state established,related")
            states = {"left": {"ct": {"key": "state"}}, "right": ["established", "related"]}
            expressions.append({"match": {"op": "in", **states}})
    elif ports is not None:
        name = _NAMES[packet.protocol]
        match(f"{name} {ports[0]} {ports[1]}", {"payload": {"protocol": name, "field": ports[0]}}, ports[1])
    else:
        family = "ip" if packet.family == 4 else "ip6"
        for side, address in (("saddr", packet.source), ("daddr", packet.destination)):
            match(f"{family} {side} {address}", {"payload": {"protocol": family, "field": side}}, str(address))
    expressions.append({"accept": None})
    place = f"{step.family} {step.table} {chain}"
    yield Fix(
        "accept-rule",
        f"accept this flow first in {place}",
        (f"nft insert rule {place} {' '.join(words)} accept",),
        (f"nft -a list chain {place}   # then: nft delete rule {place} handle N",),
        lambda before: firewall.insert_rule(before, step.family, step.table, chain, expressions),
    )


def masquerade(_snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """Translate the clients of the tunnel as they leave, in a table of its own."""
    packet, oif = diagnosis.forward.packet, diagnosis.forward.egress
    family = "ip" if packet.family == 4 else "ip6"
    iif = diagnosis.concern.flow.iif
    expressions = [
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": iif}},
        {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": oif}},
        {"masquerade": None},
    ]
    chain = {
        "family": family, "table": _TABLE, "name": "postrouting", "handle": 1, "type": "nat", "hook": "postrouting",
        "prio": 100, "policy": "accept",
    }  # fmt: skip

    def apply(snapshot: Snapshot) -> Snapshot:
        made = [
            *firewall.objects(snapshot),
            {"table": {"family": family, "name": _TABLE, "handle": 999_999}},
            {"chain": chain},
        ]
        return firewall.insert_rule(firewall.with_objects(snapshot, made), family, _TABLE, "postrouting", expressions)

    yield Fix(
        "masquerade",
        f"translate what leaves by {oif} to its address",
        (
            f"nft add table {family} {_TABLE}",
            f"nft 'add chain {family} {_TABLE} postrouting {{ type nat hook postrouting priority srcnat; }}'",
            f'nft add rule {family} {_TABLE} postrouting iifname "{iif}" oifname "{oif}" masquerade',
        ),
        (f"nft delete table {family} {_TABLE}",),
        apply,
    )
