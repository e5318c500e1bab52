# SPDX-License-Identifier: Apache-2.0
"""The seed's pod by hand, in either shape, and the doctor as people run it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from netns.pods import PodNet, sysctl
from wicketgate.lab.wgquick import Peer, render, up
from wicketgate.wireguard.keys import PrivateKey

PORT = 9000


def wg_quick(net: PodNet, directory: Path, *allowed: str) -> None:
    """The real wg-quick, with wireguard-go; one peer for each of `allowed`. It sets src_valid_mark to 1."""
    peers = [Peer(f"peer{at}", PrivateKey.generate().public(), each.split()) for at, each in enumerate(allowed)]
    path = directory / "wg0.conf"
    path.touch(mode=0o600)
    path.write_text(render(PrivateKey.generate(), peers, v6=True))
    up(net.pod, path)


def filters(net: PodNet, rp: int, svm: int) -> None:
    """rp_filter and src_valid_mark of the pod, effective for eth0."""
    for where in ("all", "eth0"):
        sysctl(net.pod, f"net.ipv4.conf.{where}.rp_filter", str(rp))
        sysctl(net.pod, f"net.ipv4.conf.{where}.src_valid_mark", str(svm))


@contextmanager
def listener(net: PodNet, address: str = "0.0.0.0", port: int = PORT):
    """Something listens, unbound to a device, and answers `hello`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = net.pod.call(lambda: socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join()


def connects(net: PodNet, family: int = 4, port: int = PORT, timeout: float = 1.0) -> bool:
    """A TCP connection from the client outside, and its greeting."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with net.client.call(lambda: socket.socket(kind, socket.SOCK_STREAM)) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((str(net.pod_address(family)), port))
            return sock.recv(10) == b"hello"
        except OSError:
            return False


def doctor(net: PodNet, *arguments: str, json_: bool = True):
    """`wicket doctor` of the pod: exit code, and the object or the text."""
    command = [sys.executable, "-m", "wicketgate", "doctor", "--netns", f"pid:{net.pod.pid}", *arguments]
    done = subprocess.run(
        [*command, *(["--json"] if json_ else [])], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 3), done.stderr
    return done.returncode, json.loads(done.stdout) if json_ and done.stdout else done.stdout or done.stderr


def flow_to(report, port: int = PORT, source: str = "203.0.113.9"):
    """The flow from the stranger to a port."""
    return next(
        each
        for each in report["flows"]
        if each["flow"]["from"].rpartition(":")[0].strip("[]") == source
        and each["flow"]["to"].rpartition(":")[2] == str(port)
    )


def paste(net: PodNet, commands) -> None:
    """Type the commands in the pod."""
    for command in commands:
        net.pod.run("sh", "-ec", command)
