# SPDX-License-Identifier: Apache-2.0
"""The seed's pod as people have it: Debian's own wg-quick, with wireguard-go where the kernel has no WireGuard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wicketgate.errors import StateError, ToolMissing
from wicketgate.lab.host import Host
from wicketgate.lab.topology import Lab
from wicketgate.wireguard.keys import PrivateKey, PublicKey

LISTEN_PORT = 51820
TUNNEL4 = "10.8.0.1"
TUNNEL6 = "fd00:8::1"
EVERYWHERE = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True)
class Peer:
    """A [Peer] section.

    Attributes:
        name: written above it as a comment.
        public_key: of the peer.
        allowed_ips: as the file has them.
    """

    name: str
    public_key: PublicKey
    allowed_ips: tuple[str, ...]


def render(private_key: PrivateKey, peers: Sequence[Peer], *, v6: bool, listen_port: int = LISTEN_PORT) -> str:
    """A gateway's wg-quick file. Without IPv6 its addresses and allowed IPs are left out."""
    addresses = [f"{TUNNEL4}/24", *([f"{TUNNEL6}/64"] if v6 else [])]
    lines = [
        "[Interface]",
        f"Address = {', '.join(addresses)}",
        f"ListenPort = {listen_port}",
        f"PrivateKey = {private_key.expose_base64()}",
    ]
    for peer in peers:
        allowed = [each for each in peer.allowed_ips if v6 or ":" not in each]
        lines += [
            "",
            f"# {peer.name}",
            "[Peer]",
            f"PublicKey = {peer.public_key}",
            f"AllowedIPs = {', '.join(allowed)}",
        ]
    return "\n".join(lines) + "\n"


def write(lab: Lab, host: str, text: str, ifname: str = "wg0") -> Path:
    """Put a file where the host's programs find it; readable for its owner only, as wg-quick wants it."""
    directory = lab.directory() / host
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{ifname}.conf"
    fresh = directory / f".{ifname}.conf.new"
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)
    return path


def up(host: Host, path: Path, timeout: float = 20.0) -> list[str]:
    """Run `wg-quick up`; the commands it says it ran.

    Raises:
        ToolMissing: wg-quick is not installed.
        StateError: it failed, with its own words.
    """
    done = host.run("wg-quick", "up", str(path), check=False, timeout=timeout)
    if done.returncode == 127 or "failed to execute wg-quick" in done.stderr:
        raise ToolMissing("wg-quick is not installed; Debian's package is wireguard-tools")
    if done.returncode != 0:
        raise StateError(f"[{host.name}] wg-quick up {path.name}: exit code {done.returncode}: {done.stderr.strip()}")
    return [line.removeprefix("[#] ") for line in done.stderr.splitlines() if line.startswith("[#]")]
