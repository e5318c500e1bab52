# SPDX-License-Identifier: Apache-2.0
"""The lab's hosts."""

from __future__ import annotations

import os
import socket

from wicketgate.lab.host import wire


def test_two_hosts_reach_each_other_over_a_veth(new_host):
    """Two hosts joined by `wire` exchange a datagram, and their processes end with them."""
    a, b = new_host("a"), new_host("b")
    wire(a, "eth0", b, "eth0")
    a.run("ip", "addr", "add", "10.99.0.1/24", "dev", "eth0")
    b.run("ip", "addr", "add", "10.99.0.2/24", "dev", "eth0")
    server = b.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client = a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with server, client:
        server.bind(("10.99.0.2", 7))
        server.settimeout(5)
        client.sendto(b"hello", ("10.99.0.2", 7))
        assert server.recv(100) == b"hello"
    sleeper = a.popen("sleep", "1000", start_new_session=True)
    a.close()
    assert sleeper.wait(timeout=5) == -9
    assert not os.path.exists(f"/proc/{a.pid}/ns/net")
