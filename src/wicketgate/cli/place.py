# SPDX-License-Identifier: Apache-2.0
"""Where a command looks: this network namespace, another one, or a file that was made elsewhere."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from dataclasses import replace

from wicketgate.errors import InputError
from wicketgate.kernel.namespace import enter, uapi_dir_of
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.kernel.surroundings import surroundings_of
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.netpath.codec import from_json
from wicketgate.netpath.snapshot import Snapshot


def collect_seldom() -> None:
    """Let the collector of cycles run seldom, for a command that looks once and ends.

    It makes much that stays (a listing of 20,000 rules is a million objects) and little garbage; at Python's own
    thresholds half of its time would go into looking through the former (bench/doctor_large.py).
    """
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


def look(netns: str | None, bundle: str | None) -> Snapshot:
    """The state that a command is about.

    Args:
        netns: a name of `ip netns`, a path or `pid:N`; None is this one.
        bundle: a file to be read instead; `-` is standard input.

    Raises:
        InputError: both were given, or the file is not what it should be.
        StateError: the namespace cannot be entered or read.
    """
    collect_seldom()
    if bundle is not None and netns is not None:
        raise InputError("--bundle and --netns: read both; allowed: one of them")
    if bundle is not None:
        return read_bundle(bundle)
    around = surroundings_of(netns)  # before this process is elsewhere
    return replace(look_here(enter_place(netns)), surroundings=around)


def enter_place(netns: str | None) -> str:
    """Enter the namespace, for good; where the sockets of its userspace WireGuard are."""
    if netns is None:
        return UAPI_DIR
    uapi_dir = uapi_dir_of(netns) or UAPI_DIR
    enter(netns)  # the main thread, for good: this process looks and ends
    return uapi_dir


def look_here(uapi_dir: str = UAPI_DIR) -> Snapshot:
    """The state of the namespace that this process is in."""
    return asyncio.run(take_snapshot(uapi_dir=uapi_dir))


def read_bundle(path: str) -> Snapshot:
    """A snapshot from a file: what `wicket snapshot` wrote, or outputs of ip, nft, iptables, wg and ss that were pasted.

    Of a paste, what was recognized in it is said on stderr.

    Raises:
        InputError: it cannot be read, or is neither.
    """
    try:
        if path == "-":
            return _bundled(sys.stdin.read())
        with open(path, encoding="utf-8") as file:
            return _bundled(file.read())
    except InputError as error:
        raise InputError(f"--bundle {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--bundle {path}: no UTF-8 text at octet {error.start}; expected what `wicket snapshot` prints"
        ) from error
    except OSError as error:
        raise InputError(
            f"--bundle {path}: {error.strerror}; expected a file that `wicket snapshot` wrote, or pasted outputs"
        ) from error


def _bundled(text: str) -> Snapshot:
    start = text.lstrip("\ufeff \t\r\n")[:40]
    if start.startswith(("{", "[")) and not start.replace(" ", "").startswith('{"nftables"'):
        return from_json(text)
    from wicketgate.netpath.paste.bundle import read_paste  # noqa: PLC0415 - a command that is given none does without

    pasted = read_paste(text, now=time.time())
    if pasted is None:
        raise InputError(
            "neither a snapshot nor anything that ip, nft, iptables-save, wg, ss or sysctl print was found in it; expected "
            "what `wicket snapshot` wrote, or the outputs of `ip addr; ip rule; ip route show table all; iptables-save; "
            "nft list ruleset; wg show; ss -lntu` in any order"
        )
    print(f"read from the paste: {', '.join(pasted.found)}", file=sys.stderr)
    return pasted.snapshot
