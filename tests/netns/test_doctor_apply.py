# SPDX-License-Identifier: Apache-2.0
"""`wicket doctor --apply`: what it puts in force works, what does not help is taken back, and it asks."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from netns.doctor_pods import PORT, connects, doctor, listener, wg_quick
from netns.pods import SHAPES, PodNet, sysctl
from wicketgate.netpath.codec import from_json

EVERYTHING = "0.0.0.0/0 ::/0"


def state(net: PodNet):
    """Rules, routes and listings of the pod, without what counts or is counted."""
    command = [sys.executable, "-m", "wicketgate", "snapshot", "--netns", f"pid:{net.pod.pid}"]
    taken = from_json(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    return taken.rules, taken.routes, net.pod.run("nft", "-s", "list", "ruleset").stdout


def command(net: PodNet, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "wicketgate", "doctor", "--netns", f"pid:{net.pod.pid}", *arguments]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_seeds_pod_is_mended(shape, tmp_path):
    """Both families: afterwards a client outside connects, every flow works, exit code 0; the commands are told."""
    with PodNet.create(shape, "apply") as net, listener(net), listener(net, "::"):
        wg_quick(net, tmp_path, EVERYTHING)
        sysctl(net.pod, "net.ipv4.conf.all.rp_filter", "1")
        assert not connects(net, timeout=0.3)
        code, report = doctor(net, "--apply", "--yes")
        assert (code, report["works"]) == (0, True), report["applied"]
        assert {each["fix"] for each in report["applied"]} == {"source-rule"}
        assert all(each["kept"] for each in report["applied"])
        tcp = [each for each in report["applied"] if "/tcp" in each["flow"] or " tcp " in each["flow"]]
        assert tcp
        assert all(each["proved_by"][-1] == "door" for each in tcp), report["applied"]
        assert connects(net, 4)
        assert connects(net, 6)


FIREWALLS = {
    "nft": "nft add table inet f; nft 'add chain inet f c { type filter hook input priority 0; }'; "
    f"nft add rule inet f c iifname eth0 tcp dport {PORT} drop",
    "iptables-nft": f"iptables-nft -A INPUT -i eth0 -p tcp --dport {PORT} -j DROP",
    "iptables-legacy": f"iptables-legacy -A INPUT -i eth0 -p tcp --dport {PORT} -j DROP",
}


@pytest.fixture
def pod():
    """A pod without a tunnel."""
    with PodNet.create("bridge", "apply-fw") as net, listener(net):
        yield net


@pytest.mark.parametrize("tool", FIREWALLS)
def test_a_firewall_rule_is_passed_before(pod, tool):
    """The accept goes into the firewall that drops, and the client connects."""
    pod.pod.run("sh", "-ec", FIREWALLS[tool])
    assert not connects(pod, timeout=0.3)
    code, report = doctor(pod, "--apply", "--yes", "--to", f"10.44.0.2:{PORT}/tcp")
    assert (code, [each["kept"] for each in report["applied"]]) == (0, [True])
    assert connects(pod)


def test_what_does_not_help_is_taken_back(pod, monkeypatch):
    """Somebody drops the packets again the moment the fix is in: the fix goes, and the state is as before."""
    from wicketgate.doctor import apply
    from wicketgate.doctor.examine import examine
    from wicketgate.kernel.snapshot import take_snapshot

    pod.pod.run("sh", "-ec", FIREWALLS["nft"])
    before = state(pod)
    looked = pod.pod.acall(take_snapshot)
    said: list[str] = []
    surgeon = apply.Surgeon(lambda: looked, said.append, lambda *_: True)
    monkeypatch.setattr(apply.signal, "signal", lambda *_: None)  # only the main thread may
    last = pod.pod.call(lambda: surgeon.operate(examine(looked)))
    assert (surgeon.applied[0].kept, surgeon.applied[0].why) == (
        False,
        "the flow still does not work (input-drop)",
    )
    assert last.broken
    assert any(line.startswith("# nft delete rule inet f c handle ") for line in said), said
    assert state(pod) == before


def test_a_command_that_fails_leaves_nothing(pod, monkeypatch):
    """The rule is there already, so `ip rule add` fails: it is said, and that rule stays."""
    from wicketgate.doctor import apply
    from wicketgate.doctor.apply import Commands
    from wicketgate.errors import StateError

    monkeypatch.setattr(apply.signal, "signal", lambda *_: None)
    add, delete = (
        "ip -4 rule add from 10.44.0.2 lookup main pref 100",
        "ip -4 rule del from 10.44.0.2 lookup main pref 100",
    )
    mark, unmark = (
        "ip -4 rule add from all fwmark 0x5 lookup main pref 90",
        "ip -4 rule del from all fwmark 0x5 lookup main pref 90",
    )
    pod.pod.run("sh", "-ec", add)
    before = state(pod)
    commands = Commands((mark, add), (delete, unmark), lambda _: None)
    with pytest.raises(StateError, match="File exists"):
        pod.pod.call(commands.run)
    pod.pod.call(commands.take_back)
    assert state(pod) == before


def read_until(terminal: int, text: str, seconds: float = 60.0) -> str:
    """What the terminal shows until it shows this."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.mark.parametrize(("answer", "mended"), [(b"y\n", True), (b"\n", False), (b"n\n", False)])
def test_it_asks_at_the_terminal(pod, answer, mended):
    """The commands are shown before the question; nothing but yes changes anything."""
    pod.pod.run("sh", "-ec", FIREWALLS["iptables-nft"])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(pod, "--apply", "--to", f"10.44.0.2:{PORT}/tcp"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = read_until(ours, "Apply this? [y/N]")
        assert "iptables-nft -I INPUT 1" in shown
        assert not connects(pod, timeout=0.3)
        os.write(ours, answer)
        assert process.wait(60) == (0 if mended else 1)
        assert connects(pod, timeout=1.0 if mended else 0.3) == mended
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_ctrl_c_at_the_question_changes_nothing(pod):
    """Interrupted while it asks: 130, and the state is as before."""
    pod.pod.run("sh", "-ec", FIREWALLS["nft"])
    before = state(pod)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(pod, "--apply"), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        read_until(ours, "Apply this? [y/N]")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert state(pod) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--yes"], "--yes without --apply"),
        (["--apply"], "there is no terminal"),
        (["--apply", "--json"], "allowed: with --yes"),
        (["--apply", "--yes", "--bundle", "x"], "a file cannot be mended"),
    ],
)
def test_bad_usage(arguments, words):
    """Exit code 2, before anything is read."""
    done = subprocess.run(
        [sys.executable, "-m", "wicketgate", "doctor", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_the_json_says_what_was_done(pod):
    """`applied` has flow, fix, commands, by what it was proved, and whether it is kept."""
    pod.pod.run("sh", "-ec", FIREWALLS["iptables-legacy"])
    done = subprocess.run(
        command(pod, "--apply", "--yes", "--json"), capture_output=True, text=True, timeout=60, check=False
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert set(report["applied"][0]) == {"flow", "fix", "commands", "proved_by", "kept", "why"}
    assert "door" in report["applied"][0]["proved_by"]
    assert report["applied"][0]["commands"][0].startswith("iptables-legacy -I INPUT 1 -i eth0 ")
    assert "# iptables-legacy" in done.stderr
