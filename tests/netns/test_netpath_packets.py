# SPDX-License-Identifier: Apache-2.0
"""The source check, held against real packets: what the model says is what a socket receives, or the kernel counts."""

from __future__ import annotations

import itertools
import socket
import time
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

import pytest

from wicketgate.kernel import sysctl
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import wire
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import trace

PORT = 9000
PATIENCE = 10.0  # seconds, of which a working machine needs none
STRANGER = "203.0.113.9"

# How the pod would answer the stranger.
WAYS = {
    "by the uplink": ["route replace default via 192.0.2.2 dev e0"],
    "by another interface": ["route replace default via 10.9.0.2 dev e1 onlink"],
    "nowhere": ["route del default"],
    "by a rule for a mark": [
        "route replace default via 10.9.0.2 dev e1 onlink",
        "route replace default via 192.0.2.2 dev e0 table 100",
        "rule add fwmark 7 lookup 100",
    ],
    "refused by a rule": ["route replace default via 192.0.2.2 dev e0", "rule add to 203.0.113.0/24 prohibit"],
}


def counters():
    """What the kernel counts of dropped and delivered packets in this thread's namespace."""
    found = {}
    with open("/proc/thread-self/net/netstat", encoding="ascii") as file:
        lines = file.read().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found |= dict(zip(names.split()[1:], values.split()[1:], strict=True))
    return int(found["IPReversePathFilter"])


class Stand:
    """A pod with an uplink and a second interface, and a stranger on the uplink's other side."""

    def __init__(self, new_host):
        self.pod, self.far = new_host("pod"), new_host("far")
        wire(self.pod, "e0", self.far, "w0")
        self.batch("link add e1 type veth peer name p1", "link set p1 up", "link set e1 up", "link set lo up")
        self.batch("addr add 192.0.2.1/24 dev e0", "addr add 10.9.0.1/24 dev e1")
        mac = self.pod.acall(lambda: take_snapshot(firewall=False, sockets=False)).link("e0").mac
        for line in (
            "link set lo up",
            "addr add 192.0.2.2/24 dev w0",
            f"addr add {STRANGER}/32 dev lo",
            # The pod would not answer the stranger's ARP either, once rp_filter drops.
            f"neigh replace 192.0.2.1 lladdr {mac} dev w0 nud permanent",
        ):
            self.far.run("ip", *line.split())
        self.receiver = self.pod.call(lambda: self._socket("0.0.0.0", PORT))
        self.sender = self.far.call(lambda: self._socket(STRANGER, 40000))

    @staticmethod
    def _socket(address, port):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind((address, port))
        return made

    def close(self):
        self.receiver.close()
        self.sender.close()

    def batch(self, *lines):
        self.pod.run("ip", "-force", "-batch", "-", stdin="".join(f"{line}\n" for line in lines), check=False)

    def settle(self, values):
        def inside():
            for name, value in values.items():
                sysctl.write(f"net.ipv4.conf.{name}", str(value))

        self.pod.call(inside)

    def snapshot(self):
        return self.pod.acall(lambda: take_snapshot(firewall=False))

    def kernel(self):
        """Whether the packet is delivered, or dropped by rp_filter; each is seen, so silence is neither."""
        return self.pod.call(self._kernel)

    def _kernel(self):
        before, deadline = counters(), time.monotonic() + PATIENCE
        self.sender.sendto(b"?", ("192.0.2.1", PORT))
        while time.monotonic() < deadline:
            try:
                self.receiver.recv(10)
            except BlockingIOError:
                if counters() > before:
                    return "rp-filter"
                time.sleep(0.0005)  # until the packet is through; it is told by counter or socket
            else:
                return "delivered"
        raise AssertionError("the packet was neither delivered nor counted")


@pytest.fixture
def stand(new_host):
    """The pod and the stranger."""
    made = Stand(new_host)
    yield made
    made.close()


@pytest.mark.parametrize("mark", [0, 7])
def test_the_reverse_path_filter_takes_what_the_model_says(stand, mark):
    """Every rp_filter of `all` and the interface, every way back, with and without src_valid_mark and a mark."""
    if mark:
        stand.pod.run("nft", "add", "table", "ip", "marks")
        stand.pod.run("nft", "add chain ip marks in { type filter hook prerouting priority mangle; }")
        stand.pod.run("nft", f"add rule ip marks in meta mark set {mark}")
    flow = Flow(ip_address(STRANGER), ip_address("192.0.2.1"), "udp", 40000, PORT, iif="e0", mark=mark)
    seen = {"delivered": 0, "rp-filter": 0}
    for name, lines in WAYS.items():
        stand.batch("rule del pref 32765", "rule del pref 32764", *lines)
        snapshot = stand.snapshot()
        for everywhere, here, valid in itertools.product((0, 1, 2), (0, 1, 2), (0, 1)):
            values = {"all.rp_filter": everywhere, "e0.rp_filter": here, "e0.src_valid_mark": valid}
            stand.settle(values)
            now = {**snapshot.sysctls, **{f"net.ipv4.conf.{key}": str(value) for key, value in values.items()}}
            said = trace(replace(snapshot, sysctls=MappingProxyType(now)), flow)
            told = "delivered" if said.verdict is Verdict.DELIVERED else said.code
            real = stand.kernel()
            assert told == real, f"{name}, all {everywhere}, e0 {here}, src_valid_mark {valid}: {said.reason}"
            seen[real] += 1
    assert min(seen.values()) > 10
