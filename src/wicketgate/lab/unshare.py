# SPDX-License-Identifier: Apache-2.0
"""The lab as an ordinary user: the same command, started again inside a user namespace where it is root.

What is missing there: other user ids (a container "with no right at all" keeps its uid and loses every capability).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wicketgate.errors import StateError

CAP_NET_ADMIN = 12  # linux/capability.h
CAP_SYS_ADMIN = 21
_NEEDED = (1 << CAP_NET_ADMIN) | (1 << CAP_SYS_ADMIN)
_MARK = "WICKET_LAB_USERNS"  # set for the second start, so that a third never happens
_WAYS = (
    "run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian before 11), "
    "user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
)


def has_rights() -> bool:
    """CAP_NET_ADMIN and CAP_SYS_ADMIN are in effect, in whatever user namespace this is."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & _NEEDED == _NEEDED
    return False


def command(arguments: list[str], lab_pid: int | None) -> list[str]:
    """The command line that runs wicket with rights.

    Args:
        arguments: of wicket.
        lab_pid: a process of the lab whose user namespace is to be joined; None makes a new one.
    """
    again = [sys.executable, "-m", "wicketgate", *arguments]
    if lab_pid is not None:
        return ["nsenter", f"--target={lab_pid}", "--user", "--preserve-credentials", "--", *again]
    return ["unshare", "--user", "--map-root-user", "--", *again]


def ensure_rights(lab_pid: int | None = None) -> None:
    """Return with the rights the lab needs; where they are missing, start this command again in a user namespace.

    Args:
        lab_pid: a process of the lab that an earlier command brought up.

    Raises:
        StateError: the system does not allow user namespaces, or they do not give the rights.
    """
    if has_rights():
        return
    if os.environ.get(_MARK):
        raise StateError(
            f"the lab needs CAP_NET_ADMIN and CAP_SYS_ADMIN, and a user namespace did not give them: {_WAYS}"
        )
    if lab_pid is None:
        tried = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode != 0:
            raise StateError(
                f"the lab needs network namespaces, and this user may not make any ({tried.stderr.strip()}): {_WAYS}"
            )
    argv = command(sys.argv[1:], lab_pid)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(argv[0], argv, {**os.environ, _MARK: "1"})
