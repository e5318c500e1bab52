# SPDX-License-Identifier: Apache-2.0
"""Links, settings, addresses, rules and routes of a snapshot, made again.

What the kernel makes by itself is let be made; then rules and routes are read, what is too much is removed and what
lacks is added, until both are the same. Whatever stays different is found when the twin is read back.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from wicketgate.errors import KernelRefused, StateError
from wicketgate.kernel import sysctl
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.process import run
from wicketgate.kernel.twin.wires import FAR_MAC, Wires
from wicketgate.netpath.snapshot import Address, Family, Link, NextHop, Route, Rule, Snapshot
from wicketgate.netpath.spelling import route_command, rule_command

# A name that is one word in every command and file name: the kernel forbids only blanks and slashes.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+-]{0,14}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_TUNNELS = ("tun", "wireguard")
_WIRED = ("", "veth", "vlan", "macvlan", "ipvlan", "bond", "bridge")  # one end of something that carries frames
_SECONDS = 10.0  # for one batch of commands
_SETTLING = 1.0  # seconds; IPv6's routes of addresses come from a work queue
_ONLINK = 4  # RTNH_F_ONLINK
# IFA_F_*: what decides which source address is chosen, and what cannot be given to an address
_DEPRECATED, _NOPREFIXROUTE, _TENTATIVE, _DADFAILED = 0x20, 0x200, 0x40, 0x08
# Each is of the network namespace, and wicket reads it.
_OURS = re.compile(
    r"net\.ipv[46]\.conf\.[A-Za-z0-9_/@:+-]+\.[a-z_0-9]+"
    r"|net\.ipv4\.(ip_forward|fwmark_reflect|tcp_fwmark_accept|ip_nonlocal_bind|icmp_echo_ignore_all|"
    r"ip_local_port_range|nexthop_compat_mode)"
    r"|net\.ipv6\.(fwmark_reflect|ip_nonlocal_bind|bindv6only)"
)
_READ_ONLY = re.compile(r"net\.ipv6\.conf\..*\.mtu")
# So that what is tried twice is told twice, and an address serves at once.
_QUIET = {
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv4.tcp_syncookies": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.dad_transmits": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
}


def one_word(name: str) -> bool:
    """Whether an interface's name may stand in commands."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def settable(name: str) -> bool:
    """A setting of the network namespace alone, which a twin may have as it likes."""
    return _OURS.fullmatch(name) is not None and _READ_ONLY.fullmatch(name) is None


async def batch(family: int, lines: Sequence[str]) -> tuple[str, ...]:
    """`ip -batch`; what it complained of, a line each."""
    if not lines:
        return ()
    argv = ["ip", *([f"-{family}"] if family else []), "-force", "-batch", "-"]
    done = await run(argv, stdin="".join(f"{line}\n" for line in lines), timeout=_SECONDS)
    return tuple(line for line in done.stderr.splitlines() if not line.startswith("Command failed"))


def make_links(snapshot: Snapshot, wires: Wires, far_path: str) -> tuple[str, ...]:
    """Make the interfaces; they are down. What could not be made, in words."""
    lacking: list[str] = []
    lines: list[str] = []
    wired: list[Link] = []
    for link in sorted(snapshot.links, key=lambda each: each.index):
        if not one_word(link.name):
            raise StateError(f"the interface name {link.name!r} is no plain word")
        mtu = f"mtu {link.mtu}"
        if link.loopback:
            if link.name != "lo":
                lacking.append(f"{link.name}: a second loopback")
            lines.append(f"link set lo {mtu}")
        elif link.kind in _TUNNELS:
            wires.add_tun(link.name, carrier=link.lower_up or not link.up)
            lines.append(f"link set {link.name} {mtu}")
        elif link.kind in _WIRED:
            mac = f"address {link.mac}" if _MAC.fullmatch(link.mac) and link.mac != "00:00:00:00:00:00" else ""
            lines.append(
                f"link add name {link.name} {mac} {mtu} type veth "
                f"peer name w{len(wired)} address {FAR_MAC.hex(':')} {mtu} netns {far_path}"
            )
            wired.append(link)
        else:
            # Nothing is known of its way through such a device; as long as nothing leads there that does no harm.
            lines += [f"link add name {link.name} {mtu} type dummy"]
            if link.kind != "dummy" and link.up:
                lacking.append(f"{link.name}: an interface of kind {link.kind}")
        if not link.loopback:
            lines.append(f"link set {link.name} addrgenmode none")
        lines.append(f"link set {link.name} group {link.group}")
    refused = asyncio.run(batch(0, lines))
    lacking += [f"links: {line}" for line in refused if "addrgenmode" not in line]
    asyncio.run(_raise(wires, wired))
    return tuple(lacking)


