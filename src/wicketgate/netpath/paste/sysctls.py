# SPDX-License-Identifier: Apache-2.0
"""The lines of `sysctl`, and of `grep . /proc/sys/net/ipv4/conf/*/rp_filter`."""

from __future__ import annotations

import re

_DOTTED = re.compile(r"^(net\.[\w./@-]+) ?= ?([-\w][-\w \t]*)$")
_PATH = re.compile(r"^(?:/proc/sys/)?(net/[\w./@-]+)(?::| ?= ?)([-\w][-\w \t]*)$")


def setting_of(line: str) -> tuple[str, str] | None:
    """Name, as sysctl(8) prints it, and value; None where the line is none."""
    dotted = _DOTTED.match(line)
    if dotted:
        return dotted[1], dotted[2].strip()
    path = _PATH.match(line)
    if path is None:
        return None
    # sysctl(8): dots within a part of the path become slashes
    return ".".join(part.replace(".", "/") for part in path[1].split("/")), path[2].strip()
