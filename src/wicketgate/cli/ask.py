# SPDX-License-Identifier: Apache-2.0
"""A question at the terminal."""

from __future__ import annotations

import select
import sys

_LOOK = 0.2  # seconds; how long a Ctrl-C may stay unheard that came between two system calls


def ask(question: str) -> str:
    """What was typed, up to the end of the line; empty at the end of input.

    input() sleeps in read(2), and a signal that comes between the question and that call is only flagged, not heard,
    until something is typed. So the waiting is done here, in slices.
    """
    print(question, end="", flush=True)
    while not select.select([sys.stdin], [], [], _LOOK)[0]:
        pass
    return sys.stdin.readline()
