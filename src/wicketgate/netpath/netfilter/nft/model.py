# SPDX-License-Identifier: Apache-2.0
"""An nftables ruleset as values, in the shape of libnftables-json(5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A piece that could not be read: an expression, a statement, a value."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, or a name that means one where it stands: "tcp", "established", "eth0", "10.0.0.1"."""

    value: int | str


@dataclass(frozen=True, slots=True)
class Prefix:
    """`10.0.0.0/8`."""

    address: str
    length: int


@dataclass(frozen=True, slots=True)
class Range:
    """`80-90`."""

    low: Constant
    high: Constant


@dataclass(frozen=True, slots=True)
class Payload:
    """A header field by name: protocol ip, ip6, tcp, udp, th, icmp, icmpv6, ether ..."""

    protocol: str
    field: str


@dataclass(frozen=True, slots=True)
class RawPayload:
    """`@nh,96,32`: bits from a header's start."""

    base: str  # ll nh th
    offset: int  # bits
    length: int  # bits


@dataclass(frozen=True, slots=True)
class Meta:
    """`meta mark`."""

    key: str


@dataclass(frozen=True, slots=True)
class Ct:
    """`ct state`, `ct original ip daddr`."""

    key: str
    direction: str = ""  # original, reply


@dataclass(frozen=True, slots=True)
class Fib:
    """`fib saddr . iif oif`."""

    result: str  # oif oifname type
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pick:
    """`numgen random mod 3`, `jhash ip saddr mod 2`: a number that the kernel picks."""

    kind: str  # numgen, jhash, symhash
    modulus: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Binary:
    """`meta mark & 0xff`; of more than two operands, from the left."""

    operator: str  # & | ^ << >>
    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """`ip saddr . tcp dport`."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """Of a set or map. Its key "*" catches all."""

    key: Expression
    data: Expression | Verdict | None = None


@dataclass(frozen=True, slots=True)
class SetLiteral:
    """`{ 80, 90-95 }`, also with data."""

    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class SetReference:
    """`@name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Flags:
    """`established,related`: values whose bits are ORed."""

    values: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class MapLookup:
    """`tcp dport map @m`."""

    key: Expression
    data: SetLiteral | SetReference


@dataclass(frozen=True, slots=True)
class Other:
    """A field that is known and cannot be told from a snapshot: socket, rt, exthdr, tcp option, ipsec, osf ..."""

    what: str
    text: str


Expression = (
    Unknown | Constant | Prefix | Range | Payload | RawPayload | Meta | Ct | Fib | Pick | Binary | Concat | SetLiteral
    | SetReference | Flags | MapLookup | Other
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """accept drop continue return jump goto queue."""

    kind: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class MatchStatement:
    """`left op right`; `in` is nft's implied operator: any of these bits."""

    op: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Mangle:
    """`meta mark set 5`."""

    key: Expression
    value: Expression


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """`tcp dport vmap { 80 : accept }`."""

    key: Expression
    data: SetLiteral | SetReference


@dataclass(frozen=True, slots=True)
class Reject:
    """`reject with icmp port-unreachable`."""

    type: str = "icmpx"  # icmp icmpv6 icmpx "tcp reset"
    code: str = "port-unreachable"


@dataclass(frozen=True, slots=True)
class Nat:
    """snat, dnat, masquerade, redirect."""

    kind: str
    family: str = ""  # ip, ip6; empty in a table of one family
    address: Expression | None = None
    port: Expression | None = None
    flags: tuple[str, ...] = ()
    prefix: bool = False  # the network part alone is exchanged


@dataclass(frozen=True, slots=True)
class Notrack:
    """`notrack`."""


@dataclass(frozen=True, slots=True)
class Effectless:
    """Counts, logs or marks for tracing: the packet goes on as it is."""

    what: str


@dataclass(frozen=True, slots=True)
class Conditional:
    """Goes on or not, by something that only the kernel knows: limit, quota, ct count, a set that fills up."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unpredictable:
    """Takes the packet out of the model's sight: queue, tproxy, dup, fwd, synproxy."""

    what: str
    reason: str


Statement = (
    Unknown | Verdict | MatchStatement | Mangle | VerdictMap | Reject | Nat | Notrack | Effectless | Conditional
    | Unpredictable
)  # fmt: skip


class Unread(Sequence[T], Generic[T]):
    """Parts of a listing that are understood when somebody first asks for one: of thousands of chains a packet sees ten.

    Args:
        parts: as the listing has them.
        read: understands one. It does not raise: what it cannot read is an `Unknown`.
    """

    __slots__ = ("_found", "_read", "parts")

    def __init__(self, parts: list[Any], read: Callable[[Any], T]) -> None:
        self.parts = parts
        self._read = read
        self._found: tuple[T, ...] | None = None

    def _all(self) -> tuple[T, ...]:
        if self._found is None:
            self._found = tuple(map(self._read, self.parts))
        return self._found

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[T]:
        return iter(self._all())

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        return self._all()[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        handle: its number in the table.
        statements: from left to right.
        comment: the user's.
    """

    handle: int
    statements: tuple[Statement, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; one with a hook is a base chain."""

    name: str
    handle: int = 0
    type: str = ""  # filter, nat, route
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()  # of ingress and egress
    rules: Sequence[Rule] = ()


@dataclass(frozen=True, slots=True)
class Set:
    """A named set or map."""

    name: str
    elements: Sequence[Element] = ()
    is_map: bool = False
    dynamic: bool = False  # rules add to it


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        family: ip ip6 inet netdev bridge arp.
        name: its own.
        handle: grows with each table that is made.
        dormant: its chains are not hooked.
        chains: by name.
        sets: sets and maps by name.
        filled: names of the sets that rules add to.
    """

    family: str
    name: str
    handle: int = 0
    dormant: bool = False
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Set] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)

    def spelled(self) -> str:
        """`table inet x`."""
        return f"table {self.family} {self.name}"
