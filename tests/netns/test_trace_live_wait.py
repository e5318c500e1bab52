# SPDX-License-Identifier: Apache-2.0
"""`wicket trace --live --wait`: a real packet is waited for, one at a time, and whatever ends it, nothing is left."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from netns.doctor_pods import PORT, connects
from netns.door_traces import looks
from netns.live_traces import (
    FAMILIES,
    await_table,
    command,
    left_alone,
    live,
    to_listener,
    traced_pod,
)
from netns.pods import SHAPES
from wicketgate.kernel.live_door import LiveDoor
from wicketgate.kernel.live_table import Watched
from wicketgate.kernel.live_watch import LiveWatch, _Look
from wicketgate.kernel.twin.nft_trace import LIVE_TABLE
from wicketgate.kernel.twin.octets import ends_of
from wicketgate.netpath.concerns import STRANGER, STRANGERS_PORT


@pytest.fixture(scope="module", params=SHAPES)
def net(request):
    with traced_pod(request.param) as made:
        yield made


@pytest.fixture
def place(net):
    with left_alone(net):
        yield net


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_ping_is_waited_for(place, family):
    """An echo request of anybody's, and its answer."""
    pod = place.pod_address(family)
    process = subprocess.Popen(
        [*command(place, f"{pod}/icmp" if family == 4 else f"[{pod}]/icmp", "--wait", "30"), "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        await_table(place)
        place.client.run("ping", "-c2", "-i0.2", str(pod))
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    report = json.loads(out)
    assert (process.returncode, report["live"]["same"], report["live"]["works"]) == (0, True, True), report["live"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_packet_is_waited_for(place, family):
    """Nothing is sent: the first real client's packet and its answer are shown, and that client is served."""
    process = subprocess.Popen(
        [*command(place, to_listener(place, family), "--wait", "30"), "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        await_table(place)
        assert connects(place, family)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    report = json.loads(out)
    assert (process.returncode, report["live"]["same"], report["live"]["works"]) == (0, True, True), report["live"]
    assert str(place.client_address(family)) in report["live"]["packet"]


@pytest.mark.slow
def test_nobody_comes(place):
    """Exit code 3, in words."""
    done = subprocess.run(
        command(place, to_listener(place, 4), "--wait", "0.2"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "no such packet came within 0.2 s" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_one_leaves_nothing(place, how):
    """Ended amid its wait by a signal: the place is as before."""
    before = looks(place.pod)
    process = subprocess.Popen(command(place, to_listener(place, 4), "--wait", "60"), stderr=subprocess.DEVNULL)
    try:
        await_table(place)
        process.send_signal(how)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert looks(place.pod) == before


def test_a_killed_one_is_cleaned_up_after(place):
    """Kill -9 leaves table and filter; the next one removes them, and nothing of them is in what it computed from."""
    before = looks(place.pod)
    process = subprocess.Popen(command(place, to_listener(place, 4), "--wait", "60"))
    await_table(place)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ends = ends_of(STRANGER[4], place.pod4, "tcp", STRANGERS_PORT, PORT)
    place.pod.call(lambda: LiveDoor("eth0", ends).__enter__())
    assert LIVE_TABLE in place.pod.run("nft", "list", "tables").stdout
    assert "clsact" in place.pod.run("tc", "qdisc", "show", "dev", "eth0").stdout
    code, report = live(place, to_listener(place, 4))
    assert (code, report["live"]["same"]) == (0, True)
    assert looks(place.pod) == before


def test_others_pass_while_it_looks(place):
    """A client that is not asked about connects while the table that keeps packets in stands; it is not traced."""
    ends = ends_of(STRANGER[4], place.pod4, "tcp", STRANGERS_PORT, PORT)

    def enter():
        look = _Look(Watched(ends, "eth0", kept_in=True))
        look.__enter__()
        door = LiveDoor("eth0", ends)
        door.__enter__()
        return look, door

    look, door = place.pod.call(enter)
    try:
        assert connects(place, 4)
        assert connects(place, 6)
        place.pod.call(look.read_now)
        assert look.first_ends() is None
    finally:
        place.pod.call(lambda: door.__exit__(None, None, None))
        place.pod.call(lambda: look.__exit__(None, None, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_that_comes_is_the_only_one(place, family):
    """On a busy port one client's packets are traced, and its answer's; nobody else's."""
    pod = place.pod_address(family)
    watched = Watched(ends_of(type(pod)(0), pod, "tcp", 0, PORT), "eth0")

    def enter():
        look = _Look(watched)
        return look.__enter__()

    look = place.pod.call(enter)
    try:
        assert all(connects(place, family) for _ in range(3))
        place.pod.call(look.read_now)
        seen = {each.ends for each in look._words if each.ends is not None}
        assert len({frozenset((each.source_port, each.destination_port)) for each in seen}) == 1
        request, answer = look._split(look.first_ends())
        assert request
        assert answer
    finally:
        place.pod.call(lambda: look.__exit__(None, None, None))


def test_only_one_at_a_time(place):
    """Two would see each other's table: the second one says so."""

    def both():
        with LiveWatch():
            done = subprocess.run(
                command(place, to_listener(place, 4)), capture_output=True, text=True, timeout=60, check=False
            )
            return done.returncode, done.stderr

    code, said = place.pod.call(both)
    assert code == 3
    assert "another live trace is at work" in said
