# SPDX-License-Identifier: Apache-2.0
"""The door is invisible to everybody else, leaves nothing behind, and says so where it cannot be built."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netns.door_stand import LONG_PATIENCE, PATIENCE
from netns.pods import PodNet
from wicketgate.errors import KernelRefused, ToolMissing
from wicketgate.health.door import Door, DoorUnavailable, Outcome
from wicketgate.kernel import nft, process
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.tc import TrafficControl

SRC = str(Path(__file__).parents[2] / "src")
FOREIGN_NFT = """
table ip foreign {
 chain i {
  type filter hook input priority 0; policy accept;
  ip saddr 192.0.2.0/24 counter comment "any of the door's"
  udp dport 5353 counter accept
 }
 chain n {
  type nat hook postrouting priority 100;
  ip daddr 198.51.100.0/24 counter masquerade
 }
}
table ip6 foreign {
 chain i {
  type filter hook input priority 0; policy accept;
  udp dport 5353 counter accept
 }
}
"""


@pytest.fixture(scope="module")
def net():
    with PodNet.create("bridge", "traces") as made:
        # Where foreign filters of these tests send packets: nobody is there.
        made.pod.run("ip", "link", "add", "sink", "up", "type", "veth", "peer", "name", "drain")
        made.pod.run("ip", "link", "set", "drain", "up")
        yield made


@pytest.fixture
def pod(net):
    """The pod as a test found it, and finds it again."""
    before = looks(net.pod)
    yield net.pod
    net.pod.run(
        "sh",
        "-c",
        "nft flush ruleset; tc qdisc del dev eth0 clsact 2>/dev/null; tc qdisc del dev eth0 ingress 2>/dev/null; true",
    )
    assert looks(net.pod) == before


def looks(pod, *, counts: bool = True) -> str:
    """All that the door could leave behind, without numbers that change by themselves."""
    script = (
        "tc -s qdisc show dev eth0; tc filter show dev eth0 egress; tc filter show dev eth0 ingress; nft list ruleset;"
        "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; ip link show eth0; ip addr show eth0"
    )
    text = pod.run("sh", "-c", script).stdout
    text = re.sub(r"Sent \d+ bytes \d+ pkt|expires \d+sec|metric \d+|(fh|key ht|index) \w+", "", text)
    return text if counts else re.sub(r"packets \d+ bytes \d+", "packets N", text)


def door(netlink: Netlink, **options) -> Door:
    defaults = {"uplink": "eth0", "addresses": (PodNet.pod4, PodNet.pod6), "tag": "wg0"}
    return Door(netlink, **(defaults | options))


async def echoes(made: Door, family: int = 4, patience: float = LONG_PATIENCE) -> bool:
    """Whether a stranger's datagram is answered by a socket of the pod."""
    loop = asyncio.get_running_loop()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.bind((str(made.pod(family)), 0))
        server.setblocking(False)
        with made.udp_socket(family, server.getsockname()[1]) as client:
            client.send(b"question")
            try:
                async with asyncio.timeout(patience):
                    data, sender = await loop.sock_recvfrom(server, 100)
                    await loop.sock_sendto(server, data, sender)
                    return await loop.sock_recv(client, 100) == b"question"
            except TimeoutError:
                return False


def in_pod(pod, function):
    """Run `function(netlink)` in the pod."""

    async def run():
        async with Netlink() as netlink:
            return await function(netlink)

    return pod.acall(run)


async def refused(netlink: Netlink, **options) -> str:
    """The reason why there is no door."""
    with pytest.raises(DoorUnavailable) as told:
        await door(netlink, **options).open()
    return str(told.value)


def test_nothing_is_left_after_closing(pod):
    """Qdiscs, filters, tables, rules, routes and the interface are after the door what they were before it."""
    before = looks(pod)

    async def use(netlink):
        async with door(netlink) as made:
            assert await echoes(made, 4)
            assert await echoes(made, 6)
            assert "wicketgate-door-wg0" in looks(pod)
            assert await made.verify()

    in_pod(pod, use)
    assert looks(pod) == before


