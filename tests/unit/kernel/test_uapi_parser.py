# SPDX-License-Identifier: Apache-2.0
"""The UAPI text: what wireguard-go says is read whole, what a hostile process says is refused without repeating it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wicketgate.kernel.uapi import (
    MalformedReplyError,
    format_remove_peer,
    format_set,
    parse_device,
    parse_errno,
    split_lines,
)
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

PRIVATE = PrivateKey(bytes([8] * 31 + [64]))
A = bytes(range(32))
B = bytes(range(1, 33))
PSK = bytes([7] * 32)

# In the order and with the keys that wireguard-go 0.0.20220316 sends (device/uapi.go, IpcGetOperation).
REPLY = f"""private_key={PRIVATE.expose().hex()}
listen_port=51820
fwmark=51820
public_key={A.hex()}
preshared_key={PSK.hex()}
protocol_version=1
endpoint=192.0.2.7:40000
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=920
rx_bytes=1480
persistent_keepalive_interval=25
allowed_ip=10.0.0.2/32
allowed_ip=fd00::2/128
public_key={B.hex()}
preshared_key={bytes(32).hex()}
protocol_version=1
endpoint=[fe80::1%eth0]:40001
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

""".encode()


def test_every_field_of_a_device_and_its_peers_is_read() -> None:
    """What wg(8) would show is in the state; secrets are beside it."""
    device = parse_device("wg0", REPLY)
    state = device.state
    assert (state.ifname, state.backend, state.listen_port, state.fwmark) == ("wg0", "userspace", 51820, 51820)
    assert state.public_key == str(PRIVATE.public())
    first, second = state.peers
    assert first.public_key == str(PublicKey(A))
    assert first.endpoint == (ip_address("192.0.2.7"), 40000)
    assert first.allowed_ips == (ip_network("10.0.0.2/32"), ip_network("fd00::2/128"))
    assert first.latest_handshake == 1700000000.5
    assert (first.rx_bytes, first.tx_bytes, first.persistent_keepalive) == (1480, 920, 25)
    assert first.has_preshared_key
    assert second.endpoint == (ip_address("fe80::1"), 40001)
    assert second.latest_handshake == 0.0
    assert not second.has_preshared_key
    assert device.private_key == PRIVATE
    assert device.preshared_keys == {PublicKey(A): PresharedKey(PSK)}


def test_no_secret_shows_in_a_device() -> None:
    """Neither the private key nor a preshared key is in a repr, in any spelling."""
    shown = repr(parse_device("wg0", REPLY))
    for secret in (PRIVATE.expose(), PSK):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
    assert PRIVATE.expose_base64() not in shown


def test_an_unknown_key_is_passed_over() -> None:
    """A newer program may say more: it is still understood."""
    newer = REPLY.replace(b"tx_bytes=920", b"shiny_new=yes\ntx_bytes=920").replace(
        b"listen_port", b"colour=red\nlisten_port"
    )
    assert parse_device("wg0", newer).state == parse_device("wg0", REPLY).state


def test_a_bare_device_is_no_error() -> None:
    """Before anything is set wireguard-go answers with its verdict, and perhaps a port, only."""
    state = parse_device("wg0", b"errno=0\n\n").state
    assert (state.public_key, state.listen_port, state.peers) == ("", 0, ())


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (b"listen_port=51820", b"listen_port=65536"),
        (b"listen_port=51820", b"listen_port=+1"),
        (b"listen_port=51820", b"listen_port=1_0"),
        (b"fwmark=51820", b"fwmark=4294967296"),
        (b"public_key=" + A.hex().encode(), b"public_key=abc"),
        (b"public_key=" + A.hex().encode(), b"public_key=" + b"zz" * 32),
        (b"public_key=" + A.hex().encode(), b"public_key=" + B.hex().encode()),
        (b"endpoint=192.0.2.7:40000", b"endpoint=192.0.2.7"),
        (b"endpoint=192.0.2.7:40000", b"endpoint=host.example:1"),
        (b"allowed_ip=10.0.0.2/32", b"allowed_ip=10.0.0.2/33"),
        (b"allowed_ip=10.0.0.2/32", b"allowed_ip=10.0.0.2/8"),
        (b"last_handshake_time_nsec=500000000", b"last_handshake_time_nsec=1000000000"),
        (b"rx_bytes=1480", b"rx_bytes=-1"),
        (b"rx_bytes=1480", b"rx_bytes"),
        (b"rx_bytes=1480", b"errno=0"),
        (b"protocol_version=1", b"protocol_version=2"),
        (b"errno=0", b"errno=zero"),
        (b"errno=0", b"error=0"),
        (b"errno=0\n\n", b"errno=0\n"),
        (b"tx_bytes=920", b"tx_bytes=\xff"),
    ],
)
def test_a_value_that_is_not_what_its_key_promises_is_refused(line: bytes, bad: bytes) -> None:
    """Malformed is malformed: no half-read device reaches a verdict, and no value is repeated."""
    assert line in REPLY
    with pytest.raises(MalformedReplyError) as caught:
        parse_device("wg0", REPLY.replace(line, bad))
    value = bad.partition(b"=")[2].strip()
    if len(value) > 4:
        assert value.decode("latin-1") not in str(caught.value)


def test_a_malformed_private_key_is_not_repeated() -> None:
    """A key that is one digit short must not end in a log."""
    short = PRIVATE.expose().hex()[:-1]
    with pytest.raises(MalformedReplyError) as caught:
        parse_device("wg0", f"private_key={short}\nerrno=0\n\n".encode())
    assert short[:16] not in str(caught.value)


def test_a_refusal_is_read_as_a_positive_errno() -> None:
    """wireguard-go writes errno=-22; the kernel's number is 22."""
    assert parse_errno(split_lines(b"errno=-22\n\n")) == 22


