# SPDX-License-Identifier: Apache-2.0
"""Trace -> cause, for the doctor and for health: a code, the very object that is to blame as the user finds it, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from wicketgate.netpath.concerns import Concern, Kind, connected, endpoint, is_tunnel
from wicketgate.netpath.packet import Ends
from wicketgate.netpath.round_trip import there_and_back
from wicketgate.netpath.snapshot import IPAddress, Snapshot
from wicketgate.netpath.step import (
    CheckStep,
    CryptokeyStep,
    FilterStep,
    RouteStep,
    RuleStep,
    SocketStep,
    Stage,
    Step,
    TranslationStep,
)
from wicketgate.netpath.trace import Trace
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

# Ends that the model tells finer than the vocabulary of causes.
_CODES = MappingProxyType({"no-route": "egress-unreachable"})
ACCEPT_MARK = "net.ipv4.tcp_fwmark_accept"  # of both families (inet_request_mark)
_ASTRAY = ("reply-into-tunnel", "reply-wrong-uplink", "local-subnet-captured")
_MEANT_FOR_HERE = (Kind.BALANCER, Kind.KUBELET, Kind.CLIENT)
# How a packet ends that a NAT rule has sent to where it is not wanted.
_SEEN_ELSEWHERE = (
    "forwarding-off",
    "no-route",
    "no-listener",
    "listener-wrong-address",
    "forward-drop",
    "blackhole-route",
)
_TUNNEL_KINDS = ("wireguard", "tun")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a flow does not work.

    Attributes:
        code: of the vocabulary.
        object: what kind of thing is to blame: policy rule, route, setting, firewall rule ...
        where: the thing itself, as the tool that lists it prints it.
        explanation: one or two sentences.
    """

    code: str
    object: str
    where: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A flow, its two ways, and what is wrong with them.

    Attributes:
        concern: the flow.
        forward: trace of its first packet.
        reply: trace of the answer; None when there is none.
        works: both get where they should.
        verdicts: forward and reply, as judged here.
        cause: None when it works, or when the model does not know.
        unknown: what the model does not know; empty when it does.
        doomed: the way a reply would take, where the packet is dropped because of it.
    """

    concern: Concern
    forward: Trace
    reply: Trace | None
    works: bool
    verdicts: tuple[Verdict, Verdict]
    cause: Cause | None = None
    unknown: str = ""
    doomed: Trace | None = None

    @property
    def broken(self) -> bool:
        """It certainly does not work."""
        return self.cause is not None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The whole way, forward and back."""
        reply = self.reply or self.doomed
        return self.forward.steps + (reply.steps if reply is not None else ())


def diagnose(walker: Walker, concern: Concern) -> Diagnosis:
    """Send the flow through the model and judge what became of it."""
    forward, reply = there_and_back(walker, concern.flow)
    verdicts = (forward.verdict, reply.verdict if reply is not None else Verdict.UNKNOWN)
    found = Diagnosis(concern, forward, reply, works=False, verdicts=verdicts)
    elsewhere = _translated_away(found)
    if elsewhere is not None:
        return replace(found, cause=elsewhere)
    captured = _captured(walker.snapshot, found)
    if captured is not None:
        return replace(found, cause=captured)
    lost = _returned_to_sender(walker.snapshot, found)
    if not forward.works and lost is None:
        return _ended(walker, found, forward)
    if lost is not None:
        return replace(found, verdicts=(Verdict.MISROUTED, Verdict.UNKNOWN), reply=None, cause=lost)
    if reply is None:
        return replace(found, unknown=_why_unknown(forward) or "a hash chooses between several ways out")
    if not reply.works:
        return _ended(walker, found, reply)
    for trace in (forward, reply):
        unread = _unread_tunnel(walker.snapshot, trace)
        if unread:
            return replace(found, verdicts=(verdicts[0], Verdict.UNKNOWN), unknown=unread)
    missing = _untranslated(walker.snapshot, found)
    if missing is not None:
        return replace(found, verdicts=(verdicts[0], Verdict.UNKNOWN), cause=missing)
    return replace(found, works=True)


def _ended(walker: Walker, found: Diagnosis, trace: Trace) -> Diagnosis:
    if trace.verdict is Verdict.UNKNOWN or not trace.code:
        return replace(found, unknown=_why_unknown(trace) or trace.reason)
    if trace.code == "rp-filter":
        root = _root_of_rp_filter(walker, found)
        if root is not None:
            return root
    cause = _cause(walker.snapshot, found.concern, trace)
    return replace(found, cause=_of_a_lost_mark(walker, found, cause) or cause)


