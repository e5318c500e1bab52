# SPDX-License-Identifier: Apache-2.0
"""What iptables' targets do.

A target is made into an action: a function of the run that returns an `End`, or `Go` for what follows. Targets that
change neither the packet's way nor its mark (LOG, TCPMSS ...) make no action at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from wicketgate.netpath.filter import HookVerdict
from wicketgate.netpath.netfilter import names
from wicketgate.netpath.netfilter.conntrack import SIDE, wants_binding
from wicketgate.netpath.netfilter.ipt.arguments import NotKnownError, mark_and_mask
from wicketgate.netpath.netfilter.ipt.model import Option, Rule, Target
from wicketgate.netpath.netfilter.run import End, Run, UnknowableError
from wicketgate.netpath.netfilter.targets import Goal, masquerade, redirect, reject, translate_to
from wicketgate.netpath.packet import RST, TCP, ConnState
from wicketgate.netpath.snapshot import Family, IPAddress


class Go(Enum):
    """Where the packet goes after a rule."""

    ON = "the next rule"
    ACCEPTED = "out of the table"
    RETURN = "back to the chain that called"


Action = Callable[[Run, str], "End | Go"]

# They count, log, mark the trace, or change what no rule and no route asks.
EFFECTLESS = frozenset({
    "", "LOG", "NFLOG", "ULOG", "TRACE", "TCPMSS", "AUDIT", "CLASSIFY", "CHECKSUM", "LED", "IDLETIMER", "RATEEST",
    "TCPOPTSTRIP", "SECMARK", "CONNSECMARK",
})  # fmt: skip


def compile_target(target: Target, family: Family) -> Action:
    """What a target does that is no chain of the user.

    Raises:
        NotKnownError, ValueError, KeyError, IndexError: it could not be read.
    """
    options = {option.name: option for option in target.options}
    maker = _MAKERS.get(target.name)
    if target.name == "SET":
        return _set(options)
    if maker is None:
        raise NotKnownError(f"the target `{target.name}` is not known")
    return maker(options, family)


def writes(rule: Rule) -> bool:
    """Its target changes the packet or the connection, or tells the sender: the order of chains may matter."""
    return rule.target.name not in (EFFECTLESS | {"ACCEPT", "DROP", "RETURN"})


def _one(options: dict[str, Option], name: str) -> str:
    option = options[name]
    if len(option.args) != 1:
        raise NotKnownError(option.spelled())
    return option.args[0]


def _only(options: dict[str, Option], *allowed: str) -> None:
    for name, option in options.items():
        if name not in allowed:
            raise NotKnownError(option.spelled())


def _set(options: dict[str, Option]) -> Action:
    """It puts addresses into sets, which `Facts.changed_ipsets` knows; what it takes out of one is not known."""
    for name, option in options.items():
        if name.startswith("map-"):
            raise NotKnownError(option.spelled())
    return lambda _run, _where: Go.ON


def _accept(_options: dict[str, Option], _family: Family) -> Action:
    def action(run: Run, where: str) -> Go:
        run.note(where, "accept", verdict="accept")
        return Go.ACCEPTED

    return action


def _drop(_options: dict[str, Option], _family: Family) -> Action:
    return lambda _run, where: End(HookVerdict.DROP, where, "the rule drops it")


def _return(_options: dict[str, Option], _family: Family) -> Action:
    return lambda _run, _where: Go.RETURN


_REJECT_NAMES = {
    "icmp-host-prohib": "icmp-host-prohibited", "icmp-net-prohib": "icmp-net-prohibited",
    "icmp-admin-prohib": "icmp-admin-prohibited", "tcp-rst": "tcp-reset", "host-unreach": "icmp-host-unreachable",
    "adm-prohibited": "admin-prohibited", "addr-unreach": "addr-unreachable", "port-unreach": "port-unreachable",
}  # fmt: skip


def _reject(options: dict[str, Option], family: Family) -> Action:
    _only(options, "reject-with")
    default = "icmp-port-unreachable" if family == 4 else "icmp6-port-unreachable"
    text = _one(options, "reject-with") if options else default
    how = text.replace("icmp6-", "", 1) if family == 6 else text
    how = _REJECT_NAMES.get(how, how)
    if family == 6 and how != "tcp-reset":
        how = f"icmpv6-{how}"

    def action(run: Run, where: str) -> End:
        if how == "tcp-reset" and run.protocol == TCP and run.packet.tcp_flags & RST:
            return End(HookVerdict.DROP, where, "a reset is not answered by a reset")
        return reject(where, how)

    return action


def _mark(options: dict[str, Option], _family: Family) -> Action:
    (name,) = options
    value, mask = mark_and_mask(_one(options, name))
    if name == "set-mark":
        # MARK --set-mark value/mask: zero the mask's bits, then OR
        return _marking(lambda old: (old & ~mask) | value)
    if name == "set-xmark":
        return _marking(lambda old: (old & ~mask) ^ value)
    if name == "and-mark":
        return _marking(lambda mark: mark & value)
    if name == "or-mark":
        return _marking(lambda mark: mark | value)
    if name == "xor-mark":
        return _marking(lambda mark: mark ^ value)
    raise NotKnownError(options[name].spelled())


def _marking(change: Callable[[int], int]) -> Action:
    def action(run: Run, where: str) -> Go:
        run.set_mark(change(run.packet.mark), where)
        return Go.ON

    return action


def _connmark(options: dict[str, Option], _family: Family) -> Action:
    _only(options, "set-xmark", "set-mark", "save-mark", "restore-mark", "nfmask", "ctmask", "mask", "and-mark",
          "or-mark", "xor-mark")  # fmt: skip
    both = names.number(_one(options, "mask")) if "mask" in options else 0xFFFFFFFF
    packet_mask = names.number(_one(options, "nfmask")) if "nfmask" in options else both
    connection_mask = names.number(_one(options, "ctmask")) if "ctmask" in options else both

    def action(run: Run, where: str) -> Go:
        if not run.has_connection:
            return Go.ON
        of_connection, of_packet = run.connection.mark, run.packet.mark
        if "save-mark" in options:  # connmark_tg_shift, XT_CONNMARK_SAVE
            run.set_connection_mark((of_connection & ~connection_mask) ^ (of_packet & packet_mask), where)
        elif "restore-mark" in options:
            run.set_mark((of_packet & ~packet_mask) ^ (of_connection & connection_mask), where)
        else:
            run.set_connection_mark(change(of_connection), where)
        return Go.ON

    change: Callable[[int], int] = int
    if not {"save-mark", "restore-mark"} & set(options):
        (name,) = options
        change = _connmark_change(name, *mark_and_mask(_one(options, name)))
    return action


def _connmark_change(name: str, value: int, mask: int) -> Callable[[int], int]:
    return {
        "set-xmark": lambda mark: (mark & ~mask) ^ value,
        "set-mark": lambda mark: (mark & ~(mask | value)) | value,
        "and-mark": lambda mark: mark & value,
        "or-mark": lambda mark: mark | value,
        "xor-mark": lambda mark: mark ^ value,
    }[name]


def _untracked(run: Run, _where: str) -> Go:
    # xt_ct_target: a packet that has a connection, or is past tracking, keeps what it has
    if not run.tracked:
        run.connection = replace(run.connection, state=ConnState.UNTRACKED)
    return Go.ON


def _ct(options: dict[str, Option], _family: Family) -> Action:
    _only(options, "notrack", "zone", "zone-orig", "zone-reply", "helper", "timeout", "ctevents", "expevents")
    if "notrack" in options:
        return _untracked
    if "zone" in options and _one(options, "zone").isdigit():
        zone = names.number(_one(options, "zone"))

        def action(run: Run, _where: str) -> Go:
            if not run.tracked and run.connection.state is not ConnState.UNTRACKED:
                run.connection = replace(run.connection, zone=zone)
            return Go.ON

        return action
    if {"zone", "zone-orig", "zone-reply"} & set(options):
        raise NotKnownError("a zone for one direction, or by mark")
    return lambda _run, _where: Go.ON


def _ports(text: str) -> tuple[int, int]:
    low, found, high = text.partition("-")
    first = names.number(low)
    last = names.number(high.split("/")[0]) if found else first
    if not first <= last <= 65535:
        raise ValueError(f"ports {text}")
    return first, last


def _goal(text: str, family: Family, *, random: bool) -> Goal:
    """`10.0.0.1-10.0.0.4:80-90`, `:80`, `[fe80::1]:80`, `fe80::1`."""
    if "/" in text:
        raise NotKnownError("a port shifted from a base")
    ports: tuple[int, int] | None = None
    addresses = text
    if family == 6 and text.startswith("["):
        addresses, _, rest = text.rpartition("]")
        addresses = addresses[1:].replace("]-[", "-")
        if rest:
            ports = _ports(rest.removeprefix(":"))
    elif family == 4 and ":" in text:
        addresses, _, rest = text.partition(":")
        ports = _ports(rest)
    if not addresses:
        return Goal(None, ports, random)
    first, _, last = addresses.partition("-")
    low, high = ip_address(first), ip_address(last or first)
    if low.version != family or high.version != family or int(high) < int(low):
        raise ValueError(f"addresses {addresses}")
    return Goal((low, high), ports, random)


def _binding(goal: Goal) -> Action:
    def action(run: Run, where: str) -> Go:
        side = SIDE[run.hook]
        if wants_binding(run, side):
            translate_to(run, side, goal, where)
        return Go.ACCEPTED

    return action


def _nat(name: str) -> Callable[[dict[str, Option], Family], Action]:
    def make(options: dict[str, Option], family: Family) -> Action:
        _only(options, name, "random", "random-fully", "persistent")
        return _binding(_goal(_one(options, name), family, random=bool({"random", "random-fully"} & set(options))))

    return make


def _masquerade(options: dict[str, Option], _family: Family) -> Action:
    _only(options, "to-ports", "random", "random-fully")
    ports = _ports(_one(options, "to-ports")) if "to-ports" in options else None
    random = bool({"random", "random-fully"} & set(options))
    return lambda run, where: masquerade(run, ports, where, random=random) or Go.ACCEPTED


def _redirect(options: dict[str, Option], _family: Family) -> Action:
    _only(options, "to-ports", "random")
    ports = _ports(_one(options, "to-ports")) if "to-ports" in options else None
    return lambda run, where: redirect(run, ports, where) or Go.ACCEPTED


def _netmap(options: dict[str, Option], family: Family) -> Action:
    _only(options, "to")
    network = ip_network(_one(options, "to"), strict=False)
    if network.version != family:
        raise ValueError(str(network))
    kept = int(network.hostmask)

    def action(run: Run, where: str) -> Go:
        side = SIDE[run.hook]
        address = run.packet.source if side == "source" else run.packet.destination
        value = (int(address) & kept) | int(network.network_address)
        mapped: IPAddress = IPv4Address(value) if family == 4 else IPv6Address(value)
        translate_to(run, side, Goal((mapped, mapped)), where)
        return Go.ACCEPTED

    return action


def _tos(options: dict[str, Option], _family: Family) -> Action:
    (name,) = options
    if name == "set-dscp":
        value, mask = names.number(_one(options, name)) << 2, 0xFC
    elif name == "set-dscp-class":
        value, mask = names.DSCP[_one(options, name).lower()] << 2, 0xFC
    elif name == "set-tos":
        text, _, bits = _one(options, name).partition("/")
        value, mask = names.number(text), names.number(bits or "0xff")
    else:
        raise NotKnownError(options[name].spelled())

    def action(run: Run, _where: str) -> Go:
        run.set_packet(replace(run.packet, tos=(run.packet.tos & ~mask & 0xFF) ^ value))
        return Go.ON

    return action


def _hop_limit(options: dict[str, Option], _family: Family) -> Action:
    (name,) = options
    value = names.number(_one(options, name))
    how = name.partition("-")[2]
    if how not in ("set", "inc", "dec"):
        raise NotKnownError(options[name].spelled())

    def action(run: Run, _where: str) -> Go:
        now = run.packet.hop_limit
        after = value if how == "set" else now + value if how == "inc" else now - value
        run.set_packet(replace(run.packet, hop_limit=max(0, min(255, after))))
        return Go.ON

    return action


def _unknowable(reason: str) -> Callable[[dict[str, Option], Family], Action]:
    def make(_options: dict[str, Option], _family: Family) -> Action:
        def action(_run: Run, where: str) -> End:
            raise UnknowableError(where, reason)

        return action

    return make


_MAKERS: dict[str, Callable[[dict[str, Option], Family], Action]] = {
    "ACCEPT": _accept, "DROP": _drop, "RETURN": _return, "REJECT": _reject, "MARK": _mark, "CONNMARK": _connmark,
    "CT": _ct, "NOTRACK": lambda _options, _family: _untracked, "DNAT": _nat("to-destination"),
    "SNAT": _nat("to-source"), "MASQUERADE": _masquerade, "REDIRECT": _redirect, "NETMAP": _netmap, "TOS": _tos,
    "DSCP": _tos, "TTL": _hop_limit, "HL": _hop_limit,
    "NFQUEUE": _unknowable("a program decides (nfqueue)"), "QUEUE": _unknowable("a program decides (queue)"),
    "TPROXY": _unknowable("tproxy gives the packet to another socket"),
    "TEE": _unknowable("the packet is doubled"), "SYNPROXY": _unknowable("synproxy answers in the server's place"),
    "CLUSTERIP": _unknowable("another node may answer"), "HMARK": _unknowable("the mark is a hash"),
}  # fmt: skip
