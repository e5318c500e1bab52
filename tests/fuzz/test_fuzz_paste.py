# SPDX-License-Identifier: Apache-2.0
"""Pastes damaged in many ways for a bounded time: a snapshot that can be examined, or the error for users, nothing else."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from fuzz.budget import new_seed, seconds
from unit.netpath.test_paste import CHAINS, IPTABLES, LOG, WHOLE
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object, to_text
from wicketgate.errors import InputError, StateError
from wicketgate.netpath.paste.bundle import read_paste
from wicketgate.netpath.paste.nft_text import PasteCutError, nft_json

SECONDS = seconds(12.0)
MOST = 30.0  # seconds for one paste, on a busy machine: a guess that only what goes round for ever misses
CORPUS = Path(__file__).parents[1] / "corpus"
WORDS = (
    "{", "}", "\n", "\t", " ", '"', "#", ";", ",", "(", ")", "0:", "from all", "not", "lookup", "table", "via", "dev eth0", "nexthop", "10.0.0.0/33",
    "::/0", "fe80::%eth0/64", "99999999999999999999", "-1", "0x", "0xzz/0x", "é", "\x00", "\x1b[31m", "\u2028", "*filter", "COMMIT", "-A INPUT",
    "interface: wg0", "peer: x", "[#] ip rule add", "[#] ip link set", "1: lo: <UP>", "inet", "inet 1.2.3.4/99", "LISTEN 0 0 [::1]%lo:80 *:*", "jhash",
    "a | ", "( ", "map {", "vmap @", "type filter hook", "priority", "elements = {", "suppress_prefixlength", "/", "::", "1.2.3.4-", "net.ipv4.x = 1",
    "Chain X (policy DROP)", "Chain Y (1 references)", "target prot opt in out source destination", "all -- * * anywhere", "[goto] ", "to:", "/* ", "Kernel IP routing table\n", "0.0.0.0 1.2.3.4 0.0.0.0 UG 0 0 0 eth0\n", "10.0.0.0 - 255.0.255.0 ! 0 - 0 -\n",
)  # fmt: skip


def damaged(chance: random.Random, text: str) -> str:
    """Cut, doubled, moved, or with words in it that do not belong there."""
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(text) + 1)
        to = min(len(text), at + chance.choice((1, 2, 7, 40, 400)))
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:at] + text[at:to] * chance.choice((2, 3, 50)) + text[to:]
        elif kind == 2:
            text = text[:at] + chance.choice(WORDS) * chance.choice((1, 1, 2, 200)) + text[at:]
        elif kind == 3:
            text = text[:at]
        else:
            other = chance.randrange(len(text) + 1)
            text = text[:other] + text[at:to] + text[other:]
    return text


def test_damaged_pastes_are_examined_or_refused_in_words():
    """Whatever is in it: no crash, no endless work, and a report that can be printed."""
    nft = "\n".join(path.read_text() for path in sorted(CORPUS.glob("*.nft")))
    tables = "\n".join(path.read_text() for path in sorted(CORPUS.glob("*.iptables")))
    whole = (WHOLE, WHOLE + CHAINS, WHOLE + LOG, WHOLE + IPTABLES, nft, tables, WHOLE + nft, LOG + WHOLE[:1500])
    seed = new_seed()
    chance = random.Random(seed)
    end, tried, examined = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        text = damaged(chance, chance.choice(whole))
        began = time.monotonic()
        tried += 1
        read = read_paste(text, now=1.0)
        if read is None:
            continue
        try:
            found = examine(read.snapshot)
        except (InputError, StateError):
            continue
        json.dumps(to_object(found))
        to_text(found)
        examined += 1
        assert time.monotonic() - began < MOST, (seed, text)
    assert tried > 50
    assert examined > 10


def test_damaged_nft_text_is_json_whatever_it_says():
    """What is not understood is a statement in the JSON that says so."""
    nft = "\n".join(path.read_text() for path in sorted(CORPUS.glob("*.nft")))
    chance = random.Random(7)
    for _ in range(400):
        text = damaged(chance, nft)
        try:
            json.loads(nft_json(text))
        except PasteCutError as error:
            assert "chain" in str(error) or "twice" in str(error)


def test_long_words_cost_no_more_than_their_length():
    """Ten times the text takes about ten times as long: measured against each other, with room for a busy machine."""
    lines = {
        "rules": "100:\tfrom 10.0.0.0/8 fwmark 0x1/0xff lookup 100\n",
        "routes": "10.1.2.0/24 via 10.0.0.1 dev eth0 proto static metric 5\n",
        "nft": "\t\tip saddr 10.0.0.1 tcp dport { 80, 443 } accept\n",
        "prose": "I have tried " + "everything " * 30 + "\n",
        "braces": "{ " * 20 + "\n",
    }
    for name, line in lines.items():
        head, tail = ("table ip t {\n\tchain c {\n", "\t}\n}\n") if name == "nft" else ("", "")

        def cost(times: int, line: str = line, head: str = head, tail: str = tail) -> float:
            began = time.process_time()
            read_paste(head + line * times + tail, now=0.0)
            return time.process_time() - began

        cost(50)
        assert cost(4000) < 100 * max(cost(400), 0.002), name
