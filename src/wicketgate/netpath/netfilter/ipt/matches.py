# SPDX-License-Identifier: Apache-2.0
"""What iptables' matches ask, as the kernel's xt_*.c answer it.

A match is made into a function of the run: True, False, or a `Doubt`. What is not known is a doubt whose reason
names the option.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from wicketgate.netpath.netfilter import drawn, names
from wicketgate.netpath.netfilter.ipt import place_matches as place
from wicketgate.netpath.netfilter.ipt.arguments import NotKnownError, Test, argument, mark_and_mask, port_range, unless
from wicketgate.netpath.netfilter.ipt.conntrack_matches import conntrack, state
from wicketgate.netpath.netfilter.ipt.model import Match, Option
from wicketgate.netpath.netfilter.run import Doubt, Run
from wicketgate.netpath.packet import TCP
from wicketgate.netpath.snapshot import Family


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
    names.INTERFACES_NOT_LISTED: "is what `iptables -L` without -v leaves out",
    names.NOT_UNDERSTOOD: "is a match that was printed in a form which is not known",
}
_FICKLE = frozenset(
    {
        "limit",
        "hashlimit",
        "quota",
        "statistic",
        "recent",
        "connlimit",
        names.INTERFACES_NOT_LISTED,
        names.NOT_UNDERSTOOD,
    }
)


def _doubting(reason: str, match: Match, *, unreadable: bool = False) -> Test:
    text = match.spelled()
    doubt = Doubt(
        reason if unreadable else f"`{text[:120]}` {reason}" if match.module in _REASONS else reason,
        "" if match.module in _FICKLE else text,
    )
    return lambda _run: doubt


def network(text: str, family: Family) -> tuple[int, int]:
    """Address and mask of `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or an address alone, as integers."""
    bits = 32 if family == 4 else 128
    address, _, mask = text.partition("/")
    value = _address_number(address, family)
    if not mask:
        return value, (1 << bits) - 1
    if mask.isdigit():
        if int(mask) > bits:
            raise NotKnownError(f"{text}: mask too long")
        bitmask = ((1 << int(mask)) - 1) << (bits - int(mask))
    else:
        bitmask = _address_number(mask, family)
    return value & bitmask, bitmask


def _address_number(text: str, family: Family) -> int:
    if family == 4:  # ip_address takes ten times as long
        octets = text.split(".")
        if len(octets) == 4 and all(each.isdigit() and each.isascii() and len(each) < 4 for each in octets):
            first, second, third, fourth = map(int, octets)
            if max(first, second, third, fourth) < 256:
                return first << 24 | second << 16 | third << 8 | fourth
    value = ip_address(text)
    if value.version != family:
        raise NotKnownError(f"{text}: an address of the other family")
    return int(value)


def one_address(text: str, family: Family) -> int | None:
    """The address of a host prefix; None where it is none of this family. Long chains are looked up by it."""
    try:
        value, mask = network(text, family)
    except (NotKnownError, ValueError):
        return None
    return value if mask == (1 << (32 if family == 4 else 128)) - 1 else None


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
            tests.append((0, unless(option.negated, lambda _run: False)))
            continue
        text = argument(option)
        if option.name in ("s", "d"):
            if "," in text:
                raise NotKnownError("several addresses in one rule")
            tests.append((2, unless(option.negated, _address(text, family, source=option.name == "s"))))
        elif option.name == "p":
            tests.append((1, unless(option.negated, _protocol(text))))
        elif option.name in ("i", "o"):
            tests.append((0, unless(option.negated, _device(text, inward=option.name == "i"))))
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


def _ports(protocol: int) -> Callable[[tuple[Option, ...], Family], list[Test]]:
    def make(options: tuple[Option, ...], _family: Family) -> list[Test]:
        tests: list[Test] = [lambda run: run.protocol == protocol] if options else []
        for option in options:
            if option.name in ("dport", "destination-port", "sport", "source-port"):
                low, high = port_range(argument(option))
                tests.append(unless(option.negated, _port(low, high, source=option.name[0] == "s")))
            elif option.name == "tcp-flags" and protocol == TCP:
                mask, wanted = (_flags(each) for each in option.args)
                tests.append(unless(option.negated, _flag_test(mask, wanted)))
            elif option.name == "syn" and protocol == TCP:
                tests.append(unless(option.negated, _flag_test(0x17, 0x02)))
            elif option.name == "tcp-option" and protocol == TCP:
                doubt = Doubt(f"`{option.spelled()}` asks a TCP option", option.spelled())
                tests.append(lambda _run, doubt=doubt: doubt)  # type: ignore[misc]
            else:
                raise NotKnownError(option.spelled())
        return tests

    return make


def _port(low: int, high: int, *, source: bool) -> Test:
    def test(run: Run) -> bool | Doubt:
        if run.connection.drawn is not None and (ports := drawn.port_of(run, source=source)) is not None:
            held = drawn.within(ports, low, high)
            return Doubt(drawn.REASON) if held is None else held
        return low <= (run.sport if source else run.dport) <= high

    return test


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
        text = argument(option)
        known = (names.IPT_ICMP if family == 4 else names.IPT_ICMPV6).get(text)
        if known is None:
            kind, _, code = text.partition("/")
            known = (names.number(kind), names.number(code) if code else None)
        tests.append(unless(option.negated, _icmp_test(*known, family)))
    return tests


def _icmp_test(kind: int, code: int | None, family: Family) -> Test:
    if kind == 255 and family == 4:  # icmp_type_code_match: 255 is any
        return lambda _run: True
    if code is None:
        return lambda run: run.packet.icmp_type == kind
    return lambda run: run.packet.icmp_type == kind and run.packet.icmp_code == code


def _one_of(ranges: list[tuple[int, int]], *, source: bool) -> Test:
    exact = frozenset(low for low, high in ranges if low == high)
    wide = [each for each in ranges if each[0] != each[1]]

    def test(run: Run) -> bool | Doubt:
        if run.connection.drawn is not None and (ports := drawn.port_of(run, source=source)) is not None:
            held = {drawn.within(ports, low, high) for low, high in ranges}
            return True if True in held else Doubt(drawn.REASON) if None in held else False
        port = run.sport if source else run.dport
        return port in exact or any(low <= port <= high for low, high in wide)

    return test


def _either(one: Test, other: Test) -> Test:
    def test(run: Run) -> bool | Doubt:
        said = one(run), other(run)
        if True in said:
            return True
        return next((each for each in said if isinstance(each, Doubt)), False)

    return test


def _multiport(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = [lambda run: run.protocol in names.WITH_PORTS]
    for option in options:
        ranges = [port_range(each) for each in argument(option).split(",")]
        if option.name in ("dports", "destination-ports"):
            test = _one_of(ranges, source=False)
        elif option.name in ("sports", "source-ports"):
            test = _one_of(ranges, source=True)
        elif option.name == "ports":
            test = _either(_one_of(ranges, source=True), _one_of(ranges, source=False))
        else:
            raise NotKnownError(option.spelled())
        tests.append(unless(option.negated, test))
    return tests


def _iprange(options: tuple[Option, ...], family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        first, _, last = argument(option).partition("-")
        low, high = ip_address(first), ip_address(last or first)
        if low.version != family or high.version != family:
            raise NotKnownError(option.spelled())
        tests.append(unless(option.negated, _range_test(int(low), int(high), option.name)))
    return tests


def _range_test(low: int, high: int, name: str) -> Test:
    if name == "src-range":
        return lambda run: low <= run.source <= high
    if name == "dst-range":
        return lambda run: low <= run.destination <= high
    raise NotKnownError(name)


def _mark(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        if option.name != "mark":
            raise NotKnownError(option.spelled())
        value, mask = mark_and_mask(argument(option))
        test: Test = lambda run, value=value, mask=mask: run.packet.mark & mask == value  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def _connmark(options: tuple[Option, ...], _family: Family) -> list[Test]:
    # connmark_mt: false without a connection, negated or not
    tests: list[Test] = [lambda run: run.has_connection]
    for option in options:
        if option.name != "mark":
            raise NotKnownError(option.spelled())
        value, mask = mark_and_mask(argument(option))
        test: Test = lambda run, value=value, mask=mask: run.connection.mark & mask == value  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def _length(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        low, high = port_range(argument(option))  # IPv6: with its header too (length_mt6)
        test: Test = lambda run, low=low, high=high: low <= run.packet.length <= high  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def _dscp(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        if option.name == "dscp":
            wanted = names.number(argument(option))
        elif option.name == "dscp-class":
            wanted = names.DSCP[argument(option).lower()]
        else:
            raise NotKnownError(option.spelled())
        test: Test = lambda run, wanted=wanted: run.packet.tos >> 2 == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def _tos(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        value, _, mask = argument(option).partition("/")
        wanted, bits = names.number(value), names.number(mask or "0xff")
        test: Test = lambda run, wanted=wanted, bits=bits: run.packet.tos & bits == wanted  # type: ignore[misc]  # noqa: E731
        tests.append(unless(option.negated, test))
    return tests


def _hop_limit(options: tuple[Option, ...], _family: Family) -> list[Test]:
    tests: list[Test] = []
    for option in options:
        wanted = names.number(argument(option))
        how = option.name.partition("-")[2]
        if how not in ("eq", "lt", "gt"):
            raise NotKnownError(option.spelled())

        def test(run: Run, wanted: int = wanted, how: str = how) -> bool:
            value = run.packet.hop_limit
            return value == wanted if how == "eq" else value < wanted if how == "lt" else value > wanted

        tests.append(unless(option.negated, test))
    return tests


def _nothing(_options: tuple[Option, ...], _family: Family) -> list[Test]:
    return []


_MAKERS: dict[str, Callable[[tuple[Option, ...], Family], list[Test]]] = {
    "ip": _ip, "tcp": _ports(6), "udp": _ports(17), "udplite": _ports(136), "sctp": _ports(132), "icmp": _icmp,
    "icmp6": _icmp, "icmpv6": _icmp, "ipv6-icmp": _icmp, "multiport": _multiport, "iprange": _iprange, "mark": _mark,
    "connmark": _connmark, "conntrack": conntrack, "state": state, "addrtype": place.addrtype, "comment": _nothing,
    "physdev": place.physdev, "owner": place.owner, "rpfilter": place.rpfilter, "pkttype": place.pkttype, "length": _length,
    "dscp": _dscp, "tos": _tos, "ttl": _hop_limit, "hl": _hop_limit, "devgroup": place.devgroup, "set": place.ipset,
}  # fmt: skip
