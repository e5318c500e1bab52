# SPDX-License-Identifier: Apache-2.0
"""Whether a packet is in an ipset.

Source: net/netfilter/ipset/ip_set_hash_*.c, ip_set_bitmap_*.c, ip_set_list_set.c, ip_set_getport.c. Of nets the
longest that holds the packet decides (mtype_test_cidrs); an element with `nomatch` then says that it is not in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wicketgate.netpath.netfilter import drawn
from wicketgate.netpath.netfilter.ipsets import IpSet, Key
from wicketgate.netpath.netfilter.run import Doubt, Run, UnknowableError

_ICMP = (1, 58)
_WITH_PORT = frozenset({6, 17, 132, 136})  # ip_set_get_port

Sets = Mapping[str, IpSet]


def in_set(
    sets: Sets, name: str, run: Run, directions: tuple[str, ...], *, return_nomatch: bool, inner: bool = False
) -> bool | Doubt:
    """Whether a rule that asks for the set matches (ip_set_test).

    Args:
        sets: of the namespace.
        name: of the set.
        run: with the packet.
        directions: src or dst, one for each part of an element.
        return_nomatch: elements with `nomatch` match, others do not.
        inner: it is a member of a list:set; the kernel lets no such set into another.
    """
    made = sets.get(name)
    if made is None:
        return Doubt(f"the ipset {name} is not in the snapshot", f"ipset {name}")
    if made.unknown:
        return Doubt(f"the ipset {name}: {made.unknown[0]} could not be read", f"ipset {name}")
    if len(directions) < len(made.parts) or made.family not in (0, run.version):
        return False
    if made.parts == ("set",):
        if inner:
            return Doubt(f"the ipset {name} is a list within a list", f"ipset {name}")
        return _any(
            in_set(sets, each, run, directions, return_nomatch=return_nomatch, inner=True) for each in made.members
        )
    if "mac" in made.parts:
        return Doubt(f"the ipset {name} asks the sender's MAC address", f"ipset {name}")
    found = _found(made, run, directions)
    if found is None:
        return False
    # IPSET_TYPE_NOMATCH: only types that hold nets have it
    return found if return_nomatch and "net" in made.parts else not found


def _any(answers: Iterable[bool | Doubt]) -> bool | Doubt:
    doubt: Doubt | None = None
    for each in answers:
        if isinstance(each, Doubt):
            doubt = each
        elif each:
            return True
    return doubt if doubt is not None else False


def _found(made: IpSet, run: Run, directions: tuple[str, ...]) -> bool | None:
    """The `nomatch` of the element that decides; None where none holds the packet."""
    values: list[tuple[str, tuple[int, ...]]] = []
    device = ""
    for part, direction in zip(made.parts, directions, strict=False):
        source = direction == "src"
        if part in ("ip", "net"):
            address = run.source if source else run.destination
            if made.mask is not None:
                address &= made.mask
            if address == 0 and made.kind == "hash:ip":
                return None  # hash_ip4_kadt refuses it
            values.append((part, (address,)))
        elif part == "port":
            port = _port_of(made, run, source)
            if port is None:
                return None
            values.append((part, port))
        elif part == "mark":
            values.append((part, (run.packet.mark & made.mark_mask,)))
        else:
            device = run.iif if source else run.oif
            if not device:
                return None
    for lengths, elements in made.nets.items():
        for wanted, nomatch in elements.get(_key(values, lengths, made.bits), ()):
            if wanted is None or wanted.holds(device):
                return nomatch
    return None


def _key(values: list[tuple[str, tuple[int, ...]]], lengths: Key, bits: int) -> Key:
    key: list[int] = []
    remaining: Iterator[int] = iter(lengths)
    for part, value in values:
        if part == "net":
            shift = bits - next(remaining)
            key.append(value[0] >> shift << shift)
        else:
            key += value
    return tuple(key)


def _port_of(made: IpSet, run: Run, source: bool) -> tuple[int, ...] | None:
    """ip_set_get_port: of ICMP its type and code; of a protocol without ports zero, and of a bitmap none."""
    packet = run.packet
    if packet.protocol in _WITH_PORT:
        if drawn.port_of(run, source=source) is not None:
            raise UnknowableError(run.where(), drawn.REASON)
        port = run.sport if source else run.dport
        return (port,) if made.kind == "bitmap:port" else (packet.protocol, port)
    if made.kind == "bitmap:port":
        return None
    if packet.protocol in _ICMP:
        return packet.protocol, (packet.icmp_type or 0) << 8 | packet.icmp_code
    return packet.protocol, 0
