# SPDX-License-Identifier: Apache-2.0
"""Who committed an nftables transaction, from the kernel's message."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from wicketgate.kernel.nft_commits import Commit, commits_in

# As Linux 6.18 sent it for `nft add table inet mine`: NFT_MSG_NEWTABLE, and in a datagram of its own NFT_MSG_NEWGEN.
TABLE = bytes.fromhex("01000002090001006d696e650000000008000300000000000c00040000000000000000010800020000000000")
NEWGEN = bytes.fromhex("00000002080001000000000208000200000064a1080003006e667400")


def message(kind: int, body: bytes) -> bytes:
    """With its header."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 25761) + body


def test_the_process_is_read_from_the_end_of_a_transaction():
    """Other messages are passed over."""
    data = message(10 << 8, TABLE) + message(10 << 8 | 15, NEWGEN)
    assert commits_in(data) == [Commit(25761, "nft")]
    assert commits_in(data)[0].spelled() == "nft[25761]"
    assert commits_in(message(10 << 8, TABLE)) == []


def test_an_old_kernel_that_names_nobody_is_understood():
    """Before Linux 4.18 only the generation's number is sent."""
    assert commits_in(message(10 << 8 | 15, NEWGEN[:12])) == [Commit()]
    assert Commit().spelled() == ""


@given(st.binary(max_size=80), st.integers(0, 90))
def test_whatever_comes_is_survived(noise, cut):
    """Truncated and made-up messages give commits or nothing, and no exception."""
    whole = message(10 << 8 | 15, NEWGEN)
    for data in (noise, whole[:cut], whole + noise, message(10 << 8 | 15, noise)):
        assert all(isinstance(each, Commit) for each in commits_in(data))
