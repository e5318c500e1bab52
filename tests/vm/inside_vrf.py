# SPDX-License-Identifier: Apache-2.0
"""Inside the machine, whose kernel has VRFs: what `ip route get` and the model say beside one; results as JSON."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.lookup import Question, Refused, Unsure
from wicketgate.netpath.routing import Routing, Way
from wicketgate.netpath.spelling import spell_rule

# e2 and e3 have no address, so what leaves by them borrows one; that of `red` comes first in the order of the interfaces.
WORLD = """
link add red type vrf table 100
link set red up
addr add 10.66.0.1/24 dev red
addr add fd66::1/64 dev red nodad
link add e0 type veth peer name p0
link add e1 type veth peer name p1
link add e2 type veth peer name p2
link add e3 type veth peer name p3
link set e1 master red
link set e3 master red
link set p3 up
link set e3 up
link set p0 up
link set p1 up
link set p2 up
link set e0 up
link set e1 up
link set e2 up
addr add 10.1.0.1/24 dev e0
addr add fd01::1/64 dev e0 nodad
addr add 10.2.0.1/24 dev e1
addr add fd02::1/64 dev e1 nodad
route add default via 10.1.0.254 dev e0
route add 10.3.0.0/16 dev e2
route add 10.4.0.0/16 dev e1
route add default via 10.2.0.254 table 100
route add 10.9.0.0/16 dev e3 table 100
route add unreachable 10.10.0.0/16 table 100
-6 route add default via fd01::fe dev e0
-6 route add fd03::/64 dev e2
-6 route add default via fd02::fe dev e1 table 100
-6 route add fd09::/64 dev e3 table 100
"""


ERRORS = {"Network is unreachable": "ENETUNREACH", "No route to host": "EHOSTUNREACH", "Invalid argument": "EINVAL"}


@dataclass
class Asked:
    """One question: what the kernel said, and what the model."""

    kernel: dict[str, str]
    model: dict[str, str]
    unknown: str = ""


def ip(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(["ip", *words], input=stdin, capture_output=True, text=True, check=False)
    assert not done.returncode, (words, done.stderr)
    return done.stdout


def kernel(destination: str, *more: str) -> dict[str, str]:
    done = subprocess.run(["ip", "-j", "route", "get", destination, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"refused": ERRORS.get(done.stderr.strip().rpartition(": ")[2], done.stderr)}
    (said,) = json.loads(done.stdout)
    return {"dev": said.get("dev", ""), "via": said.get("gateway", ""), "src": said.get("prefsrc", "")}


def model(routing: Routing, question: Question) -> tuple[dict[str, str], str]:
    way = routing.output(question)
    if isinstance(way, Unsure):
        return {}, f"{way.reason}: {way.object}"
    if isinstance(way, Refused):
        return {"refused": way.errno}, ""
    assert isinstance(way, Way), way
    hop = way.hops[0]
    return {"dev": hop.oif, "via": str(hop.via or ""), "src": str(way.source or "")}, ""


async def main() -> None:
    six = [line.removeprefix("-6 ") for line in WORLD.splitlines() if line.startswith("-6 ")]
    ip("-batch", "-", stdin="\n".join(line for line in WORLD.splitlines() if not line.startswith("-6 ")) + "\n")
    ip("-6", "-batch", "-", stdin="\n".join(six) + "\n")
    snapshot = await take_snapshot(firewall=False)
    routing = Routing(snapshot)
    results: dict[str, object] = {"rules": [f"{each.priority}: {spell_rule(each)}" for each in snapshot.rules],
                                  "listed": [*ip("rule").splitlines(), *ip("-6", "rule").splitlines()]}  # fmt: skip
    for destination in (
        "203.0.113.9",
        "10.1.0.9",
        "10.3.0.9",
        "10.2.0.9",
        "2001:db8::9",
        "fd03::9",
        "fd02::9",
        "10.9.0.9",
        "10.10.0.9",
        "10.66.0.1",
        "fd09::9",
        "fd66::1",
    ):
        said, unknown = model(routing, Question(ip_address(destination)))
        results[destination] = asdict(Asked(kernel(destination), said, unknown))
        for device in ("e1", "e3", "red", "e0"):
            said, unknown = model(routing, Question(ip_address(destination), oif=device))
            results[f"{destination} oif {device}"] = asdict(Asked(kernel(destination, "oif", device), said, unknown))
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main())
