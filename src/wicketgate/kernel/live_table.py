# SPDX-License-Identifier: Apache-2.0
"""The nftables table that watches one flow in a place itself: text only.

At the beginning and at the end of each hook stands a chain; the first ones set `nftrace` for this one 5-tuple and its
answer, the last one of postrouting keeps in what was sent for a look. No rule matches anything else. The rules are spelled one a
line, as old nft wants them.
"""

from __future__ import annotations

from dataclasses import dataclass

from wicketgate.kernel.twin.nft_trace import FIRST, HOOKS, LAST, LIVE_TABLE
from wicketgate.netpath.packet import ICMP, ICMPV6, TCP, UDP, Ends

_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}


@dataclass(frozen=True, slots=True)
class Outside:
    """A packet that is let go by one interface, where it is caught, and answered from there.

    Attributes:
        ifname: the interface.
        ends: of the packet as it leaves there.
        number: its own, see `octets.build`.
    """

    ifname: str
    ends: Ends
    number: int

    def packet(self) -> str:
        """Matches it, by its number."""
        ends = self.ends
        at = 32 if ends.protocol == TCP else 160
        return f"{_family(ends)} {_ip(ends)} daddr {ends.destination} meta l4proto {_NAMES[ends.protocol]} @th,{at},32 {self.number}"

    def answer(self) -> str:
        """Matches the answer as it comes in."""
        ends = self.ends.turned()
        words = [
            _family(ends),
            f'iifname "{self.ifname}"',
            f"{_ip(ends)} saddr {ends.source}",
            f"{_ip(ends)} daddr {ends.destination}",
        ]
        return " ".join([*words, *_upper(ends, opens=False)])


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at.

    Attributes:
        ends: of the first packet; an unspecified source and port 0 stand for any.
        iif: the interface it comes in by; empty when this host sends it.
        kept_in: the packet and its answer end before they leave an interface.
        outside: but the packet may leave here, and is answered.
    """

    ends: Ends
    iif: str = ""
    kept_in: bool = False
    outside: Outside | None = None

    def request(self, *, leaving: bool = False) -> str:
        """Matches the packet as it comes in, or as its socket sends it; or, untranslated, as it leaves."""
        ends = self.ends
        words = [_family(ends)]
        if self.iif and not leaving:
            words.append(f'iifname "{self.iif}"')
        if not ends.source.is_unspecified:
            words.append(f"{_ip(ends)} saddr {ends.source}")
        words.append(f"{_ip(ends)} daddr {ends.destination}")
        words += _upper(ends, opens=True)
        return " ".join(words)

    def answer(self) -> str:
        """Matches the answer as its socket sends it, or as it comes in."""
        ends = self.ends
        words = [_family(ends)]
        if self.iif:  # its source may be another one until a DNAT is turned back
            words += [f"{_ip(ends)} daddr {ends.source}"] if not ends.source.is_unspecified else []
            upper = _upper(Ends(ends.destination, ends.source, ends.protocol, 0, ends.source_port), opens=False)
        else:
            words.append(f"{_ip(ends)} saddr {ends.destination}")
            upper = _upper(ends.turned(), opens=False)
        return " ".join([*words, *upper])

    @property
    def first_come(self) -> bool:
        """Any sender's port will do; the first one that comes is looked at, and nobody else."""
        return not self.ends.source_port

    def sender(self, *, answered: bool = False) -> str:
        """The fields that tell one sender from another, of a packet of theirs or of one to them."""
        side, port = ("daddr", "dport") if answered else ("saddr", "sport")
        name = _NAMES[self.ends.protocol]
        return f"{_ip(self.ends)} {side}" + (f" . {name} {port}" if self.ends.protocol in (TCP, UDP) else "")

    def sender_type(self) -> str:
        """Of a set of those."""
        address = f"ipv{self.ends.destination.version}_addr"
        return f"{address} . inet_service" if self.ends.protocol in (TCP, UDP) else address

    def answer_out(self) -> str:
        """Matches the answer as it leaves: its addresses are those that the sender knows."""
        ends = self.ends
        turned = [f"{_ip(ends)} saddr {ends.destination}", f"{_ip(ends)} daddr {ends.source}"]
        return " ".join([_family(ends), *turned, *_upper(ends.turned(), opens=False)])

    def error(self) -> str:
        """Matches an ICMP error about the packet, by the headers that it quotes; empty where it has no port."""
        ends = self.ends
        if not ends.source_port or ends.source.is_unspecified:
            return ""
        name = _NAMES[ICMPV6 if ends.source.version == 6 else ICMP]
        quoted, size, port = (160, 32, 224) if ends.source.version == 4 else (128, 128, 384)
        to = f"{_ip(ends)} daddr {ends.source} " if self.iif else ""
        return (
            f"{_family(ends)} {to}{name} type destination-unreachable @th,{quoted},{size} {int(ends.source):#x} "
            f"@th,{port},16 {ends.source_port}"
        )

    def tracked(self) -> str:
        """Matches the packet by its connection, whatever NAT has made of it; empty where it is not known in full."""
        ends = self.ends
        if ends.source.is_unspecified or not ends.source_port:
            return ""
        ip = _ip(ends)
        return (
            f"{_family(ends)} meta l4proto {_NAMES[ends.protocol]} ct original {ip} saddr {ends.source} "
            f"ct original {ip} daddr {ends.destination} ct original proto-src {ends.source_port} "
            f"ct original proto-dst {ends.destination_port}"
        )


