# SPDX-License-Identifier: Apache-2.0
"""The parser of wg-quick files against anything at all: it answers with a file or with ConfigErrors, and soon.

The seed is printed on failure; WICKET_FUZZ_SEED repeats a run, WICKET_FUZZ_SECONDS makes a longer one.
"""

from __future__ import annotations

import random
import time

import pytest

from fuzz.budget import new_seed, seconds
from wicketgate.config import edit
from wicketgate.config.problems import ConfigErrors
from wicketgate.config.wgquick import MAX_FILE_BYTES, MAX_LINE_BYTES, generate, parse, render

SECONDS = seconds(15)
SEED = new_seed()
SLOWEST = 2.0  # seconds of processor time for an input of a few kilobytes; a hundred times what it needs
PRIVATE = b"yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PSK = b"/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="

CORPUS = [
    b"[Interface]\nPrivateKey = " + PRIVATE + b"\nAddress = 10.8.0.1/24, fd00::1/64\nListenPort = 51820\nMTU = 1420\n"
    b"DNS = 1.1.1.1, corp.example\nTable = off\nFwMark = 0xca6c\nPostUp = iptables -A FORWARD -i %i -j ACCEPT # x\n"
    b"SaveConfig = true\n\n### Client alice\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n"
    b"PresharedKey = " + PSK + b"\nAllowedIPs = 10.8.0.2/32, 10.192.124.1/24\nEndpoint = [2607:5300::c05f:543]:2468\n"
    b"PersistentKeepalive = 25\n[Peer] # bob\nPublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\nAllowedIPs = ::/0\n",
    b"\xef\xbb\xbf[interface]\r\nlistenport=1\r\n[PEER]\r\npublickey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    b"",
]
WORDS = [
    *b"= # [ ] [Peer] [Interface] , / : % . - + off auto 0x \n \r \0 \t \x0b \x1c \xff \xc3 \xe2\x80\xa8 \xef\xbb\xbf".split(b" "),
    *b"Address MTU DNS Table FwMark PostUp AllowedIPs Endpoint PublicKey PrivateKey 99999999999999999999 0.0.0.0/0".split(),
    *["\u0663".encode(), "Public\u212aey=".encode(), "[\u0130nterface]".encode(), b"a" * 300, b"1" * 5000, b"," * 500, b":" * 500, PRIVATE, PSK],
]  # fmt: skip


def mutate(dice: random.Random) -> bytes:
    data = bytearray(dice.choice(CORPUS))
    for _ in range(dice.randrange(1, 12)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0:
                data[at:at] = dice.choice(WORDS)
            case 1:
                del data[at : at + dice.randrange(1, 40)]
            case 2:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 3:
                start = dice.randrange(len(data) + 1)
                data[at:at] = data[start : start + dice.randrange(200)]
            case 4:
                lines = data.split(b"\n")
                dice.shuffle(lines)
                data = bytearray(b"\n".join(lines))
            case 5:
                data[at:at] = dice.randbytes(dice.randrange(60))
    return bytes(data)


def one(data: bytes) -> bool:
    """Whether it is a file; every promise about either outcome is checked."""
    before = time.process_time()
    try:
        config = parse(data, path="fuzz.conf")
    except ConfigErrors as error:
        assert error.problems
        shown = f"{error} {error!r} {error.problems!r}"
        good = False
    else:
        assert render(config).encode("utf-8", "surrogateescape") == data
        again = parse(generate(config.interface, config.peers), path="again.conf")
        assert (again.interface, again.peers) == (config.interface, config.peers)
        wanted = config.peers[::2]
        fewer = edit.update(config, listen_port=7, peers=wanted)
        assert {p.public_key for p in fewer.peers} == {p.public_key for p in wanted}
        assert fewer.interface.listen_port == 7
        shown = f"{config!r} {config.lines!r}"
        good = True
    assert time.process_time() - before < SLOWEST
    for secret in (PRIVATE, PSK):
        assert secret.decode()[:-1] not in shown
    return good


@pytest.mark.timeout(SECONDS + 120)
def test_random_and_mutated_files():
    """Only ConfigErrors or success, bounded time for each, no key shown."""
    dice = random.Random(SEED)
    deadline = time.monotonic() + SECONDS
    good = bad = 0
    while time.monotonic() < deadline or not (good and bad):
        data = dice.randbytes(dice.randrange(400)) if dice.random() < 0.1 else mutate(dice)
        try:
            if one(data):
                good += 1
            else:
                bad += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}: {data!r}") from error
    assert good + bad > 100, f"seed {SEED}: {good} good, {bad} bad"


BIG = {
    "lines of nothing": b"\n" * (MAX_FILE_BYTES // 64),
    "bad lines": b"[Interface]\n" + b"xyzzy = 1\n" * 190_000,
    "unknown sections": b"[Interfacf]\n" * 190_000,
    "one long line": b"[Interface]\nAddress = " + b"1," * (MAX_FILE_BYTES // 2 - 100),
    "long values": b"[Interface]\n" + (b"DNS = " + b"a" * (MAX_LINE_BYTES - 100) + b"\n") * 30,
    "long keys": b"[Interface]\n" + (b"a" * (MAX_LINE_BYTES - 100) + b"=\n") * 30,
    "addresses": b"[Interface]\n" + b"Address = 10.0.0.1, 10.0.0.1, 10.0.0.1\n" * 190_000,
    "allowed-ips": b"[Interface]\n[Peer]\n" + b"AllowedIPs = 10.0.0.1, 10.0.0.2\n" * 150_000,
    "repeated sections": b"[Interface]\n" * 190_000,
    "peers without keys": b"[Interface]\n" + b"[Peer]\n" * 190_000,
    "one peer": b"[Interface]\n"
    + b"[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs=10.0.0.1\n" * 60_000,
    "comments": b"[Interface]\n" + b"# x\n" * 190_000 + b"[Peer]",
    "hashes": b"[Interface]\n" + b"#" * (MAX_LINE_BYTES - 1),
    "not UTF-8": b"\xff" * MAX_LINE_BYTES + b"\n\xff" * 100_000,
}


@pytest.mark.parametrize("name", BIG)
def test_hostile_sizes(name):
    """The biggest files that are let in take seconds, not minutes; the bigger ones nothing."""
    before = time.process_time()
    try:
        parse(BIG[name], path="big.conf")
    except ConfigErrors as error:
        assert len(str(error)) < 1_000_000
    assert time.process_time() - before < 60