def _why_unknown(trace: Trace) -> str:
    if trace.verdict is not Verdict.UNKNOWN:
        return ""
    return f"{trace.object}: {trace.reason}" if trace.object else trace.reason


def _cause(snapshot: Snapshot, concern: Concern, trace: Trace) -> Cause:
    code = _CODES.get(trace.code, trace.code)
    words = trace.reason
    source = concern.flow.source
    if trace.egress and code == "reply-wrong-uplink":
        link = snapshot.link(trace.egress)
        if link is not None and link.kind in _TUNNEL_KINDS:
            code = "reply-into-tunnel"
    if code == "reply-into-tunnel" and concern.flow.iif is not None:
        network = connected(snapshot, concern.flow.iif, source)
        if network is not None:
            code = "local-subnet-captured"
            words += f", although {source} is in {concern.flow.iif}'s own subnet {network}"
    where = trace.object or trace.reason
    return Cause(code, _kind_of(trace, where), where, f"{words[:1].upper()}{words[1:]}.")


def _of_a_lost_mark(walker: Walker, found: Diagnosis, cause: Cause) -> Cause | None:
    """The packet came with a mark, and its answer would go home if it had it too."""
    mark, flow = found.forward.packet.mark, found.concern.flow
    if cause.code not in _ASTRAY or not mark or flow.protocol != "tcp":
        return None
    kept = replace(walker.snapshot, sysctls=MappingProxyType({**walker.snapshot.sysctls, ACCEPT_MARK: "1"}))
    forward, reply = there_and_back(Walker(kept, walker.netfilter), flow)
    if not forward.works or reply is None or not reply.works:
        return None
    who = next((s.object for s in found.forward.steps if isinstance(s, TranslationStep) and s.mark_after == mark), "")
    words = (
        f"The packet has the mark {mark:#x}{f', from `{who}`' if who else ''}, and its answer has none, so this rule takes "
        f"it: {cause.explanation[:1].lower()}{cause.explanation[1:]}"
    )
    return Cause("mark-lost", cause.object, cause.where, words)


def _translated_away(found: Diagnosis) -> Cause | None:
    """A packet for this host's listener or WireGuard port that a NAT rule sends to another host."""
    forward = found.forward
    if found.concern.kind not in _MEANT_FOR_HERE:
        return None
    if forward.verdict is not Verdict.FORWARDED and forward.code not in _SEEN_ELSEWHERE:
        return None
    nat = [s for s in forward.steps if isinstance(s, TranslationStep) and s.before is not None and not s.layer]
    changed = [
        s for s in nat if s.before is not None and s.after is not None and _receiver(s.before) != _receiver(s.after)
    ]
    if not changed:
        return None
    flow = found.concern.flow
    end = f"leaves by {forward.egress}" if forward.verdict is Verdict.FORWARDED else f"ends there: {forward.reason}"
    words = (
        f"The rule gives what is sent to {flow.destination} port {flow.destination_port} the destination "
        f"{endpoint(forward.packet.destination, forward.packet.destination_port)}, and it {end}. What listens here never sees it."
    )
    return Cause("dnat-elsewhere", "firewall rule", changed[0].object, words)


def _receiver(ends: Ends) -> tuple[IPAddress, int]:
    return ends.destination, ends.destination_port


def _captured(snapshot: Snapshot, found: Diagnosis) -> Cause | None:
    """What the pod asks of its cluster, sent into a tunnel because the tunnel takes everything."""
    forward, flow = found.forward, found.concern.flow
    if found.concern.kind not in (Kind.DNS, Kind.API) or not is_tunnel(snapshot, forward.egress):
        return None
    out = [s for s in forward.steps if isinstance(s, CryptokeyStep) and s.stage is Stage.TUNNEL_OUT and not s.layer]
    if out and out[0].peer is not None:
        named = [n for n in out[0].peer.allowed_ips if flow.destination in n and n.prefixlen > 1]
        if named:
            return None  # the peer has this very network: it is meant to go there
    what = "its cluster's DNS" if found.concern.kind is Kind.DNS else "the Kubernetes API"
    words = (
        f"What this pod asks of {what} at {flow.destination} goes into {forward.egress}, whose far end has no such address: "
        "the tunnel takes everything that nothing else has a route for."
    )
    return Cause("own-traffic-captured", "policy rule" if forward.rule else "route", forward.decided_by(), words)


