# SPDX-License-Identifier: Apache-2.0
"""Rules and routes as iproute2 prints and takes them, so that every line we log can be typed again by hand."""

from __future__ import annotations

from ipaddress import IPv4Address

from wicketgate.netpath.snapshot import (
    RT_TABLE_DEFAULT,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    Address,
    IPAddress,
    IPNetwork,
    NextHop,
    Route,
    Rule,
)

# The three that every kernel has; what /etc/iproute2/rt_tables adds is a matter of one machine.
_TABLES = {RT_TABLE_LOCAL: "local", RT_TABLE_MAIN: "main", RT_TABLE_DEFAULT: "default"}
# /etc/protocols, those that policy rules are written for
_IP_PROTOCOLS = {
    1: "icmp",
    2: "igmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "ipv6-icmp",
    132: "sctp",
    136: "udplite",
}
# iproute2's own table (lib/rt_names.c), which /etc/iproute2/rt_protos repeats
_PROTOCOLS = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    8: "gated",
    9: "ra",
    10: "mrt",
    11: "zebra",
    12: "bird",
    13: "dnrouted",
    14: "xorp",
    15: "ntk",
    16: "dhcp",
    18: "keepalived",
    42: "babel",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}

RTPROT_UNSPEC, RTPROT_KERNEL, RTPROT_BOOT = 0, 2, 3
RTNH_F_ONLINK = 4
FULL_MASK = 0xFFFFFFFF


def table_name(table: int) -> str:
    """`main`, `local`, `default` or the number."""
    return _TABLES.get(table, str(table))


def protocol_name(protocol: int) -> str:
    """`kernel`, `boot`, `static` ... or the number (rt_protos)."""
    return _PROTOCOLS.get(protocol, str(protocol))


def _ip(address: IPAddress) -> str:
    # iproute2 prints with inet_ntop(3), which ends addresses that hold an IPv4 one in dots; Python does not, or not
    # in every version.
    value = int(address)
    if address.version == 6 and (0x10000 <= value <= FULL_MASK or value >> 32 == 0xFFFF):
        return f"::{'ffff:' if value >> 32 else ''}{IPv4Address(value & FULL_MASK)}"
    return str(address)


def _network(network: IPNetwork) -> str:
    address = _ip(network.network_address)
    return address if network.prefixlen == network.max_prefixlen else f"{address}/{network.prefixlen}"


