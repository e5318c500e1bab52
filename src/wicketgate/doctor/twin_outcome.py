# SPDX-License-Identifier: Apache-2.0
"""What became of a flow in the twin, in the model's words.

The kernel says where a packet and its answer go. Two things it cannot say there, because the twin's tunnels are tun
devices: which peer WireGuard takes, which is a matter of its allowed-ips alone, and the way of the packet that carries
the encrypted one. The first is looked up; the second is a datagram of its own, sent from WireGuard's port with its mark.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, replace
from typing import Any

from wicketgate.errors import StateError
from wicketgate.kernel.twin.nft_trace import Traced
from wicketgate.kernel.twin.octets import Sighting, ends_of
from wicketgate.kernel.twin.twin import Seen, Twin
from wicketgate.netpath.concerns import STRANGER, Concern, Kind, is_tunnel
from wicketgate.netpath.diagnose import Diagnosis
from wicketgate.netpath.packet import UDP
from wicketgate.netpath.snapshot import PeerState, Snapshot, WireGuardState
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.wireguard import Cryptokey, outer_length

_REFUSALS = ("OutRsts", "NoPorts", "Udp6NoPorts")
_APART = 7919  # ports between two tries: a prime, so that no rule of thumb repeats
_TAKEN = ("InEchos", "Icmp6InEchos", "ListenDrops")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A flow's end in the twin.

    Attributes:
        works: both ways.
        forward: verdict of the packet.
        reply: verdict of its answer; unknown where there is none.
        egress: the interface the packet left by; empty when it did not.
        reply_egress: the same of the answer.
        source: the packet's source as it left; empty when it did not.
        destination: the same of its destination.
        code: a cause code, where it does not work.
        reason: what was seen, as a clause.
    """

    works: bool
    forward: Verdict
    reply: Verdict = Verdict.UNKNOWN
    egress: str = ""
    reply_egress: str = ""
    source: str = ""
    destination: str = ""
    code: str = ""
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON's own values."""
        return asdict(self)

    def same_end(self, other: Outcome) -> bool:
        """The same as far as a user sees."""
        return (self.works, self.forward, self.reply, self.egress, self.reply_egress) == (
            other.works, other.forward, other.reply, other.egress, other.reply_egress
        )  # fmt: skip


def contradicts(outcome: Outcome, found: Diagnosis) -> str:
    """Where twin and model do not agree, in words; empty when they do."""
    forward, reply = found.verdicts
    told = f"the twin: {outcome.forward}, then {outcome.reply} ({outcome.reason or 'it works'})"
    if outcome.works != found.works or outcome.forward is not forward:
        return f"{told}; the model: {forward}, then {reply}"
    if forward.works and reply is not Verdict.UNKNOWN and outcome.reply is not reply:
        return f"{told}; the model: {forward}, then {reply}"
    if forward.works and outcome.egress != found.forward.egress:
        return f"in the twin it leaves by {outcome.egress or 'nothing'}, in the model by {found.forward.egress or 'nothing'}"
    if outcome.egress and found.forward.egress and outcome.works:
        ends = found.forward.packet
        if (outcome.source, outcome.destination) != (str(ends.source), str(ends.destination)):
            return (
                f"in the twin it leaves as {outcome.source} -> {outcome.destination}, "
                f"in the model as {ends.source} -> {ends.destination}"
            )
    if found.reply is not None and outcome.works and outcome.reply_egress != found.reply.egress:
        return f"the answer leaves by {outcome.reply_egress or 'nothing'}, in the model by {found.reply.egress or 'nothing'}"
    return ""


