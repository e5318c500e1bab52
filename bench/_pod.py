# SPDX-License-Identifier: Apache-2.0
"""A pod behind a node, and a client in another subnet, in namespaces of their own: client -- node (router) -- pod.

`bridge` and `vpc` are the two shapes that CNIs give a pod: an address in a subnet with the gateway on the same wire, or
a /32 whose default route goes via 169.254.1.1.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from _bench import CannotMeasure, poll
from wicketgate.lab.host import Host, wire
from wicketgate.wireguard.keys import PrivateKey

WICKET = str(Path(sys.executable).parent / "wicket")
# What a container with `drop: [ALL], add: [NET_ADMIN]` has.
NET_ADMIN_ONLY = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs")
Shape = Literal["bridge", "vpc"]
SHAPES: tuple[Shape, ...] = ("bridge", "vpc")
POD, POD6, CLIENT, CLIENT6 = "10.44.0.2", "fd44::2", "198.51.100.9", "fd51::9"
PORT, HEALTH_PORT = 51820, 8080
_QUIET = subprocess.DEVNULL


class Pod:
    """The hosts, the keys of a tunnel between client and pod, and an agent or none."""

    def __init__(self, shape: Shape = "bridge", *, ipv6: bool = True) -> None:
        self.shape, self.ipv6 = shape, ipv6
        self.key, self.client_key = PrivateKey.generate(), PrivateKey.generate()
        self.agent: subprocess.Popen[str] | None = None
        self.stack = ExitStack()
        try:
            self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="wicketgate-bench-")))
            self.client, self.node, self.pod = (
                self.stack.enter_context(Host.create(f"bench-{each}-{os.getpid()}"))
                for each in ("client", "node", "pod")
            )
            self._wire()
        except BaseException:
            self.stack.close()
            raise

    def _wire(self) -> None:
        for host in (self.client, self.node, self.pod):
            host.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.dad_transmits=0")
            if not self.ipv6:
                host.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        wire(self.client, "eth0", self.node, "out")
        wire(self.pod, "eth0", self.node, "pod")
        self.node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        batch(self.client, f"addr add {CLIENT}/24 dev eth0", "route add default via 198.51.100.1")
        batch(self.node, "addr add 198.51.100.1/24 dev out")
        mac = "ee:ee:ee:ee:ee:ee"
        self.node.run("ip", "link", "set", "pod", "address", mac)
        if self.shape == "bridge":
            batch(self.node, "addr add 10.44.0.1/24 dev pod")
            batch(self.pod, f"addr add {POD}/24 dev eth0", "route add default via 10.44.0.1")
        else:
            batch(self.node, "addr add 10.45.0.1/32 dev pod", f"route add {POD}/32 dev pod")
            batch(
                self.pod,
                f"addr add {POD}/32 dev eth0",
                "route add 169.254.1.1 dev eth0 scope link",
                "route add default via 169.254.1.1 dev eth0",
                f"neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
            )
        addresses = [POD]
        if self.ipv6:
            addresses.append(POD6)
            self.node.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
            batch(self.client, f"addr add {CLIENT6}/64 dev eth0 nodad", "route add default via fd51::1")
            batch(self.node, "addr add fd51::1/64 dev out nodad", "addr add fd44::1/64 dev pod nodad")
            batch(self.pod, f"addr add {POD6}/64 dev eth0 nodad", "route add default via fd44::1")
        for address in addresses:
            self._await(address)

    def _await(self, address: str) -> None:
        poll(
            lambda: self.client.run("ping", "-c1", "-W1", address, check=False).returncode == 0,
            f"{address} answers the client",
        )

    # -- the tunnel

    def conf(self, name: str = "wg0", *, allowed: str = "10.8.0.2/32", more: str = "") -> Path:
        """A wg-quick file of the pod's end."""
        path = self.folder / f"{name}.conf"
        path.write_text(
            f"[Interface]\nPrivateKey = {self.key.expose_base64()}\nListenPort = {PORT}\nAddress = 10.8.0.1/24\n{more}\n"
            f"[Peer]\nPublicKey = {self.client_key.public()}\nAllowedIPs = {allowed}\n",
            encoding="ascii",
        )
        path.chmod(0o600)
        return path

    def device(self, host: Host, name: str) -> None:
        """wireguard-go in a host, not configured.

        In a session of its own, as the agent starts it: the scheduler shares processors between sessions first
        (sched_autogroup), and a device in the bench's own would be given another share.
        """
        host.popen("wireguard-go", "-f", name, stdin=_QUIET, stdout=_QUIET, stderr=_QUIET, start_new_session=True)
        poll(lambda: host.run("wg", "show", name, check=False).returncode == 0, f"{name} is there")

    def client_up(self, allowed: str) -> None:
        """The client's end: routes for what it may reach through the tunnel."""
        self.device(self.client, "wgc")
        self.client.run(
            "wg", "set", "wgc", "private-key", "/dev/stdin", "peer", str(self.key.public()), "allowed-ips", allowed,
            "endpoint", f"{POD}:{PORT}", stdin=self.client_key.expose_base64(),
        )  # fmt: skip
        batch(self.client, "addr add 10.8.0.2/32 dev wgc", "link set wgc up")
        for network in allowed.split(","):
            self.client.run("ip", "route", "add", network, "dev", "wgc")

    # -- the agent

    def start(self, *arguments: str) -> str:
        """`wicket ARGUMENTS` in the pod with CAP_NET_ADMIN alone; its first line on stdout."""
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = self.pod.popen(
                *NET_ADMIN_ONLY, WICKET, *arguments, stdin=_QUIET, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.agent.stdout is not None
        line = self.agent.stdout.readline().strip()
        if not line:
            raise CannotMeasure(f"wicket {arguments[0]} did not start: {self.log().strip()[-400:]}")
        return line

    def stop(self) -> None:
        """End the agent as Kubernetes does."""
        if self.agent is None:
            return
        self.agent.terminate()
        self.agent.wait(30)
        assert self.agent.stdout is not None
        self.agent.stdout.close()
        self.agent = None

    def log(self) -> str:
        """What the agent wrote."""
        return (self.folder / "agent.log").read_text(encoding="utf-8")

    def code(self) -> int:
        """The status of /healthz as seen from outside; 0 for none. Called in the client's namespace it costs no thread."""
        return self.client.call(status)

    def await_code(self, code: int) -> float:
        """Ask from outside until /healthz has this status; the moment (time.monotonic) of the answer."""

        def ask() -> float:
            poll(lambda: status() == code, f"/healthz is {code} ({self.log().strip()[-400:]})", rest=0.002)
            return time.monotonic()

        return self.client.call(ask)

    def wireguard_go(self) -> list[int]:
        """The processes of the pod's userspace WireGuard."""
        return [
            pid
            for pid in self.pod.pids()
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"wireguard-go")
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        agent = self.agent
        self.stack.close()  # a host takes its processes with it
        if agent is not None:
            agent.wait()
            if agent.stdout is not None:
                agent.stdout.close()


def batch(host: Host, *commands: str) -> None:
    """`ip` commands, all or the first error."""
    host.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")


def status(path: str = "/healthz", timeout: float = 0.2) -> int:
    """One GET on a connection of its own, from the namespace of the calling thread; 0 when there was no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((POD, HEALTH_PORT))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {POD}\r\nConnection: close\r\n\r\n".encode())
            answer = sock.recv(64)
        except OSError:
            return 0
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
