# SPDX-License-Identifier: Apache-2.0
"""Random rulesets of every kind, and random flows that meet them. Everything is drawn from one `random.Random`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

from netns.filter_dice import FAR, NEAR, PORTS, SOURCES
from netns.filter_ipt_rules import IptMaker
from netns.filter_nft_rules import NftMaker
from wicketgate.netpath.packet import ICMP, ICMPV6, SYN, TCP, UDP, Packet


@dataclass(frozen=True)
class Rules:
    """What is loaded: nft's text and iptables-restore's, by tool."""

    nft: str = ""
    restore: tuple[tuple[str, str], ...] = ()
    ipset: str = ""  # for `ipset restore`, before the others

    def spelled(self) -> str:
        return "\n".join([self.ipset, self.nft, *(f"## {tool}\n{text}" for tool, text in self.restore if text)])


class Maker(NftMaker, IptMaker):
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
