# SPDX-License-Identifier: Apache-2.0
"""Random states of the pod of `door_stand`: policy rules, routes, settings, marks, firewalls of every kind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random

from netns.door_stand import PORT, TCP_PORT, Stand
from netns.filter_rules import Maker, Rules
from netns.test_door_rows import DEFAULT

MARKS = ("0xca6c", "0x5", "0x1/0x5", "0x0/0xff")
TABLES = (100, 51820)
STRANGERS = {4: "192.0.0.0/3", 6: "2001:db8::/32"}  # who knocks at the door, and who the model says does
SETTINGS = {
    "net.ipv4.conf.all.rp_filter": (0, 0, 1, 2), "net.ipv4.conf.eth0.rp_filter": (0, 1, 2), "net.ipv4.conf.eth0.src_valid_mark": (0, 1),
    "net.ipv4.conf.all.src_valid_mark": (0, 0, 1), "net.ipv4.tcp_fwmark_accept": (0, 0, 1), "net.ipv4.fwmark_reflect": (0, 1),
    "net.ipv6.fwmark_reflect": (0, 1), "net.ipv4.ip_forward": (0, 1), "net.ipv4.conf.eth0.accept_local": (0, 0, 1),
}  # fmt: skip
# What the makers of rulesets call things, and what it is here
PLACES = (
    ("10.99.0.1", "10.44.0.2"), ("10.99.0.11", "10.44.0.2"), ("10.98.0.1", "10.8.0.1"), ("10.99.0.0/24", "10.44.0.0/24"),
    ("10.98.0.0/16", "10.8.0.0/24"), ("172.16.0.0/20", STRANGERS[4]), ("fd99::1", "fd44::2"), ("fd99::11", "fd44::2"),
    ("fd98::1", "fd08::1"), ("fd99::/64", "fd44::/64"), ("fd98::/16", "fd08::/64"), ("fd72::/64", STRANGERS[6]),
    # A rule for one stranger tells the two apart that knock and are asked about
    ("203.0.113.5", "10.44.0.9"), ("2001:db8::5", "fd44::9"), ("8000::/1", "fd45::/16"),
    ("9000", str(TCP_PORT)), ("up0", "eth0"), ("far0", "wg0"), ("up+", "eth+"),
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """What is done to the pod."""

    ip: dict[int, tuple[str, ...]] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    fwmark: int = 0
    rules: Rules = field(default_factory=Rules)

    def spelled(self) -> str:
        lines = [f"ip -{family} {line}" for family, commands in self.ip.items() for line in commands]
        lines += [f"sysctl -w {name}={value}" for name, value in self.settings.items()]
        return "\n".join([*lines, f"wg set wg0 fwmark {self.fwmark:#x}", self.rules.spelled()])


class StateMaker:
    """Everything is drawn from one `Random`."""

    def __init__(self, chance: Random, stand: Stand) -> None:
        self.chance = chance
        self.stand = stand

    def one(self, values):
        return values[self.chance.randrange(len(values))]

    def maybe(self, per_cent: int) -> bool:
        return self.chance.randrange(100) < per_cent

    def state(self) -> State:
        settings = {name: self.one(values) for name, values in SETTINGS.items() if self.maybe(60)}
        settings.setdefault("net.ipv4.conf.all.rp_filter", self.one((0, 0, 1, 2)))
        return State(
            {family: tuple(self.routing(family)) for family in (4, 6)} if self.maybe(80) else {},
            settings,
            self.one((0, 0, 0xCA6C, 5)),
            self.rules() if self.maybe(50) else Rules(),
        )

    def routing(self, family: int) -> list[str]:
        default = DEFAULT[self.stand.net.shape][family]
        lines = []
        for table in TABLES:
            for _ in range(self.chance.randint(1, 2)):
                target = self.one(
                    (
                        "default",
                        "default",
                        STRANGERS[family],
                        self.one(("10.0.0.0/8", "0.0.0.0/1")) if family == 4 else "fd00::/8",
                    )
                )
                way = self.one(("dev wg0", "dev wg0", default, "blackhole", "unreachable", "prohibit", "throw"))
                kind = way if " " not in way else ""
                tail = way if " " in way else ""
                metric = f"metric {self.one((5, 10, 20))}"
                lines.append(" ".join(f"route replace {kind} {target} {tail} table {table} {metric}".split()))
        if self.maybe(10):
            lines.append(
                f"route replace {self.one(('dev wg0', 'unreachable', 'blackhole'))} {STRANGERS[family]}".replace(
                    "dev wg0 " + STRANGERS[family], STRANGERS[family] + " dev wg0"
                )
            )
        for _ in range(self.chance.randint(0, 4)):
            lines.append(self.policy(family))
        return lines

    def policy(self, family: int) -> str:
        pod = self.stand.net.pod_address(family)
        words = []
        for _ in range(self.chance.randint(0, 2)):
            words.append(self.one((
                f"from {pod}", f"from {STRANGERS[family]}", f"to {STRANGERS[family]}", f"to {pod}", f"fwmark {self.one(MARKS)}", f"fwmark {self.one(MARKS)}",
                "iif eth0", "iif lo", "oif eth0", "oif wg0", f"ipproto udp sport {PORT}", f"ipproto tcp sport {TCP_PORT}", f"ipproto tcp dport {TCP_PORT}",
                f"ipproto udp dport {PORT - 100}-{PORT}", "uidrange 0-0", "uidrange 1-9999",
            )))  # fmt: skip
        negated = "not " if words and self.maybe(25) else ""
        action = self.one(
            ("lookup 51820",) * 4
            + ("lookup 100",) * 3
            + ("lookup main", "lookup main suppress_prefixlength 0", "unreachable", "prohibit", "blackhole")
        )
        # `ip` takes each selector once
        kept = {word.split()[0]: word for word in words}
        if "ipproto" in kept and "fwmark" not in kept and self.maybe(30):
            kept["fwmark"] = f"fwmark {self.one(MARKS)}"
        return f"rule add {negated}{' '.join(kept.values()) or 'from all'} {action} priority {self.chance.randrange(100, 32766)}"

    def rules(self) -> Rules:
        made = Maker(self.chance).rules()
        return Rules(_here(made.nft), tuple((tool, _here(text)) for tool, text in made.restore), _here(made.ipset))


def _here(text: str) -> str:
    for old, new in PLACES:
        text = re.sub(rf"(?<![\w.:/]){re.escape(old)}(?![\w.:/])", new, text)
    return text


RESTORED = dict.fromkeys(SETTINGS, 0)


def undo(stand: Stand) -> list[str]:
    """Commands that make the pod what it was."""
    lines = ["nft flush ruleset", "wg set wg0 fwmark 0"]
    for tool in ("iptables-legacy", "ip6tables-legacy"):
        names = "/proc/net/" + tool.split("tables")[0] + "_tables_names"
        lines.append(
            f"[ -e {names} ] && for t in $(cat {names}); do {tool} -t $t -F; {tool} -t $t -X; for c in $({tool} -t $t -S | sed -n 's/^-P \\([A-Z]*\\) .*/\\1/p'); do {tool} -t $t -P $c ACCEPT; done; done"
        )
    for family in (4, 6):
        lines += [
            f"ip -{family} rule flush",
            f"ip -{family} rule add priority 0 lookup local",
            f"ip -{family} rule add priority 32766 lookup main",
            f"[ {family} = 6 ] || ip -4 rule add priority 32767 lookup default",
            *(f"ip -{family} route flush table {table} 2>/dev/null" for table in TABLES),
            f"ip -{family} route del {STRANGERS[family]} 2>/dev/null; ip -{family} route del blackhole {STRANGERS[family]} 2>/dev/null; "
            f"ip -{family} route del unreachable {STRANGERS[family]} 2>/dev/null",
        ]
    lines += [f"sysctl -qw {name}={value}" for name, value in RESTORED.items()]
    lines += [
        "ipset flush",
        "for _ in $(seq 200); do ipset destroy 2>/dev/null && break; sleep 0.02; done",
        "conntrack -F 2>/dev/null",
    ]
    return lines
