# SPDX-License-Identifier: Apache-2.0
"""The doctor in the seed's pod, with the real wg-quick, in both shapes: its rule is there, and its fix works."""

from __future__ import annotations

import subprocess
import sys

import pytest

from netns.doctor_pods import PORT, connects, doctor, filters, flow_to, listener, paste, wg_quick
from netns.pods import SHAPES, PodNet, sysctl

EVERYTHING = "0.0.0.0/0 ::/0"


@pytest.fixture(scope="module", params=SHAPES)
def seed(request, tmp_path_factory):
    """The pod after `wg-quick up` for a peer that claims everything, with listeners in both families."""
    with PodNet.create(request.param, "doctor") as net, listener(net), listener(net, "::"):
        assert connects(net, 4)
        assert connects(net, 6)
        wg_quick(net, tmp_path_factory.mktemp("wg"), EVERYTHING)
        yield net


@pytest.mark.parametrize(
    ("rp", "valid_mark"),
    [(1, 0), *(pytest.param(*both, marks=pytest.mark.slow) for both in [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)])],
)
def test_the_rule_is_named_and_the_first_fix_works(seed, rp, valid_mark):
    """The client outside cannot connect; the doctor quotes the rule of `ip rule`; its first fix, typed, lets it in.

    Every fix was tried in a twin.
    """
    filters(seed, rp, valid_mark)
    assert not connects(seed, timeout=0.3)
    code, report = doctor(seed)
    flow = flow_to(report)
    assert (code, report["works"], flow["works"]) == (1, False, False)
    assert flow["cause"]["code"] == "reply-into-tunnel"
    rules = [line.replace("\t", " ").strip() for line in seed.pod.run("ip", "-4", "rule").stdout.splitlines()]
    assert flow["cause"]["where"] in rules
    assert "lookup 51820" in flow["cause"]["where"]
    fix = flow["fixes"][0]
    assert fix["side_effects"] == []
    assert all(each["proved_by"] == ["model", "twin"] for each in flow["fixes"]), flow["fixes"]
    paste(seed, fix["commands"])
    try:
        assert connects(seed)
        assert flow_to(doctor(seed)[1])["works"]
    finally:
        paste(seed, fix["undo"])
    assert not connects(seed, timeout=0.3)


@pytest.mark.parametrize(("rp", "mark"), [(0, "mark-answers"), (1, "mark-answers+src-valid-mark")])
def test_every_fix_works_on_the_kernel(seed, rp, mark):
    """Each fix that has commands, also the ones behind the first, in IPv4 and IPv6; undone, the fault is back."""
    filters(seed, rp, 0)
    _, report = doctor(seed)
    for family, source in ((4, "203.0.113.9"), (6, "2001:db8:203::9")):
        fixes = [fix for fix in flow_to(report, source=source)["fixes"] if fix["commands"]]
        ids = [fix["id"] for fix in fixes]
        assert ids == ["source-rule", "sport-rule", mark if family == 4 else "mark-answers"]
        for fix in fixes:
            paste(seed, fix["commands"])
            assert connects(seed, family), fix["id"]
            paste(seed, fix["undo"])
            assert not connects(seed, family, timeout=0.3), fix["id"]


def test_kubelet_is_told_apart(seed):
    """Behind a bridge the node's probe works, and the doctor says so; behind 169.254.1.1 the node is not known."""
    filters(seed, 0, 0)
    _, report = doctor(seed)
    works = [flow["works"] for flow in report["flows"] if flow["flow"]["from"] == "10.44.0.1:40000"]
    assert works == ([True] if seed.shape == "bridge" else [])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_healthy_pod_works(shape):
    """Without a tunnel the client connects, the doctor agrees, and the exit code is 0."""
    with PodNet.create(shape, "healthy") as net, listener(net), listener(net, "::"):
        assert connects(net, 4)
        assert connects(net, 6)
        code, report = doctor(net)
        assert (code, report["works"]) == (0, True)
        assert len(report["flows"]) == (4 if shape == "bridge" else 2)


@pytest.fixture
def pod():
    """A pod without a tunnel."""
    with PodNet.create("bridge", "doctor-fw") as net, listener(net):
        yield net


NFT = "table inet guard {\n chain input {\n  type filter hook input priority 0; policy accept;\n  tcp dport 9000 drop\n }\n}\n"


def test_an_nftables_drop_is_named_and_mended(pod):
    """INPUT drop in nftables: the rule as `nft` lists it, and an accept that lets the client in."""
    pod.pod.run("nft", "-f", "-", stdin=NFT)
    assert not connects(pod, timeout=0.3)
    code, report = doctor(pod)
    flow = flow_to(report)
    assert (code, flow["cause"]["code"]) == (1, "input-drop")
    assert "tcp dport 9000 drop" in flow["cause"]["where"]
    paste(pod, flow["fixes"][0]["commands"])
    assert connects(pod)
    assert flow_to(doctor(pod)[1])["works"]


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_an_iptables_drop_is_named_and_mended(pod, tool):
    """INPUT drop in either iptables: the rule as iptables-save has it, the fix with the same program."""
    if pod.pod.run(tool, "-A", "INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP", check=False).returncode:
        pytest.skip(f"{tool} does not run here")
    assert not connects(pod, timeout=0.3)
    _, report = doctor(pod)
    flow = flow_to(report)
    assert flow["cause"]["code"] == "input-drop"
    assert flow["cause"]["where"] == "-A INPUT -p tcp -m tcp --dport 9000 -j DROP"
    assert flow["fixes"][0]["commands"][0].startswith(f"{tool} ")
    assert flow["fixes"][0]["proved_by"] == ["model", "twin"]
    paste(pod, flow["fixes"][0]["commands"])
    assert connects(pod)
    paste(pod, flow["fixes"][0]["undo"])
    assert not connects(pod, timeout=0.3)


def test_forwarding_off_is_named_and_mended(pod, tmp_path):
    """A server that does not forward: named, and what is pasted makes the doctor content with that flow."""
    sysctl(pod.pod, "net.ipv4.ip_forward", "0")
    wg_quick(pod, tmp_path, "10.8.0.2/32")
    _, report = doctor(pod)
    flow = next(f for f in report["flows"] if f["flow"]["iif"] == "wg0")
    assert flow["cause"]["code"] == "forwarding-off"
    assert flow["cause"]["where"] == "net.ipv4.conf.wg0.forwarding = 0"
    fix = flow["fixes"][0]
    assert fix["id"] == "forwarding+masquerade"
    assert fix["proved_by"] == ["model", "twin"]
    paste(pod, fix["commands"])
    assert next(f for f in doctor(pod)[1]["flows"] if f["flow"]["iif"] == "wg0")["works"]
    paste(pod, fix["undo"])
    after = next(f for f in doctor(pod)[1]["flows"] if f["flow"]["iif"] == "wg0")
    assert after["cause"] == flow["cause"]


def test_a_bundle_tells_the_same_as_the_place(seed, tmp_path):
    """`wicket snapshot` elsewhere, `--bundle` here: the same report."""
    filters(seed, 0, 0)
    command = [sys.executable, "-m", "wicketgate", "snapshot", "--netns", f"pid:{seed.pod.pid}"]
    path = tmp_path / "pod.json"
    path.write_text(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    done = subprocess.run(
        [sys.executable, "-m", "wicketgate", "doctor", "--bundle", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == doctor(seed, json_=False)[1]
