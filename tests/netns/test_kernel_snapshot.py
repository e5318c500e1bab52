# SPDX-License-Identifier: Apache-2.0
"""Snapshots of real namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from ipaddress import ip_address, ip_network

import pytest

from wicketgate.clock import FakeClock
from wicketgate.errors import InputError, KernelRefused, StateError
from wicketgate.kernel import listings, sockets
from wicketgate.kernel import snapshot as snapshot_module
from wicketgate.kernel.namespace import enter
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.codec import from_json, to_json
from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.packet import SYN, TCP, Connection, Packet
from wicketgate.netpath.snapshot import Unread


@pytest.fixture
def host(new_host):
    """A host with e0 (10.0.0.1/24), e1 and wg-quick's rules."""
    made = new_host("snapshot")
    made.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for command in (
        "addr add 10.0.0.1/24 dev e0",
        "link set e0 up",
        "link set e1 up",
        "rule add not fwmark 51820 table 51820",
        "rule add table main suppress_prefixlength 0",
        "route add default dev e1 table 51820",
    ):
        made.run("ip", *command.split())
    return made


def test_what_is_there_is_in_the_snapshot(host):
    """Links, addresses, routes of every table, rules, sysctls, sockets and the three firewalls, through JSON and back."""
    host.run("nft", "add", "table", "inet", "mine")
    host.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
    host.run("iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
    with contextlib.ExitStack() as stack:

        def listen():
            for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM)):
                sock = stack.enter_context(socket.socket(family, kind))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"e0")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
                sock.bind(("", 9000))
                if kind == socket.SOCK_STREAM:
                    sock.listen()

        host.call(listen)
        taken = host.acall(lambda: take_snapshot(clock=FakeClock(wall=5.0)))
    assert taken.taken_at == 5.0
    assert taken.kernel_release == os.uname().release
    assert {link.name: link.up for link in taken.links} == {"lo": True, "e0": True, "e1": True}
    assert {(r.dst, r.table) for r in taken.routes} >= {
        (ip_network("0.0.0.0/0"), 51820),
        (ip_network("10.0.0.0/24"), 254),
        (ip_network("10.0.0.1/32"), 255),
    }
    assert [
        (r.priority, r.invert, r.fwmark, r.suppress_prefixlength) for r in taken.rules if 32000 < r.priority < 32766
    ] == [
        (32764, False, 0, 0),
        (32765, True, 51820, None),
    ]
    assert taken.sysctls["net.ipv4.conf.e0.rp_filter"] in ("0", "1", "2")
    assert taken.sysctls["net.ipv6.conf.all.forwarding"] == "0"
    assert {(s.protocol, s.family, s.port, s.bound_device, s.mark) for s in taken.sockets} == {
        ("tcp", 4, 9000, "e0", 7),
        ("udp", 6, 9000, "e0", 7),
    }
    assert [s.v6only for s in taken.sockets if s.family == 6] == [True]
    assert "mine" in {e["table"]["name"] for e in json.loads(taken.firewall.nft_json)["nftables"] if "table" in e}
    assert "table inet mine" in taken.firewall.nft_text
    assert "-A INPUT -p tcp -m tcp --dport 9000 -j DROP" in taken.firewall.iptables_nft
    assert "-A FORWARD -j ACCEPT" in taken.firewall.iptables_legacy
    assert taken.firewall.ip6tables_legacy == ""
    assert taken.unread == ()
    assert taken.wireguard == ()
    assert not taken.changed_while_read
    assert from_json(to_json(taken)) == taken


def test_looking_changes_nothing(host):
    """No legacy table appears because somebody asked whether there is one."""
    first = host.acall(take_snapshot)
    assert first.firewall.iptables_legacy == ""
    second = host.acall(take_snapshot)
    for path in ("/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"):
        assert host.call(lambda path=path: listings.legacy_tables(path)) == ()
    assert (second.links, second.routes, second.rules, second.firewall) == (
        first.links,
        first.routes,
        first.rules,
        first.firewall,
    )


