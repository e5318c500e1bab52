# SPDX-License-Identifier: Apache-2.0
"""The stories there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wicketgate.errors import InputError
from wicketgate.lab import drain, reload, seed
from wicketgate.lab.scenario import Teller
from wicketgate.lab.topology import Lab


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story and how many gateways it needs."""

    story: Callable[[Lab, Teller], None]
    gateways: int = 1


ALL = {
    "seed": Scenario(seed.story),
    "drain": Scenario(drain.story, gateways=2),
    "reload": Scenario(reload.story),
}


def find(name: str) -> Scenario:
    """A scenario by its name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in ALL:
        raise InputError(f"scenario {name!r}; there are: {', '.join(ALL)}")
    return ALL[name]
