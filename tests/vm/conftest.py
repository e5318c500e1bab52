# SPDX-License-Identifier: Apache-2.0
"""One machine for the whole lane: to boot it, and to start Python in it, is what takes the time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vm.boot import missing, run_in_vm

# Each script writes its results as JSON to its first argument; seconds that it may take, emulated and beside others.
SCRIPTS = {
    "test_kernel_devices": ("inside_devices", 240),
    "test_kernel_wireguard": ("inside_wireguard", 180),
    "test_kernel_vrf": ("inside_vrf", 180),
    "test_kernel_gateway": ("inside_gateway", 900),
    "test_kernel_agreement": ("inside_agreement", 420),  # last: it loads modules whose lack others test
}
BOOT = 150  # seconds, with the copy of programs into memory


class Machine:
    """What the scripts left behind.

    Attributes:
        printed: by the console.
    """

    def __init__(self, out: Path, printed: str) -> None:
        self._out = out
        self.printed = printed

    def results(self, script: str) -> dict:
        """A script's results; without any the test fails, with what was printed."""
        path, log = self._out / f"{script}.json", self._out / f"{script}.log"
        told = log.read_text(errors="replace") if log.exists() else self.printed
        if not path.exists():
            pytest.fail(f"{script} left no results; it printed:\n{told[-6000:]}", pytrace=False)
        print(told)
        return json.loads(path.read_text())


@pytest.fixture(scope="session", autouse=True)
def _machine_can_be_booted() -> None:
    why = missing()
    if why is not None and os.environ.get("CI"):
        pytest.fail(f"{why}; with CI set this lane has to run", pytrace=False)
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Boot once, run what the chosen tests are about, switch off."""
    chosen = {Path(str(item.path)).stem for item in request.session.items}
    scripts = [named for test, named in SCRIPTS.items() if test in chosen]
    out = tmp_path_factory.mktemp("vm")
    lines = "".join(
        f'timeout {seconds} "$PYTHON" "$ROOT/tests/vm/{name}.py" "$OUT/{name}.json" >"$OUT/{name}.log" 2>&1 '
        f'|| echo "{name}: exit code $?"\n'
        for name, seconds in scripts
    )
    try:
        ran = run_in_vm(f"ip link set lo up\n{lines}", out, timeout=BOOT + sum(seconds for _, seconds in scripts))
    except TimeoutError as error:
        return Machine(out, str(error))  # whatever got done has its results
    return Machine(out, f"{ran.output}\nexit code {ran.code}")