def test_a_missing_tool_is_told_and_the_rest_is_read(host, monkeypatch, tmp_path):
    """Without nft and iptables there are notes instead of listings, each naming the package to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("wicketgate.kernel.process._SBIN", str(tmp_path))
    taken = host.acall(take_snapshot)
    assert taken.firewall.nft_json is None
    missing = {u.what: u.why for u in taken.unread}
    assert set(missing) == {"nft -j list ruleset", "nft list ruleset", "iptables-nft-save -c", "ip6tables-nft-save -c"}
    assert "apt-get install nftables" in missing["nft list ruleset"]
    assert len(taken.rules) >= 5


def test_without_rights_what_can_be_read_is_read(host):
    """Uid 65534 with no capability: routes, rules and sockets are there, the firewall is told as unread."""
    script = (
        "import asyncio\n"
        "from wicketgate.kernel.snapshot import take_snapshot\n"
        "from wicketgate.netpath.codec import to_json\n"
        "print(to_json(asyncio.run(take_snapshot())))\n"
    )
    # The interpreter may stand where only root can reach it, so root's uid is kept and the capabilities go.
    done = host.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script)
    taken = from_json(done.stdout)
    assert len(taken.rules) >= 5
    assert taken.firewall.nft_json is None
    assert {"nft -j list ruleset", "nft list ruleset"} <= {u.what for u in taken.unread}
    assert all(u.why for u in taken.unread)


def test_a_part_that_fails_is_told_and_the_rest_is_read(host, monkeypatch):
    """inet_diag refused: sockets come from /proc, and what is then not known is said."""

    async def refused():
        raise KernelRefused("ss -lntu", 2, "No such file or directory")

    async def no_rules(self, family=None):
        raise KernelRefused("ip -4 rule", 11, "somebody floods them")

    monkeypatch.setattr(snapshot_module, "listening_sockets", refused)
    monkeypatch.setattr(snapshot_module.Netlink, "rules", no_rules)
    with host.call(lambda: socket.create_server(("10.0.0.1", 8080))):
        taken = host.acall(lambda: take_snapshot(firewall=False))
    assert [(s.address, s.port, s.v6only) for s in taken.sockets] == [(ip_address("10.0.0.1"), 8080, None)]
    assert [u.what for u in taken.unread][:2] == ["rules", "sockets: bound device, v6only and mark"]
    assert Unread("firewall", "not asked for") in taken.unread
    assert taken.rules == ()
    assert len(taken.links) == 3


@pytest.mark.parametrize("what", ["routes", "nftables"])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_a_change_during_the_reading_is_noticed(host, monkeypatch, what, always):
    """Read once more when something changed meanwhile; when it changes again, the snapshot says so."""
    real = snapshot_module.Netlink.neighbours
    rounds = []

    async def meddling(self):
        if always or not rounds:
            command = {
                "routes": ("ip", "route", "add", f"10.9.{len(rounds)}.0/24", "dev", "e1"),
                "nftables": ("nft", "add", "table", "inet", f"t{len(rounds)}"),
            }[what]
            host.run(*command)
        rounds.append(1)
        return await real(self)

    monkeypatch.setattr(snapshot_module.Netlink, "neighbours", meddling)
    taken = host.acall(take_snapshot)
    assert len(rounds) == 2
    assert taken.changed_while_read is always
    if what == "routes" and not always:
        assert ip_network("10.9.0.0/24") in {r.dst for r in taken.routes}


def test_a_dead_socket_directory_is_no_obstacle(host, tmp_path):
    """No wireguard-go anywhere: nothing to tell, nothing raised."""
    taken = host.acall(lambda: take_snapshot(firewall=False, sockets=False, uapi_dir=str(tmp_path / "none")))
    assert taken.wireguard == ()
    assert {u.what for u in taken.unread} == {"firewall", "sockets"}


def wicket(*arguments):
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "wicketgate", "snapshot", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_looks_into_another_namespace(host):
    """`wicket snapshot --netns pid:N` and `--netns PATH` print that namespace; the caller's own is not in it."""
    for where in (f"pid:{host.pid}", f"/proc/{host.pid}/ns/net"):
        done = wicket("--netns", where)
        assert (done.returncode, done.stderr) == (0, "")
        assert {link.name for link in from_json(done.stdout).links} == {"lo", "e0", "e1"}
    done = wicket("--netns", "no-such-name")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("wicket: --netns no-such-name: ")


