# SPDX-License-Identifier: Apache-2.0
"""The kernel draws ports from the ranges that the model has for them."""

from __future__ import annotations

import socket

import pytest

from wicketgate.netpath.netfilter.drawn import range_of
from wicketgate.netpath.packet import UDP

DRAWS = 60


@pytest.mark.parametrize("port", [300, 511, 512, 700, 1023, 1024, 40000])
def test_a_drawn_port_lies_in_its_range(new_host, port):
    """Masquerade with fully-random: each connection's port is of the class of its own, and they differ."""
    near, far = new_host("drawn"), new_host("drawn")
    near.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", str(far.pid))
    for host, address in ((near, "10.0.0.1/24"), (far, "10.0.0.2/24")):
        host.run("ip", "addr", "add", address, "dev", "e0")
        host.run("ip", "link", "set", "e0", "up")
    far.run("sh", "-c", "for n in $(seq 10 90); do ip addr add 10.0.0.$n/24 dev e0; done")
    near.run(
        "nft",
        "-f",
        "-",
        stdin="table ip t {\n chain c {\n  type nat hook postrouting priority 100;\n  masquerade fully-random\n }\n}\n",
    )

    def udp() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        return made

    with near.call(udp) as sender, far.call(udp) as receiver:
        receiver.bind(("0.0.0.0", 9))
        sender.bind(("10.0.0.1", port))
        seen = []
        for number in range(10, 10 + DRAWS):  # another destination is another connection
            sender.sendto(b"x", (f"10.0.0.{number}", 9))
            seen.append(receiver.recvfrom(10)[1][1])
    ports = range_of(UDP, port, None)
    assert ports is not None
    assert all(ports[0] <= each <= ports[1] for each in seen), (port, seen)
    assert len(set(seen)) > DRAWS // 2
