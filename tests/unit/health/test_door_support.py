# SPDX-License-Identifier: Apache-2.0
"""Which kernels have a door, and which let TCP through it."""

from __future__ import annotations

import pytest

from wicketgate.health.door_support import support

DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian {}-1 (2026-01-01)"


@pytest.mark.parametrize(
    ("release", "version", "door", "tcp"),
    [
        ("6.18.44-fc", "", True, True),
        ("6.8.0-45-generic", "", True, True),
        ("7.0", "", True, True),
        ("6.7.6", "", True, False),
        ("6.7.7", "", True, True),
        ("6.6.18", "", True, False),
        ("6.6.19", "", True, True),
        ("6.1.91-99.172.amzn2023.x86_64", "", True, False),
        ("6.1.192", "", True, True),
        ("6.1.0-56-amd64", DEBIAN.format("6.1.192"), True, True),
        ("6.1.0-13-amd64", DEBIAN.format("6.1.55"), True, False),
        ("6.1.0-56-amd64", "", True, False),
        ("5.16.0", "", True, False),
        ("5.15.0-1-generic", "", False, False),
        ("4.19.0", "", False, False),
        ("linux", "", False, False),
        ("", "", False, False),
    ],
)
def test_a_kernel_is_judged_by_its_name(release, version, door, tcp):
    """No door before 5.16; TCP from 6.8 on, or where the fix is known to be; what is not known counts as no."""
    found = support(release, version)
    assert (found.door, found.tcp) == (door, tcp)
    assert found.reason


def test_this_machine_is_judged_by_uname():
    """Without arguments the running kernel is meant."""
    assert support().reason