def test_foreign_filters_rules_and_traffic_do_not_notice(net, pod):
    """Somebody's clsact, filters and tables count what they counted before, and not one of the door's packets alters."""
    pod.run("nft", "-f", "-", stdin=FOREIGN_NFT)
    pod.run(
        "sh",
        "-ec",
        (
            "tc qdisc add dev eth0 clsact\n"
            "tc filter add dev eth0 egress protocol ip pref 7 u32 match ip protocol 17 0xff action mirred egress mirror dev sink continue\n"
            "tc filter add dev eth0 ingress protocol ip pref 7 u32 match ip protocol 17 0xff action mirred egress mirror dev sink continue\n"
        ),
    )
    before = looks(pod, counts=False)
    server = pod.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client = net.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with server, client:
        server.bind((str(net.pod4), 5353))
        client.connect((str(net.pod4), 5353))
        for sock in (server, client):
            sock.settimeout(5)

        def exchange(times: int) -> None:
            for _ in range(times):
                client.send(b"foreign")
                data, sender = server.recvfrom(100)
                server.sendto(data, sender)
                assert client.recv(100) == b"foreign"

        def counted() -> int:
            return int(
                re.search(
                    r"udp dport 5353 counter packets (\d+)", pod.run("nft", "list", "table", "ip", "foreign").stdout
                )[1]
            )

        exchange(3)
        assert counted() == 3

        async def use(netlink):
            async with door(netlink) as made:
                exchange(3)
                assert await echoes(made)
                exchange(3)

        in_pod(pod, use)
        exchange(1)
        assert counted() == 10
    assert looks(pod, counts=False) == before
    egress = pod.run("tc", "-s", "filter", "show", "dev", "eth0", "egress").stdout
    assert int(re.search(r"Sent \d+ bytes (\d+) pkt", egress)[1]) >= 10


def test_the_agents_half_leaves_no_conntrack_entry(pod):
    """Only the stranger's conversation is tracked, as a client's is; what the agent says to itself is not."""
    pod.run("nft", "-f", "-", stdin=FOREIGN_NFT)

    async def use(netlink):
        async with door(netlink) as made:
            entries = Path("/proc/thread-self/net/nf_conntrack")
            count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
            before = int(count.read_text())
            assert await echoes(made)
            if entries.exists():
                assert "192.0.2.1 " not in entries.read_text()
            return int(count.read_text()) - before

    assert in_pod(pod, use) == 1


def test_a_foreign_clsact_and_its_filters_survive(pod):
    """The qdisc that was there stays; a filter on our own priority makes the door take another."""
    pod.run(
        "sh",
        "-ec",
        (
            "tc qdisc add dev eth0 clsact\n"
            "tc filter add dev eth0 egress protocol ip pref 60000 u32 match ip dst 10.99.0.1 flowid 1:1\n"
        ),
    )
    before = looks(pod)

    async def use(netlink):
        async with door(netlink) as made:
            assert await echoes(made)
            assert str(made.stranger(4)) == "192.0.2.6"

    in_pod(pod, use)
    assert looks(pod) == before


def test_a_clsact_that_others_came_to_use_stays(pod):
    """The door made the qdisc; somebody hung a filter on it meanwhile: it is left to them."""

    async def use(netlink):
        async with door(netlink):
            pod.run(
                "tc",
                "filter",
                "add",
                "dev",
                "eth0",
                "ingress",
                "protocol",
                "ip",
                "pref",
                "5",
                "u32",
                "match",
                "u32",
                "0",
                "0",
                "flowid",
                "1:1",
            )

    in_pod(pod, use)
    shown = pod.run("sh", "-c", "tc qdisc show dev eth0; tc filter show dev eth0 ingress").stdout
    assert "clsact" in shown
    assert "pref 5" in shown
    assert pod.run("tc", "filter", "show", "dev", "eth0", "egress").stdout == ""


def test_a_foreign_ingress_qdisc_means_no_door(pod):
    """Where the old `ingress` qdisc holds clsact's place there is no door, and the qdisc is not touched."""
    pod.run("tc", "qdisc", "add", "dev", "eth0", "ingress")
    before = looks(pod)
    assert "ingress" in in_pod(pod, refused)
    assert looks(pod) == before


@pytest.mark.parametrize("action", ["flowid 1:1", "action mirred egress redirect dev sink"])
def test_a_filter_that_takes_the_packets_first_is_no_green(pod, action):
    """A terminal filter before ours: no door at all; one that comes later: a red, and then no door, never a green."""
    # Without an action u32 says TC_ACT_OK, as `action ok` and most BPF programs do.
    steal = ("sh", "-c", f"tc filter add dev eth0 egress protocol ip pref 3 u32 match u32 0 0 {action}")
    pod.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    pod.run(*steal)
    before = looks(pod)
    assert "pref 3 u32" in in_pod(pod, refused)
    assert looks(pod) == before
    pod.run("tc", "filter", "del", "dev", "eth0", "egress", "pref", "3")

    async def later(netlink):
        made = door(netlink)
        await made.open()
        assert await echoes(made)
        pod.run(*steal)
        assert not await echoes(made, patience=PATIENCE)
        assert not await made.verify()
        with pytest.raises(DoorUnavailable, match="pref 3 u32"):
            await made.repair()

    in_pod(pod, later)
    assert looks(pod) == before


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "tc qdisc del dev eth0 clsact",
        "tc filter del dev eth0 egress pref 60000",
        "nft flush chain ip6 wicketgate-door-wg0.eth0 prerouting-first",
    ],
)
def test_damage_is_noticed_and_mended(pod, damage):
    """Somebody flushes the ruleset or removes the qdisc: `verify` says so and `repair` builds it again."""

    async def use(netlink):
        async with door(netlink) as made:
            pod.run("sh", "-ec", damage)
            assert not await made.verify()
            await made.repair()
            assert await made.verify()
            assert await echoes(made, 4)
            assert await echoes(made, 6)

    in_pod(pod, use)


