# SPDX-License-Identifier: Apache-2.0
"""The device contract on the kernel's own WireGuard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netns.device_contract import CHECKS
from vm.boot import missing, run_in_vm

why = missing()
pytestmark = [pytest.mark.skipif(why is not None, reason=str(why)), pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out: Path = tmp_path_factory.mktemp("vm")
    ran = run_in_vm(
        'modprobe wireguard\nip link set lo up\n"$PYTHON" "$ROOT/tests/vm/inside_devices.py" "$OUT/result.json"',
        out,
        timeout=600,
    )
    assert ran.code == 0, ran.output[-4000:]
    return json.loads((out / "result.json").read_text())


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
