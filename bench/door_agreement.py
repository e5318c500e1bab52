# SPDX-License-Identifier: Apache-2.0
"""Claim: in random states of a pod the model's verdict is the door's, wherever both have one.

The pod has wireguard-go and a TCP port, in both CNI shapes. Each state is drawn anew (WICKETGATE_DOOR_SEED repeats a run): policy
rules and routes of both families, rp_filter and marks, rulesets of nftables, both iptables and ipset. In each, the door makes a
whole handshake and an HTTP check, IPv4 and IPv6, and the model is asked about the same. `no door` are checks where the door says
itself that it cannot be had there (a firewall that keeps in what the agent sends, for example): then the agent takes the model's word.
`kept in` are those where the door is red, the model says that clients are served, and also that the agent's own packet does not
get out: a rule by port or user that means the agent alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from random import Random, SystemRandom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from _bench import conditions, goal, run, table
from netns.door_judge import DoorJudge
from netns.door_stand import Stand
from netns.pods import SHAPES

STATES = int(os.environ.get("WICKETGATE_DOOR_STATES", "250"))  # of each shape
SEED = int(os.environ.get("WICKETGATE_DOOR_SEED", "0"))
QUICK = 10


def measure(quick: bool) -> None:
    """Both shapes, one after the other."""
    seed = SEED or SystemRandom().randrange(1, 2**31)
    states = QUICK if quick else STATES
    print(f"model and door, {states} states of each shape, seed {seed}; {conditions()}\n")
    rows, wrong, notes = [], [], []
    unknown = cases = 0
    for shape in SHAPES:
        with Stand.create(shape, "bench") as stand:
            judge = DoorJudge(stand, Random(f"{seed} {shape}"))
            started = time.monotonic()
            stand.pod.acall(lambda judge=judge: judge.judge(states))
            seconds = time.monotonic() - started
        tally = judge.tally
        agree = tally.cases - tally.unknown.total() - tally.no_door.total() - tally.own_half.total() - len(tally.wrong)
        rows.append((
            shape, tally.cases, agree, len(tally.wrong), tally.unknown.total(), tally.no_door.total(), tally.own_half.total(),
            tally.green, round(tally.cases / seconds, 1),
        ))  # fmt: skip
        unknown, cases = unknown + tally.unknown.total(), cases + tally.cases
        wrong += tally.wrong
        notes += [f"unknown {count} times: {why}" for why, count in tally.unknown.most_common(5)]
        notes += [f"no door {count} times: {why}" for why, count in tally.no_door.most_common(5)]
        notes += [f"{shape}: " + ", ".join(f"{code} {count}" for code, count in tally.causes.most_common())]
    table(["shape", "checks", "agree", "disagree", "unknown", "no door", "kept in", "green", "checks/s"], rows)
    print("\n" + "\n".join(notes) + "\n")
    goal(f"{cases} checks without a disagreement", not wrong)
    goal(f"the model unknown below 2 % ({100 * unknown / cases:.2f} %)", unknown < 0.02 * cases)
    for each in wrong[:3]:
        print(f"\n{each}")


if __name__ == "__main__":
    run(measure, __doc__)
