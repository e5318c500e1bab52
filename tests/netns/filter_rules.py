# SPDX-License-Identifier: Apache-2.0
"""Random rulesets of every kind, and random flows that meet them. Everything is drawn from one `random.Random`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from wicketgate.netpath.packet import ICMP, ICMPV6, SYN, TCP, UDP, Packet

SOURCES = {4: ("10.99.0.2", "10.99.0.77", "172.16.5.5", "172.16.9.1"), 6: ("fd99::2", "fd99::77", "fd72::5", "fd72::9")}
NEAR = {4: ("10.99.0.1", "10.99.0.11", "10.98.0.1"), 6: ("fd99::1", "fd99::11", "fd98::1")}
FAR = {4: ("10.98.0.2", "10.98.0.3", "203.0.113.5", "10.99.0.3"), 6: ("fd98::2", "fd98::3", "2001:db8::5", "fd99::3")}
PORTS = (53, 80, 81, 443, 8080, 9000, 51820)
PREFIXES = {
    4: ("10.99.0.0/24", "10.98.0.0/16", "172.16.0.0/20", "0.0.0.0/1", "10.0.0.0/8"),
    6: ("fd99::/64", "fd98::/16", "fd72::/64", "8000::/1", "fd00::/8"),
}
# Their names without the family, and how many directions they need
SETS = (
    ("ip", 1), ("masked", 1), ("net", 1), ("ip-port", 2), ("ip-port-ip", 3), ("net-port", 2), ("net-iface", 2),
    ("ip-port-net", 3), ("ports", 1), ("list", 1), ("bits", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What is loaded: nft's text and iptables-restore's, by tool."""

    nft: str = ""
    restore: tuple[tuple[str, str], ...] = ()
    ipset: str = ""  # for `ipset restore`, before the others

    def spelled(self) -> str:
        return "\n".join([self.ipset, self.nft, *(f"## {tool}\n{text}" for tool, text in self.restore if text)])