@pytest.mark.parametrize(
    ("where", "kind", "says"),
    [
        ("no-such-name", StateError, "/run/netns/no-such-name: No such file or directory"),
        ("", InputError, "allowed: a name of `ip netns`, a path, or pid:N"),
        ("..", InputError, "allowed: a name of `ip netns`, a path, or pid:N"),
        ("pid:0", InputError, "allowed: a positive number"),
        ("pid:x", InputError, "allowed: a positive number"),
        ("/etc/hostname", StateError, "no network namespace"),
        ("pid:4194305", StateError, "No such file or directory"),
    ],
)
def test_a_namespace_that_is_none(where, kind, says):
    """A mistyped name is an error that says what is allowed, and makes nothing."""
    with pytest.raises(kind) as caught:
        enter(where)
    assert says in str(caught.value)
    assert not os.path.exists("/run/netns/no-such-name")


def test_inet_diag_does_not_wait_for_ever(host, monkeypatch):
    """An error message of sock_diag is an error, not silence."""

    async def main():
        monkeypatch.setattr(sockets, "SOCK_DIAG_BY_FAMILY", 99)
        with pytest.raises(KernelRefused):
            await asyncio.wait_for(sockets.listening_sockets(), 10)

    host.acall(main)


def test_a_socket_that_cannot_be_had_is_a_clear_error(host, monkeypatch):
    """Not even netlink: StateError with the reason, no traceback."""

    def refuse(*_args, **_options):
        raise PermissionError(1, "Operation not permitted")

    async def main():
        monkeypatch.setattr("wicketgate.kernel.connection.AsyncIPRoute", refuse)
        with pytest.raises(StateError, match="Operation not permitted"):
            await take_snapshot()

    host.acall(main)


def test_a_table_that_iptables_prints_is_not_listed_twice(new_host):
    """The others alone are listed by nft; one that has base chains of both is listed by both, and none of its chains is lost."""
    host = new_host("tables")
    host.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
    host.run("ip6tables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
    host.run(
        "nft", "add table inet zz; add table ip raw; add table inet aa; add chain inet aa c; add rule inet aa c drop"
    )
    host.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
    host.run(
        "nft", "add chain ip nat odd { type filter hook input priority 7; }; add rule ip nat odd tcp dport 99 drop"
    )
    taken = host.acall(lambda: take_snapshot(sockets=False))

    def listed(kind):
        items = (each[kind] for each in json.loads(taken.firewall.nft_json)["nftables"] if kind in each)
        return [(each["family"], each["name"]) for each in items]

    objects = json.loads(host.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    everything = [(each["table"]["family"], each["table"]["name"]) for each in objects if "table" in each]
    kept = [each for each in everything if each not in (("ip", "filter"), ("ip6", "filter"), ("ip", "raw"))]
    assert [each for each in listed("table") if each != ("ip", "raw")] == kept
    assert ("ip", "odd") in listed("chain")
    assert "table inet zz" in taken.firewall.nft_text
    assert "table ip filter" not in taken.firewall.nft_text
    rules = Ruleset(taken)
    for port, verdict in ((9000, HookVerdict.DROP), (99, HookVerdict.DROP), (80, HookVerdict.ACCEPT)):
        packet = Packet(ip_address("192.0.2.9"), ip_address("10.0.0.1"), TCP, 40000, port, iif="e0", tcp_flags=SYN)
        assert rules.hook("input", packet, Connection.opened_by(packet)).verdict is verdict


def test_a_table_whose_name_nft_cannot_be_told(new_host):
    """Then all tables are listed at once."""
    host = new_host("names")
    host.run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    host.run(
        "nft", "-j", "-f", "-", stdin='{"nftables": [{"add": {"table": {"family": "inet", "name": "1 odd;name"}}}]}'
    )
    taken = host.acall(lambda: take_snapshot(sockets=False))
    names = {each["table"]["name"] for each in json.loads(taken.firewall.nft_json)["nftables"] if "table" in each}
    assert names == {"filter", "1 odd;name"}