def _ports(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def _selector(rule: Rule, *, typed: bool) -> list[str]:
    words = ["not"] if rule.invert else []
    words += ["from", _network(rule.src) if rule.src is not None and rule.src.prefixlen else "all"]
    if rule.dst is not None and rule.dst.prefixlen:
        words += ["to", _network(rule.dst)]
    if rule.tos:
        words += ["tos", f"{rule.tos:#04x}"]
    if rule.fwmark or rule.fwmask:
        # iproute2 prints with C's %#x, which writes zero as "0".
        mark = f"{rule.fwmark:#x}" if rule.fwmark else "0"
        # Typed without a mask, a mark of zero would select nothing at all.
        bare = rule.fwmask == FULL_MASK and (rule.fwmark or not typed)
        words += ["fwmark", mark if bare else f"{mark}/{rule.fwmask:#x}"]
    if rule.iif:
        words += ["iif", rule.iif]
    if rule.oif:
        words += ["oif", rule.oif]
    return words


def _selector_end(rule: Rule, *, typed: bool) -> list[str]:
    words = []
    if rule.uid_range is not None:
        words += ["uidrange", f"{rule.uid_range[0]}-{rule.uid_range[1]}"]
    if rule.ipproto:
        number = str(rule.ipproto) if typed else f"ipproto-{rule.ipproto}"
        words += ["ipproto", _IP_PROTOCOLS.get(rule.ipproto, number)]
    if rule.sport is not None:
        words += ["sport", _ports(rule.sport)]
    if rule.dport is not None:
        words += ["dport", _ports(rule.dport)]
    return words


def _action(rule: Rule) -> list[str]:
    if rule.action == "lookup":
        words = [] if rule.l3mdev else ["lookup", table_name(rule.table)]
        if rule.suppress_prefixlength is not None:
            words += ["suppress_prefixlength", str(rule.suppress_prefixlength)]
        if rule.suppress_ifgroup is not None:
            words += ["suppress_ifgroup", "default" if rule.suppress_ifgroup == 0 else str(rule.suppress_ifgroup)]
        return words
    if rule.action == "goto":
        return ["goto", str(rule.goto)]
    return [rule.action]


def spell_rule(rule: Rule) -> str:
    """The rule without its priority: `not from all fwmark 0xca6c lookup 51820`, as `ip rule` prints it."""
    l3mdev = ["lookup", "[l3mdev-table]"] if rule.l3mdev else []
    words = [*_selector(rule, typed=False), *l3mdev, *_selector_end(rule, typed=False), *_action(rule)]
    if rule.protocol not in (RTPROT_UNSPEC, RTPROT_KERNEL):
        words += ["proto", protocol_name(rule.protocol)]
    return " ".join([*words, *_unnamed(rule.unknown)])


def list_rule(rule: Rule) -> str:
    """The line of `ip rule`: `32765:	not from all fwmark 0xca6c lookup 51820`."""
    return f"{rule.priority}:\t{spell_rule(rule)}"


def rule_command(verb: str, rule: Rule) -> str:
    """`ip -4 rule add from 10.0.0.2 lookup main pref 100 protocol 87`.

    Args:
        verb: `add` or `del`.
        rule: the rule.
    """
    l3mdev = ["l3mdev"] if rule.l3mdev else []
    words = ["ip", f"-{rule.family}", "rule", verb]
    words += [*_selector(rule, typed=True), *l3mdev, *_selector_end(rule, typed=True), *_action(rule)]
    words += ["pref", str(rule.priority)]
    if rule.protocol != RTPROT_UNSPEC:
        words += ["protocol", protocol_name(rule.protocol)]
    return " ".join([*words, *_unnamed(rule.unknown)])


def _unnamed(unknown: tuple[str, ...]) -> list[str]:
    return [f"[{name}]" for name in unknown]


def _hop(hop: NextHop, family: int) -> list[str]:
    words = []
    if hop.via is not None:
        other = [] if hop.via.version == family else ["inet" if hop.via.version == 4 else "inet6"]
        words += ["via", *other, _ip(hop.via)]
    if hop.oif:
        words += ["dev", hop.oif]
    return words


def _route_words(route: Route, *, explicit: bool) -> list[str]:
    words = [] if route.type == "unicast" else [route.type]
    words.append("default" if route.dst.prefixlen == 0 else _network(route.dst))
    if route.src is not None:
        words += ["from", _network(route.src)]
    if route.nh_id:
        words += ["nhid", str(route.nh_id)]
    if route.tos:
        words += ["tos", f"{route.tos:#04x}"]
    single = not route.nh_id and len(route.nexthops) == 1
    # The kernel shows `lo` for IPv6 routes that reject; iproute2 takes them without it.
    if single:
        words += _hop(route.nexthops[0], route.family)
    if explicit or route.table != RT_TABLE_MAIN:
        words += ["table", table_name(route.table)]
    if explicit or route.protocol != RTPROT_BOOT:
        words += ["proto", protocol_name(route.protocol)]
    if route.family == 4 and (explicit or route.scope):
        words += ["scope", _SCOPES.get(route.scope, str(route.scope))]
    if route.prefsrc is not None:
        words += ["src", _ip(route.prefsrc)]
    if route.metric:
        words += ["metric", str(route.metric)]
    if single and route.nexthops[0].flags & RTNH_F_ONLINK:
        words.append("onlink")
    for name, value in route.metrics.items():
        words += [_METRIC_WORDS.get(name, name), *value.split()]
    if not route.nh_id and len(route.nexthops) > 1:
        for hop in route.nexthops:
            words += ["nexthop", *_hop(hop, route.family), "weight", str(hop.weight)]
            if hop.flags & RTNH_F_ONLINK:
                words.append("onlink")
    return words


_METRIC_WORDS = {"cc_algo": "congctl"}


def spell_route(route: Route) -> str:
    """The route as `ip route` prints it, in one line: `default via 169.254.1.1 dev eth0 proto static onlink`."""
    return " ".join([*_route_words(route, explicit=False), *_unnamed(route.unknown)])


def route_command(verb: str, route: Route) -> str:
    """`ip -4 route add default dev wg0 table 51820 proto 87 scope link`, with nothing left to iproute2's defaults.

    Args:
        verb: `add`, `replace` or `del`.
        route: the route.
    """
    words = ["ip", f"-{route.family}", "route", verb, *_route_words(route, explicit=True)]
    return " ".join([*words, *_unnamed(route.unknown)])


def spell_address(address: Address) -> str:
    """`10.8.0.1/24 dev wg0`, or `10.8.0.1 peer 10.8.0.2/32 dev ppp0`."""
    if address.peer is None:
        return f"{address.interface} dev {address.ifname}"
    return f"{address.ip} peer {address.peer}/{address.interface.network.prefixlen} dev {address.ifname}"