HOLD = """
import asyncio, sys
from ipaddress import ip_address
from wicketgate.health.door import Door
from wicketgate.kernel.netlink import Netlink
async def main():
    async with Netlink() as netlink:
        door = Door(netlink, uplink="eth0", addresses=[ip_address(a) for a in sys.argv[2:]], tag=sys.argv[1])
        await door.open()
        print("open", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def kill_with_open_door(net, tag: str) -> None:
    """A process that opened a door and was killed by SIGKILL."""
    holder = net.pod.popen(
        sys.executable,
        "-c",
        HOLD,
        tag,
        str(net.pod4),
        str(net.pod6),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SRC},
    )
    with holder.stdout:
        assert holder.stdout.readline() == b"open\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=10)


def test_what_a_killed_agent_left_is_cleaned_by_the_next(net, pod):
    """After kill -9 the door still hangs there; the next start of the same tunnel takes it away, another's it leaves."""
    before = looks(pod)
    kill_with_open_door(net, "wg0")
    kill_with_open_door(net, "wg1")
    assert "wicketgate-door-wg0.eth0" in looks(pod)

    async def use(netlink):
        async with door(netlink) as made:
            assert await echoes(made)
        left = looks(pod)
        assert "wicketgate-door-wg0.eth0" not in left
        assert "wicketgate-door-wg1.eth0" in left
        assert await Door.clean_leftovers(netlink, "wg0") == 0
        assert await Door.clean_leftovers(netlink, "wg1") > 0

    in_pod(pod, use)
    assert looks(pod) == before


ALONE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from netns.test_door_traces import *
with open("/proc/self/status") as file:
    print([line.split()[1] for line in file if line.startswith(("CapEff", "CapBnd"))])
try:
    open("/proc/sys/net/ipv4/ip_forward", "w").write("1")
except OSError as error:
    print("read-only", error.errno)
async def main():
    async with Netlink() as netlink, door(netlink) as made:
        server = await asyncio.start_server(lambda r, w: w.close(), str(made.pod(4)), 0)
        port = server.sockets[0].getsockname()[1]
        print(await echoes(made, 4), await echoes(made, 6), (await made.tcp_check(4, port, 1)).outcome, await made.verify())
