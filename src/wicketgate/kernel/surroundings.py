# SPDX-License-Identifier: Apache-2.0
"""What a pod was told of its cluster: resolv.conf(5), and where the Kubernetes API is.

kubelet writes the first and sets KUBERNETES_SERVICE_HOST and _PORT in every container. A file system says nothing about a
network namespace that other processes on it do not share, so it is asked only where both belong together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from wicketgate.netpath.snapshot import IPAddress, Surroundings

_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
_MOST = 3  # MAXNS of resolv.h: the C library asks no more
_LONGEST = 65536  # octets of resolv.conf


def surroundings_of(where: str | None) -> Surroundings:
    """What a place was told.

    Args:
        where: as for `namespace_path`; None is this process's own.

    Returns:
        Nothing where it cannot be read or does not belong to that namespace; this is no error.
    """
    pid = "self" if where is None else where.removeprefix("pid:") if where.startswith("pid:") else ""
    if not pid or not _together(pid):
        return Surroundings()
    try:
        with open(f"/proc/{pid}/root/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = file.read(_LONGEST).splitlines()
    except OSError:
        lines = []
    return told(lines, _environment(pid))


def told(lines: Iterable[str], environment: Mapping[str, str]) -> Surroundings:
    """The lines of resolv.conf, and the two variables."""
    resolvers: list[IPAddress] = []
    cluster = False
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            with contextlib.suppress(ValueError):
                resolvers.append(ip_address(words[1].partition("%")[0]))
        elif words[:1] == ["search"]:
            cluster = any(word.startswith("svc.") or ".svc." in word for word in words[1:])
    api: tuple[IPAddress, int] | None = None
    with contextlib.suppress(ValueError):
        port = int(environment.get(_PORT, "443"))
        if 0 < port < 65536:
            api = ip_address(environment.get(_HOST, "")), port
    return Surroundings(tuple(resolvers[:_MOST]), cluster_domain=cluster, api=api)


def _together(pid: str) -> bool:
    """The process's file system is that of its network namespace: the first process of its kind has both."""
    mine = _namespaces(pid)
    first = _namespaces("1") if pid == "self" else _namespaces("self")
    if None in mine.values():
        return False
    if pid == "self":
        # A command started by `ip netns exec` has the host's files, and not its network.
        return first["mnt"] != mine["mnt"] or first["net"] in (mine["net"], None)
    return first["mnt"] != mine["mnt"] or first["net"] == mine["net"]


def _namespaces(pid: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for kind in ("mnt", "net"):
        try:
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
        except OSError:
            found[kind] = None
    return found


def _environment(pid: str) -> dict[str, str]:
    """The two variables, and no other: there may be secrets among them."""
    if pid == "self":
        return {name: os.environ[name] for name in (_HOST, _PORT) if name in os.environ}
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = [
        entry.decode(errors="replace").partition("=") for entry in entries if entry.startswith(b"KUBERNETES_SERVICE_")
    ]
    return {name: value for name, _, value in pairs if name in (_HOST, _PORT)}
