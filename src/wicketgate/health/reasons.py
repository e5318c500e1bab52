# SPDX-License-Identifier: Apache-2.0
"""Checks and the model's opinions put together. Pure.

Where a door was tried, it decides: the model names the rule, and a code where the door had only a silence to tell of.
Where there is none, the model is the evidence, firewalls included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wicketgate.health.cause import Cause
from wicketgate.health.check import CheckResult, State
from wicketgate.health.flow_model import Opinion

# What a failed probe says when nobody knows more.
_VAGUE = frozenset({Cause.HANDSHAKE_SILENT, Cause.TUNNEL_SILENT, Cause.EGRESS_UNREACHABLE, Cause.REPLY_UNROUTABLE})
_OF_THE_ANSWER = frozenset({"output-drop", "postrouting-drop", "local-subnet-captured", "mark-lost"})
NOT_SEEN = "firewalls are not seen this way"
SEEN = "so says the model, firewalls included"


def with_rules(results: Sequence[CheckResult], opinions: Mapping[str, Opinion], family: int) -> list[CheckResult]:
    """What the door found of one family, with the rule to blame.

    Args:
        results: of a round; those of other families, and those that did not fail, stay.
        opinions: by the first word of the check's name.
        family: 4 or 6.
    """
    return [_blamed(result, _opinion_of(result, opinions, family)) for result in results]


def disagreements(results: Sequence[CheckResult], opinions: Mapping[str, Opinion], family: int) -> list[str]:
    """Names of the checks that failed although the model sees nothing in their way."""
    return [
        result.name
        for result in results
        if result.state is State.FAIL and (said := _opinion_of(result, opinions, family)) is not None and said.works
    ]


def judged(checks: Sequence[CheckResult], opinions: Mapping[str, Opinion], family: int) -> list[CheckResult]:
    """The kernel's answers about routing for one family, and what the model says of the same flows.

    Args:
        checks: `arrival`, `reply`, `balancer`, `forwarding` of that family.
        opinions: of `handshake`, `balancer` and, where the way out is to be proved, `egress`.
        family: 4 or 6.
    """
    knock = opinions.get("handshake")
    answer = knock is not None and (knock.code.startswith("reply") or knock.code in _OF_THE_ANSWER)
    of: dict[str, Opinion | None] = {
        "arrival": Opinion(True) if answer else knock,
        "reply": knock if answer or (knock is not None and not knock.code) else Opinion(True),
        "balancer": opinions.get("balancer"),
        "forwarding": opinions.get("egress"),
    }
    return [_decided(check, of.get(check.name.removesuffix(f"-ipv{family}"))) for check in checks]


def _opinion_of(result: CheckResult, opinions: Mapping[str, Opinion], family: int) -> Opinion | None:
    name, _, of = result.name.partition("-ipv")
    return opinions.get(name) if of == str(family) else None


def _blamed(result: CheckResult, said: Opinion | None) -> CheckResult:
    if said is None or result.state is not State.FAIL:
        return result
    if said.works:
        detail = {**result.detail, "model": "works"}
        return replace(result, evidence=f"{result.evidence}; the model sees nothing in its way", detail=detail)
    if said.unknown:
        return replace(result, detail={**result.detail, "model": f"unknown: {said.words}"})
    better = _cause(said.code) if result.cause in _VAGUE else None
    evidence = f"{result.evidence}; {said.words}" if better is not None and said.words else result.evidence
    detail = {**result.detail, "model": said.code}
    return replace(result, cause=better or result.cause, evidence=evidence, where=said.where, detail=detail)


def _decided(check: CheckResult, said: Opinion | None) -> CheckResult:
    if said is None:
        return check
    if check.state is State.FAIL:
        return replace(check, where=said.where) if said.code else check
    if said.code:
        cause = _cause(said.code) or Cause.STATE_UNREADABLE
        return replace(check, state=State.FAIL, cause=cause, evidence=said.words, where=said.where)
    if said.works:
        return replace(check, evidence=check.evidence.replace(NOT_SEEN, SEEN))
    if said.limited:
        words = f"a limit stands in the way, which no client is taken to exceed: {said.words}"
        return replace(check, evidence=check.evidence.replace(NOT_SEEN, words))
    words = f"the model does not know: {said.words}"
    return replace(check, state=State.UNKNOWN, cause=Cause.STATE_UNREADABLE, evidence=words)


def _cause(code: str) -> Cause | None:
    try:
        return Cause(code)
    except ValueError:
        return None
