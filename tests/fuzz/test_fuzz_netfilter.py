# SPDX-License-Identifier: Apache-2.0
"""Firewall listings, damaged in many ways for a bounded time: a verdict or InputError, and nothing else."""

from __future__ import annotations

import json
import random
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fuzz.budget import new_seed, seconds
from wicketgate.errors import InputError
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import SYN, TCP, Connection, Packet
from wicketgate.netpath.snapshot import Firewall, Snapshot

SECONDS = seconds(15.0)
CORPUS = Path(__file__).parents[1] / "corpus"
WORDS = (
    "-j", "-A", "-m", "!", "--dport", "99999999999999999999", "DROP", "0x", "10.0.0.0/99", "::1/129", "RETURN", "\x00", "é", '"',
    "\\", "COMMIT", "*nat", ":X - [0:0]", "-g", "--ctstate", "DNAT", "--to-destination", "[::1]:", ":-1", "fe80::%eth0", "-",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 2**80, "", "@", "@x", "*", "10.0.0.0", "new", [], {}, [[]], {"set": []}, {"set": [[1, 2]]}, {"range": [1]},
    {"prefix": {"addr": "x", "len": 5}}, {"prefix": {"addr": "10.0.0.0", "len": 99}}, {"&": [1]}, {"concat": []},
    {"map": {"key": {"meta": {"key": "mark"}}, "data": {"set": []}}}, {"meta": {"key": "x"}}, {"jump": {"target": "c"}},
    {"<<": [{"meta": {"key": "mark"}}, 10**9]}, {"numgen": {"mode": "random", "mod": 10**9}}, {"range": ["a", 5]},
)  # fmt: skip
FIELDS: tuple[Any, ...] = (
    {"meta": {"key": "mark"}}, {"meta": {"key": "iifname"}}, {"payload": {"protocol": "ip", "field": "saddr"}}, {"ct": {"key": "state"}},
    {"payload": {"protocol": "tcp", "field": "dport"}}, {"fib": {"result": "type", "flags": ["daddr"]}}, {"ct": {"key": "status"}},
    {"payload": {"base": "nh", "offset": 96, "len": 32}}, {"concat": [{"meta": {"key": "iifname"}}, {"ct": {"key": "mark"}}]},
)  # fmt: skip

SETS = (
    "create list list:set size 4\nadd list list\nadd list ports\ncreate ports bitmap:port range 1-90\nadd ports 80\n"
    "create pair hash:net,port,net family inet\nadd pair 192.0.2.0/24,tcp:80,10.0.0.2\ncreate odd hash:ip,mark markmask 0xff\n"
    "add odd 192.0.2.9,0x5\ncreate dev hash:net,iface\nadd dev 192.0.2.0/24,eth wildcard\ncreate mac bitmap:ip,mac range 10.0.0.0/24\n"
)  # fmt: skip
ASKS = (
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
    + "".join(
        f"-A INPUT -m set --match-set {name} src,dst,dst -j DROP\n"
        for name in ("list", "ports", "pair", "odd", "dev", "mac")
    )
    + "COMMIT\n"
)


def ruleset(firewall: Firewall) -> None:
    rules = Ruleset(Snapshot(0, firewall=firewall))
    list(rules.unknowns())
    for source, destination in (("192.0.2.9", "10.0.0.2"), ("2001:db8::9", "fd00::2")):
        packet = Packet(ip_address(source), ip_address(destination), TCP, 40000, 80, tcp_flags=SYN, iif="eth0")
        for hook in ("prerouting", "input", "output", "postrouting"):
            rules.hook(hook, packet, Connection.opened_by(packet))


def damaged_text(chance: random.Random, text: str) -> str:
    for _ in range(chance.randint(1, 8)):
        words = text.split(" ")
        at = chance.randrange(len(words))
        match chance.randrange(4):
            case 0:
                words[at] = chance.choice(WORDS)
            case 1:
                del words[at]
            case 2:
                words.insert(at, chance.choice(WORDS))
            case _:
                cut = chance.randrange(len(text) + 1)
                text = text[:cut] + text[min(len(text), cut + chance.choice((0, 1, 5))) :]
                continue
        text = " ".join(words)
    return text if chance.randrange(10) else text[: chance.randrange(len(text) + 1)]


def random_json(chance: random.Random) -> str:
    def value(depth: int = 0) -> Any:
        if depth > 3 or chance.randrange(3):
            return chance.choice(VALUES + FIELDS)
        return {
            chance.choice(("set", "&", "|", "concat", "<<", "range")): [
                value(depth + 1) for _ in range(chance.randrange(4))
            ]
        }

    def expression() -> Any:
        left, right = (chance.choice(FIELDS) if chance.randrange(4) else value()), value()
        return chance.choice((
            {"match": {"op": chance.choice(("==", "!=", "<", "in", "!")), "left": left, "right": right}},
            {"mangle": {"key": left, "value": right}}, {"vmap": {"key": left, "data": right}}, {"dnat": {"addr": right, "port": value()}},
            {"snat": {"family": "ip", "addr": right}}, {"redirect": {"port": right}}, {"reject": right}, {"jump": {"target": "d"}},
            {"goto": {"target": chance.choice("cdz")}}, {"drop": None}, {"accept": None}, {"set": {"op": "add", "elem": left, "set": "@x"}},
            right,
        ))  # fmt: skip

    place = {"family": chance.choice(("ip", "ip6", "inet")), "table": "x"}
    items: list[Any] = [{"table": {"family": place["family"], "name": "x", "handle": 1}}]
    for name in "cd":
        base = {"type": chance.choice(("filter", "nat", "route")), "hook": chance.choice(("input", "prerouting", "output")), "prio": chance.choice((-300, -100, 0)), "policy": "accept"}  # fmt: skip
        items.append({"chain": place | {"name": name, "handle": 1} | (base if name == "c" else {})})
    items.append({"set": place | {"name": "x", "type": "mark", "elem": [value() for _ in range(3)]}})
    for _ in range(5):
        items.append(
            {
                "rule": place
                | {
                    "chain": chance.choice("cd"),
                    "handle": 5,
                    "expr": [expression() for _ in range(chance.randrange(4))],
                }
            }
        )
    text = json.dumps({"nftables": items})
    return text if chance.randrange(10) else text[: chance.randrange(len(text) + 1)]


def test_damaged_listings_are_judged_or_refused() -> None:
    """Whatever happens to a listing: it ends, with a verdict or with the error for users."""
    seed = new_seed()
    chance = random.Random(seed)
    texts = [path.read_text() for path in sorted(CORPUS.glob("*.ip*tables"))]
    sets = "".join(path.read_text() for path in sorted(CORPUS.glob("*.ipset"))) + SETS
    judged = refused = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        text = damaged_text(chance, chance.choice(texts))
        rules = random_json(chance)
        ipset = damaged_text(chance, sets)
        for firewall in (
            Firewall(
                nft_json="",
                nft_text="",
                iptables_nft=text,
                ip6tables_nft=text,
                iptables_legacy=ASKS,
                ip6tables_legacy="",
                ipset=ipset,
            ),
            Firewall(
                nft_json=rules, nft_text="", iptables_nft="", ip6tables_nft="", iptables_legacy="", ip6tables_legacy=""
            ),
        ):
            try:
                ruleset(firewall)
                judged += 1
            except InputError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}: {text + ipset if firewall.iptables_nft else rules}") from error
    assert judged > 50, (judged, refused)
