# SPDX-License-Identifier: Apache-2.0
"""The door's addresses and its nftables table, one a family. Text only, no I/O.

The agent talks to M; the pod sees a stranger S; a tunnel client's probe goes to T. None of them exists on any network
(RFC 5737 section 3, RFC 3849). The rules are spelled one a line, as old nft wants them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from wicketgate.netpath.snapshot import Family, IPAddress

TABLE_PREFIX = "wicketgate-door-"
SLOTS = 60  # doors in one network namespace; each takes four addresses and two filter priorities
_FIRST = {4: IPv4Address("192.0.2.0"), 6: IPv6Address("2001:db8:5747::")}
# After every priority that people use (tc counts upwards, automatic ones lie below 49152): a filter of somebody else
# meets the door's packets as it meets a client's.
_FIRST_PRIORITY = 60_000

# Chains' priorities: before connection tracking (-200) and raw (-300); and the last one that still runs before
# conntrack's confirmation (NF_IP_PRI_CONNTRACK_CONFIRM = INT_MAX).
_EARLY, _ARRIVE, _LAST = -400, -450, 2147483000
CT_ZONE = 0x5747  # of the agent's half, where it has to be tracked

_COOKIE = b"wicketgate"
_PLAIN = re.compile(r"[A-Za-z0-9_.:@+=-]+")

# Stages of both probes in the order a packet passes them, each a counter: see `door_account`. The chains that stand
# all the time count some of them anyway; the others need chains of their own, see `count_script`.
STAGES = (
    "agent_sent",  # output: the agent's packet to M
    "agent_left",  # postrouting of the uplink: it is a stranger's now
    "arrived",  # prerouting, before everything else
    "routed",  # prerouting, after everything else
    "input",  # input, before everything else
    "delivered",  # input, after everything else
    "replied",  # output, before everything else: the pod's answer to S
    "reply_sent",  # output, after everything else
    "reply_left",  # postrouting of the uplink, after everything else
    "reply_tunnel",  # postrouting of the tunnel: it never gets home
    "reply_astray",  # postrouting of another interface
    "reply_back",  # prerouting: it came in again
    "reply_foreign",  # prerouting: it came in from an address that is not the one the agent spoke to
    "answered",  # input, after everything else: M's answer to the agent
    "out_left",  # postrouting of the uplink: a tunnel client's packet, translated
    "out_untranslated",  # the same, but with an address that nobody outside could answer
    "out_astray",  # it left by another interface
    "out_back",  # prerouting: T's answer
    "out_forwarded",  # forward, after everything else: T's answer on its way into the tunnel
    "out_client",  # forward, before everything else: a tunnel client's packet
)


@dataclass(frozen=True, slots=True)
class Trio:
    """The three addresses of a door in one family."""

    agent_peer: IPAddress  # M
    stranger: IPAddress  # S
    target: IPAddress  # T


def trio(family: Family, slot: int) -> Trio:
    """The addresses of a slot: 192.0.2.1, .2, .3 for slot 0; 192.0.2.5, .6, .7 for slot 1."""
    first = int(_FIRST[family]) + 4 * slot
    make = IPv4Address if family == 4 else IPv6Address
    return Trio(make(first + 1), make(first + 2), make(first + 3))


def priority(family: Family, slot: int) -> int:
    """Tc's pref. One a family: a priority is bound to one protocol."""
    return _FIRST_PRIORITY + 2 * slot + (family == 6)


def cookie(tag: str, slot: int, *, made_clsact: bool) -> bytes:
    """What marks a filter as ours: wicketgate, whether we made the qdisc, the slot, whose door it is."""
    return _COOKIE + bytes([made_clsact, slot]) + zlib.crc32(tag.encode()).to_bytes(4, "big")


def is_cookie(raw: bytes, tag: str | None = None) -> bool:
    """Whether it marks a filter of ours; with a tag: of that tag's doors."""
    if len(raw) != 16 or not raw.startswith(_COOKIE):
        return False
    return tag is None or raw[12:] == cookie(tag, 0, made_clsact=False)[12:]


