# SPDX-License-Identifier: Apache-2.0
"""The door is invisible to everybody else, leaves nothing behind, and says so where it cannot be built."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from netns.door_stand import PATIENCE
from netns.door_traces import door, echoes, in_pod, looks, net, pod, refused
from netns.pods import PodNet
from wicketgate.health.door import DoorUnavailable, Outcome
from wicketgate.kernel import nft

__all__ = ["net", "pod"]  # fixtures

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


@pytest.mark.parametrize("what", ["repair", "the next start"])
def test_clsact_stays_while_a_door_is_rebuilt(pod, what):
    """The kernel drops what leaves the interface when clsact comes or goes: a firewall's reload, or a start after
    kill -9, changes filters and tables only; at the end it is gone all the same.
    """
    before = looks(pod)

    def passed() -> int:
        """Packets that this very qdisc has seen."""
        shown = pod.run("tc", "-s", "qdisc", "show", "dev", "eth0").stdout
        return int(re.search(r"clsact.*\n Sent \d+ bytes (\d+) pkt", shown)[1])

    async def use(netlink):
        made = door(netlink)
        await made.open()
        for _ in range(20):
            assert await echoes(made)
        counted = passed()
        assert counted > 20
        pod.run("nft", "flush", "ruleset")
        if what == "repair":
            await made.repair()
        else:
            made._tc.close()  # as after kill -9: nothing is undone
            made = door(netlink)
            await made.open()
        assert passed() >= counted
        assert await made.verify()
        assert await echoes(made)
        await made.close()

    in_pod(pod, use)
    assert looks(pod) == before


@pytest.mark.parametrize("family", [4, 6])
def test_counting_chains_stand_only_during_an_account(pod, family):
    """Asked what took a probe, the door counts it and is then what it was; also when the probe ends in an error."""

    async def use(netlink):
        async with door(netlink) as made:
            stood = looks(pod, counts=False)
            counted = []

            async def again():
                counted.append(pod.run("nft", "list", "ruleset").stdout.count("chain count-"))
                await echoes(made, family)

            assert await made.account(family, again) is None
            assert counted == [8]
            assert looks(pod, counts=False) == stood

            async def fails():
                raise RuntimeError("a slip")

            with pytest.raises(RuntimeError):
                await made.account(family, fails)
            assert looks(pod, counts=False) == stood
            waiting = asyncio.Event()

            async def forever():
                waiting.set()
                await asyncio.Event().wait()

            task = asyncio.create_task(made.account(family, forever))
            await waiting.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert looks(pod, counts=False) == stood
            assert await made.verify()

    in_pod(pod, use)


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
