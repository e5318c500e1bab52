# SPDX-License-Identifier: Apache-2.0
"""How long the fuzzers run, and with which dice: WICKET_FUZZ_SECONDS makes longer runs, WICKET_FUZZ_SEED repeats one."""

from __future__ import annotations

import os
import random


def seconds(otherwise: float) -> float:
    """Of one fuzzer."""
    return float(os.environ.get("WICKET_FUZZ_SECONDS", otherwise))


def new_seed() -> int:
    """Printed on failure."""
    return int(os.environ.get("WICKET_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
