# SPDX-License-Identifier: Apache-2.0
"""The device contract on the kernel's own WireGuard."""

from __future__ import annotations

import pytest

from netns.device_contract import CHECKS

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def observed(machine) -> dict[str, str]:
    return machine.results("inside_devices")


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_the_kernel_keeps_the_contract(name: str, observed: dict[str, str]) -> None:
    """The same promises as the fake's and wireguard-go's."""
    assert observed[name] == "ok", observed[name]


@pytest.mark.parametrize(
    "name", ["as_wg_shows", "four_at_once", "names_and_choice", "a_busy_port", "without_the_right"]
)
def test_what_only_the_kernel_can_show(name: str, observed: dict[str, str]) -> None:
    """wg(8) agrees; answers are not mixed up; taken names, busy ports and missing rights are said."""
    assert observed[name] == "ok", observed[name]


def test_nothing_stays(observed: dict[str, str]) -> None:
    """No device is left, not even the one that was made to try."""
    assert observed["left"] == ""
