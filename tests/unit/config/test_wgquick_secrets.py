# SPDX-License-Identifier: Apache-2.0
"""No key is ever shown: not in an error, a warning, a repr or a str, on whatever line it was pasted."""

from __future__ import annotations

import base64
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.config.wgquick_strategies import files, raw_keys
from wicketgate.config import edit
from wicketgate.config.problems import ConfigErrors, looks_secret, shown
from wicketgate.config.reader import KEYS
from wicketgate.config.wgquick import generate, parse
from wicketgate.errors import InputError

NAMES = sorted({*KEYS["Interface"], *KEYS["Peer"], "PublicKy", "Privatekey2", "Adress", "zzz", "psk", "PostUpp"})


def pieces(secret):
    """What must not be seen: any twelve characters of it, and its hex."""
    text = base64.b64encode(secret).decode()
    return {text[i : i + 12] for i in range(33)} | {secret.hex(), repr(secret)[2:-1]}


def everything_shown(text):
    """All that a program could print of a file."""
    try:
        config = parse(text, path="wg0.conf")
    except ConfigErrors as error:
        trace = "".join(traceback.format_exception(error))
        return f"{error} {error!r} {error.args} {error.problems!r} {trace} {error.__cause__!r}"
    lines = " ".join(repr(line) + str(line) for line in config.lines)
    return f"{config} {config!r} {config.interface!r} {config.peers!r} {config.warnings!r} {lines} {config.device()!r}"


@given(raw_keys, st.sampled_from(["Interface", "Peer", "Other"]), st.sampled_from(NAMES), st.data())
@settings(max_examples=150, deadline=None)
def test_a_key_on_any_line_stays_hidden(secret, section, name, data):
    """A key pasted under any name, whole, without its end, quoted, in pieces, or as a name itself."""
    key = base64.b64encode(secret).decode()
    line = data.draw(
        st.sampled_from(
            [
                f"{name} = {key}",
                f"{name} = {key[:-1]}",
                f'{name} = "{key}"',
                f"{name} = {key[:22]} {key[22:]}",
                f"{name} = {key}, {key}",
                f"{name} {key}",
                f"{key} = {name}",
                f"{name} = {key}:51820",
                f"{name} = {secret.hex()}",
                f"[{key}]",
                f"{key}",
                f"{name} = x # {key}",
                f"# {key}",
                f"# Name = {key}",
            ]
        )
    )
    if name == "PublicKey" and section == "Peer":
        line = f"{name} = {key}x"  # a whole one there is public by its place
    text = f"[Interface]\n[{section}]\n{line}\n"
    shown_text = everything_shown(text)
    assert not [p for p in pieces(secret) if p in shown_text]


@given(raw_keys)
@settings(max_examples=50, deadline=None)
def test_a_private_key_in_the_place_of_a_public_one_is_found(secret):
    """The same value as PrivateKey and PublicKey is an error that does not show it."""
    key = base64.b64encode(secret).decode()
    text = f"[Interface]\nPrivateKey = {key}\n[Peer]\nPublicKey = {key}\n"
    with pytest.raises(ConfigErrors, match="must stay secret"):
        parse(text, path="wg0.conf")
    assert not [p for p in pieces(secret) if p in everything_shown(text)]


@given(files())
@settings(max_examples=30, deadline=None)
def test_good_files_show_no_secret(text):
    """The repr of a file, its lines and its edits hides private and preshared keys."""
    config = parse(text, path="wg0.conf")
    secrets = [config.interface.private_key, *(p.preshared_key for p in config.peers)]
    seen = everything_shown(text) + repr(edit.update(config, listen_port=1))
    for secret in filter(None, secrets):
        assert secret.expose_base64()[:-1] not in seen


def test_generate_does_not_quote_a_hook():
    """A command may hold a password."""
    config = parse("[Interface]", path="x").interface
    from dataclasses import replace

    with pytest.raises(InputError) as caught:
        generate(replace(config, post_up=("hunter2 # x",)))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("10.8.0.1/24, fd00:1234:5678:9abc:def0:1234:5678:9abc/128", False),
        ("a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6.elb.us-east-1.amazonaws.com:51820", False),
        ("PersistentKeepaliveInterval", False),
        ("0" * 64, True),
        ("yAnz5TF+lXXJte14tji3", True),
        ("", False),
    ],
)
def test_what_looks_like_a_key(text, secret):
    """Addresses, host names and the names of keys do not; halves of keys and hex do."""
    assert looks_secret(text) is secret


def test_what_is_shown_is_escaped_and_cut():
    """A terminal is never driven by a file, nor flooded."""
    assert shown("\x1b[31m\n") == '"\\x1b[31m\\n"'
    assert len(shown("a.b" * 1000)) == 62
    assert shown("x", key="PrivateKeey") == "(hidden)"
