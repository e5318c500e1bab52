# SPDX-License-Identifier: Apache-2.0
"""What iptables' matches ask, as the kernel's xt_*.c answer it.

A match is made into a function of the run: True, False, or a `Doubt`. What is not known is a doubt whose reason
names the option.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from wicketgate.netpath.netfilter import names
from wicketgate.netpath.netfilter.ipt.conntrack_matches import conntrack, state
from wicketgate.netpath.netfilter.ipt.model import Match, Option
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.packet import TCP, ConnState, Packet
from wicketgate.netpath.snapshot import Family

Test = Callable[[Run], "bool | Doubt"]


class NotKnownError(Exception):
    """An option that the model does not know; the text says which."""


def compile_match(match: Match, family: Family) -> list[Test]:
    """The tests of one match, cheap ones first. What is not known becomes a test that doubts."""
    maker = _MAKERS.get(match.module)
    try:
        if maker is None:
            return [_doubting(_REASONS.get(match.module, f"the match `{match.module}` is not known"), match)]
        return maker(match.options, family)
    except (NotKnownError, ValueError, IndexError, KeyError) as error:
        return [_doubting(f"`{match.spelled()[:120]}` could not be read ({error})", match, unreadable=True)]


def is_known(match: Match, family: Family) -> bool:
    """No doubt is in it that better knowledge of iptables would take away."""
    if match.module in _REASONS:
        return True
    if match.module not in _MAKERS:
        return False
    try:
        _MAKERS[match.module](match.options, family)
    except (NotKnownError, ValueError, IndexError, KeyError):
        return False
    return True


# Known, and not to be answered from a snapshot.
_REASONS = {
    "limit": "a limit: counts packets",
    "hashlimit": "a limit: counts packets",
    "quota": "a quota: counts bytes",
    "connlimit": "counts connections",
    "connbytes": "counts the connection's bytes",
    "recent": "remembers addresses it has seen",
    "statistic": "chooses by chance or by count",
    "string": "looks into the payload",
    "u32": "looks into the payload",
    "bpf": "runs a program on the packet",
    "set": "asks an ipset, whose content is not in the snapshot",
    "socket": "asks which socket would take the packet",
    "time": "asks the time",
    "mac": "asks the sender's MAC address",
    "cgroup": "asks the sending process's cgroup",
    "cpu": "asks which CPU handles the packet",
    "nfacct": "counts in an accounting object",
    "helper": "asks for a conntrack helper",
    "connlabel": "asks for a conntrack label",
    "osf": "guesses the sender's operating system",
    "tcpmss": "asks the MSS option",
    "realm": "asks the route's realm",
    "ecn": "asks the ECN bits",
    "policy": "asks for an IPsec policy",
    "rt": "asks for a routing header",
    "frag": "asks for a fragment header",
    "hbh": "asks for an option header",
    "dst": "asks for an option header",
    "mh": "asks for a mobility header",
    "ipv6header": "asks for extension headers",
    "eui64": "compares the address with the sender's MAC address",
    "dccp": "asks DCCP's header",
    "esp": "asks ESP's header",
    "ah": "asks AH's header",
}
_FICKLE = frozenset({"limit", "hashlimit", "quota", "statistic", "recent", "connlimit"})


def _doubting(reason: str, match: Match, *, unreadable: bool = False) -> Test:
    text = match.spelled()
    doubt = Doubt(
        reason if unreadable else f"`{text[:120]}` {reason}" if match.module in _REASONS else reason,
        "" if match.module in _FICKLE else text,
    )
    return lambda _run: doubt


def _unless(negated: bool, test: Test) -> Test:
    if not negated:
        return test

    def negation(run: Run) -> bool | Doubt:
        answer = test(run)
        return answer if isinstance(answer, Doubt) else not answer

    return negation


def _argument(option: Option) -> str:
    if len(option.args) != 1:
        raise NotKnownError(f"{option.spelled()}: one argument expected")
    return option.args[0]


def network(text: str, family: Family) -> tuple[int, int]:
    """Address and mask of `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or an address alone, as integers."""
    bits = 32 if family == 4 else 128
    address, _, mask = text.partition("/")
    value = ip_address(address)
    if value.version != family:
        raise NotKnownError(f"{text}: an address of the other family")
    if not mask:
        bitmask = (1 << bits) - 1
    elif mask.isdigit():
        if int(mask) > bits:
            raise NotKnownError(f"{text}: mask too long")
        bitmask = ((1 << int(mask)) - 1) << (bits - int(mask))
    else:
        bitmask = int(ip_address(mask))
    return int(value) & bitmask, bitmask


def exact_destination(matches: tuple[Match, ...], family: Family) -> int | None:
    """The one destination a rule is for; None when it is for several. Long chains are looked up by it."""
    for match in matches:
        if match.module == "ip":
            for option in match.options:
                if option.name == "d" and not option.negated and len(option.args) == 1:
                    try:
                        value, mask = network(option.args[0], family)
                    except (NotKnownError, ValueError):
                        return None
                    return value if mask == (1 << (32 if family == 4 else 128)) - 1 else None
    return None


def _interface(pattern: str) -> Callable[[str], bool]:
    if pattern.endswith("+"):
        head = pattern[:-1]
        return lambda name: name.startswith(head)
    return lambda name: name == pattern


def _ip(options: tuple[Option, ...], family: Family) -> list[Test]:
    tests: list[tuple[int, Test]] = []
    for option in options:
        if option.name == "f":
            # No fragment comes here: conntrack puts them together, and the model sends none.
            tests.append((0, _unless(option.negated, lambda _run: False)))
            continue
        text = _argument(option)
        if option.name in ("s", "d"):
            if "," in text:
                raise NotKnownError("several addresses in one rule")
            tests.append((2, _unless(option.negated, _address(text, family, source=option.name == "s"))))
        elif option.name == "p":
            tests.append((1, _unless(option.negated, _protocol(text))))
        elif option.name in ("i", "o"):
            tests.append((0, _unless(option.negated, _device(text, inward=option.name == "i"))))
        else:
            raise NotKnownError(option.name)
    tests.sort(key=lambda pair: -pair[0])  # addresses tell the most rules apart
    return [test for _, test in tests]


def _address(text: str, family: Family, *, source: bool) -> Test:
    value, mask = network(text, family)
    if source:
        return lambda run: run.source & mask == value
    if mask == (1 << (32 if family == 4 else 128)) - 1:
        return lambda run: run.destination == value
    return lambda run: run.destination & mask == value


def _protocol(text: str) -> Test:
    wanted = names.PROTOCOLS.get(text)
    if wanted is None:
        wanted = names.number(text)
    if wanted == 0:
        return lambda _run: True
    return lambda run: run.protocol == wanted


def _device(pattern: str, *, inward: bool) -> Test:
    if pattern.endswith("+"):
        fits = _interface(pattern)
        return (lambda run: fits(run.iif)) if inward else (lambda run: fits(run.oif))
    return (lambda run: run.iif == pattern) if inward else (lambda run: run.oif == pattern)


def port_range(text: str, separator: str = ":") -> tuple[int, int]:
    """`80`, `80:90`, `:90`, `80:`."""
    low, found, high = text.partition(separator)
    if not found:
        return names.number(low), names.number(low)
    return names.number(low or "0"), names.number(high or "65535")


def _ports(protocol: int) -> Callable[[tuple[Option, ...], Family], list[Test]]:
    def make(options: tuple[Option, ...], _family: Family) -> list[Test]:
        tests: list[Test] = [lambda run: run.protocol == protocol] if options else []
        for option in options:
            if option.name in ("dport", "destination-port", "sport", "source-port"):
                low, high = port_range(_argument(option))
                tests.append(_unless(option.negated, _port(low, high, source=option.name[0] == "s")))
            elif option.name == "tcp-flags" and protocol == TCP:
                mask, wanted = (_flags(each) for each in option.args)
                tests.append(_unless(option.negated, _flag_test(mask, wanted)))
            elif option.name == "syn" and protocol == TCP:
                tests.append(_unless(option.negated, _flag_test(0x17, 0x02)))
            elif option.name == "tcp-option" and protocol == TCP:
                doubt = Doubt(f"`{option.spelled()}` asks a TCP option", option.spelled())
                tests.append(lambda _run, doubt=doubt: doubt)  # type: ignore[misc]
            else:
                raise NotKnownError(option.spelled())
        return tests

    return make


def _port(low: int, high: int, *, source: bool) -> Test:
    if low == high:
        return (lambda run: run.sport == low) if source else (lambda run: run.dport == low)
    return (lambda run: low <= run.sport <= high) if source else (lambda run: low <= run.dport <= high)


def _flags(text: str) -> int:
    if text == "NONE":
        return 0
    if text == "ALL":
        return 0x3F
    return sum({names.TCP_FLAGS[each.lower()] for each in text.split(",")})


def _flag_test(mask: int, wanted: int) -> Test:
    return lambda run: run.packet.tcp_flags & mask == wanted


def _icmp(options: tuple[Option, ...], family: Family) -> list[Test]:
    protocol = 1 if family == 4 else 58
    tests: list[Test] = [lambda run: run.protocol == protocol]
    for option in options:
        if option.name not in ("icmp-type", "icmpv6-type"):
            raise NotKnownError(option.spelled())
        text = _argument(option)
        known = (names.IPT_ICMP if family == 4 else names.IPT_ICMPV6).get(text)
        if known is None:
            kind, _, code = text.partition("/")
            known = (names.number(kind), names.number(code) if code else None)
        tests.append(_unless(option.negated, _icmp_test(*known, family)))
    return tests


def _icmp_test(kind: int, code: int | None, family: Family) -> Test:
    if kind == 255 and family == 4:  # icmp_type_code_match: 255 is any
        return lambda _run: True
    if code is None:
        return lambda run: run.packet.icmp_type == kind
    return lambda run: run.packet.icmp_type == kind and run.packet.icmp_code == code


def _multiport(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = [lambda run: run.protocol in names.WITH_PORTS]
    for option in options:
        ranges = [port_range(each) for each in _argument(option).split(",")]
        exact = frozenset(low for low, high in ranges if low == high)
        wide = [each for each in ranges if each[0] != each[1]]

        def held(port: int, exact: frozenset[int] = exact, wide: list[tuple[int, int]] = wide) -> bool:
            return port in exact or any(low <= port <= high for low, high in wide)

        if option.name in ("dports", "destination-ports"):
            test: Test = lambda run, held=held: held(run.dport)  # type: ignore[misc]  # noqa: E731
        elif option.name in ("sports", "source-ports"):
            test = lambda run, held=held: held(run.sport)  # type: ignore[misc]  # noqa: E731
        elif option.name == "ports":
            test = lambda run, held=held: held(run.sport) or held(run.dport)  # type: ignore[misc]  # noqa: E731
        else:
            raise NotKnownError(option.spelled())
        tests.append(_unless(option.negated, test))
    return tests


def _iprange(options: tuple[Option, ...], family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        first, _, last = _argument(option).partition("-")
        low, high = ip_address(first), ip_address(last or first)
        if low.version != family or high.version != family:
            raise NotKnownError(option.spelled())
        tests.append(_unless(option.negated, _range_test(int(low), int(high), option.name)))
    return tests


def _range_test(low: int, high: int, name: str) -> Test:
    if name == "src-range":
        return lambda run: low <= run.source <= high
    if name == "dst-range":
        return lambda run: low <= run.destination <= high
    raise NotKnownError(name)


def mark_and_mask(text: str) -> tuple[int, int]:
    """`0x4/0xff`, or a mark alone with all bits."""
    value, _, mask = text.partition("/")
    return names.number(value), names.number(mask) if mask else 0xFFFFFFFF


def _mark(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        if option.name != "mark":
            raise NotKnownError(option.spelled())
        value, mask = mark_and_mask(_argument(option))
        test: Test = lambda run, value=value, mask=mask: run.packet.mark & mask == value  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
    return tests


def _connmark(options: tuple[Option, ...], _family: Family) -> list[Test]:
    # connmark_mt: false without a connection, negated or not
    tests: list[Test] = [lambda run: run.has_connection]
    for option in options:
        if option.name != "mark":
            raise NotKnownError(option.spelled())
        value, mask = mark_and_mask(_argument(option))
        test: Test = lambda run, value=value, mask=mask: run.connection.mark & mask == value  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
    return tests


def _addrtype(options: tuple[Option, ...], family: Family) -> list[Test]:
    inward = any(option.name == "limit-iface-in" for option in options)
    outward = any(option.name == "limit-iface-out" for option in options)
    tests: list[Test] = []
    for option in options:
        if option.name in ("limit-iface-in", "limit-iface-out"):
            continue
        if option.name not in ("src-type", "dst-type"):
            raise NotKnownError(option.spelled())
        wanted = frozenset(each.lower() for each in _argument(option).split(","))
        if not wanted <= {*names.ROUTE_TYPES, "throw", "nat", "xresolve"}:
            raise NotKnownError(option.spelled())
        tests.append(
            _unless(
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


def _pkttype(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        wanted = names.PACKET_TYPES[_argument(option)]
        test: Test = lambda run, wanted=wanted: packet_type(run) == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
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


def _length(options: tuple[Option, ...], family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        low, high = port_range(_argument(option))
        less = 0 if family == 4 else 40  # length_mt6: without the header
        test: Test = lambda run, low=low, high=high, less=less: low <= run.packet.length - less <= high  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
    return tests


def _owner(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        if option.name == "socket-exists":
            tests.append(_unless(option.negated, lambda run: run.packet.from_socket))
            continue
        if option.name not in ("uid-owner", "gid-owner"):
            raise NotKnownError(option.spelled())
        low, high = port_range(_argument(option), "-")
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


def _dscp(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        if option.name == "dscp":
            wanted = names.number(_argument(option))
        elif option.name == "dscp-class":
            wanted = names.DSCP[_argument(option).lower()]
        else:
            raise NotKnownError(option.spelled())
        test: Test = lambda run, wanted=wanted: run.packet.tos >> 2 == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
    return tests


def _tos(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        value, _, mask = _argument(option).partition("/")
        wanted, bits = names.number(value), names.number(mask or "0xff")
        test: Test = lambda run, wanted=wanted, bits=bits: run.packet.tos & bits == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(_unless(option.negated, test))
    return tests


def _hop_limit(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        wanted = names.number(_argument(option))
        how = option.name.partition("-")[2]
        if how not in ("eq", "lt", "gt"):
            raise NotKnownError(option.spelled())

        def test(run: Run, wanted: int = wanted, how: str = how) -> bool:
            value = run.packet.hop_limit
            return value == wanted if how == "eq" else value < wanted if how == "lt" else value > wanted

        tests.append(_unless(option.negated, test))
    return tests


def _physdev(options: tuple[Option, ...], _family: Family) -> list[Test]:
    # physdev_mt without bridge information: every option asked for fails unless it is negated
    def test(run: Run) -> bool | Doubt:
        link = run.facts.link(run.iif)
        if link is not None and link.kind == "bridge":
            return Doubt("`-m physdev` asks for the bridge port, which is not known", "physdev")
        return all(option.negated for option in options)

    return [test]


def _devgroup(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        value, mask = mark_and_mask(_argument(option))
        inward = option.name == "src-group"

        def test(run: Run, value: int = value, mask: int = mask, inward: bool = inward) -> bool:
            link = run.facts.link(run.iif if inward else run.oif)
            return (link.group if link else 0) & mask == value

        tests.append(_unless(option.negated, test))
    return tests


def _rpfilter(options: tuple[Option, ...], _family: Family) -> list[Test]:
    given = {option.name for option in options}
    if not given <= {"loose", "validmark", "accept-local", "invert"}:
        raise NotKnownError(", ".join(sorted(given)))

    def test(run: Run) -> bool | Doubt:
        return _unless("invert" in given, _reverse_path(given))(run)

    return [test]


def _reverse_path(given: set[str]) -> Test:
    def test(run: Run) -> bool | Doubt:
        packet = run.packet
        link = run.facts.link(run.iif)
        if (link is not None and link.loopback) or packet.destination.is_multicast:
            return True  # rpfilter_is_loopback; replies to multicast are not looked for
        back = Packet(
            packet.destination, packet.source, packet.protocol, tos=packet.tos,
            mark=packet.mark if "validmark" in given else 0,
        )  # fmt: skip
        if run.facts.route is None:
            return Doubt("`-m rpfilter` asks for the way back", "rpfilter")
        kind = run.facts.address_type(packet.source)
        if kind in (None, "broadcast", "multicast"):
            return Doubt(f"`-m rpfilter`: what {packet.source} is here is not known", "rpfilter")
        if kind == "local":
            return "accept-local" in given
        way = run.facts.route(back, "")
        if way is None:
            return Doubt("`-m rpfilter`: the way back is not known", "rpfilter")
        if "loose" in given:
            return bool(way)
        return way == run.iif

    return test


def _nothing(_options: tuple[Option, ...], _family: Family) -> list[Test]:
    return []


_MAKERS: dict[str, Callable[[tuple[Option, ...], Family], list[Test]]] = {
    "ip": _ip, "tcp": _ports(6), "udp": _ports(17), "udplite": _ports(136), "sctp": _ports(132), "icmp": _icmp,
    "icmp6": _icmp, "icmpv6": _icmp, "ipv6-icmp": _icmp, "multiport": _multiport, "iprange": _iprange, "mark": _mark,
    "connmark": _connmark, "conntrack": conntrack, "state": state, "addrtype": _addrtype, "comment": _nothing,
    "physdev": _physdev, "owner": _owner, "rpfilter": _rpfilter, "pkttype": _pkttype, "length": _length,
    "dscp": _dscp, "tos": _tos, "ttl": _hop_limit, "hl": _hop_limit, "devgroup": _devgroup,
}  # fmt: skip

__all__ = ["ConnState", "NotKnownError", "Test", "compile_match", "exact_destination", "is_known", "network"]
