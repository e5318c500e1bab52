# SPDX-License-Identifier: Apache-2.0
"""A pod in which `wicket trace --live` is run, and faults of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from netns.doctor_pods import PORT, listener
from netns.pods import PodNet
from wicketgate.kernel.twin.nft_trace import LIVE_TABLE

FAMILIES = (4, 6)


@contextlib.contextmanager
def traced_pod(shape: str) -> Iterator[PodNet]:
    """A pod with listeners of both families."""
    with PodNet.create(shape, "live") as made, listener(made), listener(made, "::"):
        # Where a wrong rule sends answers: nobody is there.
        made.pod.run("ip", "link", "add", "sink", "up", "type", "veth", "peer", "name", "drain")
        made.pod.run("ip", "link", "set", "drain", "up")
        yield made


@contextlib.contextmanager
def left_alone(net: PodNet) -> Iterator[PodNet]:
    """The pod; whatever a test does, `wicket trace --live` left nothing behind when it ends."""
    yield net
    tables = net.pod.run("nft", "list", "tables").stdout
    assert LIVE_TABLE not in tables
    assert "live" not in net.pod.run("tc", "filter", "show", "dev", "eth0", "egress").stdout
    assert "clsact" not in net.pod.run("tc", "qdisc", "show", "dev", "eth0").stdout


def command(net: PodNet, to: str, *arguments: str) -> list[str]:
    where = ["--netns", f"pid:{net.pod.pid}"]
    return [sys.executable, "-m", "wicketgate", "trace", to, "--live", *where, *arguments]


def live(net: PodNet, to: str, *arguments: str):
    """Exit code and the object."""
    done = subprocess.run(
        [*command(net, to, *arguments), "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def to_listener(net: PodNet, family: int) -> str:
    return f"[{net.pod6}]:{PORT}/tcp" if family == 6 else f"{net.pod4}:{PORT}/tcp"


def drop_at(hook: str, match: str):
    return (
        f"nft add table inet f; nft 'add chain inet f {hook} {{ type filter hook {hook} priority 0; }}'; "
        f"nft add rule inet f {hook} {match} drop",
        "nft delete table inet f",
    )


def iptables(kind: str):
    rule = f"INPUT -p tcp --dport {PORT} -j DROP"
    both = [f"{tool}-{kind} -{{}} {rule}" for tool in ("iptables", "ip6tables")]
    clean = [f"{tool}-{kind} -F" for tool in ("iptables", "ip6tables")]
    if kind == "nft":
        clean += ["nft delete table ip filter", "nft delete table ip6 filter"]
    return "; ".join(each.format("A") for each in both), "; ".join(clean)


CAPTURE = (
    "for f in 4 6; do ip -$f route add default dev sink table 77; ip -$f rule add pref 90 lookup 77; done",
    "for f in 4 6; do ip -$f rule del pref 90; ip -$f route flush table 77; done",
)
# fault: how it is made and unmade; on which way the packet ends, at which point, and what of the kernel is known there.
FAULTS = {
    "prerouting": (*drop_at("prerouting", f"tcp dport {PORT}"), "forward", "is lost in prerouting"),
    "input": (*drop_at("input", f"tcp dport {PORT}"), "forward", "is lost in input"),
    "iptables-nft": (*iptables("nft"), "forward", "is lost in input"),
    "iptables-legacy": (*iptables("legacy"), "forward", "is lost in input"),
    "output": (*drop_at("output", f"tcp sport {PORT}"), "reply", "is lost in output"),
    "postrouting": (*drop_at("postrouting", f"tcp sport {PORT}"), "reply", "is lost in postrouting"),
    "no-route": ("ip -4 rule add pref 91 unreachable; ip -6 rule add pref 91 unreachable",
                 "ip -4 rule del pref 91; ip -6 rule del pref 91", "reply", "is not sent"),
    "captured": (*CAPTURE, "reply", "leaves postrouting"),
}  # fmt: skip


def await_table(net: PodNet) -> None:
    deadline = time.monotonic() + 30
    while LIVE_TABLE not in net.pod.run("nft", "list", "tables").stdout:
        assert time.monotonic() < deadline, "it never began"
