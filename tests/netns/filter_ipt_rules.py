# SPDX-License-Identifier: Apache-2.0
"""Random rulesets of iptables, and the ipsets that they ask."""

from __future__ import annotations

from ipaddress import ip_address

from netns.filter_dice import FAR, NEAR, PORTS, PREFIXES, Dice

# Their names without the family, and how many directions they need
SETS = (
    ("ip", 1), ("masked", 1), ("net", 1), ("ip-port", 2), ("ip-port-ip", 3), ("net-port", 2), ("net-iface", 2),
    ("ip-port-net", 3), ("ports", 1), ("list", 1), ("bits", 1),
)  # fmt: skip


class IptMaker(Dice):
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
