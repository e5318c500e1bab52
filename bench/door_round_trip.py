# SPDX-License-Identifier: Apache-2.0
"""What a look through the door costs: a whole handshake as a stranger, p50 and p99, beside a real outside client's.

Both run in turn in the same process against the same wireguard-go, the outside client over two veth pairs and a router.
A datagram's and a TCP connection's round trip through the door are printed as well. Goal: p99 of the handshake < 5 ms,
of the datagram < 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

from wicketgate.health.door import Door, Outcome
from wicketgate.kernel.netlink import Netlink
from wicketgate.lab.host import Host, wire
from wicketgate.wireguard.client import SyntheticClient
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

POD, CLIENT = IPv4Address("10.44.0.2"), IPv4Address("198.51.100.9")
PORT = 51820


def build(stack: ExitStack) -> tuple[Host, Host]:
    """Client, router and pod, joined by veth pairs."""
    client, node, pod = (
        stack.enter_context(Host.create(f"bench-{each}-{os.getpid()}")) for each in ("client", "node", "pod")
    )
    wire(client, "eth0", node, "out")
    wire(pod, "eth0", node, "pod")
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for host, command in (
        (client, f"addr add {CLIENT}/24 dev eth0\nroute add default via 198.51.100.1"),
        (node, "addr add 198.51.100.1/24 dev out\naddr add 10.44.0.1/24 dev pod"),
        (pod, f"addr add {POD}/24 dev eth0\nroute add default via 10.44.0.1"),
    ):
        host.run("ip", "-batch", "-", stdin=command + "\n")
    return client, pod


def tunnel(pod: Host) -> tuple[PrivateKey, dict[str, tuple[PrivateKey, PresharedKey]]]:
    """wireguard-go in the pod with two peers."""
    server = PrivateKey.generate()
    peers = {who: (PrivateKey.generate(), PresharedKey.generate()) for who in ("door", "outside")}
    quiet = subprocess.DEVNULL
    pod.popen("wireguard-go", "-f", "wg0", stdin=quiet, stdout=quiet, stderr=quiet)
    deadline = time.monotonic() + 10
    while pod.run("test", "-S", "/run/wireguard/wg0.sock", check=False).returncode:
        if time.monotonic() > deadline:
            sys.exit("wireguard-go did not start")
    lines = ["[Interface]", f"PrivateKey = {server.expose_base64()}", f"ListenPort = {PORT}"]
    for key, psk in peers.values():
        lines += ["[Peer]", f"PublicKey = {key.public()}", f"PresharedKey = {psk.expose_base64()}"]
    pod.run("wg", "setconf", "wg0", "/dev/stdin", stdin="\n".join(lines) + "\n")
    pod.run("ip", "link", "set", "wg0", "up")
    return server, peers


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A UDP echo in the pod; gives its port."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((str(POD), 0))
        server.setblocking(False)

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                server.sendto(*server.recvfrom(100))

        loop.add_reader(server.fileno(), answer)
        yield server.getsockname()[1]
        loop.remove_reader(server.fileno())


async def measure(
    client: Host, rounds: int, server: PrivateKey, peers: dict[str, tuple[PrivateKey, PresharedKey]]
) -> dict[str, list[float]]:
    """Seconds of every round trip, by kind."""
    took: dict[str, list[float]] = {
        "handshake, outside": [],
        "handshake, door": [],
        "datagram, door": [],
        "TCP connect, door": [],
    }
    loop = asyncio.get_running_loop()
    clients = {who: SyntheticClient(key, server.public(), psk) for who, (key, psk) in peers.items()}
    async with (
        Netlink() as netlink,
        Door(netlink, uplink="eth0", addresses=(POD,), tag="wg0") as door,
        echo() as echo_port,
    ):
        tcp = await asyncio.start_server(lambda _, writer: writer.close(), str(POD), 0)
        tcp_port = tcp.sockets[0].getsockname()[1]
        for number in range(rounds + 5):
            for who in ("outside", "door"):
                if who == "door":
                    sock = door.udp_socket(4, PORT)
                else:
                    sock = client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    sock.setblocking(False)
                    sock.connect((str(POD), PORT))
                with sock:
                    clients[who].attach(sock)
                    took[f"handshake, {who}"].append((await clients[who].handshake(2)).rtt)
            with door.udp_socket(4, echo_port) as sock:
                started = time.perf_counter()
                sock.send(b"wicketgate")
                await loop.sock_recv(sock, 100)
                took["datagram, door"].append(time.perf_counter() - started)
            if door.tcp_supported:
                answer = await door.tcp_check(4, tcp_port, 2)
                if answer.outcome is Outcome.ANSWERED:
                    took["TCP connect, door"].append(answer.seconds)
            if number == 4:  # the first ones load code and learn neighbours
                for values in took.values():
                    values.clear()
        tcp.close()
    return took


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=300)
    rounds = options.parse_args().rounds
    with ExitStack() as stack:
        client, pod = build(stack)
        server, peers = tunnel(pod)
        took = pod.acall(lambda: measure(client, rounds, server, peers))
    print(f"{rounds} rounds, {os.cpu_count()} CPUs, Linux {Path('/proc/sys/kernel/osrelease').read_text().strip()}")
    print(f"{'':22}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'ratio p50':>11}")
    base = statistics.median(took["handshake, outside"])
    for what, values in took.items():
        if values:
            cuts = statistics.quantiles(values, n=100)
            ratio = f"{statistics.median(values) / base:.2f}" if what.startswith("handshake") else ""
            print(f"{what:22}{cuts[49] * 1e3:9.2f}{cuts[98] * 1e3:9.2f}{max(values) * 1e3:9.2f}{ratio:>11}")
    for what, goal in (("handshake, door", 5.0), ("datagram, door", 2.0)):
        p99 = statistics.quantiles(took[what], n=100)[98] * 1e3
        print(f"p99 of {what}: {p99:.2f} ms, goal < {goal:g} ms: {'met' if p99 < goal else 'NOT met'}")


if __name__ == "__main__":
    main()
