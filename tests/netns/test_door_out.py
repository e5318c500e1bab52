# SPDX-License-Identifier: Apache-2.0
"""Out through the door: a tunnel client's datagram is forwarded, translated, turned round, and comes back.

Compared in every state with a real tunnel client outside whose datagram goes through the same tunnel to a real echo
server in another subnet.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from dataclasses import dataclass

import pytest

from netns.door_stand import PROBES, Stand
from netns.pods import SHAPES, sysctl
from wicketgate.wireguard.failure import ProbeFailure

ECHO_PORT = 7


@pytest.fixture(scope="module", params=SHAPES)
def stand(request):
    with Stand.create(request.param, "out") as made:
        sysctl(made.pod, "net.ipv4.ip_forward", "1")
        sysctl(made.pod, "net.ipv6.conf.all.forwarding", "1")
        made.rp_filter(1)
        yield made


def masquerade(ip: str, how: str = "") -> str:
    return (
        f"nft -f - <<'E'\ntable {ip} gateway {{\n chain c {{\n  type nat hook postrouting priority 100;\n"
        f'  iifname "wg0" oifname "eth0" masquerade {how}\n }}\n}}\nE'
    )


@dataclass(frozen=True)
class Row:
    """What is done to a working gateway, and whether its clients' traffic then still comes back."""

    do: str = ""
    undo: str = ""
    works: bool = False
    cause: str = ""


FORWARDING = {4: "/proc/sys/net/ipv4/ip_forward", 6: "/proc/sys/net/ipv6/conf/all/forwarding"}
ROWS = {
    "fine": Row(works=True),
    "masquerade with random ports": Row(
        "nft delete table {ip} gateway\n"
        + masquerade("{ip}", "fully-random").replace("{\n", "{{\n").replace("}\n", "}}\n"),
        works=True,
    ),
    "masquerade gone": Row("nft delete table {ip} gateway", cause="masquerade-missing"),
    "a foreign SNAT comes first": Row(
        "nft -f - <<'E'\ntable {ip} foreign {{\n chain c {{\n  type nat hook postrouting priority 90;\n"
        '  oifname "eth0" snat to {elsewhere}\n }}\n}}\nE',
        "nft delete table {ip} foreign",
        cause="masquerade-missing",
    ),
    "FORWARD -o wg0 drops": Row(
        "{tables}-nft -I FORWARD -o wg0 -j DROP", "nft delete table {ip} filter", cause="forward-drop"
    ),
    "FORWARD -i wg0 drops": Row(
        "{tables}-legacy -I FORWARD -i wg0 -j DROP", "{tables}-legacy -F FORWARD", cause="forward-drop"
    ),
    "forwarding is off": Row("echo 0 >{forwarding}", "echo 1 >{forwarding}", cause="forwarding-off"),
}


async def echo_server(stand: Stand, family: int):
    loop = asyncio.get_running_loop()
    with stand.outside_socket(family) as sock:
        sock.bind((str(stand.net.client_address(family)), ECHO_PORT))
        while True:
            data, sender = await loop.sock_recvfrom(sock, 2000)
            await loop.sock_sendto(sock, data, sender)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", ROWS)
def test_out_and_back_as_for_a_real_tunnel_client(stand, name, family):
    """The out probe comes back exactly when a real client's datagram to a real server does, and again once mended."""
    row = ROWS[name]
    words = {
        "ip": "ip" if family == 4 else "ip6",
        "tables": "iptables" if family == 4 else "ip6tables",
        "elsewhere": "10.44.0.77" if family == 4 else "fd44::77",
        "forwarding": FORWARDING[family],
    }
    mend = f"nft delete table {words['ip']} gateway 2>/dev/null\n" + masquerade(words["ip"])

    async def compare():
        server = asyncio.create_task(echo_server(stand, family))
        async with stand.door() as door:
            sockets = {who: stand.udp(who, family, door) for who in ("door", "outside")}
            for who, sock in sockets.items():
                stand.clients[who].attach(sock)
                await stand.clients[who].handshake(2)

            async def comes_back(who: str) -> bool:
                if who == "door":
                    target = door.out_target(family)
                    flow = (target.sport, target.address, target.dport)
                else:
                    flow = (secrets.randbelow(20000) + 20000, stand.net.client_address(family), ECHO_PORT)
                try:
                    await stand.clients[who].udp_echo(
                        PROBES[who][family], *flow, secrets.token_bytes(16), stand.patience
                    )
                except ProbeFailure:
                    return False
                return True

            async def both() -> dict[str, bool]:
                return dict(zip(sockets, await asyncio.gather(*map(comes_back, sockets)), strict=True))

            with stand.state([row.do.format(**words)] if row.do else [], [mend]):
                try:
                    with stand.patient() if row.works else contextlib.nullcontext():
                        seen, loss = await both(), None
                        if not row.works:
                            loss = await door.account_out(family, lambda: comes_back("door"))
                finally:
                    if row.undo:
                        stand.pod.run("sh", "-c", row.undo.format(**words))
            with stand.patient():
                mended = await both()
            for sock in sockets.values():
                sock.close()
        server.cancel()
        assert seen == {"door": row.works, "outside": row.works}, loss
        assert (loss.cause if loss else "") == row.cause
        assert mended == {"door": True, "outside": True}

    stand.pod.run("sh", "-c", mend)
    stand.pod.acall(compare)


def test_two_doors_have_their_own_addresses(stand):
    """A second tunnel's door at the same uplink takes other addresses, and both work at once."""

    async def both():
        async with stand.door() as one, stand.door(tag="wg1") as other:
            assert one.stranger(4) != other.stranger(4)
            assert one.out_target(6).address != other.out_target(6).address
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind((str(stand.net.pod4), 0))
                server.setblocking(False)
                loop = asyncio.get_running_loop()
                for door in (one, other):
                    with door.udp_socket(4, server.getsockname()[1]) as client:
                        client.send(b"hello")
                        async with asyncio.timeout(5):
                            data, sender = await loop.sock_recvfrom(server, 100)
                            assert sender[0] == str(door.stranger(4))
                            await loop.sock_sendto(server, data, sender)
                            assert await loop.sock_recv(client, 100) == b"hello"

    stand.pod.acall(both)
