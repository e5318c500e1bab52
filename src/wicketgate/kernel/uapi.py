# SPDX-License-Identifier: Apache-2.0
"""The text of WireGuard's cross-platform userspace interface (wireguard.com/xplatform). Pure, no I/O.

    get=1, an empty line                     ->  key=value lines, errno=0, an empty line
    set=1, key=value lines, an empty line    ->  errno=0, an empty line

Keys are 64 hexadecimal digits. Unknown keys are passed over (a newer program may say more); a value that is not what
its key promises is an error, and the value itself is never repeated: it might be a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from wicketgate.netpath.snapshot import IPAddress, IPNetwork, PeerState, WireGuardState
from wicketgate.wireguard.device import DeviceConfig, PeerConfig
from wicketgate.wireguard.keys import KEY_LENGTH, PresharedKey, PrivateKey, PublicKey

GET = b"get=1\n\n"
_MAX_UINT64 = 2**64 - 1


class MalformedReplyError(ValueError):
    """A reply that breaks the protocol; the text has no values in it."""


@dataclass(frozen=True, slots=True)
class UapiDevice:
    """A whole reply to `get=1`. The secrets are beside the state, never in it."""

    state: WireGuardState
    errno: int = 0
    private_key: PrivateKey | None = None
    preshared_keys: dict[PublicKey, PresharedKey] = field(default_factory=dict)


@dataclass(slots=True)
class _Peer:
    public_key: PublicKey
    endpoint: tuple[IPAddress, int] | None = None
    allowed_ips: list[IPNetwork] = field(default_factory=list)
    seconds: int = 0
    nanoseconds: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    persistent_keepalive: int = 0
    has_preshared_key: bool = False

    def value(self) -> PeerState:
        return PeerState(
            public_key=str(self.public_key),
            endpoint=self.endpoint,
            allowed_ips=tuple(self.allowed_ips),
            latest_handshake=self.seconds + self.nanoseconds / 1e9,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
            persistent_keepalive=self.persistent_keepalive,
            has_preshared_key=self.has_preshared_key,
        )


def _key(value: str) -> bytes:
    # bytes.fromhex would also take blanks between the digits.
    if len(value) != 2 * KEY_LENGTH or not value.isascii() or not value.isalnum():
        raise ValueError
    return bytes.fromhex(value)


def _number(value: str, highest: int) -> int:
    # int() would also take "+1", "1_000" and other scripts' digits.
    if not value.isascii() or not value.isdigit() or len(value) > 20 or int(value) > highest:
        raise ValueError
    return int(value)


def _endpoint(value: str) -> tuple[IPAddress, int]:
    host, colon, port = value.rpartition(":")
    if not colon:
        raise ValueError
    if host.startswith("[") and host.endswith("]"):
        # A zone (fe80::1%eth0) is the local machine's business; the address is what a state names.
        return ip_address(host[1:-1].partition("%")[0]), _number(port, 65535)
    return ip_address(host), _number(port, 65535)


def parse_errno(lines: list[tuple[str, str]]) -> int:
    """The verdict of a reply: 0 or a positive errno. Raises MalformedReplyError when it is missing or no number."""
    if not lines or lines[-1][0] != "errno":
        raise MalformedReplyError("the reply does not end with errno=")
    value = lines[-1][1]
    try:
        return _number(value.removeprefix("-"), 2**31 - 1)
    except ValueError:
        raise MalformedReplyError("errno: not a number") from None


def split_lines(reply: bytes) -> list[tuple[str, str]]:
    """The key=value lines of a reply, without the empty line. Raises MalformedReplyError."""
    try:
        text = reply.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedReplyError("the reply is not ASCII") from None
    if not text.endswith("\n\n"):
        raise MalformedReplyError("the reply ends without an empty line")
    pairs = []
    for number, line in enumerate(text[:-2].split("\n"), start=1):
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise MalformedReplyError(f"line {number} is not key=value")
        pairs.append((key, value))
    return pairs


def parse_device(ifname: str, reply: bytes) -> UapiDevice:
    """Read a reply to `get=1`.

    Raises:
        MalformedReplyError: with the line's number and key, without its value.
    """
    lines = split_lines(reply)
    errno = parse_errno(lines)
    private_key: PrivateKey | None = None
    preshared: dict[PublicKey, PresharedKey] = {}
    listen_port = fwmark = 0
    peers: list[_Peer] = []
    seen: set[PublicKey] = set()
    for number, (key, value) in enumerate(lines[:-1], start=1):
        peer = peers[-1] if peers else None
        try:
            match key, peer:
                case "errno", _:
                    raise MalformedReplyError(f"line {number}: errno before the end")
                case "private_key", None:
                    raw = _key(value)
                    private_key = PrivateKey(raw) if any(raw) else None
                case "listen_port", None:
                    listen_port = _number(value, 65535)
                case "fwmark", None:
                    fwmark = _number(value, 2**32 - 1)
                case "public_key", _:
                    public_key = PublicKey(_key(value))
                    if public_key in seen:
                        raise MalformedReplyError(f"line {number}: the same peer twice")
                    seen.add(public_key)
                    peers.append(_Peer(public_key))
                case "preshared_key", _Peer():
                    raw = _key(value)
                    if any(raw):
                        peer.has_preshared_key = True
                        preshared[peer.public_key] = PresharedKey(raw)
                case "protocol_version", _Peer():
                    if _number(value, 2**32 - 1) != 1:
                        raise MalformedReplyError(f"line {number}: a WireGuard protocol version other than 1")
                case "endpoint", _Peer():
                    peer.endpoint = _endpoint(value)
                case "allowed_ip", _Peer():
                    peer.allowed_ips.append(ip_network(value))
                case "last_handshake_time_sec", _Peer():
                    peer.seconds = _number(value, 2**63 - 1)
                case "last_handshake_time_nsec", _Peer():
                    peer.nanoseconds = _number(value, 999_999_999)
                case "rx_bytes", _Peer():
                    peer.rx_bytes = _number(value, _MAX_UINT64)
                case "tx_bytes", _Peer():
                    peer.tx_bytes = _number(value, _MAX_UINT64)
                case "persistent_keepalive_interval", _Peer():
                    peer.persistent_keepalive = _number(value, 65535)
                case _:
                    pass
        except MalformedReplyError:
            raise
        except ValueError:
            # The key comes from the other side too; a known one is safe to repeat, a value never.
            raise MalformedReplyError(f"line {number}: {key}: its value is not what this key takes") from None
    state = WireGuardState(
        ifname=ifname,
        backend="userspace",
        public_key=str(private_key.public()) if private_key is not None else "",
        listen_port=listen_port,
        fwmark=fwmark,
        peers=tuple(peer.value() for peer in peers),
    )
    return UapiDevice(state, errno, private_key, preshared)


def _peer_lines(peer: PeerConfig) -> list[str]:
    lines = [f"public_key={peer.public_key.raw.hex()}"]
    if peer.clear_preshared_key:
        lines.append(f"preshared_key={bytes(KEY_LENGTH).hex()}")
    elif peer.preshared_key is not None:
        lines.append(f"preshared_key={peer.preshared_key.expose().hex()}")
    if peer.endpoint is not None:
        address, port = peer.endpoint
        lines.append(f"endpoint=[{address}]:{port}" if address.version == 6 else f"endpoint={address}:{port}")
    if peer.persistent_keepalive is not None:
        lines.append(f"persistent_keepalive_interval={peer.persistent_keepalive}")
    if peer.allowed_ips is not None:
        lines.append("replace_allowed_ips=true")
        lines += [f"allowed_ip={network}" for network in peer.allowed_ips]
    return lines


def format_set(config: DeviceConfig) -> bytes:
    """The request that adds to and changes a device."""
    lines = ["set=1"]
    if config.private_key is not None:
        lines.append(f"private_key={config.private_key.expose().hex()}")
    if config.listen_port is not None:
        lines.append(f"listen_port={config.listen_port}")
    if config.fwmark is not None:
        lines.append(f"fwmark={config.fwmark}")
    for peer in config.peers:
        lines += _peer_lines(peer)
    return ("\n".join(lines) + "\n\n").encode("ascii")


def format_remove_peer(public_key: PublicKey) -> bytes:
    """The request that removes one peer. `update_only` keeps it from making one first."""
    return f"set=1\npublic_key={public_key.raw.hex()}\nupdate_only=true\nremove=true\n\n".encode("ascii")
