# SPDX-License-Identifier: Apache-2.0
"""Agents run as a user runs them: the `wicket` program in a pod, asked from outside.

with AgentPod("bridge", tmp_path) as pod:
    pod.up("--drain", "0")
    pod.wait_code("200")
    pod.client_up(); pod.client_ping()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netns.pods import PodNet, Shape

WICKET = str(Path(sys.executable).parent / "wicket")
# Exactly what a container with `drop: [ALL], add: [NET_ADMIN]` has.
NET_ADMIN_ONLY = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs")
NO_RIGHT = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
)
DEADLINE = 20.0  # seconds; a loaded machine is slow, a broken promise is for ever


def poll(
    what: Callable[[], Any], *, until: Callable[[Any], bool] = bool, message: str = "", deadline: float = DEADLINE
) -> Any:
    """Ask until the answer suits."""
    end = time.monotonic() + deadline
    while True:
        answer = what()
        if until(answer):
            return answer
        assert time.monotonic() < end, f"{message or what}: still {answer!r}"
        time.sleep(0.02)


def keys() -> tuple[str, str]:
    """A private key and its public key."""
    private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True).stdout.strip()
    return private, public


class AgentPod:
    """A pod behind a node, a client outside, and the files of a tunnel between them."""

    def __init__(self, shape: Shape, folder: Path, *, tunnel: str = "wg0") -> None:
        self.net = PodNet.create(shape)
        self.pod, self.client = self.net.pod, self.net.client
        self.tunnel = tunnel
        self.folder = folder
        self.private, self.public = keys()
        self.client_private, self.client_public = keys()
        self.conf = folder / f"{tunnel}.conf"
        self.process: subprocess.Popen[str] | None = None
        self.log = folder / "agent.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None and self.log.exists():
            print("--- agent's log ---\n" + self.log.read_text()[-6000:])
        self.net.close()
        if self.process is not None:
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def write(self, *, interface: str = "", allowed: str = "10.8.0.2/32", extra: str = "") -> Path:
        """The gateway's wg-quick file with one client."""
        self.conf.write_text(
            f"[Interface]\nPrivateKey = {self.private}\nListenPort = 51820\nAddress = 10.8.0.1/24\n{interface}\n"
            f"[Peer]\n# client\nPublicKey = {self.client_public}\nAllowedIPs = {allowed}\n{extra}"
        )
        self.conf.chmod(0o600)
        return self.conf

    def start(self, *arguments: str, prefix: tuple[str, ...] = NET_ADMIN_ONLY, wrap: tuple[str, ...] = ()) -> str:
        """Start `wicket ...` in the pod and return its first line."""
        with self.log.open("ab") as log:
            self.process = self.pod.popen(
                *wrap, *prefix, WICKET, *arguments, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def up(self, *arguments: str, prefix: tuple[str, ...] = NET_ADMIN_ONLY) -> str:
        """`wicket up` with fast probes."""
        if not self.conf.exists():
            self.write()
        return self.start("up", str(self.conf), "--probe-interval", "0.2", "--drain", "0", *arguments, prefix=prefix)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the agent and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE)

    def code(self, path: str = "/healthz", *, family: int = 4, port: int = 8080) -> str:
        """The status code an outside client gets; `000` for none."""
        host = str(self.net.pod4) if family == 4 else f"[{self.net.pod6}]"
        return self.client.run(
            "curl",
            "-g",
            "-s",
            "-m",
            "2",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"http://{host}:{port}{path}",
            check=False,
        ).stdout

    def wait_code(self, code: str, path: str = "/healthz", **more: Any) -> None:
        """Until the outside client gets this code."""
        poll(
            lambda: self.code(path, **more),
            until=lambda c: c == code,
            message=f"{path} -> {code}; {self.verdict_text()}",
        )

    def verdict(self) -> dict[str, Any]:
        """The JSON verdict as an outside client reads it."""
        text = self.client.run(
            "curl",
            "-s",
            "-m",
            "2",
            "-H",
            "Accept: application/json",
            f"http://{self.net.pod4}:8080/healthz",
            check=False,
        ).stdout
        return json.loads(text) if text else {}

    def verdict_text(self) -> str:
        """For messages."""
        return self.client.run(
            "curl", "-s", "-m", "2", f"http://{self.net.pod4}:8080/healthz?verbose", check=False
        ).stdout

    def wait_cause(self, *causes: str) -> dict[str, Any]:
        """Until the verdict is red for one of these causes."""
        return poll(
            self.verdict,
            until=lambda v: bool(v) and not v["ready"] and any(c in v["causes"] for c in causes),
            message=str(causes),
        )

    def client_up(self, *, allowed: str = "10.8.0.0/24, 10.99.0.0/24") -> None:
        """A real client: wireguard-go in the client host."""
        name = "wgc"
        self.client.popen("wireguard-go", "-f", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        poll(lambda: self.client.run("wg", "show", name, check=False).returncode == 0, message="client device")
        self.client.run(
            "wg", "set", name, "private-key", "/dev/stdin", "peer", self.public, "allowed-ips", allowed.replace(" ", ""),
            "endpoint", f"{self.net.pod4}:51820", stdin=self.client_private,
        )  # fmt: skip
        self._allowed = allowed
        self.client.run("ip", "addr", "add", "10.8.0.2/24", "dev", name)
        self.client.run("ip", "link", "set", name, "up")
        for network in allowed.split(","):
            if network.strip() != "10.8.0.0/24":
                self.client.run("ip", "route", "add", network.strip(), "dev", name)

    def client_redial(self) -> None:
        """Forget the session: a client notices only after 15 s (WireGuard's own timers) that the server forgot it."""
        self.client.run("wg", "set", "wgc", "peer", self.public, "remove")
        self.client.run(
            "wg", "set", "wgc", "peer", self.public, "allowed-ips", self._allowed.replace(" ", ""), "endpoint", f"{self.net.pod4}:51820"
        )  # fmt: skip

    def client_pings(self, address: str = "10.8.0.1") -> bool:
        """Whether the real client gets an echo."""
        return self.client.run("ping", "-c1", "-W1", address, check=False).returncode == 0

    def state(self) -> dict[str, str]:
        """Everything the agent might leave behind."""
        listing = {
            name: self.pod.run(*command, check=False).stdout
            for name, command in {
                "rules": ("ip", "rule"),
                "rules6": ("ip", "-6", "rule"),
                "routes": ("ip", "route", "show", "table", "all"),
                "links": ("ip", "-br", "link"),
                "nft": ("nft", "list", "ruleset"),
                "qdiscs": ("tc", "qdisc"),
                "forwarding": ("sysctl", "net.ipv4.conf.eth0.forwarding"),
                "sockets": ("sh", "-c", "ls /run/wireguard"),
            }.items()
        }
        listing["links"] = "\n".join(line.split()[0] for line in listing["links"].splitlines())
        return listing
