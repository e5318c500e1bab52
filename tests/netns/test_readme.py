# SPDX-License-Identifier: Apache-2.0
"""What the README and the pages show is what happens when it is typed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from netns.agents import AgentPod
from netns.doctor_pods import doctor, filters, listener, wg_quick
from netns.pods import PodNet

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_readmes_transcript_is_what_the_lab_prints(tmp_path, monkeypatch):
    """`wicket lab run seed` prints the README's lines, but for times and what is marked as left out."""
    monkeypatch.setenv("WICKET_LAB_DIR", str(tmp_path / "labs"))
    script = [sys.executable, str(ROOT / "scripts" / "readme-transcript")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_doctors_transcript_is_what_it_prints_in_the_seeds_pod(tmp_path):
    """The real wg-quick beside a TCP service on port 9000: `wicket doctor` prints the README's lines."""
    loader = SourceFileLoader("readme_transcript", str(ROOT / "scripts" / "readme-transcript"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)
    shown = script.transcript((ROOT / "README.md").read_text(), "wicket doctor --netns pid:4711")
    with PodNet.create("vpc", "readme") as net, listener(net):
        wg_quick(net, tmp_path, "0.0.0.0/0 ::/0")
        filters(net, 0, 1)
        code, text = doctor(net, json_=False)
    assert code == 1
    assert "\n".join(script.differences(shown, text.splitlines())) == ""


def test_the_example_file_makes_a_gateway(tmp_path):
    """docs/configuration.md's wg-quick file, with keys in it, is served by `wicket up` without a flag."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    block = re.search(r"^```ini\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    with AgentPod("vpc", tmp_path) as pod:
        text = block[1].replace("<wg genkey>", pod.private).replace("<wg pubkey>", pod.client_public)
        pod.conf.write_text(text)
        pod.conf.chmod(0o600)
        first = pod.start("up", str(pod.conf))
        assert first.startswith(f"wg0: health at http://{pod.net.pod4}:8080/healthz"), pod.log.read_text()
        assert first.endswith(", tcp port 9000 open while that is 200")
        pod.wait_code("200")
        pod.client_up()
        assert pod.client_pings()
        metrics = pod.client.run("curl", "-s", f"http://{pod.net.pod4}:8080/metrics").stdout
        assert 'wicketgate_peer_receive_bytes_total{peer="alice"}' in metrics
        # A second signal leaves at once.
        pod.process.terminate()
        pod.wait_code("503")
        assert pod.stop() == 0
