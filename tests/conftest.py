# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several rooms share. Everything a test makes ends with it, even when it fails."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from wicketgate.lab.host import Host

# No test asserts a time: a busy machine is slow and not wrong.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

_count = itertools.count()


def unique(prefix: str = "w") -> str:
    """A name of at most 15 characters that no other test process uses (userspace WireGuard names are host-wide)."""
    return f"{prefix}{os.getpid() % 100000}x{next(_count)}"[:15]


@pytest.fixture
def new_host() -> Iterator[Callable[..., Host]]:
    """Make hosts: `new_host("pod")`. They are closed after the test."""
    with ExitStack() as stack:
        yield lambda name="host": stack.enter_context(Host.create(f"{name}-{unique()}"))


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind() -> Iterator[None]:
    """The test process leaves no holder process behind."""
    yield
    mine = os.getpid()
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if int(stat[1]) == mine and "wicket-host" in command and stat[0] != "Z":
                left.append(f"{entry.name}: {command[-80:]}")
    assert not left, f"hosts left behind: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests under netns/, vm/ and image/ carry their marker by their place."""
    for item in items:
        parts = Path(str(item.path)).parts
        if "netns" in parts or "image" in parts:
            item.add_marker("root")
        for name in ("vm", "image"):
            if name in parts:
                item.add_marker(name)
        if "fuzz" in parts:
            item.add_marker("slow")