def _kind_of(trace: Trace, where: str) -> str:
    names: dict[type, str] = {
        RuleStep: "policy rule",
        RouteStep: "route",
        FilterStep: "firewall rule",
        SocketStep: "socket",
        CryptokeyStep: "WireGuard peer",
    }
    for step in reversed(trace.steps):
        if step.object == where and type(step) in names:
            return names[type(step)]
        if step.object == where and isinstance(step, CheckStep):
            return "setting" if " = " in where else "interface"
    if " = " in where:
        return "setting"
    return "policy rule" if where.partition(": ")[0].isdecimal() else "interface" if trace.egress == where else "state"


def _root_of_rp_filter(walker: Walker, found: Diagnosis) -> Diagnosis | None:
    """A packet that rp_filter drops because its answer would go elsewhere: the answer's way is the cause."""
    snapshot, flow = walker.snapshot, found.concern.flow
    loose = without_rp_filter(snapshot)
    forward, reply = there_and_back(Walker(loose, walker.netfilter), flow)
    if not forward.works or reply is None or reply.verdict is not Verdict.MISROUTED or not reply.object:
        return None
    cause = _cause(snapshot, found.concern, reply)
    words = f"{found.forward.object} drops the packet as it comes in, because its answer would leave elsewhere: {reply.reason}."
    return replace(
        found, cause=replace(cause, explanation=words), doomed=reply, verdicts=(found.verdicts[0], reply.verdict)
    )


def without_rp_filter(snapshot: Snapshot) -> Snapshot:
    """The same place with rp_filter 0 everywhere, to see the way that a reply would take."""
    values = {name: "0" if name.endswith(".rp_filter") else value for name, value in snapshot.sysctls.items()}
    return replace(snapshot, sysctls=MappingProxyType(values))


def _returned_to_sender(snapshot: Snapshot, found: Diagnosis) -> Cause | None:
    """A tunnel client's packet that goes back into the tunnel to the peer it came from."""
    forward, flow = found.forward, found.concern.flow
    if flow.iif is None or forward.egress != flow.iif or not is_tunnel(snapshot, flow.iif):
        return None
    into = [s for s in forward.steps if isinstance(s, CryptokeyStep) and s.stage is Stage.TUNNEL_IN and not s.layer]
    out = [s for s in forward.steps if isinstance(s, CryptokeyStep) and s.stage is Stage.TUNNEL_OUT and not s.layer]
    if not into or not out or into[0].peer is None or out[0].peer is None:
        return None
    same = into[0].peer.public_key == out[0].peer.public_key
    if not same and forward.code != "peer-without-endpoint":
        return None  # another peer, which has an endpoint: the exit
    rule = forward.decided_by()
    which = "to the very peer it came from" if same else f"to {out[0].object}, which has no endpoint"
    words = (
        f"What the client sends to {flow.destination} goes back into {flow.iif}, {which}: that peer claims the address "
        "in its AllowedIPs, and the rule routes it there."
    )
    return Cause("server-peer-claims-default", "policy rule" if forward.rule else "route", rule, words)


def _unread_tunnel(snapshot: Snapshot, trace: Trace) -> str:
    """A way through a tunnel whose peers were not read."""
    known = {device.ifname for device in snapshot.wireguard}
    for name in {trace.egress, trace.packet.iif, trace.flow.iif or ""} - known:
        link = snapshot.link(name)
        if link is not None and link.kind in _TUNNEL_KINDS:
            why = next((f": {each.why}" for each in snapshot.unread if each.what.startswith("wireguard")), "")
            return f"the way leads through {name}, and what that tunnel does was not read{why}"
    return ""


def _untranslated(snapshot: Snapshot, found: Diagnosis) -> Cause | None:
    """A tunnel client's packet that leaves by an uplink with the client's own private address."""
    flow, packet = found.concern.flow, found.forward.packet
    outside = found.concern.kind is Kind.EGRESS or flow.destination.is_global
    if not outside or flow.iif is None or not is_tunnel(snapshot, flow.iif):
        return None
    if not found.forward.egress or is_tunnel(snapshot, found.forward.egress):
        return None
    if packet.source != flow.source or not packet.source.is_private:
        return None
    words = (
        f"The packet leaves by {found.forward.egress} with the client's own address {packet.source}. Nobody outside can answer "
        "that, unless the network beyond routes it back here or translates it itself, which cannot be seen from here."
    )
    where = f"no masquerade or snat rule takes {packet.source} out of {found.forward.egress}"
    return Cause("masquerade-missing", "firewall", where, words)
