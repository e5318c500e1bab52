# SPDX-License-Identifier: Apache-2.0
"""A node with thousands of services, as kube-proxy writes them in either of its modes, and one with many routes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from wicketgate.lab.host import Host

HEALTH_PORT = 8080
ADDRESS = "192.0.2.10"
_POLICIES = {
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}


def wire_up(host: Host) -> None:
    """An uplink, a default route."""
    lines = (
        "link add eth0 type veth peer name wire",
        "link set wire up",
        "link set eth0 up",
        f"address add {ADDRESS}/24 dev eth0",
        "route add default via 192.0.2.1",
    )
    host.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def listener(host: Host) -> socket.socket:
    """Somebody listens on the health port of the node."""
    sock = host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", HEALTH_PORT))
    sock.listen()
    return sock


def cluster_address(number: int) -> str:
    """The service's."""
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def endpoints(number: int) -> list[str]:
    """Two or three a service, so that one costs ten rules on average."""
    many = 2 if number % 3 == 0 else 3
    return [f"10.{128 + at}.{number >> 8 & 255}.{number & 255}" for at in range(many)]


def iptables(services: int, *, drops: bool = False) -> str:
    """What kube-proxy hands to iptables-restore: about ten rules a service, all in the table nat.

    Args:
        services: how many.
        drops: the health port is closed by one more rule.
    """
    chains, rules = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"], []
    for number in range(services):
        name, address = f"ns-{number % 40}/service-{number}:http", cluster_address(number)
        tag, to = f"{number:016X}", endpoints(number)
        chains += [f"KUBE-SVC-{tag}", *(f"KUBE-SEP-{tag[1:]}{at}" for at in range(len(to)))]
        rules.append(
            f'-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport 80 -j KUBE-SVC-{tag}'
        )
        rules.append(
            f'-A KUBE-SVC-{tag} ! -s 10.128.0.0/12 -d {address}/32 -p tcp -m comment --comment "{name} cluster IP" '
            "-m tcp --dport 80 -j KUBE-MARK-MASQ"
        )
        for at, endpoint in enumerate(to):
            left = len(to) - at
            chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
            end = f"KUBE-SEP-{tag[1:]}{at}"
            words = f'-m comment --comment "{name} -> {endpoint}:8080"'
            rules.append(f"-A KUBE-SVC-{tag} {words} {chance}-j {end}")
            rules.append(f'-A {end} -s {endpoint}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ')
            rules.append(
                f'-A {end} -p tcp -m comment --comment "{name}" -m tcp -j DNAT --to-destination {endpoint}:8080'
            )
    nat = [
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *rules,
        "-A KUBE-SERVICES ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    ]
    filters = [
        "-A INPUT -j KUBE-FIREWALL",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        *([f"-A INPUT -p tcp -m tcp --dport {HEALTH_PORT} -j DROP"] if drops else []),
    ]
    return "\n".join((
        *_table("mangle", ["KUBE-PROXY-CANARY"], []), *_table("filter", ["KUBE-FIREWALL"], filters),
        *_table("nat", chains, nat), "",
    ))  # fmt: skip


def _table(name: str, chains: list[str], rules: list[str]) -> Iterator[str]:
    yield f"*{name}"
    yield from (f":{each} ACCEPT [0:0]" for each in _POLICIES[name])
    yield from (f":{each} - [0:0]" for each in chains)
    yield from rules
    yield "COMMIT"


def nftables(services: int, *, drops: bool = False) -> str:
    """What kube-proxy hands to nft: three or four chains a service, and verdict maps that lead to them."""
    chains, elements, addresses = [], [], []
    for number in range(services):
        name, address = f"ns-{number % 40}/service-{number}/tcp/http", cluster_address(number)
        service, ends = f"service-{number:08X}-{name}", []
        for endpoint in endpoints(number):
            ends.append(f"endpoint-{number:08X}-{name}__{endpoint}/8080")
            chains.append(
                f"chain {ends[-1]} {{\n ip saddr {endpoint} jump mark-for-masquerade\n meta l4proto tcp dnat to {endpoint}:8080\n}}"
            )
        picks = ", ".join(f"{at} : goto {end}" for at, end in enumerate(ends))
        chains.append(
            f"chain {service} {{\n ip daddr {address} tcp dport 80 ip saddr != 10.128.0.0/12 jump mark-for-masquerade\n"
            f" numgen random mod {len(ends)} vmap {{ {picks} }}\n}}"
        )
        elements.append(f"{address} . tcp . 80 : goto {service}")
        addresses.append(address)
    closed = f"  tcp dport {HEALTH_PORT} drop\n" if drops else ""
    return (
        "table ip kube-proxy {\n"
        f" set cluster-ips {{\n  type ipv4_addr\n  elements = {{ {', '.join(addresses)} }}\n }}\n"
        f" set nodeport-ips {{\n  type ipv4_addr\n  elements = {{ {ADDRESS} }}\n }}\n"
        " map no-endpoint-services {\n  type ipv4_addr . inet_proto . inet_service : verdict\n }\n"
        " map service-nodeports {\n  type inet_proto . inet_service : verdict\n }\n"
        " chain mark-for-masquerade {\n  meta mark set meta mark | 0x00004000\n }\n"
        " chain masquerading {\n  meta mark & 0x00004000 == 0 return\n  meta mark set meta mark ^ 0x00004000\n"
        "  masquerade fully-random\n }\n" + "\n".join(chains) + "\n"
        " map service-ips {\n  type ipv4_addr . inet_proto . inet_service : verdict\n"
        f"  elements = {{ {', '.join(elements)} }}\n }}\n"
        " chain services {\n  ip daddr . meta l4proto . th dport vmap @service-ips\n"
        "  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n }\n"
        " chain service-endpoints-check {\n  ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n }\n"
        " chain cluster-ips-check {\n  ip daddr @cluster-ips reject\n  ip daddr 10.96.0.0/12 drop\n }\n"
        " chain filter-input {\n  type filter hook input priority -110; policy accept;\n"
        f"  ct state new jump service-endpoints-check\n{closed} }}\n"
        " chain filter-forward {\n  type filter hook forward priority -110; policy accept;\n"
        "  ct state new jump service-endpoints-check\n  ct state new jump cluster-ips-check\n }\n"
        " chain filter-output {\n  type filter hook output priority -90; policy accept;\n"
        "  ct state new jump cluster-ips-check\n }\n"
        " chain nat-prerouting {\n  type nat hook prerouting priority dstnat; policy accept;\n  jump services\n }\n"
        " chain nat-output {\n  type nat hook output priority -100; policy accept;\n  jump services\n }\n"
        " chain nat-postrouting {\n  type nat hook postrouting priority srcnat; policy accept;\n  jump masquerading\n }\n}\n"
    )


def routes(many: int) -> str:
    """What `ip -batch` takes: host routes and networks of three lengths, all by the uplink."""
    lengths = (24, 28, 32)
    lines = []
    for number in range(many):
        length = lengths[number % 3]
        value = (100 << 24) + (number << 8)
        lines.append(
            f"route add {value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.0/{length} via 192.0.2.{2 + number % 200}"
        )
    return "\n".join(lines) + "\n"
