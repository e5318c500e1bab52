# SPDX-License-Identifier: Apache-2.0
"""The table that watches one flow: which rules it has, and that none is for anybody else."""

from __future__ import annotations

import re
import sys
from ipaddress import ip_address

import pytest

from wicketgate.kernel.live_table import Watched, removal_script, table_script
from wicketgate.kernel.nft import TABLE_PREFIX
from wicketgate.kernel.nft import table_name as interface_table
from wicketgate.kernel.tc import Redirect
from wicketgate.kernel.twin.nft_trace import LIVE_TABLE
from wicketgate.netpath.packet import ICMP, TCP, UDP, Ends

FOUR = Ends(ip_address("203.0.113.9"), ip_address("10.0.0.2"), TCP, 40000, 9000)
SIX = Ends(ip_address("2001:db8:203::9"), ip_address("2001:db8::2"), UDP, 40000, 51820)
PING = Ends(ip_address("203.0.113.9"), ip_address("10.0.0.2"), ICMP)


def rules(script: str) -> list[str]:
    return [line for line in script.splitlines() if "nftrace" in line or line.endswith(" drop")]


@pytest.mark.parametrize("ends", [FOUR, SIX, PING])
@pytest.mark.parametrize("kept_in", [True, False])
def test_every_rule_names_both_ends(ends, kept_in):
    """A stranger's packet: each rule names the stranger, and a drop is there only where the packet is to be kept in."""
    found = rules(table_script(Watched(ends, "eth0", kept_in=kept_in)))
    assert found
    assert any(line.endswith(" drop") for line in found) == kept_in
    for line in found:
        assert str(ends.source) in line or f"{int(ends.source):#x}" in line
        assert ends.protocol == ICMP or "40000" in line


def test_drops_name_the_whole_flow():
    """Both addresses and both ports, or the headers that an error quotes: nobody else's packet is kept in."""
    for line in rules(table_script(Watched(FOUR, "eth0", kept_in=True))):
        if line.endswith(" drop") and "@th" not in line:
            assert {"203.0.113.9", "10.0.0.2", "40000", "9000"} <= set(re.findall(r"[\w.]+", line)), line


def test_waiting_for_anybody():
    """An unspecified source and port 0 name neither."""
    ends = Ends(ip_address("0.0.0.0"), FOUR.destination, TCP, 0, 9000)
    request = Watched(ends, "eth0").request()
    assert "saddr" not in request
    assert "sport" not in request
    assert 'iifname "eth0"' in request
    assert "tcp dport 9000" in request


def test_its_name_is_no_interfaces():
    """`wicket up` makes a table for each interface; none of them can have this name, and both are told to be ours."""
    assert LIVE_TABLE.startswith(TABLE_PREFIX[:-1])
    assert not LIVE_TABLE.startswith(TABLE_PREFIX)
    assert interface_table("live") != LIVE_TABLE
    assert removal_script().endswith(f"delete table inet {LIVE_TABLE}\n")


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (FOUR, "match ip protocol 6 0xff match ip sport 40000 0xffff match ip dport 9000 0xffff"),
        (SIX, "match ip6 protocol 17 0xff match ip6 sport 40000 0xffff match ip6 dport 51820 0xffff"),
    ],
)
def test_the_redirect_names_ports(ends, words):
    """In tc's words, and in the keys: protocol and ports stand where a packet without options has them."""
    made = Redirect(
        ends.destination, ends.source, 1, b"c" * 16, ends.protocol, (ends.source_port, ends.destination_port)
    )
    assert words in made.spell("eth0")
    ports = ends.source_port.to_bytes(2) + ends.destination_port.to_bytes(2)
    at = 20 if ends.source.version == 4 else 40
    assert b"\xff" * 4 + ports + at.to_bytes(4, sys.byteorder) in made.message(2)
    plain = Redirect(ends.destination, ends.source, 1, b"c" * 16)
    assert words not in plain.spell("eth0")
