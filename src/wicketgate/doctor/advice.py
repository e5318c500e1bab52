# SPDX-License-Identifier: Apache-2.0
"""What people will have tried already, and why it is wrong here. Each sentence is checked in the model before it is said."""

from __future__ import annotations

from dataclasses import replace

from wicketgate.doctor.change import remove_rules
from wicketgate.doctor.firewall import Walkers
from wicketgate.netpath.concerns import global_addresses, is_tunnel, neighbour_of, own_traffic
from wicketgate.netpath.diagnose import Diagnosis, diagnose, without_rp_filter
from wicketgate.netpath.lookup import rule_line
from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Family, Rule, Snapshot
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

_ASTRAY = ("reply-into-tunnel", "local-subnet-captured", "reply-wrong-uplink", "mark-lost")


def wrong_here(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Popular advice that does not mend this flow."""
    if diagnosis.cause is None or diagnosis.cause.code not in _ASTRAY:
        return ()
    return (
        *_open_the_firewall(snapshot, diagnosis),
        *_loosen(walkers, snapshot, diagnosis),
        *_delete_suppress(walkers, snapshot, diagnosis),
        *_table_off(walkers, snapshot, diagnosis),
        *_host_network(walkers, snapshot, diagnosis),
    )


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


def _loosen(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Where rp_filter takes the packet: without it the answer still goes astray."""
    if diagnosis.doomed is None or diagnose(walkers.of(without_rp_filter(snapshot)), diagnosis.concern).works:
        return ()
    return (f"rp_filter = 0 or 2 alone does not mend it: the packet is let in then, and {_astray(diagnosis)}",)


def _astray(diagnosis: Diagnosis) -> str:
    reply = diagnosis.reply or diagnosis.doomed
    return f"its answer leaves by {reply.egress}" if reply is not None and reply.egress else "its answer is lost"


def _guilty(snapshot: Snapshot, diagnosis: Diagnosis) -> Rule | None:
    """The rule to blame, when it leads to a table whose default route is a tunnel's."""
    where = diagnosis.cause.where if diagnosis.cause is not None else ""
    version = diagnosis.concern.flow.destination.version  # a rule of the other family may read the same
    rule = next((each for each in snapshot.rules if each.family == version and rule_line(each) == where), None)
    if rule is None or rule.action != "lookup" or rule.table == RT_TABLE_MAIN:
        return None
    ways = [hop.oif for r in snapshot.routes if r.table == rule.table and not r.dst.prefixlen for hop in r.nexthops]
    return rule if ways and all(is_tunnel(snapshot, name) for name in ways) else None


def _table_off(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    """`Table = off` takes the rule away, and with it all that was to go through the tunnel."""
    rule = _guilty(snapshot, diagnosis)
    if rule is None:
        return ()
    now, off = walkers.of(snapshot), walkers.of(remove_rules([rule])(snapshot))
    for own in own_traffic(snapshot)[:2]:
        if own.flow.destination.version != rule.family:
            continue
        before, after = now.trace(own.flow), off.trace(own.flow)
        if is_tunnel(snapshot, before.egress) and after.egress and not is_tunnel(snapshot, after.egress):
            words = (
                f"`Table = off`, or deleting `{rule_line(rule)}`, takes the tunnel away with the fault: what this host sends "
                f"to {own.flow.destination} leaves by {after.egress} then, outside the tunnel"
            )
            return (words,)
    return ()


def _host_network(walkers: Walkers, snapshot: Snapshot, diagnosis: Diagnosis) -> tuple[str, ...]:
    """With hostNetwork the same rules stand on the node."""
    rule = _guilty(snapshot, diagnosis)
    if rule is None:
        return ()
    for own in own_traffic(snapshot):
        out = walkers.of(snapshot).trace(own.flow)
        if own.flow.destination.version == rule.family and is_tunnel(snapshot, out.egress):
            where = f"there the same rule sends what the node sends itself into {out.egress}"
            return (f"hostNetwork: true moves it to the node: {where}",)
    return ()
