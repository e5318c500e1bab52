# SPDX-License-Identifier: Apache-2.0
"""Files and models for the property tests: as people, scripts and editors write them."""

from __future__ import annotations

import base64

from hypothesis import strategies as st

from wicketgate.config.model import Endpoint, Interface, Peer
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey

raw_keys = st.binary(min_size=32, max_size=32).filter(any)

# Public and secret keys of one file never meet: the first byte tells the kinds apart. Public ones do meet each other.
_rest = st.one_of(st.integers(0, 5).map(lambda n: bytes([n]) * 31), st.binary(min_size=31, max_size=31))
raw_public, raw_private, raw_psk = (_rest.map(lambda rest, n=n: bytes([n]) + rest) for n in (1, 2, 3))


def _base64(raws):
    return raws.map(lambda raw: base64.b64encode(raw).decode())


v4 = st.integers(1, 0xDFFFFFFF).map(lambda n: ".".join(str(n >> s & 255) for s in (24, 16, 8, 0)))
v6 = st.sampled_from(["fd00::1", "2001:db8:0:1::", "::ffff:10.0.0.1", "FE80::ABCD", "::1", "0:0:0:0:0:0:0:2"])
v4_prefix = st.tuples(v4, st.integers(0, 32)).map(lambda t: f"{t[0]}/{t[1]}")
v6_prefix = st.tuples(v6, st.integers(0, 128)).map(lambda t: f"{t[0]}/{t[1]}")
prefixes = st.one_of(v4, v6, v4_prefix, v6_prefix, st.just("0.0.0.0/0"), st.just("::/0"))
endpoints = st.one_of(
    st.tuples(v4, st.integers(1, 65535)).map(lambda t: f"{t[0]}:{t[1]}"),
    st.tuples(v6, st.integers(1, 65535)).map(lambda t: f"[{t[0]}]:{t[1]}"),
)
marks = st.one_of(
    st.integers(0, 0xFFFFFFFF).map(str),
    st.integers(0, 0xFFFFFFFF).map(hex),
    st.sampled_from(["off", "OFF", "0", "007"]),
)
blanks = st.sampled_from(["", " ", "  ", "\t", " \t "])
commands = st.sampled_from(
    ["iptables -A FORWARD -i %i -j ACCEPT", "echo 'a=b'", "true; sleep 0", "ip route add 10.0.0.0/8 dev %i"]
)
comments = st.sampled_from(
    [
        "# alice",
        "### Client bob",
        "#Name = carol",
        "# AllowedIPs = 1.2.3.4/32",
        "#",
        "# ---- ü ----",
        "#[Peer]",
        "# a # b",
    ]
)


def _case(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word.lower(), word.upper(), word.title()])


@st.composite
def _setting(draw, key, value):
    tail = draw(st.sampled_from(["", "", " ", " # note", "#note"]))
    return f"{draw(blanks)}{draw(_case(key))}{draw(blanks)}={draw(blanks)}{draw(value)}{tail}"


def _lists(items, separator):
    return st.lists(items, max_size=3).map(separator.join)


@st.composite
def files(draw, *, only_wg=False):
    """A valid file. `only_wg`: nothing but what `wg setconf` knows."""
    wg = [
        _setting("ListenPort", st.integers(0, 65535).map(str)),
        _setting("FwMark", marks),
        _setting("PrivateKey", _base64(raw_private)),
        st.just("Listen Port = 7"),
    ]
    quick = [
        _setting("Address", _lists(st.one_of(v4_prefix, v6_prefix, v4, v6), ", ")),
        _setting("Address", _lists(st.one_of(v4, v6), " ")),
        _setting("MTU", st.integers(68, 65535).map(str)),
        _setting("DNS", _lists(st.one_of(v4, v6, st.sampled_from(["corp.example", "a_b"])), ",")),
        _setting("Table", st.sampled_from(["auto", "off", "main", "51820", "Off", "1"])),
        _setting("SaveConfig", st.sampled_from(["true", "false", "TRUE"])),
        *[_setting(hook, commands) for hook in ("PreUp", "PostUp", "PreDown", "PostDown")],
    ]
    between = st.one_of(st.just(""), blanks, comments)
    lines = draw(st.lists(between, max_size=2))
    lines.append(draw(_case("[Interface]")))
    lines += draw(st.lists(st.one_of(*wg, *([] if only_wg else quick), between), max_size=8))
    names = draw(st.lists(_base64(raw_public), max_size=4))
    for name in names:
        lines += draw(st.lists(between, max_size=2))
        lines.append(draw(_case("[Peer]")) + draw(st.sampled_from(["", " ", " # eve"])))
        settings = st.one_of(
            _setting("PresharedKey", _base64(raw_psk)),
            _setting("AllowedIPs", st.lists(prefixes, min_size=1, max_size=4).map(", ".join)),
            _setting("Endpoint", endpoints),
            _setting("PersistentKeepalive", st.sampled_from(["off", "0", "25", "65535", "Off"])),
            between,
        )
        body = draw(st.lists(settings, max_size=5))
        body.insert(draw(st.integers(0, len(body))), draw(_setting("PublicKey", st.just(name))))
        lines += body
    newline = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    return newline.join(lines) + draw(st.sampled_from(["", newline, newline * 3]))


@st.composite
def interfaces(draw):
    """An [Interface] as values."""
    from ipaddress import ip_address, ip_interface

    unique = {"unique": True, "max_size": 3}
    return Interface(
        addresses=tuple(ip_interface(a) for a in draw(st.lists(v4_prefix, **unique))),
        listen_port=draw(st.none() | st.integers(0, 65535)),
        private_key=draw(st.none() | raw_private.map(PrivateKey)),
        mtu=draw(st.none() | st.integers(68, 65535)),
        dns=tuple(dict.fromkeys(ip_address(a) for a in draw(st.lists(st.one_of(v4, v6), **unique)))),
        dns_search=draw(st.sampled_from([(), ("corp.example",), ("a.b", "c")])),
        table=draw(st.sampled_from(["auto", "off", 254, 1, 4294967295])),
        fwmark=draw(st.none() | st.integers(0, 0xFFFFFFFF)),
        pre_up=tuple(draw(st.lists(commands, max_size=2))),
        post_down=tuple(draw(st.lists(commands, max_size=2))),
        save_config=draw(st.booleans()),
    )


names = st.none() | st.sampled_from(["alice", "Bob's phone", "ü", "a = b", "x: y", "100"])


@st.composite
def peer_lists(draw):
    """Peers whose prefixes do not overlap."""
    from ipaddress import ip_network

    publics = draw(st.lists(raw_public, unique=True, max_size=5))
    nets = draw(
        st.lists(prefixes, max_size=10).map(lambda ps: list(dict.fromkeys(ip_network(p, strict=False) for p in ps)))
    )
    peers = []
    for n, raw in enumerate(publics):
        peers.append(
            Peer(
                PublicKey(raw),
                draw(st.none() | raw_psk.map(PresharedKey)),
                tuple(nets[n :: len(publics)]),
                draw(
                    st.sampled_from(
                        [None, Endpoint("vpn.example.com", 51820), Endpoint("fd00::1", 1), Endpoint("10.0.0.1", 2)]
                    )
                ),
                draw(st.sampled_from([None, 0, 25])),
                draw(names),
            )
        )
    return tuple(peers)
