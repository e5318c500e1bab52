# SPDX-License-Identifier: Apache-2.0
"""Random rulesets of nftables."""

from __future__ import annotations

from netns.filter_dice import FAR, NEAR, PORTS, PREFIXES, SOURCES, Dice


class NftMaker(Dice):
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
