# SPDX-License-Identifier: Apache-2.0
"""The transcripts of docs/why-it-breaks.md are what the commands print."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import matrix  # noqa: E402


def transcript(heading: str) -> list[tuple[str, str, list[str]]]:
    """Host, command and printed lines of one section, in order."""
    page = (ROOT / "docs" / "why-it-breaks.md").read_text()
    section = next(part for part in page.split("\n## ") if part.startswith(heading))
    steps: list[tuple[str, str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for line in block.splitlines():
            if prompt := re.fullmatch(r"(pod|node|client)\$ (.+)", line):
                steps.append((prompt[1], prompt[2], []))
            else:
                steps[-1][2].append(line)
    return steps


@pytest.mark.parametrize(("shape", "heading"), [("bridge", "With a bridge CNI"), ("vpc", "With AWS VPC CNI")])
def test_the_page_shows_what_happens(shape, heading):
    """Each command of the page, typed in its order under wg-quick's rules, prints what the page says."""
    steps = transcript(heading)
    assert len(steps) > 5
    with matrix.seed(shape) as pod:
        matrix.set_filters(pod, 0, 0)
        hosts = {"pod": pod.pod, "node": pod.node, "client": pod.client}
        for host, command, said in steps:
            done = hosts[host].run(*command.split(), check=False)
            printed = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
            assert [line for line in printed if line.strip() not in ("", "cache")] == said, command