async def _raise(wires: Wires, wired: Sequence[Link]) -> None:
    with wires.far.inside(wires.home):
        lines = []
        for number, link in enumerate(wired):
            lines += [f"link set w{number} addrgenmode none arp off"]
            lines += [f"link set w{number} up"] if link.lower_up or not link.up else []
        with contextlib.suppress(KernelRefused):
            sysctl.write("net.ipv6.conf.all.disable_ipv6", "1")
        await batch(0, lines)
    async with Netlink() as netlink:
        macs = {link.name: link.mac for link in await netlink.links()}
    for number, link in enumerate(wired):
        if link.name in macs:
            wires.add_far(link.name, f"w{number}", bytes.fromhex(macs[link.name].replace(":", "")))


def links_up(snapshot: Snapshot) -> None:
    """Bring up what is up."""
    asyncio.run(batch(0, [f"link set {link.name} up" for link in snapshot.links if link.up]))


def set_sysctls(snapshot: Snapshot) -> tuple[str, ...]:
    """Set what the snapshot holds; what was refused, in words. Never anything but this namespace's own."""
    for name, value in _QUIET.items():
        with contextlib.suppress(KernelRefused):
            sysctl.write(name, value)
    lacking = []
    # Writing `all` and ip_forward changes those of the interfaces, so they come first.
    for name, value in sorted(snapshot.sysctls.items(), key=_general_first):
        if not settable(name):
            continue
        now = sysctl.read(name)
        if now is None or now.split() == value.split():
            continue
        try:
            sysctl.write(name, value)
        except KernelRefused as error:
            if (sysctl.read(name) or "").split() != value.split():
                lacking.append(str(error))
    return tuple(lacking)


def _general_first(item: tuple[str, str]) -> tuple[int, str]:
    name = item[0]
    return (0 if name.endswith("ip_forward") else 1 if ".all." in name else 2 if ".default." in name else 3, name)


def _address_line(address: Address) -> str:
    peer = f" peer {address.peer}/{address.interface.network.prefixlen}" if address.peer is not None else ""
    near = str(address.ip) if address.peer is not None else str(address.interface)
    words = f"addr add {near}{peer} dev {address.ifname} scope {address.scope}"
    if address.family == 6:
        words += " nodad"
    if address.flags & _NOPREFIXROUTE:
        words += " noprefixroute"
    if address.flags & _DEPRECATED:
        words += " preferred_lft 0"
    return words


def add_addresses(snapshot: Snapshot) -> tuple[str, ...]:
    """Add the addresses, in their order; what could not be given, in words."""
    lacking = [
        f"IPv6: {each.ip} on {each.ifname} is not yet, or not at all, this host's (duplicate address detection)"
        for each in snapshot.addresses
        if each.family == 6 and each.flags & (_TENTATIVE | _DADFAILED)
    ]

    async def add() -> None:
        # As long as there are no addresses, none can be in the way of a gateway; what fails now is tried again later.
        for family, line in _nexthop_objects(snapshot):
            await batch(family, [line])
        async with Netlink() as netlink:
            there = {(each.ifname, each.interface) for each in await netlink.addresses()}
        wanted = {(each.ifname, each.interface) for each in snapshot.addresses}
        lines = [f"addr del {interface} dev {ifname}" for ifname, interface in sorted(there - wanted, key=str)]
        lines += [_address_line(each) for each in snapshot.addresses if (each.ifname, each.interface) not in there]
        lacking.extend(f"addresses: {line}" for line in await batch(0, lines))

    asyncio.run(add())
    return tuple(lacking)


def plain_route(route: Route) -> Route:
    """A route without what the state of links adds to it."""
    hops = tuple(NextHop(hop.oif, hop.via, hop.weight, hop.flags & _ONLINK) for hop in route.nexthops)
    return replace(route, nexthops=hops)


def _key(route: Route) -> tuple[object, ...]:
    return route.family, route.table, route.dst, route.src, route.tos, route.metric


def routes_in_order(routes: Iterable[Route]) -> dict[tuple[object, ...], list[Route]]:
    """Routes by what a lookup compares; the order counts only among those that are equal in it."""
    found: dict[tuple[object, ...], list[Route]] = {}
    for route in routes:
        found.setdefault(_key(route), []).append(plain_route(route))
    for equals in found.values():
        if _kernels_own(equals[0]):
            equals.sort(key=str)
    return found


def _kernels_own(route: Route) -> bool:
    """An IPv6 address's own route. Nobody else can make one of metric 0, and it comes and goes with the address."""
    return route.family == 6 and route.metric == 0 and route.type in ("local", "anycast")


def rules_in_order(rules: Iterable[Rule]) -> dict[int, list[Rule]]:
    """Rules of each family, in their order."""
    found: dict[int, list[Rule]] = {4: [], 6: []}
    for rule in rules:
        found[rule.family].append(rule)
    return found


