# SPDX-License-Identifier: Apache-2.0
"""A pod behind a node, and a client in another subnet, with real packets: client -- node (router) -- pod.

    with PodNet.create("bridge") as net:      # or "vpc"
        net.pod.run("ip", "-br", "addr")      # eth0: net.pod4, net.pod6
        net.client.run("ping", "-c1", str(net.pod4))

Shapes, as CNIs build them:

* `bridge`: podIP/24 on eth0, default via the subnet's .1 (here the node's veth itself);
* `vpc`: podIP/32 on eth0, default via 169.254.1.1 (IPv6: fe80::1) with a permanent neighbour entry; the node has a
  host route to the pod. AWS VPC CNI, Calico and Cilium look like this.

The client (`net.client4`, `net.client6`) is a stranger to the pod's subnet. rp_filter starts as the node gives it: use
`sysctl(host, "net.ipv4.conf.eth0.rp_filter", "1")`; the effective value is the maximum of `all` and the interface.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Literal, Self

from wicketgate.lab.host import Host, wire

Shape = Literal["bridge", "vpc"]
SHAPES: tuple[Shape, ...] = ("bridge", "vpc")


def sysctl(host: Host, name: str, value: str) -> None:
    """Write a network setting inside a host, named as `sysctl -a` prints it."""
    path = "/proc/sys/" + name.replace(".", "/")

    def write() -> None:
        with open(path, "w") as file:  # /proc/sys/net is that of the opening thread's namespace
            file.write(value)

    host.call(write)


def udp(host: Host, address: Any, port: int = 0) -> socket.socket:
    """A UDP socket in a host, bound, with a timeout of 5 s."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = host.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((str(address), port))
    sock.settimeout(5)
    return sock


@dataclass
class PodNet:
    """The three hosts and their addresses."""

    shape: Shape
    client: Host
    node: Host
    pod: Host
    stack: ExitStack
    client4 = IPv4Address("198.51.100.9")
    client6 = IPv6Address("fd51::9")
    pod4 = IPv4Address("10.44.0.2")
    pod6 = IPv6Address("fd44::2")

    @classmethod
    def create(cls, shape: Shape, label: str = "") -> Self:
        """Build it; `close` (or `with`) takes it down."""
        stack = ExitStack()
        try:
            suffix = f"{label}-{os.getpid()}"
            client, node, pod = (
                stack.enter_context(Host.create(f"{each}-{shape}-{suffix}")) for each in ("client", "node", "pod")
            )
            for host in (client, node, pod):
                # Addresses serve at once: no duplicate address detection on a wire with two ends.
                sysctl(host, "net.ipv6.conf.default.accept_dad", "0")
                sysctl(host, "net.ipv6.conf.default.dad_transmits", "0")
            wire(client, "eth0", node, "out")
            wire(pod, "eth0", node, "pod")
            sysctl(node, "net.ipv4.ip_forward", "1")
            sysctl(node, "net.ipv6.conf.all.forwarding", "1")
            net = cls(shape, client, node, pod, stack)
            net._address()
            net._await_path()
        except BaseException:
            stack.close()
            raise
        return net

    def _address(self) -> None:
        def ip(host: Host, *commands: str) -> None:
            host.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")

        ip(
            self.client,
            f"addr add {self.client4}/24 dev eth0",
            f"addr add {self.client6}/64 dev eth0 nodad",
            "route add default via 198.51.100.1",
            "route add default via fd51::1",
        )
        ip(self.node, "addr add 198.51.100.1/24 dev out", "addr add fd51::1/64 dev out nodad")
        if self.shape == "bridge":
            ip(self.node, "addr add 10.44.0.1/24 dev pod", "addr add fd44::1/64 dev pod nodad")
            ip(
                self.pod,
                f"addr add {self.pod4}/24 dev eth0",
                f"addr add {self.pod6}/64 dev eth0 nodad",
                "route add default via 10.44.0.1",
                "route add default via fd44::1",
            )
            return
        mac = "ee:ee:ee:ee:ee:ee"
        self.node.run("ip", "link", "set", "pod", "address", mac)
        ip(
            self.node,
            "addr add 10.45.0.1/32 dev pod",
            "addr add fd45::1/128 dev pod nodad",
            f"route add {self.pod4}/32 dev pod",
            f"route add {self.pod6}/128 dev pod",
        )
        ip(
            self.pod,
            f"addr add {self.pod4}/32 dev eth0",
            f"addr add {self.pod6}/128 dev eth0 nodad",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
            f"neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
            "route add default via fe80::1 dev eth0",
            f"neigh add fe80::1 lladdr {mac} dev eth0 nud permanent",
        )

    def _await_path(self) -> None:
        deadline = time.monotonic() + 10
        for address in (self.pod4, self.pod6):
            while self.client.run("ping", "-c1", "-W1", str(address), check=False).returncode:
                assert time.monotonic() < deadline, f"{address} does not answer the client"

    def pod_address(self, family: int) -> IPv4Address | IPv6Address:
        """The pod's address on eth0."""
        return self.pod4 if family == 4 else self.pod6

    def client_address(self, family: int) -> IPv4Address | IPv6Address:
        """The outside client's."""
        return self.client4 if family == 4 else self.client6

    def close(self) -> None:
        """End the hosts and all that runs in them."""
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()