class Maker:
    def __init__(self, chance: Random) -> None:
        self.chance = chance

    def one(self, values):
        return values[self.chance.randrange(len(values))]

    def some(self, values, most=3):
        return sorted({str(self.one(values)) for _ in range(self.chance.randint(1, most))})

    def maybe(self, per_cent: int) -> bool:
        return self.chance.randrange(100) < per_cent

    def address(self, family: int) -> str:
        return self.one(SOURCES[family] + NEAR[family] + FAR[family])

    def mark(self) -> int:
        return self.one((0, 1, 2, 4, 5, 0x10, 0xFF, 0x100, 0x4000))

    def ordered(self, family: int, between: str) -> str:
        """A range of addresses."""
        first, last = sorted((self.address(family), self.address(family)), key=ip_address)
        return f"{first}{between}{last}" if first != last else first

    # nftables

    def nft_match(self, hook: str, *, tracked: bool = True) -> str:
        family = self.one((4, 6))
        ip = "ip" if family == 4 else "ip6"
        addresses = SOURCES[family] + NEAR[family] + FAR[family]
        proto = self.one(("tcp", "udp"))
        side = self.one(("saddr", "daddr"))
        choices = [
            lambda: f"{ip} {side} {self.one(('', '!= '))}{self.address(family)}",
            lambda: f"{ip} {side} {self.one(('', '!= '))}{self.one(PREFIXES[family])}",
            lambda: f"{ip} {side} {self.one(('', '!= '))}{{ {', '.join(self.some(addresses))} }}",
            lambda: f"{ip} {side} {self.one(('', '!= '))}@{self.one(('plain', 'wide'))}{family}",
            lambda: (
                f"{proto} {self.one(('dport', 'dport', 'sport'))} {self.one(('', '!= ', '< ', '>= '))}{self.one(PORTS)}"
            ),
            lambda: f"{proto} dport {self.one(('', '!= '))}{self.one(('50-85', '80-9000', '1-65535'))}",
            lambda: f"{proto} dport {self.one(('', '!= '))}{{ {', '.join(self.some(PORTS, 4))}, 100-200 }}",
            lambda: f"{proto} dport @ports",
            lambda: f"meta l4proto {{ tcp, udp }} th dport {self.one(PORTS)}",
            lambda: f"meta l4proto {self.one(('', '!= '))}{self.one(('tcp', 'udp', 'icmp', 'ipv6-icmp'))}",
            lambda: f"meta nfproto {self.one(('ipv4', 'ipv6'))}",
            lambda: f"ip protocol {self.one(('tcp', 'udp', 'icmp'))}",
            lambda: f"ip6 nexthdr {self.one(('tcp', 'udp', 'ipv6-icmp'))}",
            lambda: f"meta mark {self.one(('', '!= '))}{self.mark():#x}",
            lambda: f"meta mark & {self.mark() or 1:#x} {self.one(('==', '!='))} {self.mark():#x}",
            lambda: f"meta mark {{ {', '.join(map(hex, sorted({self.mark() for _ in range(3)})))} }}",
            lambda: f"{ip} daddr . {proto} dport @pairs{family}",
            lambda: (
                f"{ip} saddr . {ip} daddr {{ {self.one(SOURCES[family])} . {self.address(family)}, {self.one(PREFIXES[family])} . {self.address(family)} }}"
            ),
            lambda: f"icmp type {self.one(('echo-request', 'echo-reply', '{ echo-request, redirect }'))}",
            lambda: f"icmpv6 type {self.one(('echo-request', '{ echo-request, echo-reply }'))}",
            lambda: (
                f"tcp flags {self.one(('syn', '== syn', '!= syn', '& (syn|ack) == syn', '& (syn|rst) != 0', 'syn,ack', '! ack'))}"
            ),
            lambda: f"meta length {self.one(('< 40', '> 30', '20-44', '32'))}",
            lambda: f"ip ttl {self.one(('< 60', '64', '> 40', '63'))}",
            lambda: f"meta l4proto udp @th,16,16 {self.one(PORTS)}",
            lambda: f"meta l4proto {proto} @nh,{self.one(('96,32 0x0a630002', '128,24 0x0a6300'))}",
            lambda: f"fib daddr type {self.one(('local', 'unicast', '!= local', '{ local, broadcast }'))}",
            lambda: f"fib saddr type {self.one(('local', 'unicast'))}",
            lambda: (
                f"{ip} {side} & {_mask(family)} == {self.one(('10.99.0.0', '10.98.0.0') if family == 4 else ('fd99::', 'fd98::'))}"
            ),
            lambda: f"{ip} {side} {self.one(('', '!= '))}{self.ordered(family, '-')}",
            lambda: (
                f"{ip} saddr . {ip} daddr . meta l4proto {{ {self.address(family)} . {self.address(family)} . {proto}, "
                f"{self.one(PREFIXES[family])} . {self.one(PREFIXES[family])} . {proto} }}"
            ),
            lambda: f"meta l4proto . th dport {{ {proto} . {self.one(PORTS)}, {proto} . 8000-9000 }}",
            lambda: f"meta mark . {proto} dport {{ {self.mark():#x} . {self.one(PORTS)}, 0x0 . 1-500 }}",
            lambda: f"ip dscp {self.one(('', '!= '))}{self.one(('cs0', 'ef', '0x04'))}",
            lambda: f"ip6 hoplimit {self.one(('< 60', '64', '!= 63'))}",
            lambda: f"meta protocol {self.one(('ip', 'ip6'))}",
            lambda: 'limit rate 5/minute log prefix "seen "' if self.maybe(10) else 'log prefix "seen "',
            lambda: f"fib daddr . mark type {self.one(('local', '!= local'))}",
        ]
        if tracked:
            choices += [
                lambda: (
                    f"ct state {self.one(('new', 'established', 'established,related', '!= new', 'invalid', '{ new, invalid }', 'untracked'))}"
                ),
                lambda: f"ct mark {self.one(('', '!= '))}{self.mark():#x}",
                lambda: f"ct status {self.one(('dnat', 'snat', 'snat,dnat'))}",
                lambda: f"ct direction {self.one(('original', 'reply'))}",
                lambda: f"ct {self.one(('original', 'reply'))} {ip} {side} {self.address(family)}",
                lambda: f"ct mark & {self.mark() or 2:#x} != 0",
                lambda: f"ct mark {{ {', '.join(map(hex, sorted({self.mark() for _ in range(3)})))} }}",
                lambda: f"ct original proto-dst {self.one(PORTS)}",
            ]
        if hook in ("prerouting", "input", "forward"):
            choices += [
                lambda: f"iifname {self.one(('', '!= '))}{self.one(('up0', 'far0', 'up*', '{ up0, wg0 }'))}".replace(
                    "up*", '"up*"'
                ),
                lambda: f"iif {self.one(('up0', 'far0', 'lo'))}",
                lambda: f"fib saddr . iif oif {self.one(('missing', 'exists'))}",
                lambda: "fib daddr . iif type local",
                lambda: "meta pkttype host",
                lambda: (
                    f'iifname . {ip} saddr {{ "up0" . {self.address(family)}, "far0" . {self.one(PREFIXES[family])} }}'
                ),
                lambda: f"iifgroup {self.one(('0', '!= 0', '7'))}",
                lambda: f"fib saddr . mark . iif oif {self.one(('missing', 'exists'))}",
            ]
        if hook in ("forward", "output", "postrouting"):
            choices += [
                lambda: f"oifname {self.one(('', '!= '))}{self.one(('up0', 'far0', 'lo'))}",
                lambda: f"oif {self.one(('up0', 'far0'))}",
            ]
        if hook in ("output", "postrouting"):
            choices.append(lambda: f"meta skuid {self.one(('0', '!= 0', '1000'))}")
        return self.one(choices)()

    def nft_rule(self, hook: str, chains: tuple[str, ...], *, kind: str, priority: int) -> str:
        tracked = not (hook in ("prerouting", "output") and priority < -200) or self.maybe(30)
        words = [self.nft_match(hook, tracked=tracked) for _ in range(self.one((0, 1, 1, 1, 2, 2, 3)))]
        words = _compatible(words)
        if self.maybe(8):
            words.append("counter")
        if kind == "nat":
            return " ".join([*words, self.nft_nat(hook, words, chains)])
        effect = self.nft_effect(hook, chains, priority)
        return " ".join([*words, effect])

    def nft_effect(self, hook: str, chains: tuple[str, ...], priority: int) -> str:
        effects = [
            "accept", "accept", "drop", "drop", "return", "continue",
            f"meta mark set {self.mark():#x}",
            f"meta mark set meta mark {self.one(('|', '&', '^'))} {self.mark():#x}",
            f"meta mark set meta mark & 0xffffff00 | {self.mark() & 0xFF:#x}",
            f"ct mark set {self.one((hex(self.mark()), 'meta mark', 'ct mark | 0x8'))}",
            "meta mark set ct mark",
            f"meta mark set {self.one(('tcp', 'udp'))} dport map {{ 53 : 0x5, 80 : 0x80, 443-9000 : 0x44 }}",
            f"meta mark set (meta mark & 0xff) << {self.one((4, 8))}",
            f"ip daddr vmap {{ {self.address(4)} : {self.one(('accept', 'drop'))}, 10.98.0.0/24 : {self.one(('drop', 'continue', 'return'))} }}",
            f"{self.one(('tcp', 'udp'))} dport vmap @gates",
            f"ip ttl set {self.one((50, 63, 70))}",
            f"ip6 hoplimit set {self.one((50, 63, 70))}",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            f"ct state vmap {{ new : {self.one(('continue', 'return', 'drop'))}, established : accept }}",
            f"ip saddr . tcp dport vmap {{ {self.address(4)} . {self.one(PORTS)} : {self.one(('accept', 'drop'))}, 10.98.0.0/15 . 1-1000 : {self.one(('return', 'drop'))} }}",
            f"ip6 saddr . udp dport vmap {{ fd00::/8 . {self.one(PORTS)} : {self.one(('accept', 'drop', 'continue'))} }}",
            f"meta nfproto vmap {{ ipv4 : {self.one(('continue', 'accept'))}, ipv6 : {self.one(('return', 'drop'))} }}",
            f"meta mark vmap {{ 0x1 : {self.one(('accept', 'drop'))}, 0x0-0xff : {self.one(('continue', 'return'))} }}".replace("0x0-", "0x2-"),
            f"meta mark set ip saddr . ip daddr map {{ {self.address(4)} . {self.address(4)} : 0x7, 10.99.0.0/24 . 0.0.0.0/1 : 0x9 }}",
            f"meta mark set ip6 saddr map {{ {self.one(PREFIXES[6][:3])} : 0x66 }}",
            f"meta mark set ct mark & {self.mark() or 1:#x} | 0x20",
            f"ct mark set ct mark & {self.mark() or 1:#x} | {self.mark():#x}",
            f"ct mark set {self.one(('tcp', 'udp'))} dport map {{ 53 : 0x5, 80-443 : 0x80 }}",
            f"ip dscp set {self.one(('cs0', 'ef', 'af11'))}",
        ]  # fmt: skip
        if chains:
            target = self.one(chains)
            effects += [f"jump {target}", f"goto {target}", f"jump {target}",
                        f"{self.one(('tcp', 'udp'))} dport vmap {{ 80 : jump {target}, 53 : drop, 9000 : goto {target} }}"]  # fmt: skip
        if hook in ("input", "forward", "output"):
            effects += ["reject", "reject with icmpx admin-prohibited", "meta l4proto tcp reject with tcp reset",
                        "reject with icmp host-unreachable", "reject with icmpv6 addr-unreachable"]  # fmt: skip
        if priority < -200 and hook in ("prerouting", "output"):
            effects += ["notrack"] * 3
        return self.one(effects)

    def nft_nat(self, hook: str, words: list[str], chains: tuple[str, ...]) -> str:
        family = self.one((4, 6))
        ip = "ip" if family == 4 else "ip6"
        text = " ".join(words)
        ports = ("tcp dport" in text or "udp dport" in text or "th dport" in text) and "!=" not in text
        other = ["accept", "return", f"meta mark set {self.mark():#x}"] + (
            [f"jump {self.one(chains)}"] if chains else []
        )
        if self.maybe(15):
            return self.one(other)
        targets = NEAR[family] + FAR[family]
        target = self.one(targets)
        spelled = target if family == 4 else f"[{target}]"
        if hook in ("prerouting", "output"):
            choices = [f"dnat {ip} to {target}"]
            if ports:
                choices += [f"dnat {ip} to {spelled}:{self.one(PORTS)}", f"redirect to :{self.one(PORTS)}"]
            if hook == "prerouting":
                choices.append("redirect")
            a, b = self.one(targets), self.one(targets)
            choices.append(f"dnat {ip} to {ip} daddr map {{ {self.one(targets)} : {a} }}")
            choices.append(
                f"dnat {ip} to {ip} saddr . {ip} daddr map {{ {self.one(SOURCES[family])} . {self.one(targets)} : {a}, "
                f"{self.one(PREFIXES[family])} . {self.one(NEAR[family])} : {b} }}"
            )
            choices.append(
                f"meta l4proto tcp dnat {ip} to {ip} daddr . tcp dport map {{ {self.one(targets)} . {self.one(PORTS)} : {a} . 81 }}"
            )
            choices.append(f"meta l4proto udp dnat {ip} to udp dport map {{ 53 : {a} . 5353, 9000 : {b} . 80 }}")
            return self.one(choices)
        target = self.one(NEAR[family])
        mapped = f"snat {ip} to {ip} saddr map {{ {self.one(PREFIXES[family][:2])} : {target}, {self.one(SOURCES[family])} : {self.one(NEAR[family])} }}"
        return self.one(
            [
                f"snat {ip} to {target}",
                f"snat {ip} to {target}",
                mapped,
                *(["masquerade"] if hook == "postrouting" else []),
            ]
        )

    def nft(self) -> str:
        lines = []
        for number in range(self.one((1, 1, 2))):
            family = "inet"
            lines.append(f"table {family} t{number} {{")
            for ip in (4, 6):
                kind = f"ipv{ip}_addr"
                lines.append(
                    f" set plain{ip} {{ type {kind}; elements = {{ {', '.join(self.some(SOURCES[ip] + FAR[ip]))} }} }}"
                )
                lines.append(
                    f" set wide{ip} {{ type {kind}; flags interval; auto-merge; elements = {{ {', '.join(self.some(PREFIXES[ip][:3] + NEAR[ip]))} }} }}"
                )
                lines.append(
                    f" set pairs{ip} {{ type {kind} . inet_service; flags interval; elements = {{ {self.address(ip)} . {self.one(PORTS)}, "
                    f"{self.one(PREFIXES[ip])} . 8000-9000 }} }}"
                )
            lines.append(
                f" set ports {{ type inet_service; flags interval; elements = {{ {', '.join(self.some(PORTS))}, 20000-24000 }} }}"
            )
            users = tuple(f"u{at}" for at in range(self.one((0, 1, 2, 3))))
            for at, user in enumerate(users):
                lines.append(f" chain {user} {{")
                lines += [
                    "  " + self.nft_rule("any", users[:at], kind="filter", priority=0)
                    for _ in range(self.one((0, 1, 2, 3)))
                ]
                lines.append(" }")
            gates = f"53 : {self.one(('accept', 'drop'))}, 9000 : {self.one([*('jump ' + user for user in users), 'drop', 'return'])}"
            lines.append(f" map gates {{ type inet_service : verdict; elements = {{ {gates} }} }}")
            for at in range(self.one((1, 2, 3, 4))):
                hook = self.one(("prerouting", "prerouting", "input", "forward", "output", "postrouting"))
                nat = hook != "forward" and self.maybe(35)
                usual = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
                priority = usual[hook] + self.one((-5, 0, 5)) if nat else self.one((-300, -150, -10, 0, 5, 50, 110))
                policy = self.one(("accept",) * 5 + ("drop",)) if not nat else "accept"
                lines.append(
                    f" chain b{at} {{ type {'nat' if nat else 'route' if hook == 'output' and self.maybe(30) else 'filter'} hook {hook} priority {priority}; policy {policy};"
                )
                lines += [
                    "  " + self.nft_rule(hook, users, kind="nat" if nat else "filter", priority=priority)
                    for _ in range(self.one((1, 2, 3, 5)))
                ]
                lines.append(" }")
            lines.append("}")
        return "\n".join(lines) + "\n"

    # iptables

    def ipt_match(self, family: int, chain: str, table: str) -> str:
        side = self.one(("-s", "-d"))
        negate = self.one(("", "", "! "))
        proto = self.one(("tcp", "udp"))
        icmp = ("icmp", "icmp", "icmp-type") if family == 4 else ("ipv6-icmp", "icmp6", "icmpv6-type")
        mark = f"{self.mark():#x}{self.one(('', '/0xff', '/0x5'))}"
        first, last = sorted((self.address(family), self.address(family)), key=ip_address)
        choices = [
            f"{negate}{side} {self.address(family)}",
            f"{negate}{side} {self.one(PREFIXES[family])}",
            f"{negate}-p {proto}",
            f"-p {proto} -m {proto} {negate}--dport {self.one(PORTS)}",
            f"-p {proto} -m {proto} {negate}--dport {self.one(('50:85', '80:', ':443'))}",
            f"-p {proto} -m multiport {negate}--{self.one(('dports', 'ports', 'sports'))} {','.join(self.some(PORTS, 4))},100:200",
            f"-p tcp -m tcp {negate}--tcp-flags {self.one(('SYN,ACK SYN', 'FIN,SYN,RST,ACK SYN', 'ALL NONE', 'RST RST'))}",
            f"-p {icmp[0]} -m {icmp[1]} {negate}--{icmp[2]} {self.one(('echo-request', 'echo-reply'))}",
            f"-m iprange {negate}--{self.one(('src', 'dst'))}-range {first}-{last}",
            f"-m mark {negate}--mark {mark}",
            f"-m connmark {negate}--mark {mark}",
            f"-m conntrack {negate}--ctstate {self.one(('NEW', 'ESTABLISHED', 'RELATED,ESTABLISHED', 'INVALID', 'DNAT', 'SNAT,NEW', 'UNTRACKED'))}",
            f"-m conntrack {self.one(('--ctdir ORIGINAL', '--ctdir REPLY', negate + '--ctproto 17', negate + '--ctstatus SEEN_REPLY', negate + '--ctorigdst ' + self.address(family)))}",
            f"-m addrtype {negate}--{self.one(('src', 'dst'))}-type {self.one(('LOCAL', 'UNICAST', 'LOCAL,BROADCAST' if family == 4 else 'LOCAL'))}",
            '-m comment --comment "a \\"quoted\\" one -j DROP"',
            f"-m length {negate}--length {self.one(('30:50', '0:20', '32'))}",
            "-m pkttype --pkt-type unicast",
            f"-m state --state {self.one(('NEW', 'RELATED,ESTABLISHED', 'INVALID'))}",
            f"-m connmark {negate}--mark {self.mark():#x}",
            f"-m dscp {negate}--dscp {self.one(('0x00', '0x2e'))}",
            f"-m physdev {negate}--physdev-in up0" if chain in ("PREROUTING", "INPUT", "FORWARD") else "-m physdev --physdev-in far0",
            f"-m conntrack {negate}--ctreplsrc {self.address(family)}",
            f"-m conntrack --ctstatus {self.one(('ASSURED', 'NONE', 'EXPECTED,SEEN_REPLY', 'CONFIRMED'))}",
            f"-m devgroup --src-group {self.one(('0x0', '0x7'))}" if chain in ("PREROUTING", "INPUT", "FORWARD") else "-m length --length 20:",
            f"-m {'ttl --ttl-' if family == 4 else 'hl --hl-'}{self.one(('lt 60', 'eq 64', 'gt 40'))}",
        ]  # fmt: skip
        choices += [f"-m set {negate}--match-set {self.match_set(family)}"] * 3
        if chain in ("PREROUTING", "INPUT", "FORWARD"):
            choices += [f"{negate}-i {self.one(('up0', 'far0', 'up+'))}"] * 2
            if chain == "PREROUTING":
                choices.append("-m addrtype --dst-type LOCAL --limit-iface-in")
                if table in ("raw", "mangle"):
                    choices += [
                        f"-m rpfilter {self.one(('', '--loose ', '--validmark ', '--accept-local '))}{self.one(('', '--invert'))}"
                    ] * 2
        if chain in ("FORWARD", "OUTPUT", "POSTROUTING"):
            choices += [f"{negate}-o {self.one(('up0', 'far0', 'lo'))}"] * 2
        if chain in ("OUTPUT", "POSTROUTING"):
            choices.append(f"-m owner {negate}--uid-owner {self.one(('0', '1000', '0-5'))}")
            choices.append(f"-m owner {negate}--gid-owner {self.one(('0', '1000'))}")
        return self.one(choices)

    def match_set(self, family: int) -> str:
        """A set of `ipset` and its directions; now and then fewer than it needs, or one of the other family."""
        name, parts = self.one(SETS)
        family = self.one((family,) * 9 + (10 - family,))
        if self.maybe(5):
            parts -= 1
        directions = ",".join(self.one(("src", "dst")) for _ in range(max(parts, 1)))
        return f"{name}{family} {directions}" + self.one(("",) * 5 + (" --return-nomatch",))

    def ipset(self) -> str:
        """All of `SETS`, for both families."""
        lines = []
        for family, inet in ((4, "inet"), (6, "inet6")):
            make = {
                "ip": "hash:ip", "masked": f"hash:ip netmask {self.one((24, 30) if family == 4 else (64, 112))}", "net": "hash:net",
                "ip-port": "hash:ip,port", "ip-port-ip": "hash:ip,port,ip", "net-port": "hash:net,port",
                "net-iface": "hash:net,iface", "ip-port-net": "hash:ip,port,net",
            }  # fmt: skip
            for name, kind in make.items():
                first, _, rest = kind.partition(" ")
                lines.append(f"create {name}{family} {first} family {inet} {rest}".rstrip())
                for _ in range(self.chance.randint(0, 5)):
                    nomatch = " nomatch" if "net" in first and self.maybe(25) else ""
                    lines.append(f"add {name}{family} {self.element(first, family)}{nomatch} -exist")
            lines.append(f"create ports{family} bitmap:port range 50-9000")
            lines += [f"add ports{family} {port}" for port in self.some(PORTS[:-1])]
            lines.append(f"create list{family} list:set size 4")
            lines += [f"add list{family} {name}{family}" for name in self.some(("ip", "net", "ports"), 2)]
        lines.append("create bits4 bitmap:ip range 10.99.0.0/24")
        lines += [f"add bits4 10.99.0.{self.one((1, 2, 3, 11, 77))} -exist" for _ in range(2)]
        lines.append("create bits6 hash:net family inet6")
        return "\n".join(lines) + "\n"

    def element(self, kind: str, family: int) -> str:
        words = []
        for part in kind.partition(":")[2].split(","):
            if part == "ip":
                words.append(self.address(family))
            elif part == "net":
                prefixes = [each for each in PREFIXES[family] if not each.startswith("0.")]
                words.append(self.one((self.address(family), self.one(prefixes))))
            elif part == "port":
                ping = "icmp:echo-request" if family == 4 else "icmpv6:echo-request"
                words.append(self.one((f"udp:{self.one(PORTS)}", f"tcp:{self.one(PORTS)}", ping)))
            else:
                words.append(self.one(("up0", "far0")))
        return ",".join(words)

    def ipt_target(self, family: int, table: str, chain: str, words: str, users: tuple[str, ...]) -> str:
        choices = ["-j ACCEPT", "-j RETURN", ""]
        if self.maybe(25):
            choices += ["-m limit --limit 5/min -j LOG --log-prefix seen", "-j NFLOG --nflog-group 7", "-j LOG"]
            if (
                table == "mangle"
                and "-p tcp" in words
                and "! -p" not in words
                and "SYN" in words
                and chain in ("FORWARD", "OUTPUT", "POSTROUTING")
            ):
                choices += ["-j TCPMSS --clamp-mss-to-pmtu"] * 4
            if table == "raw":
                choices.append("-j TRACE")
        if self.maybe(2) and table == "mangle":
            choices += [f"-m statistic --mode random --probability 0.5 -j MARK --set-mark {self.mark():#x}"] * 5
        if table != "nat":
            choices += ["-j DROP", "-j DROP"]
        if users:
            choices += [f"-j {self.one(users)}"] * 2 + [f"-g {self.one(users)}"]
        if table == "mangle":
            choices += [
                f"-j MARK --set-xmark {self.mark():#x}/{self.one(('0xffffffff', '0xff', '0x5'))}",
                f"-j MARK --or-mark {self.mark():#x}", f"-j MARK --xor-mark {self.mark():#x}", f"-j MARK --and-mark {self.mark():#x}",
                f"-j CONNMARK --and-mark {self.mark():#x}", f"-j CONNMARK --xor-mark {self.mark():#x}",
                "-j CONNMARK --save-mark --nfmask 0xf --ctmask 0xff", f"-j DSCP --set-dscp {self.one(('0x2e', '0x00'))}",
                f"-j {'TTL --ttl-set' if family == 4 else 'HL --hl-set'} {self.one((50, 63, 70))}",
                f"-j MARK --set-mark {self.mark():#x}/{self.one(('0xffffffff', '0xf0'))}",
                "-j CONNMARK --save-mark", "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
                f"-j CONNMARK --set-mark {self.mark():#x}/0xff", "-j CONNMARK --restore-mark",
            ] * 2  # fmt: skip
        if table == "raw":
            choices += ["-j CT --notrack"] * 4
        if table == "filter" and chain in ("INPUT", "FORWARD", "OUTPUT"):
            how = ("icmp-port-unreachable", "icmp-host-prohibited", "icmp-admin-prohibited") if family == 4 else (
                "icmp6-port-unreachable", "icmp6-adm-prohibited", "icmp6-no-route")  # fmt: skip
            choices += [f"-j REJECT --reject-with {self.one(how)}"] * 2
            if " tcp" in words and "! -p" not in words:
                choices += ["-j REJECT --reject-with tcp-reset"] * 2
        if table == "nat":
            target = self.one(NEAR[family] + FAR[family])
            spelled = target if family == 4 else f"[{target}]"
            with_port = ("-p tcp" in words or "-p udp" in words) and "! -p" not in words
            if chain in ("PREROUTING", "OUTPUT"):
                choices += [f"-j DNAT --to-destination {target}"] * 3
                if with_port:
                    choices += [
                        f"-j DNAT --to-destination {spelled}:{self.one(PORTS)}",
                        f"-j REDIRECT --to-ports {self.one(PORTS)}",
                    ] * 2
                choices.append(f"-j NETMAP --to {self.one(PREFIXES[family][:2])}")
            else:
                choices += [f"-j SNAT --to-source {self.one(NEAR[family])}"] * 2
                if chain == "POSTROUTING":
                    choices += ["-j MASQUERADE"] * 2
        return self.one(choices)

    def ipt_rule(self, family: int, table: str, chain: str, users: tuple[str, ...]) -> str:
        words = [self.ipt_match(family, chain, table) for _ in range(self.one((0, 1, 1, 2)))]
        kept: list[str] = []
        for each in words:
            if sum(" -p " in f" {word}" for word in (*kept, each)) > 1 or any(
                each.split(" ")[-2] == word.split(" ")[-2] for word in kept
            ):
                continue
            if any(
                flag in kept_word.split() and flag in each.split()
                for kept_word in kept
                for flag in ("-s", "-d", "-i", "-o")
            ):
                continue
            kept.append(each)
        text = " ".join(kept)
        return f"-A {chain} {text} {self.ipt_target(family, table, chain, text, users)}".strip()

    def ipt(self, family: int) -> str:
        lines = []
        chains = {
            "raw": ("PREROUTING", "OUTPUT"), "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
            "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT"),
        }  # fmt: skip
        for table, built_in in chains.items():
            lines.append(f"*{table}")
            used = self.maybe({"raw": 25, "mangle": 50, "nat": 60, "filter": 80}[table])
            for chain in built_in:
                policy = "DROP" if table == "filter" and used and self.maybe(15) else "ACCEPT"
                lines.append(f":{chain} {policy} [0:0]")
            users = tuple(f"U{at}" for at in range(self.one((0, 1, 2)))) if used else ()
            lines += [f":{user} - [0:0]" for user in users]
            if used:
                for at, user in enumerate(users):
                    lines += [self.ipt_rule(family, table, user, users[:at]) for _ in range(self.one((0, 1, 2)))]
                for _ in range(self.one((2, 4, 7))):
                    lines.append(self.ipt_rule(family, table, self.one(built_in), users))
            lines.append("COMMIT")
        return "\n".join(lines) + "\n"

    def rules(self) -> Rules:
        kind = self.one(("nft",) * 10 + ("iptables", "legacy", "nft and iptables") * 4 + ("iptables and legacy",))
        restore = []
        for tool, wanted in (("iptables-nft", "iptables" in kind), ("iptables-legacy", "legacy" in kind)):
            for family in (4, 6):
                name = tool if family == 4 else tool.replace("ip", "ip6", 1)
                if wanted:
                    restore.append((f"{name}-restore", self.ipt(family)))
        made = Rules(self.nft() if "nft" in kind else "", tuple(restore))
        asks = any("--match-set" in text for _, text in restore)
        return replace(made, ipset=self.ipset()) if asks else made

    def flow(self, number: int) -> Packet:
        """A packet that no earlier one is like: its source port is its number's."""
        family = self.one((4, 4, 6))
        protocol = self.one((UDP, UDP, TCP, TCP, ICMP if family == 4 else ICMPV6))
        inward = self.maybe(70)
        source = self.one(SOURCES[family]) if inward else self.one(NEAR[family])
        destination = self.one(
            (NEAR[family] if self.maybe(50) else FAR[family]) if inward else FAR[family] + SOURCES[family][:2]
        )
        ports = protocol in (UDP, TCP)
        return Packet(
            ip_address(source), ip_address(destination), protocol,
            source_port=20000 + number % 40000 if ports else 0,
            destination_port=self.one(PORTS) if ports else 0,
            icmp_type={ICMP: 8, ICMPV6: 128}.get(protocol),
            tcp_flags=SYN if protocol == TCP else 0,
            iif="up0" if inward else "",
            mark=0 if inward else self.one((0, 0, 1, 5)),
            hop_limit=self.one((64, 64, 50)),
            length=(20 if family == 4 else 40) + {UDP: 12, TCP: 20}.get(protocol, 12),
            uid=None if inward else 0, gid=None if inward else 0, from_socket=not inward,
        )  # fmt: skip


def _mask(family: int) -> str:
    return "255.255.255.0" if family == 4 else "ffff:ffff::"


def _compatible(words: list[str]) -> list[str]:
    """Nft refuses rules that ask for two protocols, or for the same field of two."""
    kept: list[str] = []
    for word in words:
        first = word.split(" ")[0]
        if any(_clash(first, word, other) for other in kept):
            continue
        kept.append(word)
    return kept


def _clash(first: str, word: str, other: str) -> bool:
    layers = {
        "ip": "four",
        "icmp": "four",
        "ip6": "six",
        "icmpv6": "six",
    }
    transport = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "icmpv6": "icmpv6"}
    mine, theirs = other.split(" ", maxsplit=1)[0], first
    if layers.get(mine) and layers.get(theirs) and layers[mine] != layers[theirs]:
        return True
    if transport.get(mine) and transport.get(theirs) and transport[mine] != transport[theirs]:
        return True
    both = f" {word} | {other} "
    if (
        "l4proto" in both
        or "nfproto" in both
        or " protocol " in both
        or "nexthdr" in both
        or "ct original" in both
        or "ct reply" in both
    ):
        return True
    return word.split(" ")[:2] == other.split(" ")[:2]
