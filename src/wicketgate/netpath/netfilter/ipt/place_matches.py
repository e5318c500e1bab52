# SPDX-License-Identifier: Apache-2.0
"""Matches that ask about this host: its addresses, interfaces, routes and sockets."""

from __future__ import annotations

from wicketgate.netpath.netfilter import names
from wicketgate.netpath.netfilter.ipt.arguments import NotKnownError, Test, argument, mark_and_mask, port_range, unless
from wicketgate.netpath.netfilter.ipt.model import Option
from wicketgate.netpath.netfilter.ipt.set_match import in_set
from wicketgate.netpath.netfilter.lookups import reverse_path
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.snapshot import Family


def addrtype(options: tuple[Option, ...], family: Family) -> list[Test]:
    """`-m addrtype`."""
    inward = any(option.name == "limit-iface-in" for option in options)
    outward = any(option.name == "limit-iface-out" for option in options)
    tests: list[Test] = []
    for option in options:
        if option.name in ("limit-iface-in", "limit-iface-out"):
            continue
        if option.name not in ("src-type", "dst-type"):
            raise NotKnownError(option.spelled())
        wanted = frozenset(each.lower() for each in argument(option).split(","))
        if not wanted <= {*names.ROUTE_TYPES, "throw", "nat", "xresolve"}:
            raise NotKnownError(option.spelled())
        tests.append(
            unless(
                option.negated, _type_test(wanted, family, option.name == "src-type", inward=inward, outward=outward)
            )
        )
    return tests


def _type_test(wanted: frozenset[str], family: Family, source: bool, *, inward: bool, outward: bool) -> Test:
    def test(run: Run) -> bool | Doubt:
        address = run.packet.source if source else run.packet.destination
        device = run.iif if inward else run.oif if outward else ""
        if family == 6:
            # match_type6 asks the kind of the address first, and routes only for these three
            if "multicast" in wanted and not address.is_multicast:
                return False
            if "unicast" in wanted and (address.is_multicast or address.is_unspecified):
                return False
            if "unspec" in wanted and not address.is_unspecified:
                return False
            if not wanted & {"local", "anycast", "unreachable"}:
                return True
        kind = run.facts.address_type(address, device)
        if kind is None:
            return Doubt(
                f"whether {address} is {'/'.join(sorted(wanted))} here is not known", f"type {address} {device}"
            )
        return kind in wanted

    return test


def pkttype(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m pkttype`."""
    tests: list[Test] = []
    for option in options:
        wanted = names.PACKET_TYPES[argument(option)]
        test: Test = lambda run, wanted=wanted: packet_type(run) == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def packet_type(run: Run) -> int:
    """PACKET_* of the frame that brought the packet; a packet of this host has the value 0."""
    destination = run.packet.destination
    if not run.iif:
        return 0
    if destination.is_multicast:
        return names.PACKET_TYPES["multicast"]
    if destination.version == 4 and run.facts.address_type(destination) == "broadcast":
        return names.PACKET_TYPES["broadcast"]
    return 0


def owner(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m owner`."""
    tests: list[Test] = []
    for option in options:
        if option.name == "socket-exists":
            tests.append(unless(option.negated, lambda run: run.packet.from_socket))
            continue
        if option.name not in ("uid-owner", "gid-owner"):
            raise NotKnownError(option.spelled())
        low, high = port_range(argument(option), "-")
        tests.append(_owner_test(low, high, option))
    return tests


def _owner_test(low: int, high: int, option: Option) -> Test:
    user = option.name == "uid-owner"

    def test(run: Run) -> bool | Doubt:
        if not run.packet.from_socket:
            return option.negated  # owner_mt: (match ^ invert) == 0
        value = run.packet.uid if user else run.packet.gid
        if value is None:
            return Doubt(f"`{option.spelled()}`: the sending socket's owner is not known", option.spelled())
        return (low <= value <= high) != option.negated

    return test


def physdev(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m physdev`."""

    # physdev_mt without bridge information: every option asked for fails unless it is negated
    def test(run: Run) -> bool | Doubt:
        link = run.facts.link(run.iif)
        if link is not None and link.kind == "bridge":
            return Doubt("`-m physdev` asks for the bridge port, which is not known", "physdev")
        return all(option.negated for option in options)

    return [test]


def devgroup(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m devgroup`."""
    tests: list[Test] = []
    for option in options:
        named = names.DEVICE_GROUPS.get(argument(option))
        value, mask = mark_and_mask(argument(option)) if named is None else (named, 0xFFFFFFFF)
        inward = option.name == "src-group"

        def test(run: Run, value: int = value, mask: int = mask, inward: bool = inward) -> bool:
            link = run.facts.link(run.iif if inward else run.oif)
            return (link.group if link else 0) & mask == value

        tests.append(unless(option.negated, test))
    return tests


def ipset(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m set`."""
    given = {option.name for option in options}
    # The counters of elements are asked for by some, and changed by the negated ones.
    if not given <= {"match-set", "set", "return-nomatch", "update-counters", "update-subcounters"}:
        raise NotKnownError(", ".join(sorted(given)))
    tests: list[Test] = []
    for option in options:
        if option.name not in ("match-set", "set"):
            continue
        name, flags = option.args
        directions = tuple(flags.split(","))
        if not {*directions} <= {"src", "dst"}:
            raise NotKnownError(option.spelled())

        def test(run: Run, name: str = name, directions: tuple[str, ...] = directions) -> bool | Doubt:
            if name in run.facts.changed_ipsets:
                return Doubt(f"rules put packets' addresses into the ipset {name}", f"ipset {name}")
            return in_set(run.facts.ipsets, name, run, directions, return_nomatch="return-nomatch" in given)

        tests.append(unless(option.negated, test))
    return tests


def rpfilter(options: tuple[Option, ...], _family: Family) -> list[Test]:
    """`-m rpfilter`."""
    given = {option.name for option in options}
    if not given <= {"loose", "validmark", "accept-local", "invert"}:
        raise NotKnownError(", ".join(sorted(given)))

    def test(run: Run) -> bool | Doubt:
        return reverse_path(
            run, loose="loose" in given, mark="validmark" in given, accept_local="accept-local" in given
        )

    return [unless("invert" in given, test)]
