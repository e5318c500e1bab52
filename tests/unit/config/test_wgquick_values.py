# SPDX-License-Identifier: Apache-2.0
"""Every key of a wg-quick file: what is taken, what is refused, and in which words."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from wicketgate.config import reader
from wicketgate.config.model import Endpoint
from wicketgate.config.problems import ConfigErrors
from wicketgate.config.wgquick import MAX_FILE_BYTES, MAX_LINE_BYTES, MAX_LINES, parse
from wicketgate.errors import InputError
from wicketgate.wireguard.keys import PrivateKey, PublicKey

PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PUBLIC = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OTHER = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
PSK = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="


def interface(*lines):
    return parse("\n".join(["[Interface]", *lines]), path="wg0.conf").interface


def peer(*lines):
    return parse("\n".join(["[Interface]", "[Peer]", f"PublicKey={PUBLIC}", *lines]), path="wg0.conf").peers[0]


def errors(text):
    with pytest.raises(ConfigErrors) as caught:
        parse(text, path="wg0.conf")
    assert isinstance(caught.value, InputError)
    return caught.value


def warnings(text):
    return [str(w) for w in parse(text, path="wg0.conf").warnings if "no PrivateKey" not in w.text]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("Address = 10.8.0.1/24", "addresses", (ip_interface("10.8.0.1/24"),)),
        ("address=10.8.0.1,fd00::1", "addresses", (ip_interface("10.8.0.1/32"), ip_interface("fd00::1/128"))),
        ("ADDRESS = 10.0.0.1/8 fd00::1/64,", "addresses", (ip_interface("10.0.0.1/8"), ip_interface("fd00::1/64"))),
        ("Address =", "addresses", ()),
        ("ListenPort = 51820", "listen_port", 51820),
        ("ListenPort = 0", "listen_port", 0),
        ("Listen Port = 5 18 20", "listen_port", 51820),  # wg reads its lines without blanks
        (f"PrivateKey = {PRIVATE}", "private_key", PrivateKey.parse(PRIVATE)),
        ("MTU = 1420", "mtu", 1420),
        ("MTU = 68", "mtu", 68),
        ("MTU =", "mtu", None),
        ("DNS = 1.1.1.1, fd00::53, corp.example", "dns", (ip_address("1.1.1.1"), ip_address("fd00::53"))),
        ("DNS = 1.1.1.1, corp.example a", "dns_search", ("corp.example", "a")),
        ("Table = auto", "table", "auto"),
        ("Table = off", "table", "off"),
        ("Table = 51820", "table", 51820),
        ("Table = main", "table", 254),
        ("Table =", "table", "auto"),
        ("FwMark = off", "fwmark", 0),
        ("FwMark = 0", "fwmark", 0),
        ("FwMark = 51820", "fwmark", 51820),
        ("FwMark = 010", "fwmark", 10),
        ("fwmark = 0xCA6c", "fwmark", 0xCA6C),
        ("FwMark = 0xffffffff", "fwmark", 0xFFFFFFFF),
        ("FwMark = 0x00000000001", "fwmark", 1),
        ("PreUp = a %i = b", "pre_up", ("a %i = b",)),
        ("PostUp = one\nPostUp = two\npostup = one", "post_up", ("one", "two", "one")),
        ("PreDown = x # not this", "pre_down", ("x",)),
        ("PostDown = x\r", "post_down", ("x",)),
        ("SaveConfig = TRUE", "save_config", True),
        ("SaveConfig = false", "save_config", False),
        ("MTU = 1400\nMTU = 1300", "mtu", 1300),
    ],
)
def test_interface_keys(line, field, value):
    """Each key of [Interface] is read as wg-quick reads it."""
    assert getattr(interface(line), field) == value


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        (
            "AllowedIPs = 10.0.0.2/32, fd00::2/128",
            "allowed_ips",
            (ip_network("10.0.0.2/32"), ip_network("fd00::2/128")),
        ),
        (
            "AllowedIPs = 10.0.0.2\nAllowedIPs=fd00::2",
            "allowed_ips",
            (ip_network("10.0.0.2/32"), ip_network("fd00::2/128")),
        ),
        ("AllowedIPs = 10.9.8.7/8", "allowed_ips", (ip_network("10.0.0.0/8"),)),
        ("AllowedIPs = 10.9.8.7/08,10.0.0.0/8", "allowed_ips", (ip_network("10.0.0.0/8"),)),
        ("Endpoint = 192.0.2.1:51820", "endpoint", Endpoint("192.0.2.1", 51820)),
        ("Endpoint = [2001:DB8::1]:1", "endpoint", Endpoint("2001:db8::1", 1)),
        ("Endpoint = [fe80::1%eth0]:1", "endpoint", Endpoint("fe80::1%eth0", 1)),
        ("Endpoint = 2001:db8::1:65535", "endpoint", Endpoint("2001:db8::1", 65535)),
        ("Endpoint = vpn.example.com:443", "endpoint", Endpoint("vpn.example.com", 443)),
        ("Endpoint = my_host.:443", "endpoint", Endpoint("my_host.", 443)),
        ("PersistentKeepalive = off", "persistent_keepalive", 0),
        ("PersistentKeepalive = 0", "persistent_keepalive", 0),
        ("PersistentKeepalive = 65535", "persistent_keepalive", 65535),
    ],
)
def test_peer_keys(line, field, value):
    """Each key of [Peer] is read as wg reads it."""
    assert getattr(peer(line), field) == value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Address = 10.8.0.1/33", 'wg0.conf:2: [Interface] Address: "10.8.0.1/33"; allowed: an IPv4 or IPv6 address'),
        ("Address = 10.8.0.1, x", 'Address: "x" in the list; allowed:'),
        ("Address = 10.0.0.1/255.0.0.0", "Address: "),
        ("Address = 010.0.0.1", "Address: "),
        ("Address = fe80::1%eth0/64", "Address: "),
        ("Address = 224.0.0.1/24", "not a multicast"),
        ("Address = ::/64", "unspecified"),
        ("ListenPort = 65536", 'ListenPort: "65536"; allowed: a port: 0-65535'),
        ("ListenPort =", 'ListenPort: ""; allowed:'),
        ("ListenPort = domain", "ListenPort: "),
        ("ListenPort = -1", "ListenPort: "),
        ("ListenPort = 5_1", "ListenPort: "),
        ("ListenPort = ٣", "ListenPort: "),
        ("ListenPort = " + "9" * 6000, "(hidden)"),
        ("MTU = 67", "MTU: "),
        ("MTU = 65536", "MTU: "),
        ("MTU = 0x500", "MTU: "),
        ("DNS = 1.1.1", "DNS: "),
        ("DNS = a..b", "DNS: "),
        ("DNS = -a", "DNS: "),
        ("Table = wan", 'Table: "wan"; allowed: auto, off, main, or a number: 1-4294967295'),
        ("Table = 0", "Table: "),
        ("Table = 4294967296", "Table: "),
        ("FwMark = 0X1", "FwMark: "),
        ("FwMark = 0x", "FwMark: "),
        ("FwMark = 4294967296", "FwMark: "),
        ("FwMark = 0x100000000", "FwMark: "),
        ("FwMark = on", 'FwMark: "on"; allowed: off, 0, or a number up to 0xffffffff'),
        ("SaveConfig = yes", 'SaveConfig: "yes"; allowed: true or false'),
        ("SaveConfig =", "SaveConfig: "),
        ("PrivateKey = short", "PrivateKey: 5 characters that are no key; allowed: 44 characters of base64"),
        ("Adress = 1", 'unknown key, with the value "1"; did you mean Address?'),
        ("AllowedIPs = 1", "AllowedIPs belongs to [Peer]"),
        ("Pre Up = x", "did you mean PreUp?"),
        ("zzz = \x1b[2J", 'the value "\\x1b[2J"; allowed: Address, MTU'),
        ("PrivateKey\u212a = 4", "unknown key"),
        ("PostUp: a=b", "joined by ="),
        ("Jc = 4", "[Interface] Jc: unknown key"),
        ("PrivateKey", "neither [Section] nor Key = value"),
        ("= 3", "unknown key"),
        ("\u00a0MTU = 1400", "unknown key"),
    ],
)
def test_interface_errors(line, said):
    """Each bad value is refused with file, line, section, key, what was read and what is allowed."""
    caught = errors("[Interface]\n" + line)
    assert len(caught.problems) == 1
    assert caught.problems[0].line == 2
    assert said in str(caught)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("AllowedIPs = 10.0.0.0/33", "wg0.conf:4: [Peer] AllowedIPs: "),
        ("AllowedIPs = 10.0.0.0/8,", 'AllowedIPs: "" in the list'),
        ("AllowedIPs = 10.0.0.1/32 10.0.0.2/32", "AllowedIPs: "),
        ("AllowedIPs = (none)", "AllowedIPs: "),
        ("AllowedIPs =", "AllowedIPs: "),
        ("AllowedIPs = +10.0.0.1/32", "increments"),
        ("AllowedIPs = 10.0.0.2, -10.0.0.1/32", "increments"),
        ("AllowedIPs = ::ffff:1.2.3.4/129", "AllowedIPs: "),
        ("Endpoint = example.com", "Endpoint: "),
        ("Endpoint = example.com:0", "with a port of 1-65535"),
        ("Endpoint = example.com:70000", "Endpoint: "),
        ("Endpoint = [::1]", "Endpoint: "),
        ("Endpoint = [::1:5", "Endpoint: "),
        ("Endpoint = :5", "Endpoint: "),
        ("Endpoint = 10.1:5", "Endpoint: "),
        ("Endpoint = a b.c:5x", "Endpoint: "),
        ("Endpoint = [fe80::1%a/b]:5", "Endpoint: "),
        ("PersistentKeepalive = 65536", "PersistentKeepalive: "),
        ("PersistentKeepalive = on", 'PersistentKeepalive: "on"; allowed: off, or seconds: 0-65535'),
        ("PresharedKey = none", "PresharedKey: 4 characters that are no key; allowed: 44"),
        ("Address = 10.0.0.1", "Address belongs to [Interface]"),
        ("Allowedips2 = 1", "did you mean AllowedIPs?"),
    ],
)
def test_peer_errors(line, said):
    """As above, for [Peer]."""
    caught = errors(f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\n{line}")
    assert len(caught.problems) == 1
    assert caught.problems[0].line == 4
    assert said in str(caught)


def test_all_problems_come_at_once_and_in_order():
    """One look at the error mends the whole file."""
    caught = errors("MTU = 1\n[Interfaces]\nFoo = 1\n[Interface]\nMTU = x\nTable = y\n[Peer]\nAllowedIPs = z\n[Peer]\n")
    assert [p.line for p in caught.problems] == [1, 2, 5, 6, 7, 8, 9]
    assert str(caught).count("\n") == 6
    assert 'unknown section "Interfaces"; did you mean [Interface]?' in str(caught)


@pytest.mark.parametrize("text", ["", "\n# nothing\n", f"[Peer]\nPublicKey = {PUBLIC}\n"])
def test_a_file_without_interface_is_refused(text):
    """A file that configures no interface is a mistake, and the error is about the file as a whole."""
    assert str(errors(text)) == "wg0.conf: no [Interface] section; allowed: exactly one"


def test_bytes_that_are_no_text():
    """Bytes that are not UTF-8, and NUL, are errors of their lines; a UTF-16 file is called one."""
    caught = errors(b"[Interface]\nMTU = 14\xff00\n# \xc3\x28\nPostUp = a\0b\n")
    assert [(p.line, p.read) for p in caught.problems] == [
        (2, "bytes that are not UTF-8"), (3, "bytes that are not UTF-8"), (4, "a NUL byte"),
    ]  # fmt: skip
    assert "UTF-16" in str(errors("[Interface]\n".encode("utf-16")))


def test_sizes_are_bounded():
    """A file, a line, a number of lines and a number of problems beyond all use are errors, not memory."""
    assert "bytes" in str(errors(b"#" * (MAX_FILE_BYTES + 1)))
    assert "lines" in str(errors("\n" * (MAX_LINES + 1)))
    assert "wg0.conf:2: a line that is too long" in str(errors("[Interface]\n#" + "x" * MAX_LINE_BYTES))
    many = errors("[Interface]\n" + "x\n" * 5000)
    assert len(many.problems) == 1000
    assert many.more == 4000
    assert str(many).endswith("... and 4000 more problems")


def test_lists_are_bounded(monkeypatch):
    """So are the lists of a file, counted over all of its lines."""
    monkeypatch.setattr(reader, "MAX_ALLOWED_IPS", 3)
    monkeypatch.setattr(reader, "MAX_ADDRESSES", 2)
    text = (
        f"[Interface]\nAddress=10.0.0.1\nAddress=10.0.0.2\n[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.1,10.0.0.2\n"
    )
    parse(f"{text}AllowedIPs=10.0.0.3", path="wg0.conf")
    assert "at most 3 prefixes" in str(errors(f"{text}AllowedIPs=10.0.0.3,10.0.0.4"))
    assert "at most 2 addresses" in str(errors(f"{text}[Interface]\nAddress=10.0.0.3"))


def test_byte_order_mark_carriage_returns_and_a_missing_newline():
    """What Windows editors leave is taken."""
    config = parse(f"\ufeff[Interface]\r\nPrivateKey = {PRIVATE}\r\nMTU = 1400".encode(), path="wg0.conf")
    assert config.interface.mtu == 1400
    assert config.interface.private_key == PrivateKey.parse(PRIVATE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[Interface]\nMTU=1400\nMTU=1300", "wg0.conf:3: [Interface] MTU: given again, line 2 no longer counts"),
        ("[Interface]\nMTU=1400\n[interface]\nTable=off", "wg0.conf:3: a second [Interface] section"),
        ("[Interface]\nTable=", "wg0.conf:2: [Interface] Table: an empty value"),
        ("[Interface]\nAddress=10.0.0.1\nAddress=10.0.0.1/32", "wg0.conf:3: [Interface] Address: 10.0.0.1/32 again, as in line 2"),
        ("[Interface]\nMTU=1200\nAddress=fd00::1/64", "wg0.conf:2: [Interface] MTU: 1200, but IPv6 needs 1280"),
        ("[Interface]\nPostUp = echo '#1'", "wg0.conf:2: [Interface] PostUp: the command ends at #"),
        ("[Interface]\nPostUp = echo 'a #1'", "wg0.conf:2: [Interface] PostUp: the command ends at #"),
        (f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.1/24", "has host bits set, taken as 10.0.0.0/24"),
        (f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\nEndpoint=fd00::1:5", "IPv6 without brackets, taken as [fd00::1]:5"),
        (
            f"[Interface]\nPrivateKey={PRIVATE}\n[Peer]\nPublicKey={PrivateKey.parse(PRIVATE).public()}",
            "wg0.conf:3: [Peer] the interface's own public key",
        ),
    ],
)  # fmt: skip
def test_warnings(text, said):
    """What loads but is hardly meant is said, with its line; once."""
    (only,) = warnings(text)
    assert only.startswith(said) or said in only


def test_a_missing_private_key_is_a_warning():
    """A PostUp may set the key, so its absence is said and no error."""
    assert ["[Interface] no PrivateKey" in str(w) for w in parse("[Interface]", path="x").warnings] == [True]


def test_two_sections_of_one_peer_are_one_peer():
    """The last value given counts; the allowed-ips of the last section replace the earlier ones."""
    text = (
        f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\nPresharedKey={PSK}\nAllowedIPs=10.0.0.1\nPersistentKeepalive=5\n"
        f"[Peer]\nPublicKey={OTHER}\n"
        f"[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.2\nEndpoint=10.0.0.9:1\n"
    )
    config = parse(text, path="wg0.conf")
    assert [p.public_key for p in config.peers] == [PublicKey.parse(PUBLIC), PublicKey.parse(OTHER)]
    first = config.peers[0]
    assert first.allowed_ips == (ip_network("10.0.0.2/32"),)
    assert (first.preshared_key is not None, first.persistent_keepalive, str(first.endpoint)) == (True, 5, "10.0.0.9:1")
    assert len(warnings(text)) == 1


def test_a_prefix_belongs_to_the_last_peer_that_claims_it():
    """As in the kernel; both lines are named."""
    text = f"[Interface]\n[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=10.0.0.1,10.0.0.2\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.0.0.1/32\n"
    config = parse(text, path="wg0.conf")
    assert [p.allowed_ips for p in config.peers] == [(ip_network("10.0.0.2/32"),), (ip_network("10.0.0.1/32"),)]
    assert warnings(text) == [
        "wg0.conf:7: [Peer] AllowedIPs: 10.0.0.1/32 is also claimed in line 4; the last one has it"
    ]


def test_defaults_and_networks():
    """The questions that routing asks of a file."""
    text = (
        f"[Interface]\nAddress=10.8.0.1/24,10.8.0.2/24,fd00::1/64\nFwMark=0xca6c\n"
        f"[Peer]\nPublicKey={PUBLIC}\nAllowedIPs=::/0\nEndpoint=h:1\n[Peer]\nPublicKey={OTHER}\nAllowedIPs=10.0.0.0/1\n"
    )
    config = parse(text, path="wg0.conf")
    assert [p.public_key for p in config.peers_claiming_default()] == [PublicKey.parse(PUBLIC)]
    assert config.tunnel_networks() == (ip_network("10.8.0.0/24"), ip_network("fd00::/64"))
    device = config.device()
    assert (device.fwmark, device.listen_port, device.peers[0].endpoint) == (0xCA6C, None, None)
    assert device.peers[0].clear_preshared_key


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["# alice", "[Peer]", "@"], "alice"),
        (["### Client alice", "[Peer]", "@"], "alice"),
        (["# BEGIN_PEER alice", "[Peer]", "@", "# END_PEER alice"], "alice"),
        (["#Name=alice", "# a laptop", "[Peer]", "@"], "alice"),
        (["[Peer]", "# friendly_name = alice", "@"], "alice"),
        (["[Peer]", "@ # Name: alice"], "alice"),
        (["# bob", "[Peer]", "@", "# Name = alice", "AllowedIPs=::"], "alice"),
        (["[Peer] # alice", "@"], "alice"),
        (["[Peer]", "# alice", "@"], "alice"),
        (["# alice", "", "[Peer]", "@"], None),
        (["# AllowedIPs = 1.2.3.4/32", "[Peer]", "@"], None),
        (["#[Peer]", "[Peer]", "@"], None),
        ([f"# {PSK}", "[Peer]", "@"], None),
        ([f"# Name = {PSK}", "[Peer]", "@"], None),
        (["# " + "x" * 65, "[Peer]", "@"], None),
        (["[Peer]", "@", "", "# Name = of the next"], None),
    ],
)
def test_names_of_peers(lines, name):
    """A peer is named by the comments that people and scripts write; never by a setting that is off, nor by a key."""
    text = "\n".join(["[Interface]", "", *lines]).replace("@", f"PublicKey = {PUBLIC}")
    assert parse(text, path="wg0.conf").peers[0].name == name