def make_rules_and_routes(snapshot: Snapshot) -> tuple[str, ...]:
    """Until they are the snapshot's, or no progress is made; the last complaints."""
    return asyncio.run(_reconcile(snapshot))


async def _reconcile(snapshot: Snapshot) -> tuple[str, ...]:
    wanted_rules, wanted = rules_in_order(snapshot.rules), routes_in_order(snapshot.routes)
    complaints: tuple[str, ...] = ()
    deadline = time.monotonic() + _SETTLING
    async with Netlink() as netlink:
        objects = _nexthop_objects(snapshot)
        while True:
            lines = _rule_lines(wanted_rules, rules_in_order(await netlink.rules()))
            for family, more in _route_lines(wanted, routes_in_order(await netlink.routes())).items():
                lines[family] += more
            if not lines[4] and not lines[6] and not _waiting(wanted, routes_in_order(await netlink.routes())):
                return ()
            if time.monotonic() > deadline:
                return complaints
            complaints = tuple([line for family in (4, 6) for line in await batch(family, lines[family])])
            # They too need a way to their gateways first.
            objects = [(family, line) for family, line in objects if await batch(family, [line])]


def _waiting(wanted: dict[tuple[object, ...], list[Route]], there: dict[tuple[object, ...], list[Route]]) -> bool:
    """The kernel has not made its own yet."""
    return any(_kernels_own(routes[0]) and there.get(key) != routes for key, routes in wanted.items())


def _rule_lines(wanted: dict[int, list[Rule]], there: dict[int, list[Rule]]) -> dict[int, list[str]]:
    lines: dict[int, list[str]] = {4: [], 6: []}
    for family, rules in wanted.items():
        if rules == there[family]:
            continue
        prefix = f"ip -{family} "
        lines[family] += [rule_command("del", each).removeprefix(prefix) for each in there[family] if each not in rules]
        lines[family] += [rule_command("add", each).removeprefix(prefix) for each in rules if each not in there[family]]
    return lines


def _route_lines(
    wanted: dict[tuple[object, ...], list[Route]], there: dict[tuple[object, ...], list[Route]]
) -> dict[Family, list[str]]:
    lines: dict[Family, list[str]] = {4: [], 6: []}
    late: dict[Family, list[str]] = {4: [], 6: []}
    # Where only the order is another, all of them are removed, to be added again one after the other.
    shuffled = {
        key for key, routes in wanted.items() if there.get(key) != routes and set(there.get(key, ())) == set(routes)
    }
    for key, routes in there.items():
        if wanted.get(key) != routes and not _kernels_own(routes[0]):
            for each in routes:
                if each not in wanted.get(key, ()) or key in shuffled:
                    lines[each.family].append(route_command("del", each).removeprefix(f"ip -{each.family} "))
    for key, routes in wanted.items():
        if there.get(key) != routes and not _kernels_own(routes[0]):
            for each in routes:
                if each not in there.get(key, ()) or key in shuffled:
                    # A gateway must be reachable before a route through it is taken.
                    through = any(hop.via is not None for hop in each.nexthops)
                    typed = replace(each, type="unicast") if each.nh_id else each  # the object says what it does
                    line = route_command("append", typed).removeprefix(f"ip -{each.family} ")
                    (late if through else lines)[each.family].append(line)
    return {4: lines[4] + late[4], 6: lines[6] + late[6]}


def _way(hop: NextHop) -> str:
    via = f"via {hop.via} " if hop.via is not None else ""
    return f"{via}dev {hop.oif}{' onlink' if hop.flags & _ONLINK else ''}"


def _nexthop_objects(snapshot: Snapshot) -> list[tuple[int, str]]:
    """Nexthop objects as their routes show them: of each the family, and the command that makes it."""
    found: list[tuple[int, str]] = []
    made: set[int] = set()
    spare = 1 << 24  # ids for the members of groups: a guess that nobody counts so far
    for route in snapshot.routes:
        if not route.nh_id or route.nh_id in made:
            continue
        made.add(route.nh_id)
        ways = [_way(hop) for hop in route.nexthops]
        if not ways or route.type == "blackhole":
            found.append((route.family, f"nexthop add id {route.nh_id} blackhole"))
        elif len(ways) == 1:
            found.append((route.family, f"nexthop add id {route.nh_id} {ways[0]}"))
        else:
            members = []
            for way, hop in zip(ways, route.nexthops, strict=True):
                found.append((route.family, f"nexthop add id {spare} {way}"))
                members.append(f"{spare},{hop.weight}")
                spare += 1
            found.append((0, f"nexthop add id {route.nh_id} group {'/'.join(members)}"))
    return found
