# SPDX-License-Identifier: Apache-2.0
"""Fixes by firewall mark: the answer takes the mark that the guilty rule leaves out, or the one its packet had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from wicketgate.doctor import firewall
from wicketgate.doctor.change import Fix, set_sysctls
from wicketgate.netpath.diagnose import ACCEPT_MARK, Diagnosis
from wicketgate.netpath.lookup import rule_line
from wicketgate.netpath.settings import Settings, in_name
from wicketgate.netpath.snapshot import Rule, Snapshot
from wicketgate.netpath.spelling import FULL_MASK

_TABLE = "wicket_doctor_mark"
_PRIORITY = -145  # behind mangle's -150, where wg-quick restores marks of its own
_STRICT = 1


def mark_answers(snapshot: Snapshot, diagnosis: Diagnosis) -> Iterator[Fix]:
    """Mark the flow's packets as they come in, keep it with the connection, and give it to the answers.

    Where rp_filter is strict the mark counts in its lookup only with src_valid_mark (fib_validate_source).
    """
    flow = diagnosis.concern.flow
    rule = _guilty(snapshot, diagnosis)
    if rule is None or not flow.iif or flow.protocol not in ("tcp", "udp") or snapshot.firewall.nft_json is None:
        return
    mark, family = rule.fwmark, "ip" if rule.family == 4 else "ip6"
    port, protocol = flow.destination_port, flow.protocol
    chains = {"prerouting": "filter", "output": "route"}
    rules = {
        "prerouting": (
            f'iifname "{flow.iif}" {protocol} dport {port} meta mark set {mark:#x} ct mark set {mark:#x}',
            [_equal({"meta": {"key": "iifname"}}, flow.iif), _port(protocol, "dport", port), _set("meta", mark), _set("ct", mark)],
        ),
        "output": (
            f"{protocol} sport {port} ct mark {mark:#x} meta mark set {mark:#x}",
            [_port(protocol, "sport", port), _equal({"ct": {"key": "mark"}}, mark), _set("meta", mark)],
        ),
    }  # fmt: skip

    def apply(before: Snapshot) -> Snapshot:
        made: list[dict[str, Any]] = [
            *firewall.objects(before),
            {"table": {"family": family, "name": _TABLE, "handle": 999_998}},
        ]
        for handle, (hook, kind) in enumerate(chains.items(), 1):
            chain = {"family": family, "table": _TABLE, "name": hook, "handle": handle, "type": kind, "hook": hook}
            made.append({"chain": chain | {"prio": _PRIORITY, "policy": "accept"}})
        for hook, (_, expressions) in rules.items():
            made.append({"rule": {"family": family, "table": _TABLE, "chain": hook, "handle": 9, "expr": expressions}})
        text = json.dumps({"nftables": made})
        return replace(before, firewall=replace(before.firewall, nft_json=text, nft_text=None))

    fix = Fix(
        "mark-answers",
        f"mark what comes in by {flow.iif} to port {port} and its answers with {mark:#x}, which the rule leaves out",
        (
            f"nft add table {family} {_TABLE}",
            *(
                f"nft 'add chain {family} {_TABLE} {hook} {{ type {kind} hook {hook} priority {_PRIORITY}; }}'"
                for hook, kind in chains.items()
            ),
            *(f"nft add rule {family} {_TABLE} {hook} {words}" for hook, (words, _) in rules.items()),
        ),
        (f"nft delete table {family} {_TABLE}",),
        apply,
    )
    valid = f"net.ipv4.conf.{in_name(flow.iif)}.src_valid_mark"
    settings = Settings(snapshot.sysctls)
    strict = rule.family == 4 and settings.larger(4, flow.iif, "rp_filter") == _STRICT
    if strict and not settings.either(4, flow.iif, "src_valid_mark"):
        on, off = (f"sysctl -w {valid}=1",), (f"sysctl -w {valid}=0",)
        fix = fix.then(Fix("src-valid-mark", "let rp_filter count the mark", on, off, set_sysctls({valid: "1"})))
    yield fix


def accept_mark(snapshot: Snapshot, _diagnosis: Diagnosis) -> Iterator[Fix]:
    """Let a TCP listener's connections take the mark of the packet that opened them (inet_request_mark)."""
    if snapshot.sysctls.get(ACCEPT_MARK, "0") == "0":
        yield Fix(
            "accept-mark",
            "let connections take the mark of the packet that opened them",
            (f"sysctl -w {ACCEPT_MARK}=1",),
            (f"sysctl -w {ACCEPT_MARK}=0",),
            set_sysctls({ACCEPT_MARK: "1"}),
        )


def _guilty(snapshot: Snapshot, diagnosis: Diagnosis) -> Rule | None:
    """The rule to blame, when it is one that leaves a mark out."""
    where = diagnosis.cause.where if diagnosis.cause is not None else ""
    version = diagnosis.concern.flow.destination.version  # a rule of the other family may read the same
    for rule in snapshot.rules:
        if (
            rule.family == version
            and rule.invert
            and rule.fwmark
            and rule.fwmask == FULL_MASK
            and rule_line(rule) == where
        ):
            return rule
    return None


def _equal(left: Any, right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _port(protocol: str, side: str, port: int) -> dict[str, Any]:
    return _equal({"payload": {"protocol": protocol, "field": side}}, port)


def _set(what: str, mark: int) -> dict[str, Any]:
    return {"mangle": {"key": {what: {"key": "mark"}}, "value": mark}}
