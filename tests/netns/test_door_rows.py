# SPDX-License-Identifier: Apache-2.0
"""The door's verdict is a real outside client's, in every state of the pod; a handshake over `lo` is blind.

Each state is tried with a whole handshake (Noise IKpsk2 with a preshared key, against wireguard-go) and with HTTP on a
TCP port, in both CNI shapes and both families, under strict rp_filter.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import pytest

from netns.door_stand import PATIENCE, PORT, TCP_PORT, Seen, Stand
from netns.pods import SHAPES
from wicketgate.health.door import Door
from wicketgate.kernel.netlink import Netlink


@pytest.fixture(scope="module", params=SHAPES)
def stand(request):
    with Stand.create(request.param, "rows") as made:
        yield made


@dataclass(frozen=True)
class Row:
    """A state of the pod, and what a client outside then sees. {F} is 4 or 6, {ip} ip or ip6, {tables} iptables' name."""

    do: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    udp: bool = False
    tcp: bool = False
    v6: tuple[bool, bool] | None = None  # (udp, tcp) where IPv6 differs: it has no rp_filter
    rp_filter: int = 1
    svm: int = 0
    lo: bool = True
    cause: str = ""  # what the door's counters say of a red under IPv4
    families: tuple[int, ...] = field(default=(4, 6))


NFT = "nft -f - <<'E'\ntable {ip} foreign {{\n%s\n}}\nE"
NFT_UNDO = ("nft delete table {ip} foreign",)
INPUT = " chain c {{\n  type filter hook input priority 0; policy %s;\n%s\n }}"


def nft(body: str) -> tuple[str, ...]:
    return (NFT % body,)


WG_QUICK = (
    "ip -{F} route add default dev wg0 table 51820",
    "ip -{F} rule add not fwmark 51820 table 51820 priority 32765",
    "ip -{F} rule add table main suppress_prefixlength 0 priority 32764",
)
WG_QUICK_UNDO = (
    "ip -{F} rule del priority 32765",
    "ip -{F} rule del priority 32764",
    "ip -{F} route del default dev wg0 table 51820",
)
OUTPUT_MARK = (
    " chain o {{\n  type route hook output priority -150;\n"
    f"  tcp sport {TCP_PORT} meta mark set 51820\n  udp sport {PORT} meta mark set 51820\n }}}}"
)
PREROUTING_MARK = (
    " chain p {{\n  type filter hook prerouting priority -150;\n"
    f"  tcp dport {TCP_PORT} meta mark set 51820\n  udp dport {PORT} meta mark set 51820\n }}}}"
)
# What wg-quick itself adds: connection marks for UDP.
CONNMARK = (
    " chain p {{\n  type filter hook prerouting priority -150;\n  meta l4proto udp meta mark set ct mark\n }}\n"
    " chain o {{\n  type filter hook postrouting priority -150;\n  meta l4proto udp meta mark 51820 ct mark set meta mark\n }}"
)
DEFAULT = {
    "bridge": {4: "via 10.44.0.1 dev eth0", 6: "via fd44::1 dev eth0"},
    "vpc": {4: "via 169.254.1.1 dev eth0", 6: "via fe80::1 dev eth0"},
}

