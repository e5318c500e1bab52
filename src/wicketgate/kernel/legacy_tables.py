# SPDX-License-Identifier: Apache-2.0
"""Whether a legacy iptables table changed, found without running a program.

Legacy iptables sends no events. The kernel's own copy of a table is read (IPT_SO_GET_ENTRIES, what iptables-save does)
and hashed without its packet counters: some microseconds for a table of a few rules. It takes CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass
from hashlib import blake2s

from wicketgate.errors import StateError

PROC_NET = "/proc/thread-self/net"
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_*, and IP6T_SO_* alike (linux/netfilter_ipv4/ip_tables.h)
# struct ipt_getinfo { char name[32]; u32 valid_hooks, hook_entry[5], underflow[5], num_entries, size; }
_INFO_SIZE = 84
# struct ipt_get_entries { char name[32]; u32 size; struct ipt_entry entrytable[]; }, entries aligned to 8
_ENTRIES_HEAD = 40


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where an entry's fields are (struct ipt_entry, struct ip6t_entry)."""

    names: str  # file of the tables that exist
    family: int
    level: int
    next_offset: int  # u16
    comefrom: int  # u32, scratch of the kernel's
    counters: int  # two u64


_LAYOUTS = (
    _Layout("ip_tables_names", socket.AF_INET, 0, 90, 92, 96),
    _Layout("ip6_tables_names", socket.AF_INET6, 41, 142, 144, 152),
)


def fingerprints(proc_net: str = PROC_NET) -> dict[str, str]:
    """A hash of each legacy table that exists, by `ip_tables_names filter`, equal as long as its rules are the same.

    Tables that do not exist are not asked for: that would make them.

    Raises:
        StateError: no right to read them.
    """
    found = {}
    for layout in _LAYOUTS:
        try:
            with open(f"{proc_net}/{layout.names}", encoding="ascii", errors="replace") as file:
                names = file.read().split()
        except FileNotFoundError:
            continue  # the module is not loaded: there are none
        except OSError as error:
            raise StateError(f"{error.filename}: {error.strerror}") from error
        if names:
            with socket.socket(layout.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                for name in names:
                    found[f"{layout.names} {name}"] = _fingerprint(sock, layout, name.encode())
    return found


def _fingerprint(sock: socket.socket, layout: _Layout, name: bytes) -> str:
    for _ in range(10):  # EAGAIN: the table was replaced between the two questions
        info = _ask(sock, layout.level, _GET_INFO, name.ljust(_INFO_SIZE, b"\0"))
        (size,) = struct.unpack_from("=I", info, _INFO_SIZE - 4)
        question = name.ljust(32, b"\0") + struct.pack("=I4x", size) + bytes(size)
        try:
            answer = _ask(sock, layout.level, _GET_ENTRIES, question)
        except BlockingIOError:
            continue
        except OSError as error:
            raise StateError(f"legacy table {name.decode()}: {error.strerror}") from error
        return _hash(info, bytearray(answer[_ENTRIES_HEAD:]), layout)
    raise StateError(f"legacy table {name.decode()}: it changed during each of 10 readings")


def _hash(info: bytes, entries: bytearray, layout: _Layout) -> str:
    at = 0
    while at + layout.counters + 16 <= len(entries):
        (step,) = struct.unpack_from("=H", entries, at + layout.next_offset)
        entries[at + layout.comefrom : at + layout.comefrom + 4] = bytes(4)
        entries[at + layout.counters : at + layout.counters + 16] = bytes(16)
        if not step:
            break
        at += step
    return blake2s(info + bytes(entries), digest_size=16).hexdigest()


def _ask(sock: socket.socket, level: int, option: int, question: bytes) -> bytes:
    # The standard library's getsockopt() hands nothing in.
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint(len(question))
    if libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        if option == _GET_INFO:
            raise StateError(f"legacy tables cannot be read: {os.strerror(number)}")
        raise OSError(number, os.strerror(number))
    return buffer.raw
