# SPDX-License-Identifier: Apache-2.0
"""The synthetic client against wireguard.ko."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def observed(machine) -> dict:
    return machine.results("inside_wireguard")


def test_it_is_the_kernel(observed: dict):
    """The server of this lane is the kernel's own WireGuard."""
    assert observed["kind"] == {"info_kind": "wireguard"}


def test_handshake_and_ping(observed: dict):
    """The kernel takes our handshake, with and without a preshared key, and carries our pings, v4 and v6."""
    assert observed["right"] == "ok"
    assert observed["again"] == "ok"
    assert observed["no_psk"] == "ok"
    assert 0 < observed["ping4"] < 10
    assert 0 < observed["ping6"] < 10
    assert observed["seen"] is True


def test_tcp(observed: dict):
    """A TCP port behind the tunnel answers our SYN, a closed one refuses it."""
    assert 0 < observed["tcp_open"] < 10
    assert observed["tcp_closed"] == "tcp_refused"


def test_failures(observed: dict):
    """The kernel fails like wireguard-go: a wrong preshared key answers, wrong keys are silent, a closed port refuses."""
    assert observed["wrong_psk"] == "wrong_psk"
    assert observed["wrong_key"] == "silent"
    assert observed["unknown"] == "silent"
    assert observed["refused"] == "refused"


def test_cookie(observed: dict):
    """In a flood the kernel sends a cookie, and takes the mac2 that we make of it."""
    assert observed["under_load"] is True