ROWS = {
    "fine": Row(udp=True, tcp=True),
    "nft drops -i eth0": Row(
        nft(INPUT % ("accept", '  iifname "eth0" meta l4proto {{ tcp, udp }} drop')), NFT_UNDO, cause="input-drop"
    ),
    "iptables-nft drops -i eth0": Row(
        ("{tables}-nft -A INPUT -i eth0 -p udp -j DROP", "{tables}-nft -A INPUT -i eth0 -p tcp -j DROP"),
        ("nft delete table {ip} filter",),
        cause="input-drop",
    ),
    "iptables-legacy drops -i eth0": Row(
        ("{tables}-legacy -A INPUT -i eth0 -p udp -j DROP", "{tables}-legacy -A INPUT -i eth0 -p tcp -j DROP"),
        ("{tables}-legacy -F INPUT",),
        cause="input-drop",
    ),
    "nft drops new connections": Row(
        nft(INPUT % ("accept", '  iifname "eth0" ct state new meta l4proto {{ tcp, udp }} drop')), NFT_UNDO
    ),
    "nft drops on output": Row(
        nft(
            f" chain o {{{{\n  type filter hook output priority 0;\n  udp sport {PORT} drop\n  tcp sport {TCP_PORT} drop\n }}}}"
        ),
        NFT_UNDO,
        lo=False,
        cause="output-drop",
    ),
    "a firewall that lets in the two ports and what is established": Row(
        nft(
            INPUT
            % (
                "drop",
                (
                    '  iifname "lo" accept\n  ct state established,related accept\n'
                    f"  udp dport {PORT} accept\n  tcp dport {TCP_PORT} accept\n  meta l4proto icmpv6 accept"
                ),
            )
        ),
        NFT_UNDO,
        udp=True,
        tcp=True,
    ),
    # wireguard-go names the interface it was asked on in IP_PKTINFO, so its answers under IPv4 get home; TCP's do not.
    "wg-quick's rules, rp_filter off": Row(
        WG_QUICK, WG_QUICK_UNDO, udp=True, v6=(False, False), rp_filter=0, cause="reply-into-tunnel"
    ),
    "wg-quick's rules": Row(WG_QUICK, WG_QUICK_UNDO, cause="rp-filter"),
    "wg-quick's rules, device marks its packets": Row(
        (*WG_QUICK, "wg set wg0 fwmark 51820"), ("wg set wg0 fwmark 0", *WG_QUICK_UNDO), v6=(True, False)
    ),
    "wg-quick whole: rules, device mark, connection mark, src_valid_mark": Row(
        (*WG_QUICK, "wg set wg0 fwmark 51820", *nft(CONNMARK)),
        ("wg set wg0 fwmark 0", *NFT_UNDO, *WG_QUICK_UNDO),
        svm=1,
        v6=(True, False),
    ),
    "wg-quick's rules, replies pinned": Row(
        (*WG_QUICK, "ip -{F} rule add from {pod} lookup main priority 100"),
        ("ip -{F} rule del priority 100", *WG_QUICK_UNDO),
        udp=True,
        tcp=True,
    ),
    "wg-quick's rules, the two ports pinned": Row(
        (
            *WG_QUICK,
            f"ip -{{F}} rule add ipproto tcp sport {TCP_PORT} lookup main priority 100",
            f"ip -{{F}} rule add ipproto udp sport {PORT} lookup main priority 101",
        ),
        ("ip -{F} rule del priority 100", "ip -{F} rule del priority 101", *WG_QUICK_UNDO),
        udp=True,
        tcp=True,
    ),
    "mark in OUTPUT only": Row(
        (*WG_QUICK, *nft(OUTPUT_MARK)), (*NFT_UNDO, *WG_QUICK_UNDO), cause="rp-filter", v6=(True, True)
    ),
    "mark in OUTPUT and PREROUTING": Row(
        (*WG_QUICK, *nft(OUTPUT_MARK + "\n" + PREROUTING_MARK)), (*NFT_UNDO, *WG_QUICK_UNDO), v6=(True, True)
    ),
    "mark in OUTPUT and PREROUTING, src_valid_mark": Row(
        (*WG_QUICK, *nft(OUTPUT_MARK + "\n" + PREROUTING_MARK)), (*NFT_UNDO, *WG_QUICK_UNDO), udp=True, tcp=True, svm=1
    ),
    "default route gone": Row(("ip -{F} route del default",), ("ip -{F} route add default {default}",)),
}


def spelled(lines: tuple[str, ...], stand: Stand, family: int) -> list[str]:
    words = {
        "F": family,
        "ip": "ip" if family == 4 else "ip6",
        "tables": "iptables" if family == 4 else "ip6tables",
        "pod": stand.net.pod_address(family),
        "default": DEFAULT[stand.net.shape][family],
    }
    return [line.format(**words) for line in lines]


async def looks(stand: Stand, door: Door, family: int) -> list[Seen]:
    return list(await asyncio.gather(stand.look(door, family, "udp"), stand.look(door, family, "tcp")))


@pytest.mark.parametrize("name", ROWS)
def test_the_door_sees_what_an_outside_client_sees(stand, name):
    """In this state door and outside client agree, for UDP and TCP, IPv4 and IPv6, and `lo` claims that all is well."""
    row = ROWS[name]
    stand.rp_filter(row.rp_filter, row.svm)

    async def compare():
        async with stand.door() as door:
            for family in row.families:
                udp, tcp = row.v6 if family == 6 and row.v6 is not None else (row.udp, row.tcp)
                with stand.state(spelled(row.do, stand, family), spelled(row.undo, stand, family)):
                    expected = [Seen(udp, udp, row.lo), Seen(tcp, tcp, row.lo)]
                    seen = await looks(stand, door, family)
                    if seen != expected and not await door.verify():
                        # As the agent does: a red is believed only from a door that stands.
                        await door.repair()
                        seen = await looks(stand, door, family)
                    if seen != expected:
                        with stand.patient():
                            seen = await looks(stand, door, family)
                    if family == 4 and row.cause:

                        async def again():
                            await asyncio.gather(
                                stand._handshake("door", 4, door),
                                stand._tcp("door", 4, door),
                            )

                        loss = await door.account(family, again)
                        assert loss is not None, f"{name}: {seen}"
                        assert loss.cause == row.cause, loss
                    assert seen == expected, f"{name}, IPv{family}: {await door.counters(family)}"

    try:
        stand.pod.acall(compare)
    finally:
        stand.rp_filter(1)


