# SPDX-License-Identifier: Apache-2.0
"""Runs inside the virtual machine: the synthetic client against in-kernel WireGuard. Prints one JSON object."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
from ipaddress import ip_address

from wicketgate.clock import SystemClock
from wicketgate.wireguard.client import ProbeFailure, SyntheticClient
from wicketgate.wireguard.cookie import CookieJar
from wicketgate.wireguard.keys import PresharedKey, PrivateKey, PublicKey
from wicketgate.wireguard.messages import Initiation

PORT = 51820
HERE4, OWN4 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
HERE6, OWN6 = ip_address("fd09::1"), ip_address("fd09::2")


def run(*command: str, stdin: str | None = None) -> str:
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


async def under_load(key: PrivateKey, server: PublicKey, psk: PresharedKey) -> bool:
    """Whether a handshake in a flood got a cookie, and then its end."""
    jar = CookieJar(server, SystemClock())
    flood = [jar.sign(Initiation(n, secrets.token_bytes(32), bytes(48), bytes(28)).encode()) for n in range(3000)]
    client = SyntheticClient(key, server, psk)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, socket.socket(type=socket.SOCK_DGRAM) as sock:
        other.connect(("127.0.0.1", PORT))
        sock.connect(("127.0.0.1", PORT))
        client.attach(sock)
        for _ in range(20):
            for message in flood:
                other.send(message)
            with contextlib.suppress(ProbeFailure):
                if (await client.handshake(10)).under_load:
                    return True
    return False


async def main() -> None:
    key, psk = PrivateKey.generate(), PresharedKey.generate()
    # One identity a case: initiations of one peer that come faster than 20 ms are dropped.
    clients = {name: PrivateKey.generate() for name in ("right", "no_psk", "wrong_psk", "wrong_key", "loaded")}
    peers = "".join(
        f"[Peer]\nPublicKey = {own.public()}\n"
        + (f"PresharedKey = {psk.expose_base64()}\n" if name != "no_psk" else "")
        + (f"AllowedIPs = {OWN4}/32, {OWN6}/128\n" if name == "right" else "")
        for name, own in clients.items()
    )
    run("ip", "link", "add", "wg0", "type", "wireguard")
    configuration = f"[Interface]\nPrivateKey = {key.expose_base64()}\nListenPort = {PORT}\n{peers}"
    run("wg", "setconf", "wg0", "/dev/stdin", stdin=configuration)
    run("ip", "address", "add", f"{HERE4}/24", "dev", "wg0")
    run("ip", "address", "add", f"{HERE6}/64", "dev", "wg0", "nodad")
    run("ip", "link", "set", "wg0", "up")
    server, stranger = key.public(), PrivateKey.generate()
    result: dict[str, object] = {"kind": json.loads(run("ip", "-j", "-d", "link", "show", "wg0"))[0]["linkinfo"]}

    async def step(name: str, client: SyntheticClient, *, timeout: float = 10, port: int = PORT) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port))
            client.attach(sock)
            try:
                await client.handshake(timeout)
                result[name] = "ok"
                if name == "right":
                    result["ping4"] = await client.ping(OWN4, HERE4, timeout)
                    result["ping6"] = await client.ping(OWN6, HERE6, timeout)
                    with socket.create_server((str(HERE4), 9000)):
                        result["tcp_open"] = await client.tcp_syn(OWN4, HERE4, 9000, timeout)
                    try:
                        await client.tcp_syn(OWN4, HERE4, 9001, timeout)
                    except ProbeFailure as failure:
                        result["tcp_closed"] = failure.step
                    await client.handshake(timeout)
                    result["again"] = "ok"
            except ProbeFailure as failure:
                result[name] = failure.step
            client.close()

    await step("right", SyntheticClient(clients["right"], server, psk))
    await step("no_psk", SyntheticClient(clients["no_psk"], server))
    await step("wrong_psk", SyntheticClient(clients["wrong_psk"], server, PresharedKey.generate()))
    await step("wrong_key", SyntheticClient(clients["wrong_key"], stranger.public(), psk), timeout=2)
    await step("unknown", SyntheticClient(stranger, server, psk), timeout=2)
    await step("refused", SyntheticClient(clients["right"], server, psk), port=PORT + 1)
    result["under_load"] = await under_load(clients["loaded"], server, psk)
    shown = run("wg", "show", "wg0", "latest-handshakes").split()
    result["seen"] = int(shown[shown.index(str(clients["right"].public())) + 1]) > 0
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(result, file)


asyncio.run(main())
