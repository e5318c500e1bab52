# SPDX-License-Identifier: Apache-2.0
"""The stories the lab tells, run as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wicketgate.lab import state
from wicketgate.lab.shapes import Cni


@pytest.fixture(autouse=True)
def _own_labs(tmp_path, monkeypatch):
    """Records of the test's own."""
    monkeypatch.setenv("WICKET_LAB_DIR", str(tmp_path / "labs"))


def run(scenario, cni, timeout):
    """Run a scenario; its JSON, and the steps by name. Nothing may be left."""
    command = [sys.executable, "-m", "wicketgate", "lab", "run", scenario, "--cni", str(cni), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["scenario"] == scenario
    assert done.returncode == (0 if report["ok"] else 1)
    assert report["ok"] == all(step["ok"] for step in report["steps"])
    assert {step["cni"] for step in report["steps"]} == {str(cni)}
    assert state.names() == []
    wrong = [step for step in report["steps"] if not step["ok"]]
    assert not wrong, json.dumps(wrong, indent=1)
    return {step["name"]: step for step in report["steps"]}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("cni", list(Cni))
def test_the_seed_is_red_before_and_green_after(cni):
    """wg-quick turns the balancer red in both shapes, the kubelet's view only in the vpc shape; the sidecar with and
    without rights and `wicket up` are green, and a real client is served by each.
    """
    steps = run("seed", cni, 220)
    seen = {name: step["observed"] for name, step in steps.items()}
    assert seen["tcp echo, no tunnel yet: load balancer"] == "green"
    assert seen["wg-quick up beside it: load balancer"] == "red"
    assert "Target.Timeout" in steps["wg-quick up beside it: load balancer"]["evidence"]
    assert seen["wg-quick up beside it: kubelet on the pod's node"] == ("green" if cni is Cni.BRIDGE else "red")
    for title in (
        "wicket sidecar, CAP_NET_ADMIN alone",
        "wicket sidecar, no right at all",
        "wicket up, CAP_NET_ADMIN alone",
    ):
        looked = [name for name in seen if name.startswith(f"{title}: ")]
        assert len(looked) >= 4
        assert seen[f"{title}: load balancer"] == "green"
        assert seen[f"{title}: a client's handshake"] == "green"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_draining_loses_no_ping_of_a_client_who_leaves_in_time():
    """Red first, still serving, then gone without a trace; the count of pings is complete."""
    steps = run("drain", Cni.VPC, 160)
    assert steps["pings lost from beginning to end"]["observed"] == "0"
    assert steps["leaving: still serves the client"]["observed"] == "green"
    assert steps["leaving: afterwards the gateway is"]["observed"] == "gone"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_reloading_loses_no_packet_of_a_peer_that_stays():
    """One peer added, one removed, under a download and a counted ping of a third."""
    steps = run("reload", Cni.BRIDGE, 160)
    assert steps["pings of `stays` lost"]["observed"] == "0"
    assert steps["after SIGHUP: the session of `stays`"]["observed"] == "the same"
