# SPDX-License-Identifier: Apache-2.0
"""What constants mean: "established" beside `ct state` is a bit, "tcp" beside `meta l4proto` a number.

Every value of a rule is compared as an integer, but for interface names and the like, which are strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from ipaddress import ip_address

from wicketgate.netpath.netfilter import names
from wicketgate.netpath.netfilter.facts import Facts
from wicketgate.netpath.netfilter.nft.model import Binary, Constant, Expression, Flags, Prefix, Range

Value = int | str
Key = Value | tuple[Value, ...]


class Type(Enum):
    """nft's data types, as far as names or comparison differ."""

    NUMBER = "integer"
    ADDRESS = "ipv4_addr, ipv6_addr"
    NAME = "ifname"
    INDEX = "iface_index"
    PROTOCOL = "inet_proto"
    NFPROTO = "nf_proto"
    ETHERTYPE = "ether_type"
    ICMP_TYPE = "icmp_type"
    ICMPV6_TYPE = "icmpv6_type"
    ICMP_CODE = "icmp_code"
    ICMPV6_CODE = "icmpv6_code"
    TCP_FLAGS = "tcp_flag"
    CT_STATE = "ct_state"
    CT_STATUS = "ct_status"
    CT_DIRECTION = "ct_dir"
    PACKET_TYPE = "pkt_type"
    ROUTE_TYPE = "fib_addrtype"
    DSCP = "dscp"
    ECN = "ecn"
    GROUP = "devgroup"
    OTHER = "something else"


_NAMES: dict[Type, Mapping[str, int]] = {
    Type.PROTOCOL: names.PROTOCOLS, Type.NFPROTO: names.NFPROTO, Type.ETHERTYPE: names.ETHERTYPES,
    Type.ICMP_TYPE: names.ICMP_TYPES, Type.ICMPV6_TYPE: names.ICMPV6_TYPES, Type.ICMP_CODE: names.ICMP_CODES,
    Type.ICMPV6_CODE: names.ICMPV6_CODES, Type.TCP_FLAGS: names.TCP_FLAGS, Type.CT_STATE: names.CT_STATES,
    Type.CT_STATUS: names.CT_STATUS, Type.CT_DIRECTION: names.CT_DIRECTIONS, Type.PACKET_TYPE: names.PACKET_TYPES,
    Type.ROUTE_TYPE: names.ROUTE_TYPES, Type.DSCP: names.DSCP, Type.ECN: names.ECN,
    Type.GROUP: names.DEVICE_GROUPS,
}  # fmt: skip


class NotKnownError(Exception):
    """A value or expression that the model does not know; the text says which."""


def constant(expression: Expression, kind: Type, facts: Facts) -> Value:
    """A single value.

    Raises:
        NotKnownError: it is none, or a name that is not known.
    """
    if isinstance(expression, Flags) or (isinstance(expression, Binary) and expression.operator == "|"):
        parts = expression.values if isinstance(expression, Flags) else expression.operands
        total = 0
        for part in parts:
            value = constant(part, kind, facts)
            if not isinstance(value, int):
                raise NotKnownError(f"{value!r} among flags")
            total |= value
        return total
    if not isinstance(expression, Constant):
        raise NotKnownError(f"no constant: {expression}")
    value = expression.value
    if isinstance(value, int):
        return _number_of_name(value, kind)
    return _word(value, kind, facts)


def _number_of_name(value: int, kind: Type) -> Value:
    return str(value) if kind is Type.NAME else value  # an interface may be called 5


def _word(word: str, kind: Type, facts: Facts) -> Value:
    if kind is Type.NAME:
        return word
    if kind is Type.INDEX:
        index = facts.index(word)
        if index is not None:
            return index
        return names.number(word) if word.isdigit() else -1  # gone since the rule was made: nothing matches
    if kind is Type.ADDRESS or (kind is Type.NUMBER and (":" in word or word.count(".") == 3)):
        try:
            return int(ip_address(word))
        except ValueError as error:
            raise NotKnownError(f"no address: {word[:60]}") from error
    known = _NAMES.get(kind, {}).get(word)
    if known is not None:
        return known
    if word in names.BOOLEANS and kind in (Type.NUMBER, Type.OTHER):
        return names.BOOLEANS[word]
    try:
        return names.number(word)
    except ValueError as error:
        raise NotKnownError(f"the name {word[:60]!r} is not known") from error


def interval(expression: Expression, kind: Type, facts: Facts) -> tuple[int, int]:
    """First and last of a value, prefix or range.

    Raises:
        NotKnownError: as `constant`.
    """
    if isinstance(expression, Prefix):
        try:
            address = ip_address(expression.address)
        except ValueError as error:
            raise NotKnownError(f"no address: {expression.address[:60]}") from error
        host = address.max_prefixlen - expression.length
        if not 0 <= host <= address.max_prefixlen:
            raise NotKnownError(f"prefix length {expression.length}")
        first = int(address) >> host << host
        return first, first + (1 << host) - 1
    if isinstance(expression, Range):
        low, high = constant(expression.low, kind, facts), constant(expression.high, kind, facts)
    else:
        low = high = constant(expression, kind, facts)
    if not isinstance(low, int) or not isinstance(high, int):
        raise NotKnownError(f"no interval: {expression}")
    return low, high
