# SPDX-License-Identifier: Apache-2.0
"""What people will have tried already, and why it is wrong here. Each sentence is checked in the model before it is said."""

from __future__ import annotations

from dataclasses import replace

from wicketgate.doctor.change import remove_rules
from wicketgate.doctor.firewall import Walkers
from wicketgate.netpath.concerns import global_addresses, neighbour_of
from wicketgate.netpath.diagnose import Diagnosis, diagnose
from wicketgate.netpath.lookup import rule_line
from wicketgate.netpath.snapshot import Family, Snapshot
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

_ASTRAY = ("reply-into-tunnel", "local-subnet-captured", "reply-wrong-uplink")


def wrong_here(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Popular advice that does not mend this flow."""
    if diagnosis.cause is None or diagnosis.cause.code not in _ASTRAY:
        return ()
    return (*_open_the_firewall(snapshot, diagnosis), *_delete_suppress(walkers, snapshot, diagnosis))


def _open_the_firewall(snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    # Without any netfilter at all the flow is still broken: then no accept rule can mend it.
    if diagnose(Walker(snapshot), diagnosis.concern).works:
        return ()
    if diagnosis.forward.verdict is Verdict.DELIVERED:
        why = "the request is let in already; it is the answer that goes astray"
    else:
        why = "even without any firewall the request or its answer is lost to routing"
    return (f"accepting in INPUT or FORWARD does nothing here: {why}",)


def _delete_suppress(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    flow = diagnosis.concern.flow
    family: Family = 4 if flow.destination.version == 4 else 6
    rules = [r for r in snapshot.rules if r.family == family and r.suppress_prefixlength is not None]
    if not rules or not flow.iif:
        return ()
    walker = walkers.of(remove_rules(rules)(snapshot))
    if diagnose(walker, diagnosis.concern).works:
        return ()
    what = f"deleting `{rule_line(rules[0])}`"
    for address in global_addresses(snapshot, flow.iif, family):
        neighbour = neighbour_of(address)
        if neighbour is None:
            continue
        concern = replace(diagnosis.concern, flow=replace(flow, source=neighbour))
        if diagnose(walkers.of(snapshot), concern).works and not diagnose(walker, concern).works:
            return (
                f"{what} makes it worse: your own subnet {address.interface.network} is captured by the tunnel too",
            )
    return (f"{what} does not mend it",)
