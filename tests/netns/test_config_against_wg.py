# SPDX-License-Identifier: Apache-2.0
"""Our reading of wg-quick files against wg and wg-quick themselves, on a wireguard-go device in a host of its own."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings

from unit.config.wgquick_strategies import files
from wicketgate.config.problems import ConfigErrors
from wicketgate.config.wgquick import parse
from wicketgate.wireguard.keys import PrivateKey

DEVICE = "wgc0"
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OTHER = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
PSK = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="


@pytest.fixture
def device(new_host):
    """A host with a WireGuard device that `wg` can configure."""
    host = new_host("config")
    process = host.popen("wireguard-go", "-f", DEVICE)
    deadline = time.monotonic() + 10
    while host.run("wg", "show", DEVICE, check=False).returncode and time.monotonic() < deadline:
        assert process.poll() is None
    return host


def setconf(host, text):
    """What the device is after `wg setconf`, or None when wg refuses. Endpoints are numbers, so no name is asked for."""
    done = host.run("wg", "setconf", DEVICE, "/dev/stdin", check=False, stdin=text)
    if done.returncode:
        return None
    return parse(host.run("wg", "showconf", DEVICE).stdout, path="showconf")


def peers(config):
    """What a device knows of its peers."""
    # A device has no order of prefixes, and shows an interval of 0 and a preshared key of zeros as none.
    return {
        p.public_key: (
            p.preshared_key if p.preshared_key and any(p.preshared_key.expose()) else None,
            frozenset(p.allowed_ips),
            p.endpoint,
            p.persistent_keepalive or 0,
        )
        for p in config.peers
    }


def clamped(key):
    """As the device keeps it (curve25519: three bits off the bottom, one off and one on at the top)."""
    raw = bytearray(key.expose())
    raw[0] &= 248
    raw[31] = (raw[31] & 127) | 64
    return PrivateKey(bytes(raw))


def test_files_mean_to_us_what_they_mean_to_wg(device):
    """For any valid file `wg setconf` makes the device that we read from it."""

    @given(files(only_wg=True))
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def check(text):
        ours = parse(text, path="x")
        theirs = setconf(device, text)
        assert theirs is not None
        assert peers(ours) == peers(theirs)
        assert (ours.interface.fwmark or 0) == (theirs.interface.fwmark or 0)
        if ours.interface.listen_port:
            assert ours.interface.listen_port == theirs.interface.listen_port
        if ours.interface.private_key:
            assert clamped(ours.interface.private_key) == theirs.interface.private_key

    check()


# One thing wrong, or odd, in an otherwise good file.
ODD = [
    "ListenPort = 51820", "Listen Port = 5 1", "ListenPort = x1", "ListenPort =", "ListenPort = -1",
    "FwMark = off", "FwMark = OFF", "FwMark = 0", "FwMark = 0x0", "FwMark = 0xFFFFFFFF", "FwMark = 0X1", "FwMark = 0x",
    "FwMark = 4294967295", "FwMark = 4294967296", "FwMark = 010", "FwMark = 1_0", "FwMark = +1", "FwMark =",
    "PrivateKey = x", f"PrivateKey = {PSK[:-1]}", f"PrivateKey = {PSK}=", f"PrivateKey = {PSK[:20]} {PSK[20:]}",
    f"PrivateKey = {PSK[:-2]}l=", "PrivateKey =", "Foo = 1", "Foo", "=", "[Peers]", "[Peer", "[ Interface ]", "# x", " \t ",
    f"[Peer]\nPublicKey = {OTHER}", "[Peer]", "[peer] # x\npublickey=" + OTHER, "[Peer]\nAllowedIPs = 10.0.0.1",
    "[Peer]\nPublicKey = x", f"[Peer]\nPublicKey = {OTHER}\n[Interface]\nFwMark = 3",
    *(
        f"[Peer]\nPublicKey = {OTHER}\n{line}"
        for line in [
            "AllowedIPs =", "AllowedIPs = ,", "AllowedIPs = 10.0.0.1,", "AllowedIPs = 10.0.0.1/0", "AllowedIPs = 10.0.0.1/33",
            "AllowedIPs = 10.0.0.1/032", "AllowedIPs = 010.0.0.1", "AllowedIPs = 10.1", "AllowedIPs = 1.2.3.4/24,fd00::1/64",
            "AllowedIPs = ::/0, 0.0.0.0/0", "AllowedIPs = ::1/129", "AllowedIPs = ::ffff:1.2.3.4", "AllowedIPs = fe80::1%lo",
            "AllowedIPs = 10.0.0.0/255.0.0.0", "AllowedIPs = (none)", "AllowedIPs = 10.0.0.1/32 10.0.0.2/32",
            "AllowedIPs = 1.1.1.1\nAllowedIPs = 1.1.1.2", "AllowedIPs = 1.1.1.1\nAllowedIPs =", "Allowed IPs = 1.1.1.1 / 32",
            "AllowedIPs = 1:2:3:4:5:6:7::", "AllowedIPs = 1::2::3", "AllowedIPs = 10.0.0.1/",
            "Endpoint = 10.0.0.1:5", "Endpoint = 10.0.0.1", "Endpoint = 10.0.0.1:", "Endpoint = [::1]:5", "Endpoint = [::1]5",
            "Endpoint = [::1]", "Endpoint = [::1", "Endpoint = ::1:5", "Endpoint =", "Endpoint = [10.0.0.1]:5",
            "PersistentKeepalive = off", "PersistentKeepalive = 0", "PersistentKeepalive = 65535", "PersistentKeepalive = 65536",
            "PersistentKeepalive = -1", "PersistentKeepalive = 1s", "PersistentKeepalive =", "PersistentKeepalive = Off",
            "PresharedKey = x", f"PresharedKey = {PSK}", "PresharedKey =", "Address = 10.0.0.1", f"PublicKey = {OTHER}\rFoo",
        ]
    ),
]  # fmt: skip


HEAD = f"[Interface]\nPrivateKey = {PrivateKey(bytes([64]) * 32).expose_base64()}\n"


def ours_or_none(text):
    try:
        return parse(text, path="x")
    except ConfigErrors:
        return None


def same_verdict(device, text):
    """Whether both take it, after checking that both say the same and see the same peers."""
    ours, theirs = ours_or_none(text), setconf(device, text)
    assert (ours is None) == (theirs is None), text
    if ours and theirs:
        assert peers(ours) == peers(theirs), text
    return ours is not None


def test_we_take_what_wg_takes_and_refuse_what_it_refuses(device):
    """Odd values one by one: the same verdict, and the same device when it is yes."""
    taken = sum(same_verdict(device, f"{HEAD}{odd}\n") for odd in ODD)
    assert 20 < taken < len(ODD) - 20


def test_heaps_of_odd_values(device):
    """Several at once, one in three times a bad one among them: sections that meet, values given again."""
    good = [odd for odd in ODD if ours_or_none(f"{HEAD}{odd}\n")]
    dice = random.Random(7)
    taken = 0
    for _ in range(80):
        heap = dice.sample(good, dice.randrange(2, 5)) + dice.sample(ODD, dice.random() < 1 / 3)
        heap.sort(key=lambda odd: "[Peer]" in odd)  # else what belongs to [Interface] comes behind a peer
        taken += same_verdict(device, HEAD + "\n".join(heap) + "\n")
    assert 20 < taken < 75


def test_what_wg_takes_and_we_do_not(device):
    """We are stricter on purpose, and only there: no service names, no port that is cut, no file without [Interface]."""
    peer = f"[Peer]\nPublicKey = {OTHER}\n"
    for text in (
        f"{HEAD}ListenPort = domain\n",
        f"{HEAD}ListenPort = 70000\n",
        f"{HEAD}{peer}Endpoint = 10.0.0.1:domain\n",
        f"{HEAD}{peer}Endpoint = 10.0.0.1:0\n",
        f"{HEAD}{peer}Endpoint = 10.1:5\n",
        peer,
        "",
    ):
        assert ours_or_none(text) is None, text
        assert device.run("wg", "setconf", DEVICE, "/dev/stdin", check=False, stdin=text).returncode == 0, text


def test_two_sections_of_a_peer_and_a_prefix_of_two_peers(device):
    """The device keeps the last section's allowed-ips and every other value that was ever given, and so do we."""
    text = (
        f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\nPresharedKey={PSK}\nAllowedIPs=10.0.0.1,10.0.0.9\nEndpoint=10.0.0.3:5\n"
        f"[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.0.0.2\nPersistentKeepalive=9\n"
        f"[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.2\n[Peer]\nPublicKey={OTHER}\n"
    )
    ours, theirs = parse(text, path="x"), setconf(device, text)
    assert peers(ours) == peers(theirs)
    assert [len(p.allowed_ips) for p in ours.peers] == [1, 0]


def test_stripped_files_have_the_same_peers(device, tmp_path):
    """`wg-quick strip` of a file, read by us, has the peers, port, mark and key of the file."""
    path = tmp_path / "wgc0.conf"

    @given(files())
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def check(text):
        path.write_bytes(text.encode())
        ours = parse(path.read_bytes(), path=path)
        done = device.run("wg-quick", "strip", str(path))
        stripped = parse(done.stdout, path="stripped")
        # wg-quick drops no comment, but a comment's place may change with the lines around it: names are not compared.
        assert peers(stripped) == peers(ours)
        for name in ("listen_port", "fwmark", "private_key"):
            assert getattr(stripped.interface, name) == getattr(ours.interface, name)
        assert not stripped.interface.addresses
        assert not re.search(r"(?im)^\s*(address|mtu|dns|table|postup)\s*=", done.stdout)

    check()
