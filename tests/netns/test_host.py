# SPDX-License-Identifier: Apache-2.0
"""The lab's hosts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

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


def test_a_process_that_has_not_entered_the_host_yet_ends_with_it(new_host, monkeypatch):
    """Closing ends what was started a moment ago, too: on a busy machine it may still be on its way in."""
    host = new_host()
    entering = host.argv("sleep", "1000")
    monkeypatch.setattr(host, "argv", lambda *_: ["sh", "-c", 'read go; exec "$@"', "sh", *entering])
    started = host.popen("sleep", "1000", stdin=subprocess.PIPE)
    assert started.pid not in host.pids()
    host.close()
    started.stdin.close()  # had it lived, it would go in now
    assert started.wait(timeout=5) == -signal.SIGKILL
