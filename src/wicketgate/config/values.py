# SPDX-License-Identifier: Apache-2.0
"""How each value of a wg-quick file is read: as wg(8) and wg-quick(8) do, or stricter where they accept nonsense.

Stricter on purpose: a port is a number from the range (wg asks getaddrinfo, which takes service names and cuts 70000
to 4464); the port of an endpoint is not 0; a prefix length is no netmask.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from wicketgate.config.model import Endpoint, IPAddress, IPInterface, IPNetwork, Table

SPACE = " \t\n\v\f\r"  # isspace() of the C locale: what wg and wg-quick take off; not Unicode's

_BLANKS = dict.fromkeys(map(ord, SPACE))
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)  # an interface name or index, as getaddrinfo takes it
_DNS_ADDRESS = re.compile(r"[0-9.]+|.*:.*")  # wg-quick's own test for "this is an address"

PORT = "a port: 0-65535"
FWMARK = "off, 0, or a number up to 0xffffffff, decimal or with 0x"
KEEPALIVE = "off, or seconds: 0-65535"
# The least an IPv4 host must take (RFC 791), and the most a TUN device does.
MTU = "bytes: 68-65535"
TABLE = "auto, off, main, or a number: 1-4294967295 (other names are not looked up in rt_tables)"
BOOL = "true or false"
ADDRESS = "an IPv4 or IPv6 address, with an optional prefix length: 10.8.0.1/24, fd00::1/64"
ALLOWED_IP = "an IPv4 or IPv6 prefix: 10.8.0.2/32, fd00::2/128, 0.0.0.0/0"
INCREMENTAL = "a plain prefix: a file holds the whole list, so + and - (wg set's increments) have no meaning in it"
DNS = "IPv4 or IPv6 addresses, or search domains"
ENDPOINT = "HOST:PORT, ADDRESS:PORT or [IPv6]:PORT, with a port of 1-65535"


class BadValue(ValueError):  # noqa: N818 - it never leaves the room
    """A value that is not allowed. The text is what would be; `part` is the bad piece of a list."""

    def __init__(self, allowed: str, part: str | None = None) -> None:
        super().__init__(allowed)
        self.allowed = allowed
        self.part = part


def squeeze(text: str) -> str:
    """Without any blank, as wg reads its lines."""
    return text.translate(_BLANKS)


def number(text: str, low: int, high: int, allowed: str) -> int:
    """A decimal number in a range; leading zeros do not make it octal."""
    # int() would also take "1_000", "+1" and other scripts' digits, and refuses more than 4300 of them.
    if not _DIGITS.fullmatch(text) or len(text.lstrip("0")) > len(str(high)) or not low <= int(text[-20:]) <= high:
        raise BadValue(allowed)
    return int(text[-20:])


def port(text: str) -> int:
    """A UDP port; 0 lets the kernel choose."""
    return number(text, 0, 65535, PORT)


def fwmark(text: str) -> int:
    """A 32-bit mark; 0 is off."""
    if text.lower() == "off":
        return 0
    if _HEX.fullmatch(text):  # wg knows 0x only, not 0X
        digits = text[2:].lstrip("0") or "0"
        if len(digits) > 8:
            raise BadValue(FWMARK)
        return int(digits, 16)
    return number(text, 0, 0xFFFFFFFF, FWMARK)


def keepalive(text: str) -> int:
    """Seconds; 0 is off."""
    return 0 if text.lower() == "off" else number(text, 0, 65535, KEEPALIVE)


def mtu(text: str) -> int:
    """Bytes."""
    return number(text, 68, 65535, MTU)


def table(text: str) -> Table:
    """A routing table. `main` is 254 in every kernel (rtnetlink.h); other names are the machine's own affair."""
    match text.lower():
        case "auto":
            return "auto"
        case "off":
            return "off"
        case "main":
            return 254
    return number(text, 1, 0xFFFFFFFF, TABLE)


def boolean(text: str) -> bool:
    """True or false, in any case."""
    if text.lower() not in {"true", "false"}:
        raise BadValue(BOOL)
    return text.lower() == "true"


def ip_literal(text: str, allowed: str, part: str) -> IPAddress:
    """An address in digits; `part` is what an error blames."""
    # The library takes zones ("fe80::1%eth0"), which neither an interface nor an allowed-ip has.
    try:
        if "%" in text or not text.isascii():
            raise BadValue(allowed, part)
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        raise BadValue(allowed, part) from None


def _prefix(text: str, allowed: str) -> tuple[IPAddress, int]:
    host, slash, length = text.partition("/")
    ip = ip_literal(host, allowed, text)
    if not slash:
        return ip, ip.max_prefixlen
    try:
        return ip, number(length, 0, ip.max_prefixlen, allowed)
    except BadValue:
        raise BadValue(allowed, text) from None


def address(text: str) -> IPInterface:
    """An address for the interface."""
    ip, length = _prefix(text, ADDRESS)
    if ip.is_multicast or ip.is_unspecified:
        raise BadValue(f"{ADDRESS}; not a multicast or the unspecified address", text)
    return IPv4Interface((ip, length)) if isinstance(ip, IPv4Address) else IPv6Interface((ip, length))


def allowed_ip(text: str) -> tuple[IPNetwork, bool]:
    """A prefix, masked as the kernel does, and whether bits were masked off."""
    if text[:1] in {"+", "-"}:
        raise BadValue(INCREMENTAL, text)
    ip, length = _prefix(text, ALLOWED_IP)
    network: IPNetwork = (
        IPv4Network((ip, length), strict=False)
        if isinstance(ip, IPv4Address)
        else IPv6Network((ip, length), strict=False)
    )
    return network, network.network_address != ip


def words(text: str) -> list[str]:
    """A list as wg-quick splits it: by commas and blanks, empty places are nothing."""
    return [w for w in re.split(rf"[,{SPACE}]+", text) if w]


def host_name(text: str) -> bool:
    """Whether a resolver would look this up."""
    labels = text.removesuffix(".").split(".")
    # A key that lost its = and landed here would be a fine label, and be shown as one.
    return len(text) <= 253 and all(_LABEL.fullmatch(x) and not (len(x) >= 40 and x != x.lower()) for x in labels)


def dns(text: str) -> IPAddress | str:
    """A server's address or a search domain."""
    if _DNS_ADDRESS.fullmatch(text):
        return ip_literal(text, DNS, text)
    if not host_name(text):
        raise BadValue(DNS, text)
    return text


def endpoint(text: str) -> tuple[Endpoint, bool]:
    """An endpoint, and whether it is an IPv6 address without its brackets (wg takes the last group as the port)."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise BadValue(ENDPOINT)
        service, bare = rest[1:], False
    else:
        host, colon, service = text.rpartition(":")
        if not colon:
            raise BadValue(ENDPOINT)
        bare = ":" in host
    where = number(service, 1, 65535, ENDPOINT)
    if ":" in host:
        ip, percent, zone = host.partition("%")
        if percent and not _ZONE.fullmatch(zone):
            raise BadValue(ENDPOINT)
        return Endpoint(str(ip_literal(ip, ENDPOINT, text)) + percent + zone, where), bare
    if re.fullmatch(r"[0-9.]+", host):  # getaddrinfo would take 10.1 for 10.0.0.1: nobody means that
        return Endpoint(str(ip_literal(host, ENDPOINT, text)), where), bare
    if not host_name(host):
        raise BadValue(ENDPOINT)
    return Endpoint(host, where), bare
