# SPDX-License-Identifier: Apache-2.0
"""Snapshots from elsewhere, damaged in many ways for a bounded time: an examination or the error for users, nothing else."""

from __future__ import annotations

import copy
import json
import random
import time
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from fuzz.budget import new_seed, seconds
from wicketgate.doctor.examine import examine
from wicketgate.errors import InputError, StateError
from wicketgate.netpath.codec import from_json, to_json
from wicketgate.netpath.snapshot import (
    Address,
    Firewall,
    Link,
    ListeningSocket,
    NextHop,
    PeerState,
    Route,
    Rule,
    Snapshot,
    WireGuardState,
)

SECONDS = seconds(15.0)
MOST = 30.0  # seconds for one snapshot, on a busy machine: a guess that only what goes round for ever misses
CORPUS = Path(__file__).parents[1] / "corpus"
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**63, 2**80, 10**400, 1.5, -0.0, "", "x", "0.0.0.0/0", "::/0", "10.0.0.1", "10.0.0.1/24", "fe80::1%eth0",
    "é\ud800", "\x00", [], {}, [[]], [None], {"a": 1}, "unicast", "goto", "1e999", "eth0", "wg0", 4, 6, 253, 254, 255, 32766, [[0, 65535]],
)  # fmt: skip
TEXTS = ("NaN", "Infinity", "-Infinity", "1e999", "[" * 3000, '{"a":' * 3000, "9" * 5000, '"', "}", ",", "\x00", "null")


def seed_pod() -> Snapshot:
    """As wg-quick leaves a pod, with rules that go round."""
    hop = (NextHop("wg0"),)
    return Snapshot(
        1.0,
        "6.18",
        links=(Link(1, "lo", loopback=True, up=True), Link(2, "eth0", up=True), Link(3, "wg0", "wireguard", up=True)),
        addresses=(
            Address("eth0", 2, ip_interface("10.0.0.2/24")),
            Address("wg0", 3, ip_interface("10.8.0.1/24")),
            Address("eth0", 2, ip_interface("fd00::2/64")),
        ),
        routes=(
            Route(ip_network("10.0.0.2/32"), 255, "local", (NextHop("eth0"),)),
            Route(ip_network("0.0.0.0/0"), nexthops=(NextHop("eth0", ip_address("10.0.0.1")),)),
            Route(ip_network("0.0.0.0/0"), 51820, nexthops=hop),
            Route(ip_network("::/0"), nexthops=(NextHop("eth0", ip_address("fe80::1")),)),
        ),
        rules=(
            Rule(4, 0, table=255),
            Rule(4, 100, "goto", goto=100),
            Rule(4, 32764, table=254, suppress_prefixlength=0),
            Rule(4, 32765, table=51820, fwmark=51820, fwmask=0xFFFFFFFF, invert=True),
            Rule(4, 32766, table=254),
            Rule(6, 0, table=255),
            Rule(6, 32766, table=254),
        ),
        sockets=(
            ListeningSocket("tcp", 4, ip_address("0.0.0.0"), 9000),
            ListeningSocket("tcp", 6, ip_address("::"), 9000),
        ),
        wireguard=(
            WireGuardState(
                "wg0",
                "kernel",
                "k",
                51820,
                51820,
                (
                    PeerState(
                        "p", (ip_address("10.8.0.9"), 51820), (ip_network("0.0.0.0/0"), ip_network("10.8.0.2/32"))
                    ),
                ),
            ),
        ),
        firewall=Firewall("", "", (CORPUS / "kube-proxy.iptables").read_text(), "", "", ""),
    )


def damaged(chance: random.Random, text: str) -> str:
    """Values replaced, keys gone, pieces doubled; sometimes the text itself is cut or spoiled."""
    document = json.loads(text)
    for _ in range(chance.randint(1, 4)):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and chance.randrange(4):
                place = place[key]
                continue
            match chance.randrange(4):
                case 0:
                    del place[key]
                case 1 if isinstance(place, list):
                    place.insert(key, copy.deepcopy(place[key]))
                case _:
                    place[key] = copy.deepcopy(chance.choice(VALUES))
            break
    text = json.dumps(document)
    match chance.randrange(8):
        case 0:
            return text[: chance.randrange(len(text) + 1)]
        case 1:
            at = chance.randrange(len(text) + 1)
            return text[:at] + chance.choice(TEXTS) + text[at:]
        case _:
            return text


def test_damaged_snapshots_are_examined_or_refused() -> None:
    """Whatever happens to a snapshot: it ends soon, with an examination or with the error for users."""
    seed = new_seed()
    chance = random.Random(seed)
    whole = to_json(seed_pod())
    examine(from_json(whole))
    examined = refused = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        text = damaged(chance, whole)
        started = time.monotonic()
        try:
            examine(from_json(text))
            examined += 1
        except (InputError, StateError) as error:
            assert len(str(error)) < 2000, f"seed {seed}: {str(error)[:300]}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {text[:4000]}") from error
        assert time.monotonic() - started < MOST, f"seed {seed}: {text[:4000]}"
    assert examined > 20, (examined, refused)
    assert refused > 20, (examined, refused)