class Judgement:
    """Flows of one snapshot, sent in its twin.

    Args:
        twin: built.
        snapshot: what it was built from, with the endpoints of the flows' senders.
    """

    def __init__(self, twin: Twin, snapshot: Snapshot) -> None:
        self._twin = twin
        self._snapshot = snapshot
        self._devices = {each.ifname: each for each in snapshot.wireguard}
        self.traced: list[tuple[str, Traced]] = []  # (direction, word), of the last flow

    def of(self, concern: Concern) -> Outcome:
        """Send it and its answer.

        Raises:
            StateError: it cannot be played here.
        """
        self.traced = []
        flow = concern.flow
        self._whole_for(flow.destination.version)
        if flow.iif is not None and is_tunnel(self._snapshot, flow.iif):
            device = self._device(flow.iif)
            if Cryptokey(device).peer_of(flow.source) is None:
                words = f"no peer of {flow.iif} may send from {flow.source}"
                return Outcome(works=False, forward=Verdict.DROPPED, code="source-not-allowed", reason=words)
        seen, number = self._twin.send(flow)
        self._note(seen, "forward" if flow.iif is not None else "")
        return self._from_here(seen, number) if flow.iif is None else self._incoming(concern, seen)

    def _whole_for(self, version: int) -> None:
        lacks = self._twin.lacks(version)
        if lacks:
            raise StateError(f"the twin cannot be rebuilt: {'; '.join(lacks)}")

    def _note(self, seen: Seen, direction: str) -> None:
        # What this host answers begins anew in output.
        at = direction
        for each in seen.traced:
            if direction == "forward" and each.hook == "output":
                at = "reply"
            self.traced.append((at or "forward", each))

    def _incoming(self, concern: Concern, seen: Seen) -> Outcome:
        packets = [each for each in seen.left if each.kind == "packet"]
        echoes = [each for each in packets if each.answer or (each.ends.protocol == UDP and seen.taken)]
        onwards = [each for each in packets if each not in echoes]
        if onwards:
            return self._forwarded(concern, onwards[0])
        taken = any(each in seen.counted for each in _TAKEN) and not self._ignored(concern)
        if echoes or seen.taken or taken:
            return self._home(concern, Outcome(works=False, forward=Verdict.DELIVERED), echoes)
        told = [each for each in seen.left if each.kind != "packet"]
        if told or any(each in seen.counted for each in _REFUSALS):
            answer = told[0] if told else None
            way = f"{answer.kind} leaves by {answer.ifname}" if answer else "it was refused, and nobody was told"
            reply = Verdict.UNKNOWN if answer is None else self._came(concern, answer)
            reset = answer is None or answer.kind in ("reset", "icmp-3-3", "icmp-1-4")
            code = "no-listener" if reset else "input-drop"
            egress = answer.ifname if answer else ""
            return Outcome(False, Verdict.REFUSED, reply, reply_egress=egress, code=code, reason=way)
        if "IPReversePathFilter" in seen.counted:
            words = "the kernel counts IPReversePathFilter"
            return Outcome(works=False, forward=Verdict.DROPPED, code="rp-filter", reason=words)
        return Outcome(works=False, forward=Verdict.DROPPED, code=self._last_hook(), reason="it is not seen again")

    def _ignored(self, concern: Concern) -> bool:
        """An echo request that is counted, and then ignored."""
        flow = concern.flow
        value = self._snapshot.sysctls.get("net.ipv4.icmp_echo_ignore_all", "0")
        return flow.protocol == "icmp" and flow.destination.version == 4 and value != "0"

    @staticmethod
    def _came(concern: Concern, answer: Sighting) -> Verdict:
        return Verdict.FORWARDED if answer.ifname == concern.flow.iif else Verdict.MISROUTED

    def _home(self, concern: Concern, so_far: Outcome, answers: list[Sighting]) -> Outcome:
        """Whether the answer leaves by where the packet came in, as the asking one expects it."""
        flow = concern.flow
        if not answers:
            code = self._last_hook("reply")
            return replace(so_far, reply=Verdict.DROPPED, code=code, reason="its answer is not seen to leave")
        answer = answers[0]
        found = replace(so_far, reply_egress=answer.ifname)
        if answer.ifname != flow.iif:
            into = is_tunnel(self._snapshot, answer.ifname)
            code = "reply-into-tunnel" if into else "reply-wrong-uplink"
            return replace(found, reply=Verdict.MISROUTED, code=code, reason=f"its answer leaves by {answer.ifname}")
        expected = ends_of(flow.destination, flow.source, flow.protocol, flow.destination_port, flow.source_port)
        if answer.ends != expected:
            words = f"its answer leaves as {answer.ends.spelled()}, which nobody waits for"
            return replace(found, reply=Verdict.MISROUTED, code="dnat-elsewhere", reason=words)
        lost = self._carried(answer)
        if lost is not None:
            return replace(found, reply=Verdict.DROPPED, code=lost[0], reason=lost[1])
        return replace(found, works=True, reply=Verdict.FORWARDED)

    def _forwarded(self, concern: Concern, sent: Sighting) -> Outcome:
        flow = concern.flow
        found = Outcome(
            works=False, forward=Verdict.FORWARDED, egress=sent.ifname,
            source=str(sent.ends.source), destination=str(sent.ends.destination),
        )  # fmt: skip
        if sent.ifname == flow.iif and is_tunnel(self._snapshot, sent.ifname):
            device = self._device(sent.ifname)
            into, out = Cryptokey(device).peer_of(flow.source), Cryptokey(device).peer_of(sent.ends.destination)
            if out is not None and into is not None and (_same(into[1], out[1]) or out[1].endpoint is None):
                words = f"it goes back into {sent.ifname}"
                return replace(found, forward=Verdict.MISROUTED, code="server-peer-claims-default", reason=words)
        lost = self._carried(sent)
        if lost is not None:
            return replace(found, forward=Verdict.DROPPED, code=lost[0], reason=lost[1])
        if self._untranslated(concern, sent):
            words = f"it leaves by {sent.ifname} with the client's own address"
            return replace(found, code="masquerade-missing", reason=words)
        back = self._twin.answer(sent)
        self._note(back, "reply")
        return self._home(concern, found, [each for each in back.left if each.kind == "packet"])

    def _from_here(self, seen: Seen, number: int) -> Outcome:
        sent = next((each for each in seen.left if each.number == number and each.kind == "packet"), None)
        if sent is None:
            if seen.taken:
                raise StateError("what this host sends to itself is not played in a twin")
            # EPERM is how a sender learns of a dropping rule in OUTPUT; the vocabulary calls that dropped.
            verdict = Verdict.REFUSED if seen.refused not in (0, errno.EPERM) else Verdict.DROPPED
            words = f"the sender is told errno {seen.refused}" if seen.refused else "it is not seen to leave"
            return Outcome(works=False, forward=verdict, code=self._last_hook("forward"), reason=words)
        found = Outcome(
            works=False, forward=Verdict.FORWARDED, egress=sent.ifname,
            source=str(sent.ends.source), destination=str(sent.ends.destination),
        )  # fmt: skip
        lost = self._carried(sent)
        if lost is not None:
            return replace(found, forward=Verdict.DROPPED, code=lost[0], reason=lost[1])
        back = self._twin.answer(sent)
        self._note(back, "reply")
        if back.connected:
            return replace(found, works=True, reply=Verdict.DELIVERED)
        code = "rp-filter" if "IPReversePathFilter" in back.counted else self._last_hook("reply")
        return replace(found, reply=Verdict.DROPPED, code=code, reason="the answer does not reach the socket")

    def _device(self, ifname: str) -> WireGuardState:
        device = self._devices.get(ifname)
        if device is None:
            raise StateError(f"what the tunnel {ifname} does was not read")
        return device

    def _carried(self, inner: Sighting) -> tuple[str, str] | None:
        """How WireGuard would lose a packet that went into its device: a code and a clause; None when it would not."""
        if not is_tunnel(self._snapshot, inner.ifname):
            return None
        device = self._device(inner.ifname)
        peer = Cryptokey(device).peer_of(inner.ends.destination)
        if peer is None:
            return "no-peer-for-destination", f"no peer of {inner.ifname} has {inner.ends.destination}"
        endpoint = peer[1].endpoint
        if endpoint is None:
            return "peer-without-endpoint", f"the peer of {inner.ends.destination} has no endpoint"
        self._whole_for(endpoint[0].version)
        link = self._snapshot.link(inner.ifname)
        length = outer_length(60, endpoint[0], link.mtu if link is not None else 1420)
        left = self._twin.carry(device.listen_port, device.fwmark, endpoint, length)
        outer = [each for each in left if each.kind == "packet" and each.ends.protocol == UDP]
        if not outer:
            return "output-drop", f"the packet that carries it to {endpoint[0]} is not seen to leave"
        if is_tunnel(self._snapshot, outer[0].ifname):
            if outer[0].ifname == inner.ifname:
                return "reply-into-tunnel", f"the packet that carries it goes into {outer[0].ifname} itself"
            return self._carried(outer[0])
        return None

    def _untranslated(self, concern: Concern, sent: Sighting) -> bool:
        """As the model has it: nobody outside answers to a tunnel client's private address."""
        flow = concern.flow
        outside = concern.kind is Kind.EGRESS or flow.destination.is_global
        if not outside or flow.iif is None or not is_tunnel(self._snapshot, flow.iif):
            return False
        if is_tunnel(self._snapshot, sent.ifname):
            return False
        return sent.ends.source == flow.source and sent.ends.source.is_private

    def _last_hook(self, direction: str = "forward") -> str:
        """Where it was last seen, as a cause code; where nothing was traced, that it vanished."""
        words = [each for at, each in self.traced if at == direction]
        drops = [each for each in words if each.verdict == "drop"]
        if drops and drops[-1].hook:
            return f"{drops[-1].hook}-drop"
        last = next((each for each in reversed(words) if each.ours), None)
        if last is not None and last.chain.endswith("_first"):
            return f"{last.hook or last.chain.partition('_')[0]}-drop"
        return "reply-unroutable" if direction == "reply" else "egress-unreachable"


def _same(one: PeerState, other: PeerState) -> bool:
    return one.public_key == other.public_key


def stranger_like(concern: Concern, attempt: int) -> Concern:
    """The same flow of another stranger: whatever a hash, a counter or chance decides shall show in some of them."""
    flow = concern.flow
    if not attempt:
        return concern
    source = flow.source
    if source == STRANGER[4 if source.version == 4 else 6]:
        source = type(source)(int(source) + attempt)  # still in 203.0.113.0/24 and 2001:db8::/32
    port = 1024 + (flow.source_port + _APART * attempt) % 60000 if flow.source_port else 0
    return replace(concern, flow=replace(flow, source=source, source_port=port))
