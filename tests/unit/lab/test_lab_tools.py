# SPDX-License-Identifier: Apache-2.0
"""The small programs of the lab, and what it reads from others' output."""

from __future__ import annotations

import hashlib

import pytest

from wicketgate.errors import StateError
from wicketgate.lab import stream, unshare, web, wgquick
from wicketgate.lab.client import Page, Pings, read_pings
from wicketgate.lab.pod import Rights, contained
from wicketgate.wireguard.keys import PrivateKey


def test_pings_are_read_from_the_summary():
    """Sent, received and the average; without answers there is no average."""
    text = "3 packets transmitted, 3 received, 0% packet loss, time 2ms\nrtt min/avg/max/mdev = 0.1/0.25/0.9/0.1 ms"
    assert read_pings(text) == Pings(3, 3, 0.25)
    assert read_pings("2 packets transmitted, 0 received, 100% packet loss") == Pings(2, 0, None)
    assert read_pings("2 packets transmitted, 0 received, +2 errors, 100% packet loss") == Pings(2, 0, None)
    with pytest.raises(StateError, match="did not count"):
        read_pings("ping: socket: Operation not permitted")


def test_only_a_200_is_a_page():
    """503 and a curl that failed are not."""
    assert Page("HTTP/1.1 200 OK", "hello").ok
    assert not Page("HTTP/1.1 503 Service Unavailable", "").ok
    assert not Page("curl: (28) Connection timed out after 2001 milliseconds", "").ok


def test_an_echo_answer_is_told_from_everything_else():
    """Only a reply with our identifier counts, and the number survives the wrap of the sequence field."""
    packet = stream.request(7, 70_000)
    assert stream.checksum(packet) == 0  # as a receiver verifies it
    header = bytes([0x45]) + bytes(19)
    reply = header + bytes([stream.ECHO_REPLY]) + packet[1:]
    assert stream.number_of(reply, 7) == 70_000
    assert stream.number_of(reply, 8) is None
    assert stream.number_of(header + packet, 7) is None  # a request, as loopback shows it
    assert stream.number_of(header + b"\0", 7) is None


def test_the_body_of_a_download_is_what_its_digest_says():
    """Of any length, also no multiple of a block."""
    for count in (0, 1, web.BLOCK, web.BLOCK * 2 + 17):
        data = b"".join(web.body(count))
        assert len(data) == count
        assert hashlib.sha256(data).hexdigest() == web.digest(count)


def test_a_gateway_file_keeps_to_the_families_there_are():
    """Without IPv6 neither address nor allowed IPs of it appear."""
    peer = wgquick.Peer("phone", PrivateKey.generate().public(), wgquick.EVERYWHERE)
    both = wgquick.render(PrivateKey.generate(), [peer], v6=True)
    four = wgquick.render(PrivateKey.generate(), [peer], v6=False)
    assert "AllowedIPs = 0.0.0.0/0, ::/0" in both
    assert "fd00:8::1/64" in both
    assert ":" not in four.split("PrivateKey")[0]
    assert "AllowedIPs = 0.0.0.0/0\n" in four


def test_a_container_gets_only_what_it_should():
    """net-admin keeps one capability, none keeps none; neither may gain any."""
    assert contained(["x"], Rights.PRIVILEGED) == ["x"]
    assert "--bounding-set=-all,+net_admin" in contained(["x"], Rights.NET_ADMIN)
    assert "--bounding-set=-all" in contained(["x"], Rights.NONE)
    assert all("--no-new-privs" in contained(["x"], rights) for rights in (Rights.NET_ADMIN, Rights.NONE))


def test_an_ordinary_user_starts_again_in_a_user_namespace():
    """A new one for a new lab, the lab's own for one that stands."""
    assert unshare.command(["lab", "up"], None)[:3] == ["unshare", "--user", "--map-root-user"]
    assert unshare.command(["lab", "status"], 77)[:2] == ["nsenter", "--target=77"]
    assert unshare.command(["lab", "up"], None)[-4:] == ["-m", "wicketgate", "lab", "up"]


def test_where_no_user_namespace_helps_it_is_said_once_and_not_tried_for_ever(monkeypatch):
    """Exit code 3, with what to do."""
    monkeypatch.setattr(unshare, "has_rights", lambda: False)
    monkeypatch.setenv(unshare._MARK, "1")
    with pytest.raises(StateError, match="run as root, or allow user namespaces"):
        unshare.ensure_rights()
