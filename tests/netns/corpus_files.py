# SPDX-License-Identifier: Apache-2.0
"""The corpus: rule sets of well-known software, and flows that meet them.

A file's second line may say `# walk: eth0=up0 10.0.1.5=10.99.0.1 ...`: what stands for what in the stand where packets
are sent through it.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

from netns.filter_rules import FAR, NEAR, SOURCES, Rules
from netns.filter_stand import LOCAL
from wicketgate.netpath.packet import ICMP, ICMPV6, SYN, TCP, UDP, Packet
from wicketgate.netpath.snapshot import Family

CORPUS = Path(__file__).parents[1] / "corpus"
FILES = sorted(path.name for path in CORPUS.glob("*.*") if path.suffix != ".ipset")
NOT_IN_EVERY_KERNEL = ("--nfacct-name",)  # needs an object made by another tool
_ADDRESS = {
    4: re.compile(r"(?<![\d.:])\d+\.\d+\.\d+\.\d+(?:/\d+)?"),
    6: re.compile(r"(?<![\w:])[0-9a-f]*:[0-9a-f:]*:[0-9a-f:]*(?:/\d+)?"),
}
_PORT = re.compile(r"(?:dports?|sports?|\. (?:tcp|udp) \.|to-ports|:) ?\{? ?([\d, :-]+)")


def families(name: str) -> tuple[Family, ...]:
    """The families whose packets the file is about."""
    if name.endswith(".nft"):
        text = (CORPUS / name).read_text()
        return (4, 6) if re.search(r"^table (inet|ip6) ", text, re.MULTILINE) else (4,)
    return (6,) if name.endswith(".ip6tables") else (4,)


def rules_of(name: str, backend: str = "nft", *, for_the_stand: bool = False) -> Rules:
    """The file, and the sets that it asks for.

    Args:
        name: of the file.
        backend: nft or legacy, for those of iptables.
        for_the_stand: with the names and addresses of `FilterStand`.
    """
    text = _read(CORPUS / name, for_the_stand)
    sets = CORPUS / Path(name).with_suffix(".ipset")
    if name.endswith(".nft"):
        return Rules(nft=text)
    tool = f"{'ip6tables' if name.endswith('.ip6tables') else 'iptables'}-{backend}-restore"
    return Rules(restore=((tool, text),), ipset=sets.read_text() if sets.exists() else "")


def _read(path: Path, for_the_stand: bool) -> str:
    lines = [line for line in path.read_text().splitlines() if not any(word in line for word in NOT_IN_EVERY_KERNEL)]
    text = "\n".join(lines) + "\n"
    if for_the_stand:  # the port is then the kernel's choice; the model keeps the one that it was
        text = re.sub(r" (--random-fully|fully-random)\b", "", text)
    found = re.search(r"^# walk: (.*)\n", text, re.MULTILINE)
    if not for_the_stand or found is None:
        return text
    text = text.replace(found.group(), "")
    for pair in found.group(1).split():
        old, new = pair.split("=")
        text = re.sub(
            rf"(?<![\w.:-]){re.escape(old)}(?![\w.:/-]|/)" if "." in old or ":" in old else re.escape(old), new, text
        )
    return text


class Flows:
    """Packets to and from the addresses and ports that a file names, and to and from others."""

    def __init__(self, rules: Rules, chance: Random) -> None:
        self._chance = chance
        text = rules.spelled()
        self._addresses = {family: self._named(text, family) for family in (4, 6)}
        ports = {
            int(each) for group in _PORT.findall(text) for each in re.findall(r"\d+", group) if 0 < int(each) < 65536
        }
        self._ports = sorted(ports | {53, 80, 9999})

    def _named(self, text: str, family: int) -> list[str]:
        found = set()
        for each in _ADDRESS[family].findall(text):
            try:
                net = ip_network(each, strict=False)
            except ValueError:
                continue
            found.add(str(net.network_address + (9 if net.num_addresses > 16 else 0)))
        return sorted(each for each in found if _usual(each))

    def flow(self, number: int, family: Family) -> Packet:
        """Come in by one of the two interfaces, or sent by the stand itself."""
        chance = self._chance
        iif = chance.choice(("up0", "up0", "far0", ""))
        named = self._addresses[family]
        others = [*SOURCES[family], *FAR[family]]
        sources = [each for each in named * 2 + others if each not in LOCAL] if iif else [*NEAR[family]]
        destinations = named * 2 + others + [*NEAR[family]] * 2
        source = chance.choice(sources)
        protocol = chance.choice((UDP, UDP, TCP, TCP, ICMP if family == 4 else ICMPV6))
        ports = protocol in (UDP, TCP)
        return Packet(
            ip_address(source), ip_address(chance.choice([each for each in destinations if each != source])), protocol,
            source_port=20000 + number % 40000 if ports else 0,
            destination_port=chance.choice(self._ports) if ports else 0,
            icmp_type={ICMP: 8, ICMPV6: 128}.get(protocol),
            tcp_flags=SYN if protocol == TCP else 0,
            iif=iif, mark=0 if iif else chance.choice((0, 0, 0xCA6C, 0x4000, 0x200, 0xA00)),
            length=(20 if family == 4 else 40) + {UDP: 12, TCP: 20}.get(protocol, 12),
            uid=None if iif else 0, gid=None if iif else 0, from_socket=not iif,
        )  # fmt: skip


def _usual(text: str) -> bool:
    """An address that may stand for a host in another place."""
    address = ip_address(text)
    return not (
        address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local or int(address) >> 24 in (0, 255)
        or text == "255.255.255.255" or (address.version == 6 and int(address) >> 96 == 0)
    )  # fmt: skip
