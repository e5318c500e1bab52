# SPDX-License-Identifier: Apache-2.0
"""Puts a random configuration into a namespace and asks the kernel and the model the same questions."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Self

from netpath_worlds import DEVICES, NEXTHOPS, Ask, World
from wicketgate.errors import KernelRefused
from wicketgate.kernel import sysctl
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.lookup import Question, Refused, Unsure
from wicketgate.netpath.routing import Routing, Way
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.source_check import Blocked, input4

ERRNO = {"EINVAL": 22, "EXDEV": 18, "ENETUNREACH": 101, "EHOSTUNREACH": 113, "EACCES": 13, "ENODEV": 19}


@dataclass
class Tally:
    """What came of the cases."""

    cases: int = 0
    agreed: int = 0
    unknown: int = 0

    def line(self, seconds: float) -> str:
        """One line for a person."""
        rate = 100 * self.unknown / max(self.cases, 1)
        return (
            f"{self.cases} cases, {self.agreed} agree, {self.unknown} unknown ({rate:.2f} %), "
            f"{self.cases / max(seconds, 1e-9):.0f} cases/s"
        )


class Judge:
    """The kernel of one namespace. Everything runs in the calling thread, which must be inside."""

    def __init__(self, *, rules: bool = True) -> None:
        self.runner = asyncio.Runner()
        self.netlink = Netlink()
        self.defaults: dict[str, str] = {}
        self.with_rules = rules

    def __enter__(self) -> Self:
        self.runner.__enter__()
        self.runner.run(self.netlink.__aenter__())
        lines = ["link set lo up"]
        for number, name in enumerate(DEVICES):
            far = f"p{number}"
            lines.append(f"link add {name} type veth peer name {far}")
            # Without addresses of its own making, IPv6 is what the world says.
            lines += [f"link set {end} addrgenmode none" for end in (name, far)]
            lines += [f"link set {far} up", f"link set {name} up group {7 if name == 'e1' else 0}"]
        refused = self._batch(4, lines)
        for family, objects in NEXTHOPS.items():
            for number, way in objects.items():
                # A group is of no family.
                refused += self._batch(0 if way.startswith("group") else family, [f"nexthop add id {number} {way}"])
        assert not refused, refused
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.netlink.__aexit__(None, None, None))
        self.runner.__exit__(None, None, None)

    @staticmethod
    def _batch(family: int, lines: list[str]) -> str:
        done = subprocess.run(
            ["ip", *([f"-{family}"] if family else []), "-force", "-batch", "-"],
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stderr

    def _carrier(self, *, up: bool) -> list[str]:
        """What gives e2 its carrier, or takes it."""
        return [f"link set p2 {'up' if up else 'down'}"]

    def apply(self, world: World) -> None:
        """Take the earlier configuration out and this one in. What the kernel refuses is left out."""
        for family in (4, 6):
            mine = [r for r in self.runner.run(self.netlink.rules(family)) if 0 < r.priority < 32766]
            lines = [f"rule del pref {rule.priority}" for rule in mine]
            lines += [f"route flush table {table}" for table in (254, 100, 101, 253)]
            if family == 4:
                lines += [f"addr flush dev {device}" for device in DEVICES]
                lines += ["addr flush dev lo", "addr add 127.0.0.1/8 dev lo"]
                lines += self._carrier(up=world.carrier)
            else:
                lines += [f"addr flush dev {device}" for device in DEVICES]
                lines += ["addr flush dev lo", "addr add ::1/128 dev lo"]
            # Local routes that somebody added stay when addresses go.
            lines += ["route flush table local proto static"]
            world_lines = world.commands(family)
            if not self.with_rules:
                world_lines = [line for line in world_lines if not line.startswith("rule")]
            self._batch(family, lines + world_lines)
        # One writes `all`, and IPv4's forwarding of every interface follows conf.all.forwarding: so that stays.
        for name, value in world.sysctls.items():
            sysctl.write(name, str(value))

    def disagreement(self, ask: Ask, routing: Routing) -> tuple[str | None, str]:
        """What kernel and model do not agree on, and why the model does not know; empty when it does.

        The kernel settles some things on its own time (an IPv6 address's local route comes from a work queue), so a
        disagreement counts when it stays with a fresh snapshot.
        """
        for _ in range(3):
            said = model(routing, ask)
            problem = differs(ask, self.kernel(ask), said)
            if problem is None:
                break
            routing = Routing(self.snapshot())
        return problem, said.reason if isinstance(said, Unsure) else ""

    def snapshot(self) -> Snapshot:
        """The namespace now."""
        return self.runner.run(take_snapshot(firewall=False, sockets=False))

    def kernel(self, ask: Ask) -> tuple:
        """(type, oif, via, prefsrc, table, matched) or (errno,)."""
        try:
            answer = self.runner.run(
                self.netlink.get_route(
                    ip_address(ask.destination),
                    src=ip_address(ask.source) if ask.source else None,
                    iif=ask.iif,
                    oif=ask.oif,
                    mark=ask.mark,
                    uid=ask.uid,
                    ipproto=ask.protocol,
                    sport=ask.source_port,
                    dport=ask.destination_port,
                )
            )
        except KernelRefused as refused:
            return (refused.errno,)
        return (answer.type, answer.oif, answer.via, answer.prefsrc, answer.table, answer.matched)


def model(routing: Routing, ask: Ask):
    """The model's answer to the same question."""
    destination = ip_address(ask.destination)
    question = Question(
        destination,
        ip_address(ask.source) if ask.source else None,
        oif=ask.oif or "",
        mark=ask.mark,
        uid=ask.uid,
        protocol=ask.protocol,
        source_port=ask.source_port,
        destination_port=ask.destination_port,
    )
    if ask.iif is None:
        return routing.output(question)
    question = replace(question, iif=ask.iif, uid=0)
    return routing.input6(question) if destination.version == 6 else input4(routing, question)[0]


def differs(ask: Ask, kernel: tuple, said) -> str | None:
    """What the two do not agree on; None when they agree or the model does not know."""
    if isinstance(said, Unsure):
        return None
    if isinstance(said, Refused | Blocked):
        if len(kernel) != 1:
            return f"the model refuses ({said}), the kernel gives {kernel}"
        # Before 6.14 the source check has errnos of its own, since then EINVAL stands for each of its refusals.
        wanted = {ERRNO.get(said.errno, -1)} | ({22} if isinstance(said, Blocked) else set())
        return None if kernel[0] in wanted else f"the model says {said}, the kernel errno {kernel[0]}"
    assert isinstance(said, Way)
    if len(kernel) == 1:
        return f"the model finds a way ({said}), the kernel errno {kernel[0]}"
    kind, oif, via, prefsrc, _, _ = kernel
    if (oif, via) not in {(hop.oif, hop.via) for hop in said.hops}:
        return f"the kernel takes {oif} via {via}, the model {said}"
    if kind != said.kind and not (said.kind == "local" and said.route is not None and kind == said.route.type):
        return f"the kernel says {kind}, the model {said}"
    shared = kind == "unicast" and said.source is None and said.route is not None and said.route.nh_id
    if ask.iif is None and ask.source is None and len(said.hops) == 1 and prefsrc != said.source and not shared:
        return f"the kernel chooses source {prefsrc}, the model {said}"
    return None
