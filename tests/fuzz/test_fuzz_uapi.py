# SPDX-License-Identifier: Apache-2.0
"""UAPI replies, damaged in many ways for a bounded time: a device, or MalformedReplyError; never a secret in the text."""

from __future__ import annotations

import random
import time

from fuzz.budget import new_seed, seconds
from wicketgate.kernel.uapi import MalformedReplyError, parse_device

SECONDS = seconds(20.0)
SECRET = bytes([0x5A] * 32).hex()
SEED_REPLY = (
    f"private_key={SECRET}\nlisten_port=51820\nfwmark=51820\n"
    + "".join(
        f"public_key={bytes([n] * 32).hex()}\npreshared_key={SECRET}\nprotocol_version=1\nendpoint=[fd00::{n}]:{n}\n"
        f"last_handshake_time_sec=1\nlast_handshake_time_nsec=2\ntx_bytes=3\nrx_bytes=4\n"
        f"persistent_keepalive_interval=5\nallowed_ip=10.{n}.0.0/16\nallowed_ip=fd00:{n}::/32\n"
        for n in range(1, 4)
    )
    + "errno=0\n\n"
).encode()
PIECES = (
    b"\n", b"=", b"\n\n", b"errno=0\n\n", b"errno=-22", b"public_key=", b"allowed_ip=", b"endpoint=[", b"%", b"/", b":", b"-1",
    b"99999999999999999999999", b"\x00", b"\xff", "\uff11".encode(), b"private_key=", b"fe80::1%eth0", b"0x10", b" ", b"\r\n",
)  # fmt: skip


def damage(chance: random.Random, reply: bytes) -> bytes:
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(reply) + 1)
        to = min(len(reply), at + chance.choice((0, 1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                reply = reply[:at] + chance.choice(PIECES) + reply[to:]
            case 1:
                reply = reply[:at] + reply[to:]
            case 2:
                reply = reply[:at] + reply[at:to] * chance.randint(2, 5) + reply[to:]
            case 3:
                reply = reply[:at] + bytes([chance.randrange(256)]) + reply[at + 1 :]
            case _:
                lines = reply.split(b"\n")
                chance.shuffle(lines)
                reply = b"\n".join(lines)
    return reply


def test_damaged_replies_are_read_or_refused() -> None:
    """Whatever happens to a reply: the parser ends, with a device or its own error, and repeats no secret."""
    seed = new_seed()
    chance = random.Random(seed)
    end = time.monotonic() + SECONDS
    read = refused = 0
    while time.monotonic() < end:
        reply = damage(chance, SEED_REPLY)
        try:
            device = parse_device("wg0", reply)
        except MalformedReplyError as error:
            refused += 1
            assert SECRET[:8] not in str(error), f"seed {seed}: {error}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__} for {reply!r}") from error
        else:
            read += 1
            assert SECRET[:8] not in repr(device), f"seed {seed}"
    # Both ways are exercised, or the damage is no test.
    assert read > 0
    assert refused > 0
