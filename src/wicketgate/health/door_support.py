# SPDX-License-Identifier: Apache-2.0
"""Which kernels have a door, and which let TCP through it. Decided by `uname`, never by trying.

Before "net/sched: act_mirred: use the backlog for mirred ingress" (CVE-2024-26740, Linux 6.8) a redirect from egress to
ingress delivers in the sender's context, and two TCP sockets of one host can deadlock in the kernel. Before "drop dst
for the direction from egress to ingress" (Linux 5.16) the redirected packet keeps its way out and is never routed anew.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

DOOR_SINCE = (5, 16)
TCP_SINCE = (6, 8)
# Stable series that carry the fix, and a release that is known to have it. 6.6.19 and 6.7.7: the stable review of
# 2024-02-27. 6.1.y took it in the middle of 2025; 6.1.192 is the first that was read (Debian's source).
_STABLE = {(6, 1): 192, (6, 6): 19, (6, 7): 7}


@dataclass(frozen=True, slots=True)
class Support:
    """What a kernel can do, and why not where it cannot."""

    door: bool
    tcp: bool
    reason: str


def support(release: str | None = None, version: str | None = None) -> Support:
    """Judge a kernel.

    Args:
        release: as `uname -r` prints it; None = this machine's.
        version: as `uname -v` prints it; None = this machine's, or nothing when a release was given.
    """
    if release is None:
        machine = os.uname()
        release, version = machine.release, machine.version
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return Support(door=False, tcp=False, reason=f"the kernel release {release!r} cannot be read as a version")
    series, patch = (int(found[1]), int(found[2])), int(found[3] or 0)
    if series < DOOR_SINCE:
        return Support(
            door=False, tcp=False, reason=f"Linux {release} is older than 5.16: a redirected packet is not routed anew"
        )
    if series >= TCP_SINCE:
        return Support(door=True, tcp=True, reason=f"Linux {release} queues what is redirected")
    # Debian names its ABI in `uname -r` (6.1.0-56-amd64) and its source in `uname -v` (#1 SMP Debian 6.1.192-1 (...)).
    debian = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", version or "")
    if debian is not None:
        series, patch = (int(debian[1]), int(debian[2])), int(debian[3])
    first = _STABLE.get(series)
    if first is not None and patch >= first:
        return Support(door=True, tcp=True, reason=f"Linux {release} carries the fix of CVE-2024-26740")
    return Support(
        door=True,
        tcp=False,
        reason=f"Linux {release} is older than 6.8 and not known to carry the fix of CVE-2024-26740: TCP stays out of the door",
    )