def cookie_slot(raw: bytes) -> int:
    """The slot a cookie names."""
    return raw[11]


def cookie_made_clsact(raw: bytes) -> bool:
    """Whether the qdisc was made together with the filter."""
    return bool(raw[10])


def table_name(tag: str, uplink: str) -> str:
    """`wicketgate-door-wg0.eth0`. What nft cannot spell becomes an underscore."""
    return TABLE_PREFIX + re.sub(r"[^A-Za-z0-9_-]", "_", tag) + "." + re.sub(r"[^A-Za-z0-9_-]", "_", uplink)


def is_table(name: str, tag: str, uplink: str | None) -> bool:
    """Whether it is a tag's table, at one uplink or at any."""
    return name == table_name(tag, uplink) if uplink is not None else name.startswith(table_name(tag, ""))


def is_reserved(address: IPAddress, family: Family) -> bool:
    """Whether it may be an address of some door."""
    return address.version == family and 0 < int(address) - int(_FIRST[family]) < 4 * SLOTS


def spellable(ifname: str) -> bool:
    """Whether nft takes the interface's name in quotes as it is."""
    return _PLAIN.fullmatch(ifname) is not None


def delete_script(tables: Sequence[tuple[str, str]]) -> str:
    """Remove tables, whether they are there or not, in one transaction."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in tables)


def table_script(
    family: Family, tag: str, uplink: str, slot: int, pods: Sequence[IPAddress], *, tracked: bool = False
) -> str:
    """The table of one family as it stands all the time, replaced as a whole: what a probe needs, and no more.

    Each chain costs every packet of the pod some 70 ns and each rule that it meets some 30 (bench/forwarding.py), so
    there is one at each hook that is needed, and its first rule lets go what is none of ours.

    Args:
        family: 4 or 6.
        tag: whose door (the tunnel's name).
        uplink: the interface.
        slot: which addresses.
        pods: the pod's addresses on it; the first is the one that strangers speak to.
        tracked: follow the agent's half in a conntrack zone of its own, because a firewall here passes only what
            belongs to an established connection; otherwise it leaves no conntrack entry.
    """
    three = trio(family, slot)
    m, s, t = three.agent_peer, three.stranger, three.target
    pod = pods[0]
    ip = "ip" if family == 4 else "ip6"
    mine = f"{{ {', '.join(str(each) for each in pods)} }}"
    name = table_name(tag, uplink)
    follow = f"ct zone set {CT_ZONE + slot}" if tracked else "notrack"
    here, elsewhere = f'oifname "{uplink}"', f'oifname != "{uplink}"'
    came = f'iifname "{uplink}"'
    # All rules behind these ask for one of the three addresses. Four bytes are compared at once, other lengths take the
    # kernel's long way (nft_payload, nft_cmp_fast): with IPv6 the first comparison is of the documentation network.
    ours = f"{_FIRST[4] + 4 * slot}/30" if family == 4 else "2001:db8::/32"
    not_to_us = f"{ip} daddr != {ours} accept"
    maybe = "" if family == 4 else f"{ip} daddr {ours} "

    parts = [
        _chain("output-first", "output", _EARLY, f"{maybe}{ip} daddr {m} {_count('agent_sent')} {follow}"),
        _chain(
            "postrouting-last",
            "postrouting",
            _LAST,
            not_to_us,
            f"{here} {ip} daddr {m} {_count('agent_left')} {ip} saddr set {s} {ip} daddr set {pod} meta mark set 0 accept",
            f"{here} {ip} daddr {s} {_count('reply_left')} accept",
            *([f'oifname "{tag}" {ip} daddr {s} {_count("reply_tunnel")} drop'] if spellable(tag) else []),
            f"{elsewhere} {ip} daddr {s} {_count('reply_astray')} drop",
            # ICMP errors for an answer that came too late; no socket of ours is bound elsewhere.
            f"{elsewhere} {ip} daddr {m} {_count('agent_left')} drop",
            # Masquerade may have chosen another source port: the answer goes to that one, and comes from the port that
            # the client spoke to.
            f"{here} {ip} saddr {mine} {ip} daddr {t} {_count('out_left')} udp dport set udp sport"
            f" udp sport set ct original proto-dst {ip} daddr set {ip} saddr {ip} saddr set {t} meta mark set 0 accept",
            f"{here} {ip} daddr {t} {_count('out_untranslated')} drop",
            f"{elsewhere} {ip} daddr {t} {_count('out_astray')} drop",
        ),
        _chain(
            "prerouting-first",
            "prerouting",
            _ARRIVE,
            not_to_us,
            f"{came} {ip} saddr {pod} {ip} daddr {s} {_count('reply_back')} {follow} {ip} saddr set {m} {ip} daddr set {pod} accept",
            # Without this it would be forwarded, turned round and forwarded again until its hop limit is used up.
            f"{came} {ip} daddr {s} {_count('reply_foreign')} drop",
        ),
    ]
    counters = "".join(f"\tcounter {stage} {{\n\t}}\n" for stage in STAGES)
    return delete_script([(ip, name)]) + f"table {ip} {name} {{\n{counters}{''.join(parts)}}}\n"


_COUNTING = (
    "count-arriving",
    "count-routed",
    "count-input",
    "count-delivered",
    "count-replies",
    "count-sent",
    "count-forward",
    "count-forwarded",
)


def count_script(family: Family, tag: str, uplink: str, slot: int, pods: Sequence[IPAddress]) -> str:
    """Chains that count at every other stage, added to the table for as long as somebody asks what took a probe.

    What is in the table already goes on as it was. Args: as `table_script`.
    """
    three = trio(family, slot)
    m, s, t = three.agent_peer, three.stranger, three.target
    ip = "ip" if family == 4 else "ip6"
    name = table_name(tag, uplink)
    came = f'iifname "{uplink}"'
    arriving, routed, entering, delivered, replies, sent, forward, forwarded = _COUNTING
    parts = [
        # Before the table's own chain at this hook, which lets some of them go.
        _chain(
            arriving,
            "prerouting",
            _ARRIVE - 1,
            f"{came} {ip} saddr {s} {ip} daddr {pods[0]} {_count('arrived')}",
            f"{came} {ip} saddr {t} {_count('out_back')}",
        ),
        _chain(routed, "prerouting", _LAST, f"{came} {ip} saddr {s} {_count('routed')}"),
        _chain(entering, "input", _EARLY, f"{came} {ip} saddr {s} {_count('input')}"),
        _chain(
            delivered,
            "input",
            _LAST,
            f"{came} {ip} saddr {s} {_count('delivered')}",
            f"{came} {ip} saddr {m} {_count('answered')}",
        ),
        _chain(replies, "output", _EARLY, f"{ip} daddr {s} {_count('replied')}"),
        _chain(sent, "output", _LAST, f"{ip} daddr {s} {_count('reply_sent')}"),
        _chain(forward, "forward", _EARLY, f"{ip} daddr {t} {_count('out_client')}"),
        _chain(forwarded, "forward", _LAST, f"{ip} saddr {t} {_count('out_forwarded')}"),
    ]
    return f"table {ip} {name} {{\n{''.join(parts)}}}\n"


def uncount_script(family: Family, tag: str, uplink: str) -> str:
    """Remove the chains of `count_script`; all or, where one is gone already, none."""
    table = f"{'ip' if family == 4 else 'ip6'} {table_name(tag, uplink)}"
    return "".join(f"flush chain {table} {each}\ndelete chain {table} {each}\n" for each in _COUNTING)


def _chain(name: str, hook: str, at: int, *rules: str) -> str:
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n\t\ttype filter hook {hook} priority {at}; policy accept;\n{body}\t}}\n"


def _count(stage: str) -> str:
    return f'counter name "{stage}"'
