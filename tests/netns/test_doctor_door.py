# SPDX-License-Identifier: Apache-2.0
"""The doctor's third proof: the very packet in the place itself, after a fix, before it, and where it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from netns.doctor_pods import PORT, connects, doctor, flow_to, listener, wg_quick
from netns.door_traces import looks
from netns.pods import SHAPES, PodNet, sysctl
from wicketgate.doctor import apply
from wicketgate.doctor.door_proof import DoorProof
from wicketgate.doctor.examine import examine
from wicketgate.kernel.snapshot import take_snapshot

INPUT_DROP = (
    "nft add table inet f; nft 'add chain inet f c { type filter hook input priority 0; }'; "
    f"nft add rule inet f c tcp dport {PORT} drop"
)
# What the model does not read: a filter before all hooks.
TAKEN_BY_TC = (
    "ip link add sink up type veth peer name drain; ip link set drain up; tc qdisc add dev eth0 clsact; "
    f"tc filter add dev eth0 ingress protocol ip u32 match ip protocol 6 0xff match ip dport {PORT} 0xffff action mirred egress redirect dev sink"
)


@pytest.fixture(params=SHAPES)
def pod(request):
    with PodNet.create(request.param, "doc-door") as net, listener(net), listener(net, "::"):
        yield net


@pytest.mark.parametrize("family", [4, 6])
def test_the_loss_is_measured_where_it_is_asked_for(pod, family):
    """`--door always`: the flow's `door` tells where the packet was lost; the place is as before."""
    pod.pod.run("sh", "-ec", INPUT_DROP)
    before = looks(pod.pod, counts=False)
    to = f"[{pod.pod6}]:{PORT}/tcp" if family == 6 else f"{pod.pod4}:{PORT}/tcp"
    code, report = doctor(pod, "--to", to, "--door", "always")
    door = report["flows"][0]["door"]
    assert (code, door["works"]) == (1, False)
    assert door["words"] == f"the packet is lost in input: tcp dport {PORT} drop (table inet f chain c)"
    assert looks(pod.pod, counts=False) == before


def test_nothing_is_sent_otherwise(pod):
    """Without the flag no packet is counted anywhere, and the object has no `door`."""
    pod.pod.run("sh", "-ec", INPUT_DROP.replace(" drop", " counter drop"))
    before = looks(pod.pod)
    _, report = doctor(pod)
    assert all("door" not in each for each in report["flows"])
    assert looks(pod.pod) == before


def test_a_healthy_flow_gets_through(pod):
    """And the text says nothing of it; the object does."""
    code, report = doctor(pod, "--door", "always")
    assert code == 0
    assert flow_to(report)["door"] == {"works": True, "words": "the packet and its answer get through"}


@pytest.mark.slow
def test_a_fix_is_taken_back_when_the_packet_still_fails(pod):
    """The model sees no more fault once its fix is in; something that it does not know takes the packets."""
    pod.pod.run("sh", "-ec", INPUT_DROP + "; " + TAKEN_BY_TC)
    assert not connects(pod, timeout=0.3)
    before = looks(pod.pod, counts=False)
    _, report = doctor(pod, "--apply", "--yes", "--to", f"{pod.pod4}:{PORT}/tcp")
    applied = report["applied"][0]
    assert (applied["kept"], "door" in applied["proved_by"]) == (False, False)
    assert applied["why"].startswith("the very packet still fails: the packet is not seen to come in")
    assert looks(pod.pod, counts=False) == before
    # Without the door the model's word stands.
    _, report = doctor(pod, "--apply", "--yes", "--door", "never", "--to", f"{pod.pod4}:{PORT}/tcp")
    assert report["applied"][0]["kept"]


def test_what_works_is_not_mended(pod, monkeypatch):
    """Computed to fail from a state that is gone by now: the packet gets through, so nothing is changed."""
    pod.pod.run("sh", "-ec", INPUT_DROP)
    stale = pod.pod.acall(take_snapshot)
    pod.pod.run("nft", "delete", "table", "inet", "f")
    before = looks(pod.pod)
    monkeypatch.setattr(apply.signal, "signal", lambda *_: None)  # only the main thread may
    surgeon = apply.Surgeon(lambda: stale, lambda _: None, lambda *_: True, door=DoorProof())
    pod.pod.call(lambda: surgeon.operate(examine(stale)))
    assert surgeon.applied
    assert not any(each.kept for each in surgeon.applied)
    assert {each.why for each in surgeon.applied} == {
        "the very packet gets through as it is, although it was computed to fail"
    }
    assert looks(pod.pod) == before


def test_a_bundle_is_no_place_to_send_in():
    """Exit code 2, before anything is read."""
    done = subprocess.run(
        [sys.executable, "-m", "wicketgate", "doctor", "--bundle", "x", "--door", "always"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "a file is no place to send a packet in" in done.stderr


def test_without_the_right_to_send(pod):
    """No CAP_NET_RAW: the fix is kept by the model's word, `door` is not claimed, and why is said."""
    pod.pod.run("sh", "-ec", INPUT_DROP)
    where = ["--netns", f"pid:{pod.pod.pid}", "--to", f"{pod.pod4}:{PORT}/tcp"]
    done = subprocess.run(
        ["setpriv", "--inh-caps", "-net_raw", "--bounding-set", "-net_raw", sys.executable, "-m", "wicketgate", "doctor",
         *where, "--apply", "--yes", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert (done.returncode, report["works"], report["applied"][0]["kept"]) == (0, True, True)
    assert "door" not in report["applied"][0]["proved_by"]
    assert "CAP_NET_RAW" in done.stderr
    assert connects(pod)


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_a_tunnels_client_gets_out_and_home(pod, family, tmp_path):
    """No masquerade: the door does not call that working; with the fix its packet is answered from outside."""
    client, far = ("10.8.0.9", "9.9.9.9") if family == 4 else ("fd08::9", "2620:fe::fe")
    wg_quick(pod, tmp_path, f"{client}/{32 if family == 4 else 128}")
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        sysctl(pod.pod, name, "1")
    flow = ["--from", client, "--to", f"[{far}]:443/tcp" if family == 6 else f"{far}:443/tcp"]
    _, report = doctor(pod, *flow, "--door", "always")
    found = report["flows"][0]
    assert (found["cause"]["code"], found["door"]["works"]) == ("masquerade-missing", None), found
    code, report = doctor(pod, *flow, "--apply", "--yes")
    assert (code, report["applied"][0]["kept"], report["applied"][0]["proved_by"][-1]) == (0, True, "door"), report[
        "applied"
    ]
