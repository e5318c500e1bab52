# SPDX-License-Identifier: Apache-2.0
"""Files come back byte for byte, and edits change what they must and nothing else."""

from __future__ import annotations

import difflib
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.config.wgquick_strategies import files, interfaces, peer_lists, raw_private
from wicketgate.config import edit
from wicketgate.config.document import join, split
from wicketgate.config.model import Endpoint, Interface, Peer
from wicketgate.config.wgquick import WgQuickConfig, generate, interface_name, mode_warning, parse, render
from wicketgate.errors import InputError
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

ALICE, BOB, CAROL = (PublicKey(bytes([n]) * 32) for n in (1, 2, 3))
FILE = f"""\
# gateway of the Berlin office
[Interface]
PrivateKey = {PrivateKey(bytes([9]) * 32).expose_base64()}   # from the vault
  ListenPort=51820
Address = 10.8.0.1/24

### Client alice
[Peer]
PublicKey = {ALICE}
AllowedIPs = 10.8.0.2/32,   10.8.0.3  # phone, laptop
PersistentKeepalive = 25

# bob
#[Peer]
#PublicKey = old
# bob again
[Peer]
PublicKey = {BOB}
AllowedIPs = 10.8.0.4/32
# PresharedKey = none yet

# the end
"""


def config():
    return parse(FILE, path="wg0.conf")


def changes(after):
    """The lines that went (-) and came (+)."""
    lines = difflib.ndiff(FILE.splitlines(), render(after).splitlines())
    return [line.rstrip() for line in lines if line[0] in "+-"]


@given(st.text())
def test_any_text_is_its_lines(text):
    """Taking apart and putting together loses nothing, whatever the text."""
    assert join(split(text)) == text


@given(files())
@settings(max_examples=60, deadline=None)
def test_files_come_back_byte_for_byte(text):
    """render(parse(x)) is x, and parses to the same again."""
    read = parse(text.encode(), path="x")
    assert render(read) == text
    assert parse(render(read), path="y") == read


@given(interfaces(), peer_lists())
@settings(max_examples=60, deadline=None)
def test_a_generated_file_says_what_the_values_say(interface, peers):
    """parse(generate(values)) gives the values, but for a peer with the interface's own key."""
    if interface.private_key:
        peers = tuple(p for p in peers if p.public_key != interface.private_key.public())
    assert parse(generate(interface, peers), path="x") == WgQuickConfig(interface, peers)


@given(files(), peer_lists(), st.data())
@settings(max_examples=50, deadline=None)
def test_edits_give_the_peers_that_were_asked_for(text, others, data):
    """Whatever the file, after an update it has exactly the peers wanted, and the interface is untouched."""
    before = parse(text, path="x")
    taken = {net for p in before.peers for net in p.allowed_ips}
    kept = [p for p in before.peers if data.draw(st.booleans())]
    kept = [replace(p, persistent_keepalive=7) if data.draw(st.booleans()) else p for p in kept]
    new = [
        replace(p, allowed_ips=tuple(n for n in p.allowed_ips if n not in taken), preshared_key=None, name=None)
        for p in others
        if before.peer(p.public_key) is None
    ]
    after = edit.update(before, peers=[*kept, *new])
    assert [replace(p, allowed_ips=()) for p in after.peers] == [replace(p, allowed_ips=()) for p in [*kept, *new]]
    assert [set(p.allowed_ips) for p in after.peers] == [set(p.allowed_ips) for p in [*kept, *new]]
    assert after.interface == before.interface


@given(files())
@settings(max_examples=30, deadline=None)
def test_an_edit_without_change_changes_no_byte(text):
    """Values that are there already are left in their spelling."""
    read = parse(text, path="x")
    now = read.interface
    same = edit.update(
        read, listen_port=now.listen_port, fwmark=now.fwmark, private_key=now.private_key, peers=read.peers
    )
    assert render(same) == text


@given(files(), st.integers(1, 65535), st.integers(0, 0xFFFFFFFF), raw_private.map(PrivateKey))
@settings(max_examples=30, deadline=None)
def test_interface_edits_touch_their_lines_alone(text, port, mark, private):
    """ListenPort, FwMark and PrivateKey change, or come as new lines; every other line stays."""
    before = parse(text, path="x")
    after = edit.update(before, listen_port=port, fwmark=mark, private_key=private)
    assert (after.interface.listen_port, after.interface.fwmark, after.interface.private_key) == (port, mark, private)
    keys = ("listenport", "fwmark", "privatekey")

    def others(config):
        return [line.raw.rstrip("\r\n") for line in config.lines if "".join(line.name.split()).lower() not in keys]

    assert others(after) == others(before)
    gone = edit.update(after, listen_port=None, fwmark=None, private_key=None)
    assert (gone.interface.listen_port, gone.interface.fwmark, gone.interface.private_key) == (None, None, None)


def test_a_changed_value_keeps_its_spacing_and_comment():
    """One line, one value."""
    after = edit.update(config(), listen_port=7, private_key=PrivateKey(bytes([8]) * 32), fwmark=0xCA6C)
    assert changes(after) == [
        f"- PrivateKey = {PrivateKey(bytes([9]) * 32).expose_base64()}   # from the vault",
        f"+ PrivateKey = {PrivateKey(bytes([8]) * 32).expose_base64()}   # from the vault",
        "-   ListenPort=51820",
        "+   ListenPort=7",
        "+ FwMark = 0xca6c",
    ]


