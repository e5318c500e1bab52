# SPDX-License-Identifier: Apache-2.0
"""`wicket trace --live`: the very packet in the place itself, the kernel's own trace beside the computed way."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from netns.doctor_pods import PORT, connects
from netns.door_traces import door, echoes, in_pod, looks
from netns.live_traces import (
    CAPTURE,
    FAMILIES,
    FAULTS,
    command,
    drop_at,
    left_alone,
    live,
    to_listener,
    traced_pod,
)
from netns.pods import SHAPES, sysctl
from wicketgate.kernel.drop_tap import why_no_tap
from wicketgate.kernel.live_watch import LiveWatch
from wicketgate.netpath.concerns import STRANGER, STRANGERS_PORT
from wicketgate.netpath.flow import Flow


@pytest.fixture(scope="module", params=SHAPES)
def net(request):
    with traced_pod(request.param) as made:
        yield made


@pytest.fixture
def place(net):
    with left_alone(net):
        yield net


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_flow(place, family):
    """Same on both ways, works, exit code 0; the place is as before and its connection tracking empty of it."""
    before = looks(place.pod)
    code, report = live(place, to_listener(place, family))
    assert (code, report["live"]["same"], report["live"]["works"]) == (0, True, True), report["live"]
    assert report["live"]["reply"][-1]["kernel"]["oif"] == "eth0"
    assert all(each["same"] for each in report["live"]["forward"] + report["live"]["reply"])
    assert looks(place.pod) == before
    assert str(STRANGER[family]) not in place.pod.run("conntrack", "-L", "-f", f"ipv{family}").stdout
    assert connects(place, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_by_both(place, fault, family):
    """The kernel loses the packet where it was computed: same, broken, exit code 1."""
    make, unmake, way, point = FAULTS[fault]
    before = looks(place.pod)
    place.pod.run("sh", "-ec", make)
    try:
        made = looks(place.pod, counts=False)
        code, report = live(place, to_listener(place, family))
        assert (code, report["live"]["same"], report["live"]["works"]) == (1, True, False), report["live"]
        assert report["live"][way][-1]["point"] == point
        if fault == "captured":
            assert report["live"][way][-1]["kernel"]["oif"] == "sink"
        assert looks(place.pod, counts=False) == made
    finally:
        place.pod.run("sh", "-ec", unmake)
    assert looks(place.pod) == before


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stale_state_differs_there(place, fault, family, tmp_path):
    """Computed from a state that was read before the fault: the first difference is the fault's point."""
    make, unmake, way, point = FAULTS[fault]
    stale = tmp_path / "stale.json"
    stale.write_text(
        subprocess.run(
            [sys.executable, "-m", "wicketgate", "snapshot", "--netns", f"pid:{place.pod.pid}"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
    )  # fmt: skip
    place.pod.run("sh", "-ec", make)
    try:
        code, report = live(place, to_listener(place, family), "--bundle", str(stale))
    finally:
        place.pod.run("sh", "-ec", unmake)
    assert (code, report["live"]["same"], report["works"]) == (1, False, True)
    found = report["live"]["first_difference"]
    assert found["direction"] == way
    assert f"{found['kernel']['kind']} {found['kernel']['hook'] or ''}".strip() == point


def test_strict_rp_filter_is_named_by_the_drop_reason(place):
    """The packet is lost behind prerouting; where the tracer can be had, its reason is the computed one."""
    place.pod.run("sh", "-ec", CAPTURE[0])
    sysctl(place.pod, "net.ipv4.conf.eth0.rp_filter", "1")
    try:
        code, report = live(place, to_listener(place, 4))
    finally:
        sysctl(place.pod, "net.ipv4.conf.eth0.rp_filter", "0")
        place.pod.run("sh", "-ec", CAPTURE[1])
    assert (code, report["live"]["same"]) == (1, True)
    assert report["live"]["forward"][-1]["point"] == "is lost behind prerouting"
    if why_no_tap():
        assert "drop reasons cannot be had" in " ".join(report["live"]["untold"])
    else:
        assert report["live"]["drop_reasons"] == ["IP_RPFILTER"]


def test_a_mark_is_a_difference_too(place, tmp_path):
    """A rule that only marks came after the state was read: the packet leaves prerouting with another mark."""
    stale = tmp_path / "stale.json"
    taken = [sys.executable, "-m", "wicketgate", "snapshot", "--netns", f"pid:{place.pod.pid}"]
    stale.write_text(subprocess.run(taken, capture_output=True, text=True, timeout=60, check=True).stdout)
    place.pod.run(
        "sh", "-ec",
        "nft add table inet m; nft 'add chain inet m p { type filter hook prerouting priority mangle; }'; "
        "nft add rule inet m p meta mark set 0x7",
    )  # fmt: skip
    try:
        code, report = live(place, to_listener(place, 4), "--bundle", str(stale))
    finally:
        place.pod.run("nft", "delete", "table", "inet", "m")
    found = report["live"]["first_difference"]
    assert (code, found["point"], found["computed"]["mark"], found["kernel"]["mark"]) == (
        1,
        "leaves prerouting",
        "0",
        "0x7",
    )


def test_a_closed_port_is_refused(place):
    """The kernel's RST is seen: as computed, and broken."""
    code, report = live(place, f"{place.pod4}:9/tcp")
    assert (code, report["live"]["same"], report["live"]["works"]) == (1, True, False)
    code, report = live(place, f"{place.pod4}:9/udp")
    assert (code, report["live"]["same"], report["live"]["works"]) == (1, True, False)
    assert report["live"]["reply"][-1]["kernel"]["packet"].startswith("icmp ")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_this_host_sends_really_goes(place, family):
    """A TCP connection to a listener elsewhere: both ways are seen, and the sender is connected."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    far = place.client_address(family)
    with place.client.call(lambda: socket.socket(kind, socket.SOCK_STREAM)) as sock:
        sock.bind((str(far), 0))
        sock.listen()
        port = sock.getsockname()[1]
        to = f"[{far}]:{port}/tcp" if family == 6 else f"{far}:{port}/tcp"
        code, report = live(place, to, "--from", "::" if family == 6 else "0.0.0.0")
    assert (code, report["live"]["same"], report["live"]["sender"]) == (0, True, "connected"), report["live"]
    assert report["live"]["reply"][0]["kernel"]["iif"] == "eth0"


def test_a_connection_in_use_is_left_alone(place):
    """The very addresses and ports of a real client's connection: nothing is sent, and the connection lives."""
    place.pod.run("sh", "-ec", "nft add table ip t; nft 'add chain ip t p { type filter hook prerouting priority 0; }'; "
                  "nft add rule ip t p ct state new accept")  # fmt: skip
    try:
        with place.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
            sock.settimeout(5)
            sock.connect((str(place.pod4), PORT))
            port = sock.getsockname()[1]
            done = subprocess.run(
                command(place, to_listener(place, 4), "--from", f"{place.client4}:{port}"),
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert sock.recv(10) == b"hello"
    finally:
        place.pod.run("nft", "delete", "table", "ip", "t")
    assert done.returncode == 3
    assert "name another source port" in done.stderr


def test_without_the_right_to_send(place):
    """No CAP_NET_RAW: exit code 3, the right is named, and the place is as before."""
    before = looks(place.pod)
    done = subprocess.run(
        ["setpriv", "--inh-caps", "-net_raw", "--bounding-set", "-net_raw", *command(place, to_listener(place, 4))],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "CAP_NET_RAW" in done.stderr
    assert looks(place.pod) == before


def test_the_text_marks_the_first_difference(place, tmp_path):
    """One line is marked, and said again at the end."""
    stale = tmp_path / "stale.json"
    taken = [sys.executable, "-m", "wicketgate", "snapshot", "--netns", f"pid:{place.pod.pid}"]
    stale.write_text(subprocess.run(taken, capture_output=True, text=True, timeout=60, check=True).stdout)
    place.pod.run("sh", "-ec", FAULTS["input"][0])
    try:
        done = subprocess.run(
            command(place, to_listener(place, 4), "--bundle", str(stale)),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        place.pod.run("sh", "-ec", FAULTS["input"][1])
    marked = [line for line in done.stdout.splitlines() if "<-- the first difference" in line]
    assert len(marked) == 1
    assert f"tcp dport {PORT} drop (table inet f chain input)" in marked[0]
    assert "The first difference is on the way there:" in done.stdout


def test_a_local_sender_without_a_way_is_not_sent(place):
    """A rule that makes everything unreachable: computed and seen alike, the socket is told at once."""
    make, unmake = FAULTS["no-route"][:2]
    place.pod.run("sh", "-ec", make)
    try:
        code, report = live(place, f"{place.client4}:7/tcp", "--from", "0.0.0.0")
    finally:
        place.pod.run("sh", "-ec", unmake)
    assert (code, report["live"]["same"], report["live"]["works"]) == (1, True, False)
    assert report["live"]["sender"] == "Network is unreachable"


FORWARDED = (
    "ip addr add 10.8.0.1/24 dev sink; ip -6 addr add fd08::1/64 dev sink nodad; nft add table inet n; "
    "nft 'add chain inet n p { type nat hook postrouting priority 100; }'; nft add rule inet n p oifname eth0 masquerade",
    "nft delete table inet n; ip addr del 10.8.0.1/24 dev sink; ip -6 addr del fd08::1/64 dev sink",
)
# What breaks a tunnel client's flow: on which way, at which point.
FORWARD_FAULTS = {
    "none": ("true", "true", "reply", "leaves postrouting"),
    "forward": (*drop_at("forward", "iifname sink"), "forward", "is lost in forward"),
    "answers": (*drop_at("forward", "iifname eth0"), "reply", "is lost in forward"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("fault", ["none", "forward", "answers"])
def test_flow_of_a_tunnels_client(place, fault, protocol, family):
    """Forwarded and masqueraded, caught where it leaves, answered from there, and home again; nothing goes out."""
    make, unmake, way, point = FORWARD_FAULTS[fault]
    before = looks(place.pod)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    far, near = place.client_address(family), "10.8.0.2" if family == 4 else "fd08::2"
    sysctl(place.pod, "net.ipv4.ip_forward", "1")
    sysctl(place.pod, "net.ipv6.conf.all.forwarding", "1")
    place.pod.run("sh", "-ec", f"{FORWARDED[0]}; {make}")
    with place.client.call(lambda: socket.socket(kind, socket.SOCK_DGRAM)) as sock:
        sock.bind((str(far), 0))
        sock.setblocking(False)
        to = f"[{far}]" if family == 6 else str(far)
        try:
            made = looks(place.pod, counts=False)
            code, report = live(place, f"{to}:{sock.getsockname()[1]}/{protocol}", "--from", near, "--iif", "sink")
            assert looks(place.pod, counts=False) == made
            tracked = place.pod.run("conntrack", "-L", "-f", f"ipv{family}").stdout
        finally:
            place.pod.run("sh", "-ec", f"{unmake}; {FORWARDED[1]}")
            sysctl(place.pod, "net.ipv4.ip_forward", "0")
            sysctl(place.pod, "net.ipv6.conf.all.forwarding", "0")
        with pytest.raises(BlockingIOError):
            sock.recv(100)
    good = fault == "none"
    assert (code, report["live"]["same"], report["live"]["works"]) == (0 if good else 1, True, good), report["live"]
    assert report["live"][way][-1]["point"] == point
    assert near not in tracked
    if good:
        assert report["live"]["forward"][-1]["kernel"]["packet"].startswith(f"{protocol} ")
        assert str(place.pod_address(family)) in report["live"]["forward"][-1]["kernel"]["packet"]
        assert report["live"]["reply"][0]["kernel"]["iif"] == "eth0"
        assert report["live"]["reply"][-1]["kernel"]["oif"] == "sink"
    assert looks(place.pod) == before


def test_a_flow_object_that_is_sent_twice_is_new_each_time(place):
    """No connection of the first look is left for the second."""
    flow = Flow(STRANGER[4], place.pod4, "tcp", STRANGERS_PORT, PORT, iif="eth0")

    def twice():
        with LiveWatch() as watch:
            return [watch.send_into(flow).tracked for _ in range(2)]

    place.pod.run("sh", "-ec", "nft add table ip t; nft 'add chain ip t p { type filter hook prerouting priority 0; }'; "
                  "nft add rule ip t p ct state new accept")  # fmt: skip
    try:
        first, second = place.pod.call(twice)
    finally:
        place.pod.run("nft", "delete", "table", "ip", "t")
    assert [each.action for each in first][:1] == [each.action for each in second][:1] == ["NEW"]


def test_beside_an_open_door(place):
    """The agent's own door stands at the same uplink: both work, and the door is whole afterwards."""

    async def both(netlink):
        flow = Flow(STRANGER[4], place.pod4, "tcp", STRANGERS_PORT, PORT, iif="eth0")
        async with door(netlink) as made:
            # The live trace makes loops of its own, so it needs a thread.
            seen = await asyncio.to_thread(place.pod.call, lambda: sent(flow))
            return seen, await made.verify(), await echoes(made)

    def sent(flow):
        with LiveWatch() as watch:
            return watch.send_into(flow)

    seen, whole, echoed = in_pod(place.pod, both)
    assert seen.answer
    assert whole
    assert echoed


def test_behind_somebodys_filter_nothing_is_sent(place):
    """A foreign tc filter is asked first and might let the packet out: exit code 3, the filter is named and stays."""
    place.pod.run(
        "sh", "-ec",
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress protocol ip pref 5 u32 match ip dst 192.0.2.200 "
        "action mirred egress redirect dev sink",
    )  # fmt: skip
    try:
        before = looks(place.pod)
        done = subprocess.run(
            command(place, to_listener(place, 4)), capture_output=True, text=True, timeout=60, check=False
        )
        assert looks(place.pod) == before
    finally:
        place.pod.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    assert done.returncode == 3
    assert "another tc filter might take it first: dev eth0 egress protocol 0x0800 pref 5 u32" in done.stderr
