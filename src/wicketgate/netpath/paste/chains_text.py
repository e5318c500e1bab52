# SPDX-License-Identifier: Apache-2.0
"""The listing that people paste most, `iptables -L`, put into the words of `iptables -S`.

It is made for eyes: without -v it leaves out interfaces, without -n it has names for numbers, and each match prints itself in a
form of its own (the `print` function of its libxt_*.c). What is left out or not understood becomes a match that nobody knows, so
that no verdict rests on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

_CHAIN = re.compile(r"^Chain (\S+) \((?:policy (ACCEPT|DROP|QUEUE|RETURN)\b[^)]*|\d+ references)\)$")
_HEAD = re.compile(r"^(num +)?(pkts +bytes +)?target +prot +opt +(in +out +)?source +destination *$")
_COUNT = r"\d+[KMGTP]?"
_PROTOCOL = re.compile(
    r"!?(?:all|tcp|udp|udplite|icmp|icmpv6|ipv6-icmp|igmp|esp|ah|gre|sctp|dccp|ipv6|ipencap|ipip|vrrp|ospf|pim|mh|\d{1,3})$"
)
_OPT = frozenset({"--", "-f", "!f"})
_ANY = frozenset({"0.0.0.0/0", "::/0", "anywhere", "*", "any", "all", "0"})
_ADDRESS = re.compile(r"!?(?:[\d.]+(?:/[\d.]+)?|[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:/\S+)?)$")
NOT_SHOWN = "interfaces-not-listed"
NOT_UNDERSTOOD = "not-understood"

_Spell = Callable[[re.Match[str]], str | None]  # None: not understood
# What iptables without -n makes of the commonest ports (IANA's registry, as it stands in /etc/services).
_SERVICES: Mapping[str, str] = MappingProxyType({
    "ftp": "21", "ssh": "22", "telnet": "23", "smtp": "25", "domain": "53", "bootps": "67", "bootpc": "68", "tftp": "69", "http": "80",
    "kerberos": "88", "pop3": "110", "sunrpc": "111", "ntp": "123", "netbios-ns": "137", "netbios-dgm": "138", "netbios-ssn": "139",
    "imap2": "143", "snmp": "161", "bgp": "179", "ldap": "389", "https": "443", "microsoft-ds": "445", "isakmp": "500", "submission": "587",
    "ldaps": "636", "rsync": "873", "imaps": "993", "pop3s": "995", "openvpn": "1194", "nfs": "2049", "mysql": "3306", "ipsec-nat-t": "4500",
    "mdns": "5353", "postgresql": "5432", "http-alt": "8080",
})  # fmt: skip


def _not(said: str | None) -> str:
    return "! " if said else ""


def _ports(module: str, found: re.Match[str]) -> str | None:
    side = "--dport" if found["side"].startswith("d") else "--sport"
    numbers = _numbers(found["ports"])
    return None if numbers is None else f"{module}{_not(found['no'])}{side} {numbers}"


def _several(found: re.Match[str]) -> str | None:
    numbers = _numbers(found[3])
    return None if numbers is None else f"-m multiport {_not(found[2])}--{found[1] or ''}ports {numbers}"


def _numbers(text: str) -> str | None:
    """Ports and ranges with names made numbers; None where a name is not known."""
    said = [each if each.isdigit() or each in ",:" else _SERVICES.get(each, "") for each in re.split(r"([,:])", text)]
    return "".join(map(str, said)) if all(said) else None


# What a match or target prints, and what one types for it.
_EXTRAS: tuple[tuple[str, str | _Spell], ...] = (
    (r"\[goto\]", ""),
    (r"(?P<module>tcp|udp) (?P<side>[ds])pts?:(?P<no>!)?(?P<ports>[\w-]+(?::[\w-]+)?)", lambda m: _ports(f"-m {m['module']} ", m)),
    (r"(?P<side>[ds])pts?:(?P<no>!)?(?P<ports>[\w-]+(?::[\w-]+)?)", lambda m: _ports("", m)),
    (r"tcp flags:(!)?(0x[0-9A-Fa-f]+)/(0x[0-9A-Fa-f]+)",
     lambda m: f"-m tcp {_not(m[1])}--tcp-flags {_flags(m[2])} {_flags(m[3])}"),
    (r"tcp flags:(!)?([A-Z,]+)/([A-Z,]+)", lambda m: f"-m tcp {_not(m[1])}--tcp-flags {m[2]} {m[3]}"),
    (r"flags:(!)?(0x[0-9A-Fa-f]+)/(0x[0-9A-Fa-f]+)", lambda m: f"{_not(m[1])}--tcp-flags {_flags(m[2])} {_flags(m[3])}"),
    (r"multiport (d|s)?ports (!)?([\w,:-]+)", _several),
    (r"(! )?ctstate ([A-Z,]+)", lambda m: f"-m conntrack {_not(m[1])}--ctstate {m[2]}"),
    (r"(! )?state ([A-Z,]+)", lambda m: f"-m state {_not(m[1])}--state {m[2]}"),
    (r"mark match (! )?(0x[0-9a-f]+(?:/0x[0-9a-f]+)?)", lambda m: f"-m mark {_not(m[1])}--mark {m[2]}"),
    (r"connmark match  ?(! )?(0x[0-9a-f]+(?:/0x[0-9a-f]+)?)", lambda m: f"-m connmark {_not(m[1])}--mark {m[2]}"),
    (r"ADDRTYPE match (src|dst)-type (!)?([A-Z,]+)(?= |$)( limit-in)?( limit-out)?",
     lambda m: f"-m addrtype {_not(m[2])}--{m[1]}-type {m[3]}{' --limit-iface-in' * bool(m[4])}{' --limit-iface-out' * bool(m[5])}"),
    (r"(! )?owner UID match (\d+)", lambda m: f"-m owner {_not(m[1])}--uid-owner {m[2]}"),
    (r"(! )?owner GID match (\d+)", lambda m: f"-m owner {_not(m[1])}--gid-owner {m[2]}"),
    (r"(source|destination) IP range (! )?([\da-f.:]+-[\da-f.:]+)",
     lambda m: f"-m iprange {_not(m[2])}--{'src' if m[1] == 'source' else 'dst'}-range {m[3]}"),
    (r"(! )?match-set (\S+) ([a-z,]+)(?= |$)", lambda m: f"-m set {_not(m[1])}--match-set {m[2]} {m[3]}"),
    (r"(?:ipv6-)?icmp(v6)?-?type (!)?(\d+)(?: code (\d+))?", lambda m: _icmp(m[0], m[2], m[3], m[4])),
    (r"icmp (!)?([a-z][a-z-]+)(?= |$)", lambda m: f"-m icmp {_not(m[1])}--icmp-type {m[2]}"),
    (r"ipv6-icmp (!)?([a-z][a-z-]+)(?= |$)", lambda m: f"-m icmp6 {_not(m[1])}--icmpv6-type {m[2]}"),
    (r"limit: avg (\d+/\w+) burst (\d+)", lambda m: f"-m limit --limit {m[1]} --limit-burst {m[2]}"),
    (r"statistic mode random probability ([\d.]+)", lambda m: f"-m statistic --mode random --probability {m[1]}"),
    (r"/\* (.*?) \*/", lambda m: f'-m comment --comment "{_quotable(m[1])}"'),
    (r"reject-with (\S+)", lambda m: f"--reject-with {m[1]}"),
    (r"redir ports (\d+(?:-\d+)?)", lambda m: f"--to-ports {m[1]}"),
    (r"masq ports: (\d+(?:-\d+)?)", lambda m: f"--to-ports {m[1]}"),
    (r"random-fully", "--random-fully"),
    (r"random(?= |$)", "--random"),
    (r"TCPMSS clamp to PMTU", "--clamp-mss-to-pmtu"),
    (r"TCPMSS set (\d+)", lambda m: f"--set-mss {m[1]}"),
    (r"MARK (?:x?set) (0x[0-9a-f]+(?:/0x[0-9a-f]+)?)", lambda m: f"--set-xmark {m[1]}"),
    (r"MARK and (0x[0-9a-f]+)", lambda m: f"--set-xmark 0x0/{0xFFFFFFFF ^ int(m[1], 16):#x}"),
    (r"MARK xor (0x[0-9a-f]+)", lambda m: f"--set-xmark {m[1]}/0x0"),
    (r"MARK or (0x[0-9a-f]+)", lambda m: f"--set-xmark {m[1]}/{m[1]}"),
    (r"CONNMARK (save|restore) mask (0x[0-9a-f]+)", lambda m: f"--{m[1]}-mark --nfmask {m[2]} --ctmask {m[2]}"),
    (r"CONNMARK and (0x[0-9a-f]+)", lambda m: f"--set-xmark 0x0/{0xFFFFFFFF ^ int(m[1], 16):#x}"),
    (r"CONNMARK or (0x[0-9a-f]+)", lambda m: f"--set-xmark {m[1]}/{m[1]}"),
    (r"CONNMARK xor (0x[0-9a-f]+)", lambda m: f"--set-xmark {m[1]}/0x0"),
    (r"(TTL|HL) match \1 (==|<|>) (\d+)",
     lambda m: f"-m {m[1].lower()} --{m[1].lower()}-{ {'==': 'eq', '<': 'lt', '>': 'gt'}[m[2]]} {m[3]}"),
    (r"rpfilter(?= |$)((?: loose| validmark| accept-local| invert)*)", lambda m: "-m rpfilter" + m[1].replace(" ", " --")),
    (r"(?:tcp|udp)(?= |$)(?! flags)", ""),
    (r"CONNMARK save", "--save-mark"),
    (r"CONNMARK restore", "--restore-mark"),
    (r"CONNMARK (?:x?set) (0x[0-9a-f]+(?:/0x[0-9a-f]+)?)", lambda m: f"--set-xmark {m[1]}"),
    (r"CT notrack", "--notrack"),
    (r"return-nomatch", "--return-nomatch"),
    (r"(! )?ctstatus ([A-Z_,]+)", lambda m: f"-m conntrack {_not(m[1])}--ctstatus {m[2]}"),
    (r"ctdir (ORIGINAL|REPLY)", lambda m: f"-m conntrack --ctdir {m[1]}"),
    (r"PKTTYPE (!)?= (\w+)", lambda m: f"-m pkttype {_not(m[1])}--pkt-type {m[2]}"),
    (r"PHYSDEV match (! )?--physdev-(in|out) (\S+)", lambda m: f"-m physdev {_not(m[1])}--physdev-{m[2]} {m[3]}"),
    (r"DSCP match (!)?(0x[0-9a-f]+)", lambda m: f"-m dscp {_not(m[1])}--dscp {m[2]}"),
    (r"DSCP set (0x[0-9a-f]+)", lambda m: f"--set-dscp {m[1]}"),
    (r"(TTL|HL) set to (\d+)", lambda m: f"--{m[1].lower()}-set {m[2]}"),
    (r"NFLOG .*nflog-group \d+(?: nflog-threshold \d+)?|nflog-group \d+(?: nflog-threshold \d+)?", ""),
    (r"LOG flags \d+ level \d+(?: prefix \".*?\")?", ""),
)  # fmt: skip
_READERS = tuple((re.compile(pattern), spell) for pattern, spell in _EXTRAS)
# These belong behind -j; the rest stands before it.
_OF_TARGET = ("--reject-with", "--to-ports", "--random", "--clamp", "--set-mss", "--set-xmark",
              "--save-mark", "--restore-mark", "--notrack", "--set-dscp", "--ttl-set", "--hl-set")  # fmt: skip
_TO = re.compile(r"to:(\S+)")
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")


def _flags(mask: str) -> str:
    number = int(mask, 16)
    return ",".join(name for bit, name in enumerate(_FLAGS) if number >> bit & 1) or "NONE"


def _icmp(said: str, no: str | None, kind: str, code: str | None) -> str:
    six = said.startswith("ipv6") or "icmpv6" in said
    name = "icmpv6-type" if six else "icmp-type"
    return f"-m {'icmp6' if six else 'icmp'} {_not(no)}--{name} {kind}{f'/{code}' if code else ''}"


def _quotable(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


class ChainReader:
    """Reads the lines of such listings, one after the other.

    Attributes:
        hides_interfaces: a listing without -v was read.
    """

    def __init__(self) -> None:
        self.hides_interfaces = False
        self._chain = ""
        self._numbered = self._counted = self._interfaces = False

    def take(self, line: str) -> list[str] | None:
        """What `iptables -S` has for this line; None where it is of no such listing."""
        chain = _CHAIN.match(line)
        if chain is not None:
            self._chain = chain[1]
            return [f"-P {chain[1]} {chain[2]}" if chain[2] else f"-N {chain[1]}"]
        head = _HEAD.match(line) if self._chain else None
        if head is not None:
            self._numbered, self._counted, self._interfaces = (bool(head[each]) for each in (1, 2, 3))
            return []
        rule = self._rule(line) if self._chain else None
        if rule is None:
            self._chain = ""
            return None
        self.hides_interfaces |= not self._interfaces
        return [rule]

    def _rule(self, line: str) -> str | None:
        words = line.split()
        for wanted, pattern in ((self._numbered, r"\d+"), (self._counted, _COUNT), (self._counted, _COUNT)):
            if wanted and (not words or re.fullmatch(pattern, words.pop(0)) is None):
                return None
        for target in (words[:1], []):
            found = self._columns(words[len(target) :], " ".join(target))
            if found is not None:
                return found
        return None

    def _columns(self, words: list[str], target: str) -> str | None:
        if not words or _PROTOCOL.match(words[0]) is None:
            return None
        protocol, rest = words[0], words[1:]
        opt = rest.pop(0) if rest[:1] and rest[0] in _OPT else "--"
        width = 4 if self._interfaces else 2
        if len(rest) < width:
            return None
        *between, source, destination = rest[:width]
        if any(
            each not in _ANY and _ADDRESS.match(each) is None and not self._is_name(each)
            for each in (source, destination)
        ):
            return None
        parts = [f"-A {self._chain}"]
        doubts: list[str] = []
        for option, said in (("-s", source), ("-d", destination)):
            if said in _ANY:
                continue
            if _ADDRESS.match(said) is None:
                doubts.append(f"-m {NOT_UNDERSTOOD}")  # a host's name: without -n
            else:
                parts.append(_option(option, said))
        if between:
            parts += [
                _option(option, said) for option, said in zip(("-i", "-o"), between, strict=True) if said not in _ANY
            ]
        else:
            doubts.append(f"-m {NOT_SHOWN}")
        if protocol not in _ANY:
            parts.append(_option("-p", protocol))
        if opt != "--":
            parts.append("-f" if opt == "-f" else "! -f")
        matches, options = _extras(" ".join(rest[width:]), target)
        jump = [f"{'-g' if '[goto]' in rest[width:] else '-j'} {target}"] if target else []
        return " ".join([*parts, *matches, *dict.fromkeys(doubts), *jump, *options])

    @staticmethod
    def _is_name(word: str) -> bool:
        """A host's name, as it stands without -n."""
        return re.fullmatch(r"!?[A-Za-z][\w.-]*(?:/\S+)?", word) is not None


def _option(name: str, said: str) -> str:
    return f"! {name} {said[1:]}" if said.startswith("!") else f"{name} {said}"


def _extras(text: str, target: str) -> tuple[list[str], list[str]]:
    """What stands behind the addresses: what goes before -j, and what goes behind it."""
    matches: list[str] = []
    options: list[str] = []
    while text := text.strip():
        to = _TO.match(text)
        if to is not None and target in ("DNAT", "SNAT", "NETMAP"):
            name = {"DNAT": "--to-destination", "SNAT": "--to-source", "NETMAP": "--to"}[target]
            options.append(f"{name} {to[1]}")
            text = text[to.end() :]
            continue
        for pattern, spell in _READERS:
            found = pattern.match(text)
            said = None if found is None else spell if isinstance(spell, str) else spell(found)
            if found is not None and said is not None:
                if said:
                    (options if said.startswith(_OF_TARGET) else matches).append(said)
                text = text[found.end() :]
                break
        else:
            matches.append(f"-m {NOT_UNDERSTOOD}")
            break
    return matches, options