def test_a_changed_peer_keeps_what_did_not_change():
    """Allowed-ips that are the same keep their spelling, comments stay, a setting that is no more goes."""
    alice = config().peers[0]
    after = edit.replace_peer(config(), replace(alice, persistent_keepalive=None, endpoint=Endpoint("fd00::9", 5)))
    assert changes(after) == ["- PersistentKeepalive = 25", "+ Endpoint = [fd00::9]:5"]
    after = edit.replace_peer(config(), replace(alice, name="anna", allowed_ips=(ip_network("10.8.0.9/32"),)))
    assert changes(after) == [
        "+ # Name = anna",
        "- AllowedIPs = 10.8.0.2/32,   10.8.0.3  # phone, laptop",
        "+ AllowedIPs = 10.8.0.9/32  # phone, laptop",
    ]


def test_a_removed_peer_takes_its_comments_along():
    """The comment right above and below goes; what was commented out, and the end of the file, stay."""
    assert changes(edit.remove_peer(config(), BOB)) == [
        "- # bob again",
        "- [Peer]",
        f"- PublicKey = {BOB}",
        "- AllowedIPs = 10.8.0.4/32",
        "- # PresharedKey = none yet",
        "-",
    ]
    both = edit.remove_peer(edit.remove_peer(config(), ALICE), BOB)
    assert "alice" not in render(both)
    assert render(both).endswith("Address = 10.8.0.1/24\n\n# bob\n#[Peer]\n#PublicKey = old\n# the end\n")


def test_an_added_peer_comes_last_in_the_files_own_newlines():
    """Also behind a last line without a newline."""
    crlf = parse("[Interface]\r\nMTU=1400", path="x")
    after = edit.add_peer(crlf, Peer(CAROL, PresharedKey(bytes([5]) * 32), (ip_network("10.8.0.5/32"),), name="carol"))
    assert render(after) == (
        f"[Interface]\r\nMTU=1400\r\n\r\n[Peer]\r\n# Name = carol\r\nPublicKey = {CAROL}\r\n"
        f"PresharedKey = {PresharedKey(bytes([5]) * 32).expose_base64()}\r\nAllowedIPs = 10.8.0.5/32\r\n"
    )
    assert after.peers[0].name == "carol"


def test_sections_of_one_peer_are_drawn_together_by_a_change():
    """A peer in two sections ends in one when it changes; a prefix that two peers claimed stays with whom it shall."""
    text = (
        f"[Interface]\n[Peer]\nPublicKey={ALICE}\nAllowedIPs=10.0.0.1\n# Name = a\nPersistentKeepalive=5\n"
        f"[Peer]\nPublicKey={BOB}\nAllowedIPs=10.0.0.7\n[Peer]\nPublicKey={ALICE}\nAllowedIPs=10.0.0.7\n"
    )
    before = parse(text, path="x")
    after = edit.replace_peer(before, replace(before.peers[0], persistent_keepalive=6))
    assert after.peers == (replace(before.peers[0], persistent_keepalive=6), before.peers[1])
    assert render(after).count(str(ALICE)) == 1
    alone = edit.remove_peer(before, ALICE)
    assert alone.peers == (Peer(BOB),)


def test_what_cannot_be_is_refused():
    """A peer twice, one that is missing, prefixes that overlap, and values that would become other lines."""
    bob = config().peers[1]
    for bad in (
        lambda: edit.add_peer(config(), bob),
        lambda: edit.remove_peer(config(), CAROL),
        lambda: edit.replace_peer(config(), Peer(CAROL)),
        lambda: edit.update(config(), peers=[bob, bob]),
        lambda: edit.update(config(), peers=[bob, Peer(CAROL, allowed_ips=bob.allowed_ips)]),
        lambda: edit.add_peer(config(), Peer(CAROL, endpoint=Endpoint("h\nPostUp = evil", 1))),
        lambda: edit.add_peer(config(), Peer(CAROL, name="x\n[Interface]")),
        lambda: generate(Interface(post_up=("echo '# no'",))),
        lambda: generate(Interface(dns_search=("a\nPostUp = evil",))),
    ):
        with pytest.raises(InputError):
            bad()


@pytest.mark.parametrize(
    ("path", "name"),
    [("wg0.conf", "wg0"), ("/etc/wireguard/a_b=c+d.e-f.conf", "a_b=c+d.e-f"), ("wg.conf.conf", "wg.conf")],
)
def test_the_interface_is_named_after_the_file(path, name):
    """As wg-quick does."""
    assert interface_name(path) == name


@pytest.mark.parametrize("path", ["wg0", ".conf", "a/b c.conf", "sixteencharacter.conf", "...conf", "wg0.conf\n"])
def test_a_file_that_names_no_interface(path):
    """The error says what a name may be."""
    with pytest.raises(InputError, match=r"NAME\.conf"):
        interface_name(path)


@pytest.mark.parametrize(
    ("mode", "directory", "warned"),
    [
        (0o100600, 0o755, False),
        (0o640, 0o755, False),
        (0o644, 0o755, True),
        (0o644, 0o700, False),
        (0o601, 0o755, True),
    ],
)
def test_world_readable_files_are_warned_about(mode, directory, warned):
    """By wg-quick's rule: the file and its directory let others in."""
    text = mode_warning(mode, path="wg0.conf", directory_mode=directory)
    assert (text is not None) is warned
    assert not warned or ("wg0.conf" in text and "chmod 600" in text)
