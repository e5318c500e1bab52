# SPDX-License-Identifier: Apache-2.0
"""Random network configurations and questions about them, small enough to collide often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network

from hypothesis import strategies as st

from wicketgate.netpath.snapshot import NextHop, Route, Rule
from wicketgate.netpath.spelling import route_command, rule_command

DEVICES = ("e0", "e1", "e2")
TABLES = (254, 254, 100, 101, 253)

NETS = {
    4: [
        "0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24",
        "10.0.0.128/25", "10.0.1.7/32", "10.0.2.7/32", "192.0.2.0/24", "127.5.0.0/16",
    ],
    6: [
        "::/0", "2000::/3", "fd00::/16", "fd00::/56", "fd00::/64", "fd00:0:0:1::/64", "fd00:0:0:2::/64",
        "fd00:0:0:1::7/128", "fd00:0:0:2::7/128", "2001:db8::/32",
    ],
}  # fmt: skip
HOSTS = {
    4: [
        "10.0.0.1", "10.0.0.2", "10.0.0.7", "10.0.0.129", "10.0.0.255", "10.0.1.1", "10.0.1.2", "10.0.1.7", "10.0.2.1",
        "10.0.2.7", "10.0.3.3", "10.9.9.9", "192.0.2.9", "203.0.113.9", "127.0.0.1", "127.5.0.1",
    ],
    6: [
        "fd00::1", "fd00::2", "fd00::7", "fd00:0:0:1::1", "fd00:0:0:1::2", "fd00:0:0:1::7", "fd00:0:0:2::1",
        "fd00:0:0:2::7", "fd00:0:0:3::3", "fd00:9::9", "2001:db8::9", "2001:4860::9", "::1", "fe80::7",
    ],
}  # fmt: skip
OWN = {
    4: ["10.0.0.1/24", "10.0.0.129/25", "10.0.1.1/24", "10.0.2.1/24", "10.0.1.2/32", "192.0.2.1/30", "10.0.0.2/24"],
    6: ["fd00::1/64", "fd00:0:0:1::1/64", "fd00:0:0:2::1/64", "fd00:0:0:1::2/128", "fe80::1/64", "2001:db8::1/48", "fd00::2/64"],
}  # fmt: skip
# `ip nexthop`: one way, another, a blackhole, a group of the first two
NEXTHOPS = {
    4: {1: "dev e0", 2: "via 10.0.1.2 dev e1 onlink", 3: "blackhole", 4: "group 1/2"},
    6: {61: "dev e0", 62: "via fd00:0:0:1::2 dev e1 onlink", 63: "blackhole", 64: "group 61/62"},
}
MARKS = (0, 0, 0, 1, 2, 3, 0xCA6C)


@dataclass(frozen=True)
class World:
    """A configuration, as values."""

    addresses: tuple[tuple[str, IPv4Interface | IPv6Interface], ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]
    sysctls: dict[str, int] = field(hash=False)
    carrier: bool = True  # of e2

    def commands(self, family: int) -> list[str]:
        """For `ip -4 -batch -` or `ip -6 -batch -`."""
        lines = [
            f"addr add {interface} dev {device}" + (" nodad" if family == 6 else "")
            for device, interface in self.addresses
            if interface.version == family
        ]
        prefix = f"ip -{family} "
        lines += [route_command("append", r).removeprefix(prefix) for r in self.routes if r.family == family]
        lines += [rule_command("add", r).removeprefix(prefix) for r in self.rules if r.family == family]
        return lines


@dataclass(frozen=True)
class Ask:
    """A question both the model and the kernel get."""

    destination: str
    source: str | None
    iif: str | None
    oif: str | None
    mark: int
    uid: int
    protocol: int
    source_port: int
    destination_port: int


def interfaces(family):
    """Our own addresses."""
    return st.sampled_from(OWN[family]).map(IPv4Interface if family == 4 else IPv6Interface)


@st.composite
def routes(draw, family):
    """A route, as somebody may type it."""
    kind = draw(st.sampled_from(("unicast",) * 8 + ("blackhole", "unreachable", "prohibit", "throw", "local")))
    hops = ()
    if kind == "unicast":
        count = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
        made = []
        for _ in range(count):
            via = draw(st.none() | st.sampled_from(HOSTS[family][:10]).map(ip_address))
            made.append(NextHop(draw(st.sampled_from(DEVICES)), via, flags=4 if via else 0))
        hops = tuple(made)
    elif kind == "local":
        hops = (NextHop(draw(st.sampled_from(("lo", "e0")))),)
    nexthop_object = draw(st.sampled_from((0,) * 9 + tuple(NEXTHOPS[family]))) if kind == "unicast" else 0
    if nexthop_object:
        hops = ()
    scope = 0
    if family == 4 and not nexthop_object:
        scope = 254 if kind == "local" else 253 if hops and all(hop.via is None for hop in hops) else 0
    return Route(
        ip_network(draw(st.sampled_from(NETS[family]))),
        table=draw(st.sampled_from(TABLES)),
        type=kind,
        nexthops=hops,
        metric=draw(st.sampled_from((0, 0, 5, 10))),
        tos=draw(st.sampled_from((0, 0, 0, 0, 0x10))) if family == 4 else 0,
        prefsrc=draw(st.sampled_from([None] * 6 + [ip_address(o.split("/")[0]) for o in OWN[family]]))
        if kind == "unicast"
        else None,
        src=None if family == 4 else _source(draw),
        scope=scope,
        protocol=4,
        nh_id=nexthop_object,
    )


def _source(draw):
    net = draw(st.sampled_from((None,) * 8 + ("fd00::/64", "fd00::/16", "fd00:0:0:1::1/128")))
    return ip_network(net) if net else None


ports = st.sampled_from((None, None, None, (80, 80), (1, 1000), (9000, 9000), (51820, 51820)))


@st.composite
def rules(draw, family):
    """A rule."""
    action = draw(st.sampled_from(("lookup",) * 9 + ("goto", "goto", "nop", "blackhole", "unreachable", "prohibit")))
    lookup = action == "lookup"
    priority = draw(st.integers(1, 12)) * 10
    mask = draw(st.sampled_from((0, 0, 0xFFFFFFFF, 1, 0xFF)))
    nets = st.sampled_from([None] * 4 + [n for n in NETS[family] if not n.endswith("/0")])
    src, dst = draw(nets), draw(nets)
    ip_protocols = (0, 0, 0, 0, 6, 17, 1 if family == 4 else 58)
    return Rule(
        family=family,
        priority=priority,
        action=action,
        table=draw(st.sampled_from((*TABLES, 255, 77))) if lookup else 0,
        src=ip_network(src) if src else None,
        dst=ip_network(dst) if dst else None,
        iif=draw(st.sampled_from(("",) * 6 + ("lo", "e0", "e1", "gone"))),
        oif=draw(st.sampled_from(("",) * 8 + ("e0", "e1", "lo"))),
        fwmark=draw(st.sampled_from((0, 1, 2, 0xCA6C))) if mask else 0,
        fwmask=mask,
        tos=draw(st.sampled_from((0,) * 9 + (0x10,))),
        ipproto=draw(st.sampled_from(ip_protocols)),
        sport=draw(ports),
        dport=draw(ports),
        uid_range=draw(st.sampled_from((None,) * 6 + ((0, 0), (1000, 2000)))),
        invert=draw(st.sampled_from((False, False, False, True))),
        suppress_prefixlength=draw(st.sampled_from((None,) * 4 + (0, 1, 16, 24))) if lookup else None,
        suppress_ifgroup=draw(st.sampled_from((None,) * 6 + (0, 7))) if lookup else None,
        goto=draw(st.sampled_from((priority + 10, priority + 20, priority + 30, 32766))) if action == "goto" else 0,
        protocol=4,
    )


def sysctl_values():
    """Settings of all kinds that the model reads."""
    names = {}
    for where in ("all", "e0", "e1"):
        names[f"net.ipv4.conf.{where}.rp_filter"] = st.sampled_from((0, 0, 1, 2))
        names[f"net.ipv4.conf.{where}.src_valid_mark"] = st.sampled_from((0, 0, 1))
        names[f"net.ipv4.conf.{where}.accept_local"] = st.sampled_from((0, 0, 0, 1))
        names[f"net.ipv4.conf.{where}.route_localnet"] = st.sampled_from((0, 0, 0, 1))
        names[f"net.ipv4.conf.{where}.ignore_routes_with_linkdown"] = st.sampled_from((0, 0, 1))
        names[f"net.ipv6.conf.{where}.ignore_routes_with_linkdown"] = st.sampled_from((0, 0, 1))
    for where in ("e0", "e1"):
        names[f"net.ipv4.conf.{where}.forwarding"] = st.sampled_from((0, 1, 1))
    names["net.ipv6.conf.all.forwarding"] = st.sampled_from((0, 1))
    return st.fixed_dictionaries(names)


def _of_both(strategy, most):
    return st.lists(st.sampled_from((4, 6)).flatmap(strategy), max_size=most).map(tuple)


worlds = st.builds(
    World,
    addresses=st.lists(
        st.tuples(st.sampled_from((*DEVICES, "lo")), st.sampled_from((4, 6)).flatmap(interfaces)), max_size=6
    ).map(tuple),
    routes=_of_both(routes, 12),
    rules=_of_both(rules, 8),
    sysctls=sysctl_values(),
    carrier=st.booleans(),
)


@st.composite
def asks(draw):
    """A question."""
    family = draw(st.sampled_from((4, 6)))
    host = st.sampled_from(HOSTS[family])
    arrives = draw(st.booleans())
    protocol = draw(st.sampled_from((6, 17, 1 if family == 4 else 58)))
    has_ports = protocol in (6, 17)
    return Ask(
        destination=draw(host),
        source=draw(host) if arrives else draw(st.none() | host),
        iif=draw(st.sampled_from(("e0", "e1", "e2"))) if arrives else None,
        oif=None if arrives else draw(st.sampled_from((None, None, "e0", "e1", "e2", "lo"))),
        mark=draw(st.sampled_from(MARKS)),
        uid=0 if arrives else draw(st.sampled_from((0, 0, 1000, 3000))),
        protocol=protocol,
        source_port=draw(st.sampled_from((80, 9000, 51820, 40000))) if has_ports else 0,
        destination_port=draw(st.sampled_from((80, 9000, 51820, 40000))) if has_ports else 0,
    )


@st.composite
def open_worlds(draw):
    """A world in which most packets get somewhere: interfaces with addresses, a default route and forwarding."""
    world = draw(worlds)
    first = [("e0", IPv4Interface("10.0.0.1/24")), ("e1", IPv4Interface("10.0.1.1/24")), ("e0", IPv6Interface("fd00::1/64")),
             ("e1", IPv6Interface("fd00:0:0:1::1/64"))]  # fmt: skip
    kept = tuple(pair for pair in first if draw(st.sampled_from((True, True, True, False))))
    out = {4: ("10.0.0.2", "10.0.1.2"), 6: ("fd00::2", "fd00:0:0:1::2")}
    defaults = []
    for family in (4, 6):
        at = draw(st.sampled_from((0, 1, 1, None)))
        if at is not None:
            hop = NextHop(f"e{at}", ip_address(out[family][at]), flags=4)
            defaults.append(Route(ip_network(NETS[family][0]), nexthops=(hop,), metric=20, protocol=4))
    forwarding = {f"net.ipv4.conf.{name}.forwarding": 1 for name in ("e0", "e1")} | {"net.ipv6.conf.all.forwarding": 1}
    checks = {f"net.ipv4.conf.{name}.rp_filter": draw(st.sampled_from((0, 0, 0, 1, 2))) for name in ("all", "e0", "e1")}
    opened = draw(st.sampled_from((True, True, True, False)))
    return replace(
        world, addresses=kept + world.addresses, routes=tuple(defaults) + world.routes,
        rules=world.rules if draw(st.booleans()) else (),
        sysctls=world.sysctls | checks | (forwarding if opened else {}),
    )  # fmt: skip