def _ip(ends: Ends) -> str:
    return "ip" if ends.destination.version == 4 else "ip6"


def _family(ends: Ends) -> str:
    return f"meta nfproto ipv{ends.destination.version}"


def _upper(ends: Ends, *, opens: bool) -> list[str]:
    name = _NAMES[ends.protocol]
    if ends.protocol in (ICMP, ICMPV6):
        return [f"{name} type {'echo-request' if opens else 'echo-reply'}"]
    words = [f"meta l4proto {name}"]
    if ends.source_port:
        words.append(f"{name} sport {ends.source_port}")
    if ends.destination_port:
        words.append(f"{name} dport {ends.destination_port}")
    if ends.protocol == TCP and opens:
        words.append("tcp flags & (syn | ack) == syn")
    return words


def table_script(watched: Watched) -> str:
    """For `nft -f`: the table, in place of an older one."""
    lines = [removal_script() + f"table inet {LIVE_TABLE} {{"]
    request, answer = watched.request(), watched.answer()
    if watched.first_come:
        # No second element fits: the rule ends there for everybody but the first. A busy port is not traced packet by packet.
        lines += ["set first {", f"type {watched.sender_type()}", "size 1", "flags dynamic", "}"]
        request += f" add @first {{ {watched.sender()} }}"
        answer += f" {watched.sender(answered=True)} @first"
    came, sent = [request], [answer, watched.error()]
    if not watched.iif:
        came, sent = sent, came
    traced = {"prerouting": came, "output": sent}
    for hook in HOOKS:
        lines.append(f"chain {hook}_first {{")
        lines.append(f"type filter hook {hook} priority {FIRST}; policy accept;")
        if hook == "prerouting" and watched.outside is not None:
            caught = f'iifname "{watched.outside.ifname}" {watched.outside.packet()}'
            lines += [
                f"{caught} meta nftrace set 0",
                f"{caught} drop",
                f"{watched.outside.answer()} meta nftrace set 1",
            ]
        lines += [f"{each} meta nftrace set 1" for each in traced.get(hook, []) if each]
        lines.append("}")
        lines.append(f"chain {hook}_last {{")
        lines.append(f"type filter hook {hook} priority {LAST}; policy accept;")
        if hook == "postrouting" and watched.outside is not None:
            lines.append(f'oifname "{watched.outside.ifname}" {watched.outside.packet()} accept')
        if hook == "postrouting" and watched.kept_in:
            kept = (watched.request(leaving=True), watched.answer_out(), watched.error(), watched.tracked())
            lines += [f"{each} drop" for each in kept if each]
        lines.append("}")
    return "\n".join([*lines, "}"]) + "\n"


def removal_script() -> str:
    """For `nft -f`: the table is gone, whether it was there or not."""
    return f"add table inet {LIVE_TABLE}\ndelete table inet {LIVE_TABLE}\n"
