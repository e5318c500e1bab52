# SPDX-License-Identifier: Apache-2.0
"""How matches and targets print themselves in `iptables -L` (the `print` function of each libxt_*.c), and what one types for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from wicketgate.netpath.netfilter.names import NOT_UNDERSTOOD, TCP_FLAGS

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
    (r"(?:CONN)?MARK (x?set|and|or|xor) (0x[0-9a-f]+)(/0x[0-9a-f]+)?(?= |$)", lambda m: _xmark(m[1], m[2], m[3])),
    (r"CONNMARK (save|restore) mask (0x[0-9a-f]+)", lambda m: f"--{m[1]}-mark --nfmask {m[2]} --ctmask {m[2]}"),
    (r"(TTL|HL) match \1 (==|<|>) (\d+)",
     lambda m: f"-m {m[1].lower()} --{m[1].lower()}-{ {'==': 'eq', '<': 'lt', '>': 'gt'}[m[2]]} {m[3]}"),
    (r"rpfilter(?= |$)((?: loose| validmark| accept-local| invert)*)", lambda m: "-m rpfilter" + m[1].replace(" ", " --")),
    (r"(?:tcp|udp)(?= |$)(?! flags)", ""),
    (r"CONNMARK save", "--save-mark"),
    (r"CONNMARK restore", "--restore-mark"),
    (r"CT notrack", "--notrack"),
    (r"return-nomatch", "--return-nomatch"),
    (r"(! )?ctstatus ([A-Z_,]+)", lambda m: f"-m conntrack {_not(m[1])}--ctstatus {m[2]}"),
    (r"ctdir (ORIGINAL|REPLY)", lambda m: f"-m conntrack --ctdir {m[1]}"),
    (r"PKTTYPE (!)?= (\w+)", lambda m: f"-m pkttype {_not(m[1])}--pkt-type {m[2]}"),
    (r"PHYSDEV match (! )?--physdev-(in|out) (\S+)", lambda m: f"-m physdev {_not(m[1])}--physdev-{m[2]} {m[3]}"),
    (r"DSCP match (!)?(0x[0-9a-f]+)", lambda m: f"-m dscp {_not(m[1])}--dscp {m[2]}"),
    (r"DSCP set (0x[0-9a-f]+)", lambda m: f"--set-dscp {m[1]}"),
    (r"(TTL|HL) set to (\d+)", lambda m: f"--{m[1].lower()}-set {m[2]}"),
    (r"nflog-.*", ""),
    (r"LOG flags .*", ""),
)  # fmt: skip
_READERS = tuple((re.compile(pattern), spell) for pattern, spell in _EXTRAS)
# These belong behind -j; the rest stands before it.
_OF_TARGET = ("--reject-with", "--to-ports", "--random", "--clamp", "--set-mss", "--set-xmark",
              "--save-mark", "--restore-mark", "--notrack", "--set-dscp", "--ttl-set", "--hl-set")  # fmt: skip
_TO = re.compile(r"to:(\S+)")


def _flags(mask: str) -> str:
    return ",".join(name.upper() for name, bit in TCP_FLAGS.items() if int(mask, 16) & bit) or "NONE"


def _xmark(verb: str, value: str, mask: str | None) -> str:
    """As iptables-save has it: of `and`, `or` and `xor` the mask says which bits stay (xt_mark.h)."""
    number = int(value, 16)
    value, mask = {
        "and": ("0x0", f"/{0xFFFFFFFF ^ number:#x}"), "or": (value, f"/{value}"), "xor": (value, "/0x0"),
    }.get(verb, (value, mask or ""))  # fmt: skip
    return f"--set-xmark {value}{mask}"


def _icmp(said: str, no: str | None, kind: str, code: str | None) -> str:
    six = said.startswith("ipv6") or "icmpv6" in said
    name = "icmpv6-type" if six else "icmp-type"
    return f"-m {'icmp6' if six else 'icmp'} {_not(no)}--{name} {kind}{f'/{code}' if code else ''}"


def _quotable(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def typed(text: str, target: str) -> tuple[list[str], list[str]]:
    """What one types for what is printed behind the addresses: what goes before -j, and what goes behind it.

    Args:
        text: as it is printed.
        target: of the rule.
    """
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
