# SPDX-License-Identifier: Apache-2.0
"""Door and model, in random states of a pod: rules, routes, settings, marks and firewalls."""

from __future__ import annotations

import os
from random import Random

import pytest

from netns.door_judge import DoorJudge
from netns.door_stand import Stand
from netns.pods import SHAPES

# More: bench/door_agreement.py, or WICKETGATE_DOOR_STATES=200 WICKETGATE_DOOR_SEED=7
STATES = int(os.environ.get("WICKETGATE_DOOR_STATES", "25"))
SEED = int(os.environ.get("WICKETGATE_DOOR_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(120 + STATES * 10)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_says_of_a_random_state_what_the_door_sees(shape, capsys):
    """A handshake and the balancer's check, both families: green and red alike, unless one of them says that it cannot tell."""
    with Stand.create(shape, "agree") as stand:
        judge = DoorJudge(stand, Random(f"{SEED} {shape}"))
        stand.pod.acall(lambda: judge.judge(STATES))
    tally = judge.tally
    with capsys.disabled():
        print(f"\n{shape}: {tally.line()}")
    assert not tally.wrong, tally.wrong[0]
    assert tally.cases == 4 * STATES
    assert tally.green > STATES / 2
    assert len(tally.causes) > 3, tally.causes
    assert tally.unknown.total() < 0.05 * tally.cases, tally.unknown
