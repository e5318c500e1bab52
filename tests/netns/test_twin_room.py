# SPDX-License-Identifier: Apache-2.0
"""The room of a twin: it ends with whoever asked for it, keeps its time, and needs no root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netns.test_lab_topology import ordinary_user
from netns.twins import LISTENER, look, uplinked
from wicketgate.errors import StateError
from wicketgate.kernel.twin.room import in_a_room
from wicketgate.netpath.codec import to_json

DROP = "iptables-legacy -A INPUT -p tcp --dport 9000 -j DROP; iptables-nft -A INPUT -p tcp --dport 9001 -j DROP; nft add table inet kept"
SLEEPER = """
import sys, time
from wicketgate.kernel.twin.room import in_a_room
def work(tell):
    import subprocess
    subprocess.Popen(["sleep", "600"])
    tell({"here": True})
    time.sleep(600)
for told in in_a_room(work, seconds=600):
    print("built", flush=True)
"""


def descendants(pid: int) -> set[int]:
    """Every process that this one began, also by others."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, front = set(), {pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_asking_process_ends(number):
    """Killed in any way while the twin works: its processes, and with them its namespaces, are gone."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"built\n"
        below = descendants(process.pid)
        assert len(below) == 3, below
    finally:
        process.send_signal(number)
        process.wait(10)
        process.stdout.close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") and alive(pid) for pid in below):
        assert time.monotonic() < deadline, below
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_time_bound_ends_it():
    """Work that does not end is ended, with an error that says so, and leaves no process."""
    before = descendants(os.getpid())  # a pod of this session's lab, say: other tests of the worker share the process
    with pytest.raises(StateError, match=r"not done after 0\.5 s"):
        list(in_a_room(lambda tell: time.sleep(600), seconds=0.5))
    assert not descendants(os.getpid()) - before


def test_what_was_told_before_an_error_is_kept():
    """Words come one by one; then the error of the work."""
    heard = []

    def work(tell):
        tell({"one": 1})
        raise StateError("the second was too hard")

    with pytest.raises(StateError, match="the second was too hard"):
        heard.extend(in_a_room(work, seconds=10))
    assert list(in_a_room(lambda tell: tell({"x": "y" * 200_000}), seconds=10)) == [{"x": "y" * 200_000}]


def test_the_callers_namespace_is_left_alone(new_host):
    """A twin built inside a pod changes nothing there."""
    pod = new_host("pod")
    uplinked(pod, new_host("node"), DROP)
    before = pod.run(
        "sh", "-c", "ip -d addr; ip rule; ip route show table all; iptables-legacy-save | grep -v ^#; nft list ruleset"
    ).stdout
    done = pod.run(
        sys.executable, "-m", "wicketgate", "doctor", "--to", "10.44.0.2:9000/tcp", "--json", check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    after = pod.run(
        "sh", "-c", "ip -d addr; ip rule; ip route show table all; iptables-legacy-save | grep -v ^#; nft list ruleset"
    ).stdout
    assert after == before


def test_an_ordinary_user_has_a_twin_in_a_user_namespace(new_host):
    """As uid 65534, from a bundle: legacy and nft rules, links and listeners are rebuilt, and the fix is proved."""
    command = ordinary_user()
    if command is None:
        pytest.skip("no interpreter that everybody can reach")
    if subprocess.run([*command[:4], "unshare", "-Urn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    pod = new_host("pod")
    uplinked(pod, new_host("node"), DROP)
    done = subprocess.run(
        [*command, "-m", "wicketgate", "doctor", "--bundle=-", "--json", "--to", "10.44.0.2:9000/tcp"],
        input=to_json(look(pod, LISTENER)), cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (flow,) = json.loads(done.stdout)["flows"]
    assert [(fix["id"], fix["proved_by"]) for fix in flow["fixes"]] == [("accept-rule", ["model", "twin"])]


def test_where_no_namespace_can_be_made_the_model_proves_alone(new_host):
    """User namespaces are switched off: the fix is the model's, and a note says why."""
    command = ordinary_user()
    if command is None:
        pytest.skip("no interpreter that everybody can reach")
    pod = new_host("pod")
    uplinked(pod, new_host("node"), DROP)
    # A user namespace in which no further one may be made.
    inner = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all -- "$@"'
    shell = [*command[:4], "unshare", "-U", "--map-root-user", "sh", "-c", inner, "sh"]
    tried = subprocess.run([*shell, "true"], cwd="/", capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    done = subprocess.run(
        [*shell, *command[4:], "-m", "wicketgate", "doctor", "--bundle=-", "--to", "10.44.0.2:9000/tcp"],
        input=to_json(look(pod, LISTENER)), cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "(proved in the model)" in done.stdout
    assert "note: no twin was built" in done.stdout
    assert "Traceback" not in done.stderr
