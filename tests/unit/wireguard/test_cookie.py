# SPDX-License-Identifier: Apache-2.0
"""mac1, mac2 and cookies: both sides against each other."""

from __future__ import annotations

from dataclasses import replace

from wicketgate.clock import FakeClock
from wicketgate.wireguard.constants import COOKIE_LIFE, COOKIE_SECRET_LIFE
from wicketgate.wireguard.cookie import CookieJar, CookieMaker, MacVerdict
from wicketgate.wireguard.keys import PrivateKey
from wicketgate.wireguard.messages import Initiation

SERVER = PrivateKey.generate().public()
MESSAGE = Initiation(7, bytes(32), bytes(48), bytes(28)).encode()
SOURCE, ELSEWHERE = b"192.0.2.1:1000", b"192.0.2.1:1001"


def sides() -> tuple[FakeClock, CookieJar, CookieMaker]:
    clock = FakeClock()
    return clock, CookieJar(SERVER, clock), CookieMaker(SERVER, clock)


def test_the_way_of_a_cookie():
    """mac1 alone gets a cookie; with it the next message carries a mac2 that holds at this source only."""
    _, jar, maker = sides()
    first = jar.sign(MESSAGE)
    assert maker.check(first, SOURCE) is MacVerdict.MAC1
    assert jar.take(maker.reply(first, 7, SOURCE))
    second = jar.sign(MESSAGE)
    assert maker.check(second, SOURCE) is MacVerdict.MAC2
    assert maker.check(second, ELSEWHERE) is MacVerdict.MAC1


def test_wrong_mac1_is_invalid():
    """Whoever does not know the server's key gets nothing."""
    _, _, maker = sides()
    stranger = CookieJar(PrivateKey.generate().public(), FakeClock())
    assert maker.check(stranger.sign(MESSAGE), SOURCE) is MacVerdict.INVALID
    assert maker.check(MESSAGE, SOURCE) is MacVerdict.INVALID
    signed = CookieJar(SERVER, FakeClock()).sign(MESSAGE)
    assert maker.check(bytes([signed[0] ^ 1]) + signed[1:], SOURCE) is MacVerdict.INVALID


def test_only_the_reply_to_the_last_message_counts():
    """A cookie reply is bound to the mac1 it answers: older, changed, foreign or repeated ones are dropped."""
    clock, jar, maker = sides()
    assert not jar.take(maker.reply(MESSAGE, 7, SOURCE))  # nothing was sent yet
    older = jar.sign(MESSAGE)
    last = jar.sign(Initiation(8, bytes(32), bytes(48), bytes(28)).encode())
    assert not jar.take(maker.reply(older, 7, SOURCE))
    reply = maker.reply(last, 8, SOURCE)
    assert not jar.take(replace(reply, sealed_cookie=bytes(32)))
    assert not jar.take(CookieMaker(PrivateKey.generate().public(), clock).reply(last, 8, SOURCE))
    assert jar.take(reply)
    assert not jar.take(reply)


def test_cookies_age():
    """The client drops a cookie before the server's secret can have changed; the server changes it after 120 s."""
    clock, jar, maker = sides()
    assert jar.take(maker.reply(jar.sign(MESSAGE), 7, SOURCE))
    signed = jar.sign(MESSAGE)
    clock.advance(COOKIE_LIFE)
    assert jar.sign(MESSAGE)[-16:] == bytes(16)
    clock.advance(COOKIE_SECRET_LIFE - COOKIE_LIFE)
    assert maker.check(signed, SOURCE) is MacVerdict.MAC1


def test_a_new_address_forgets():
    """After `forget` no mac2 is sent."""
    _, jar, maker = sides()
    assert jar.take(maker.reply(jar.sign(MESSAGE), 7, SOURCE))
    jar.forget()
    assert jar.sign(MESSAGE)[-16:] == bytes(16)
