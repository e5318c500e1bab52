# SPDX-License-Identifier: Apache-2.0
"""What the model says of a handshake and of the balancer's check, and whether the door says so too, in random states."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from netns.door_stand import PORT, TCP_PORT, Stand
from netns.door_states import State, StateMaker, undo
from netns.filter_rules import Rules
from wicketgate.clock import SystemClock
from wicketgate.errors import StateError
from wicketgate.health.door import Door
from wicketgate.health.door_types import DoorUnavailable
from wicketgate.health.flow_model import LiveModel, Opinion
from wicketgate.health.target import ProbeTarget
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

CHECKS = (("udp", "handshake"), ("tcp", "balancer"))


@dataclass
class Tally:
    """Cases are a check of one family in one state."""

    cases: int = 0
    green: int = 0
    states: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    no_door: Counter[str] = field(default_factory=Counter)
    own_half: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        unknown = self.unknown.total()
        agree = self.cases - self.no_door.total() - self.own_half.total() - unknown - len(self.wrong)
        return (
            f"{self.cases} checks in {self.states} states, {agree} agreements, {len(self.wrong)} disagreements, {unknown} unknown "
            f"({100 * unknown / max(1, self.cases):.2f} %); no door {self.no_door.total()} times; kept in {self.own_half.total()} times; {self.green} green; {dict(self.causes.most_common())}"
        )


class DoorJudge:
    """Puts a pod into states, and asks door and model."""

    def __init__(self, stand: Stand, chance: Random) -> None:
        self.stand = stand
        self.maker = StateMaker(chance, stand)
        self.tally = Tally()

    async def judge(self, states: int) -> None:
        """Make that many states. Run it in the pod; what was found is in `tally`."""
        model = LiveModel(health_port=TCP_PORT, clock=SystemClock())
        try:
            for _ in range(states):
                await self._one(model, self.maker.state())
        finally:
            await model.close()
            await asyncio.to_thread(self._undo)

    def _undo(self) -> None:
        self.stand.pod.run("sh", "-c", "\n".join(undo(self.stand)), check=False)

    def _load(self, state: State) -> bool:
        """False where a tool refuses the ruleset: the maker does not know every rule of its grammar."""
        self._undo()
        script = [f"wg set wg0 fwmark {state.fwmark:#x}"]
        script += [f"sysctl -qw {name}={value}" for name, value in state.settings.items()]
        for family, lines in state.ip.items():
            text = "\n".join(lines)
            script.append(f"ip -{family} -force -batch - <<'END' 2>/dev/null\n{text}\nEND")
        rules = state.rules
        script += [f"ipset restore <<'END' || exit 9\n{rules.ipset}END"] if rules.ipset else []
        script += [f"nft -f - <<'END' || exit 9\n{rules.nft}END"] if rules.nft else []
        script += [f"{tool} <<'END' || exit 9\n{text}END" for tool, text in rules.restore]
        script.append("conntrack -F 2>/dev/null; true")
        return self.stand.pod.run("sh", "-c", "\n".join(script), check=False, timeout=60).returncode != 9

    async def _one(self, model: LiveModel, state: State) -> None:
        loaded = False
        for _ in range(20):
            loaded = await asyncio.to_thread(self._load, state)
            if loaded:
                break
            state = State(state.ip, state.settings, state.fwmark, self.maker.rules())
        if not loaded:
            state = State(state.ip, state.settings, state.fwmark, Rules())
            assert await asyncio.to_thread(self._load, state)
        self.tally.states += 1
        try:
            async with self.stand.door() as door:
                await self._checks(door, model, state)
        except DoorUnavailable as error:
            self.tally.cases += 4
            self.tally.no_door[str(error)] += 4

    async def _checks(self, door: Door, model: LiveModel, state: State) -> None:
        target = ProbeTarget("wg0", "handshake", None, PORT, fwmark=state.fwmark)
        for family in (4, 6):
            opinions = await model.ask(target, family, "eth0", self.stand.net.pod_address(family))
            for protocol, name in CHECKS:
                await self._compare(door, family, protocol, opinions[name], state)

    async def _compare(self, door: Door, family: int, protocol: str, said: Opinion, state: State) -> None:
        tally = self.tally
        tally.cases += 1
        if said.unknown:
            tally.unknown[re.sub(r"[0-9a-f.:]{6,}|`[^`]*`|-A .*?: ", "...", said.words)[:120]] += 1
            return
        tally.causes[said.code or "works"] += 1
        try:
            seen = await self._door(door, family, protocol)
        except StateError as error:  # as for the agent: unknown, and red
            tally.no_door[re.sub(r"at [0-9a-f.:]+", "", str(error))] += 1
            return
        if seen != said.works:
            # As the agent does: believed only from a door that stands, and after some patience.
            await door.repair()
            with self.stand.patient():
                seen = await self._door(door, family, protocol)
        tally.green += seen
        if said.works and not seen and (lost := await self._own_half(door, family, protocol)):
            tally.own_half[lost] += 1
        elif seen != said.works:
            words = f"{said.code} {said.where}" if said.code else "works"
            tally.wrong.append(
                f"IPv{family} {protocol}: door {'green' if seen else 'red'}, model: {words}\n{state.spelled()}"
            )

    async def _own_half(self, door: Door, family: int, protocol: str) -> str:
        """What the model says of the packet that the agent sends itself, where it does not leave; empty where it does."""
        snapshot = await take_snapshot()
        routing = Routing(snapshot)
        port = PORT if protocol == "udp" else TCP_PORT
        ours = Flow(door.pod(family), door._trio(family).agent_peer, protocol, 40000, port, uid=0, device="eth0")
        found = Walker(snapshot, Ruleset(snapshot, routing=routing), routing=routing).trace(ours)
        return "" if found.verdict is Verdict.FORWARDED else f"{found.verdict} {found.code}"

    async def _door(self, door: Door, family: int, protocol: str) -> bool:
        how = self.stand._handshake if protocol == "udp" else self.stand._tcp
        return await how("door", family, door)