asyncio.run(main())
"""


def test_cap_net_admin_alone_is_enough(pod):
    """Uid 0 with CAP_NET_ADMIN and nothing else, /proc/sys read-only: the door opens, serves, and goes without a trace."""
    before = looks(pod)
    caps = "-all,+net_admin"
    inner = f'setpriv --bounding-set {caps} --inh-caps {caps} {sys.executable} -c "$CODE" {Path(__file__).parents[1]}'
    script = f"mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {inner}"
    done = subprocess.run(
        pod.argv("unshare", "--mount", "sh", "-c", script),
        env=os.environ | {"PYTHONPATH": SRC, "CODE": ALONE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "['0000000000001000', '0000000000001000']",
        "read-only 30",
        "True True answered True",
    ], done.stderr
    assert looks(pod) == before


def test_no_door_without_the_right(pod):
    """Without CAP_NET_ADMIN the reason is said, and nothing is left."""
    code = ALONE.replace("async def main", "async def unused").replace(
        "asyncio.run(main())",
        (
            "async def closed():\n    async with Netlink() as netlink:\n        print(await refused(netlink))\nasyncio.run(closed())"
        ),
    )
    inner = [
        "setpriv",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parents[1]),
    ]
    done = subprocess.run(
        pod.argv(*inner), env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, timeout=60, check=False
    )
    assert "no door at eth0" in done.stdout, done.stderr
    assert "not permitted" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "what", ["nft is missing", "mirred is missing", "mirred is missing for IPv6", "old kernel", "no such interface"]
)
def test_a_door_that_cannot_be_built_leaves_nothing(pod, monkeypatch, what):
    """No nft, no mirred (also when the first filter was taken), an old kernel, no interface: a reason, and no trace."""
    before = looks(pod)
    options = {}
    if what == "nft is missing":

        def missing(name):
            raise ToolMissing(f"{name} is not installed here")

        monkeypatch.setattr(process, "find_tool", missing)
        expected = "nft is not installed"
    elif what.startswith("mirred"):
        real = TrafficControl.add

        async def refuse(self, index, name, redirects, *, clsact):
            if what.endswith("IPv6"):
                await real(self, index, name, redirects[:3], clsact=clsact)
            raise KernelRefused("tc filter add", 2, "Failed to load TC action module")

        monkeypatch.setattr(TrafficControl, "add", refuse)
        expected = "Failed to load TC action module"
    elif what == "old kernel":
        options, expected = {"kernel_release": "5.15.0-1-amd64"}, "older than 5.16"
    else:
        options, expected = {"uplink": "eth7"}, "no interface eth7"
    reason = in_pod(pod, lambda netlink: refused(netlink, **options))
    assert expected in reason
    monkeypatch.undo()
    assert looks(pod) == before


@pytest.mark.parametrize(
    ("chain", "words"), [("output", "keeps in what the agent itself sends"), ("input", "drops the answers")]
)
def test_a_firewall_that_stops_only_the_agents_half_is_no_red(pod, chain, words):
    """Clients are served, only the agent cannot speak to itself: then there is no door, rather than a red that lies."""
    match = (
        "udp sport 51820 accept\n  meta l4proto { icmp, icmpv6 } accept"
        if chain == "output"
        else "ip saddr 192.0.2.2 accept\n  ip6 saddr 2001:db8:5747::2 accept\n  meta l4proto icmpv6 accept"
    )
    pod.run(
        "nft",
        "-f",
        "-",
        stdin=f"table inet foreign {{\n chain c {{\n  type filter hook {chain} priority 0; policy drop;\n  {match}\n }}\n}}\n",
    )
    before = looks(pod, counts=False)
    assert words in in_pod(pod, refused)
    assert looks(pod, counts=False) == before


def test_tcp_stays_out_on_kernels_that_may_deadlock(pod):
    """On a kernel without the fix `auto` says no before any packet, `always` says yes, `never` says no anywhere."""

    async def use(netlink):
        old = door(netlink, kernel_release="6.1.0-1-amd64")
        assert not old.tcp_supported
        assert "CVE-2024-26740" in old.reason
        async with old:
            assert await echoes(old)
            with pytest.raises(DoorUnavailable, match="CVE-2024-26740"):
                await old.tcp_check(4, 80, 1)
        assert door(netlink, kernel_release="6.1.0-1-amd64", tcp="always").tcp_supported
        assert not door(netlink, tcp="never").tcp_supported

    in_pod(pod, use)


def test_tcp_answers_are_told_apart(pod):
    """A refusal, a status, something that is not HTTP, and silence are four different answers."""

    async def use(netlink):
        async def talk(reader, writer):
            said = await reader.readline()
            writer.write(b"HTTP/1.1 503 no\r\n\r\n" if b"/healthz" in said else b"SSH-2.0-x\r\n")
            writer.close()

        async with door(netlink) as made:
            server = await asyncio.start_server(talk, str(made.pod(6)), 0)
            port = server.sockets[0].getsockname()[1]
            answer = await made.tcp_check(6, port, 2, http_path="/healthz")
            assert (answer.outcome, answer.status) == (Outcome.ANSWERED, 503)
            assert (await made.tcp_check(6, port, 2, http_path="/other")).outcome is Outcome.GARBAGE
            assert (await made.tcp_check(6, port, 2)).outcome is Outcome.ANSWERED
            server.close()
            assert (await made.tcp_check(6, port, 2)).outcome is Outcome.REFUSED
            pod.run(
                "nft",
                "-f",
                "-",
                stdin="table ip6 f {\n chain c {\n  type filter hook input priority 0;\n  tcp flags syn drop\n }\n}\n",
            )
            assert (await made.tcp_check(6, port, PATIENCE)).outcome is Outcome.SILENT

    in_pod(pod, use)


def test_the_door_is_gone_with_its_interface(net, pod):
    """The uplink is made anew under the same name: the door knows that it is another one."""

    async def use(netlink):
        pod.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "peer9")
        pod.run("ip", "addr", "add", "10.99.9.1/24", "dev", "eth9")
        pod.run("ip", "link", "set", "eth9", "up")
        made = door(netlink, uplink="eth9", addresses=(PodNet.pod4.__class__("10.99.9.1"),))
        await made.open()
        pod.run("ip", "link", "del", "eth9")
        assert not await made.verify()
        await made.close()
        assert await nft.nft_tables() == ()

    in_pod(pod, use)