@pytest.mark.parametrize("family", [4, 6])
def test_a_rate_limit_is_met_as_a_client_meets_it(stand, family):
    """`limit rate over 1/hour burst 2 packets drop`: two handshakes pass, the third does not; over `lo` all do."""
    ip = "ip" if family == 4 else "ip6"
    # 148 bytes of initiation and 8 of header: the limit counts handshakes.
    rule = '  iifname "eth0" udp length 156 limit rate over 1/hour burst 2 packets drop'
    do = (
        f"nft -f - <<'E'\ntable {ip} foreign {{\n chain c {{\n  type filter hook input priority 0;\n{rule}\n }}\n}}\nE",
    )
    undo = (f"nft delete table {ip} foreign",)

    async def compare():
        async with stand.door() as door:
            for who, expected in (("door", [True, True, False]), ("outside", [True, True, False]), ("lo", [True] * 3)):
                with stand.state(do, undo):
                    with stand.patient():
                        seen = [await stand._handshake(who, family, door) for _ in range(2)]
                    seen.append(await stand._handshake(who, family, door))
                assert seen == expected, who

    stand.pod.acall(compare)


@pytest.mark.parametrize("family", [4, 6])
def test_a_server_that_does_not_pin_its_source_is_found_out(stand, family):
    """A server on the wildcard address answers from whatever route it finds; with wg-quick's rules and a source rule
    its answers are lost all the same, for the client outside and for the door, but not over `lo`.
    """
    pinned = ROWS["wg-quick's rules, replies pinned"]
    stand.rp_filter(1)

    async def asks(sock: socket.socket) -> bool:
        with sock:
            sock.send(b"question")
            try:
                async with asyncio.timeout(PATIENCE):
                    return await asyncio.get_running_loop().sock_recv(sock, 100) == b"question"
            except (TimeoutError, OSError):
                return False

    async def compare():
        loop = asyncio.get_running_loop()
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        async with stand.door() as door:
            with socket.socket(inet, socket.SOCK_DGRAM) as server:
                server.bind(("", 0))
                server.setblocking(False)
                port = server.getsockname()[1]
                loop.add_reader(server.fileno(), lambda: server.sendto(*server.recvfrom(100)))
                outside, local = stand.outside_socket(family), socket.socket(inet, socket.SOCK_DGRAM)
                local.setblocking(False)
                for sock in (outside, local):
                    sock.connect((str(stand.net.pod_address(family)), port))
                with stand.state(spelled(pinned.do, stand, family), spelled(pinned.undo, stand, family)):
                    seen = await asyncio.gather(asks(outside), asks(door.udp_socket(family, port)), asks(local))
                loop.remove_reader(server.fileno())
        assert seen == [False, False, True]

    stand.pod.acall(compare)


def test_the_agents_half_has_a_way_past_a_strict_rp_filter(stand):
    """With the ports pinned and nothing else, M's answer needs a rule of its own; it is tagged, and gone after closing."""
    row = ROWS["wg-quick's rules, the two ports pinned"]
    stand.rp_filter(1)

    def ours() -> list[str]:
        return [line for line in stand.pod.run("ip", "-4", "rule").stdout.splitlines() if "192.0.2." in line]

    async def use():
        with stand.state(spelled(row.do, stand, 4), spelled(row.undo, stand, 4)):
            async with stand.door() as door:
                (rule,) = ours()
                assert f"from {stand.net.pod4} to 192.0.2.1 lookup main proto 87" in rule
                assert await door.verify()
                assert await stand.look(door, 4) == Seen(outside=True, door=True, lo=True)
                stand.pod.run("ip", "rule", "del", "priority", "7")
                assert not await door.verify()
                await door.repair()
                assert len(ours()) == 1
            assert ours() == []
            kept = Door(door._netlink, uplink="eth0", addresses=(stand.net.pod4,), tag="wg0")
            async with Netlink() as netlink:
                kept._netlink = netlink
                await kept.open()
                kept._tc.close()  # as after kill -9: nothing is undone
                assert await Door.clean_leftovers(netlink, "wg0") > 0
            assert ours() == []

    stand.pod.acall(use)
