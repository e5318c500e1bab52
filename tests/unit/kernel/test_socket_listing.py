# SPDX-License-Identifier: Apache-2.0
"""inet_diag messages and /proc/net lines."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from wicketgate.kernel import sysctl
from wicketgate.kernel.sockets import decode, sockets_of_proc
from wicketgate.netpath.snapshot import ListeningSocket

PROC_TCP6 = """  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: B80D0120000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:1F91 00000000000000000000000001000000:ABCD 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 100 0 0 10 0
"""


def test_a_message_of_inet_diag():
    """Address, port, device, IPV6_V6ONLY and mark stand where linux/inet_diag.h says."""
    body = struct.pack("=BBBB", socket.AF_INET6, 10, 0, 0) + struct.pack("!HH", 8080, 0)
    body += ip_address("2001:db8::1").packed + bytes(16) + struct.pack("=I8x", 2)
    body += struct.pack("=IIIII", 0, 0, 0, 65534, 99)
    body += struct.pack("=HHB3x", 5, 11, 1) + struct.pack("=HHI", 8, 15, 0xCA6C)
    assert decode(body, "tcp", {2: "eth0"}) == ListeningSocket(
        "tcp", 6, ip_address("2001:db8::1"), 8080, bound_device="eth0", v6only=True, uid=65534, inode=99, mark=0xCA6C
    )


def test_proc_where_inet_diag_is_refused(tmp_path):
    """Listening ones only, in the machine's byte order; what /proc does not tell is None."""
    (tmp_path / "tcp6").write_text(PROC_TCP6)
    assert sockets_of_proc(str(tmp_path)) == (
        ListeningSocket("tcp", 6, ip_address("2001:db8::1"), 8080, uid=1000, inode=4711),
    )


def test_parameter_names_and_files():
    """An interface name with a dot is written with a slash, as sysctl(8) does; nothing leaves /proc/sys."""
    assert sysctl.path("net.ipv4.conf.eth0/100.rp_filter") == "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"
    assert sysctl.part("eth0.100") == "eth0/100"
    for name in ("net..x", "//.x", "../x.y", ""):
        with pytest.raises(ValueError, match="allowed: parts joined by dots"):
            sysctl.path(name)
    assert sysctl.read("net.no.such") is None
