# SPDX-License-Identifier: Apache-2.0
"""Who is behind a netlink port, as far as that can be found out.

The kernel gives a process's first netlink socket the process's id for its port, as that process's pid namespace counts
it, and any number to further ones. So a port is taken for a process only when that very process still holds a netlink
socket of that port. Often nobody does any more, because `ip` has ended before anybody could look: then the port is all
that is told.
"""

from __future__ import annotations

import os

PROC = "/proc"


def owner(port: int, proc: str = PROC) -> str:
    """`dhcpcd[4711]`, or `netlink port 4711` where no process holds it; empty for the kernel itself.

    Args:
        port: nlmsg_pid of an event; 0 is the kernel itself.
        proc: where proc(5) is mounted.
    """
    if not port:
        return ""
    try:
        sockets = _inodes(port, proc)
        if sockets and sockets & {os.readlink(f"{proc}/{port}/fd/{each}") for each in os.listdir(f"{proc}/{port}/fd")}:
            with open(f"{proc}/{port}/comm", encoding="utf-8", errors="replace") as file:
                return f"{file.read().strip()}[{port}]"
    except OSError:
        pass  # it has ended, or is another user's
    return f"netlink port {port}"


def _inodes(port: int, proc: str) -> set[str]:
    # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; Eth is the protocol, 0 = NETLINK_ROUTE, Pid the port
    with open(f"{proc}/thread-self/net/netlink", encoding="ascii") as file:
        rows = [line.split() for line in file.read().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if len(row) >= 10 and row[1] == "0" and row[2] == str(port)}