@given(st.binary(max_size=400))
def test_any_bytes_are_a_device_or_malformed(reply: bytes) -> None:
    """Nothing that can come over the socket raises anything but MalformedReplyError."""
    try:
        parse_device("wg0", reply)
    except MalformedReplyError:
        pass


KEYS = st.sampled_from(
    [line.partition(b"=")[0] for line in REPLY.strip().split(b"\n")] + [b"errno", b"unknown", b"", b"public_key "]
)
VALUES = st.one_of(
    st.sampled_from([line.partition(b"=")[2] for line in REPLY.strip().split(b"\n")]),
    st.binary(max_size=20),
    st.integers().map(lambda number: str(number).encode()),
    st.text(max_size=8).map(lambda text: text.encode()),
)


@given(st.lists(st.tuples(KEYS, VALUES), max_size=30))
def test_any_arrangement_of_lines_is_a_device_or_malformed(pairs: list[tuple[bytes, bytes]]) -> None:
    """Also when it looks nearly right: known keys in any order with any value."""
    reply = b"".join(key + b"=" + value + b"\n" for key, value in pairs) + b"errno=0\n\n"
    try:
        device = parse_device("wg0", reply)
    except MalformedReplyError:
        return
    assert device.errno == 0
    assert len({peer.public_key for peer in device.state.peers}) == len(device.state.peers)


KEY32 = st.binary(min_size=32, max_size=32).filter(any)
NETWORKS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: ip_network(pair, strict=False))
PEERS = st.builds(
    PeerConfig,
    public_key=KEY32.map(PublicKey),
    preshared_key=st.none() | KEY32.map(PresharedKey),
    endpoint=st.none() | st.tuples(st.ip_addresses(), st.integers(1, 65535)),
    allowed_ips=st.lists(NETWORKS, max_size=5, unique=True).map(tuple),
    persistent_keepalive=st.integers(0, 65535),
)


@given(
    st.builds(
        DeviceConfig,
        private_key=KEY32.map(PrivateKey),
        listen_port=st.integers(1, 65535),
        fwmark=st.integers(1, 2**32 - 1),
        peers=st.lists(PEERS, max_size=4, unique_by=lambda peer: peer.public_key).map(tuple),
    )
)
def test_what_is_written_is_what_would_be_read(config: DeviceConfig) -> None:
    """A set request, echoed by a device that keeps everything, is that very configuration."""
    lines = format_set(config).decode("ascii").split("\n")
    assert lines[0] == "set=1"
    assert lines[-2:] == ["", ""]
    echoed = "\n".join(line for line in lines[1:-2] if line != "replace_allowed_ips=true") + "\nerrno=0\n\n"
    device = parse_device("wg0", echoed.encode())
    assert device.private_key == config.private_key
    assert (device.state.listen_port, device.state.fwmark) == (config.listen_port, config.fwmark)
    for shown, peer in zip(device.state.peers, config.peers, strict=True):
        assert shown.public_key == str(peer.public_key)
        assert shown.endpoint == peer.endpoint
        assert shown.allowed_ips == peer.allowed_ips
        assert shown.persistent_keepalive == peer.persistent_keepalive
        assert device.preshared_keys.get(peer.public_key) == peer.preshared_key


def test_values_that_are_none_are_not_written() -> None:
    """None leaves a value as it is; clearing a preshared key is said by zeros; an empty list empties."""
    key = PublicKey(A)
    assert format_set(DeviceConfig()) == b"set=1\n\n"
    assert format_set(DeviceConfig(peers=(PeerConfig(key),))).decode() == f"set=1\npublic_key={A.hex()}\n\n"
    cleared = format_set(DeviceConfig(fwmark=0, peers=(PeerConfig(key, clear_preshared_key=True, allowed_ips=()),)))
    assert cleared.decode() == (
        f"set=1\nfwmark=0\npublic_key={A.hex()}\npreshared_key={'00' * 32}\nreplace_allowed_ips=true\n\n"
    )


def test_removing_never_makes_a_peer() -> None:
    """update_only: wireguard-go would otherwise make an unknown peer and remove it again."""
    assert (
        format_remove_peer(PublicKey(A)).decode() == f"set=1\npublic_key={A.hex()}\nupdate_only=true\nremove=true\n\n"
    )
