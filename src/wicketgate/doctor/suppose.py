# SPDX-License-Identifier: Apache-2.0
"""What a flow would do, supposing that what was not told is as it mostly is.

Unknown stays unknown: the verdict is another one only when the missing parts are read. But a person who pasted the
policy rules and not the firewall is helped by "if there is no firewall: this rule". The parameters that are missing
are tried at each of their values; where the end differs, those that decide it are named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import combinations, product
from types import MappingProxyType

from wicketgate.doctor.firewall import Walkers
from wicketgate.doctor.prove import Proved, Prover
from wicketgate.netpath.concerns import Concern
from wicketgate.netpath.diagnose import Diagnosis, diagnose
from wicketgate.netpath.paste.holes import is_hole
from wicketgate.netpath.paste.nft_rule import HIDDEN
from wicketgate.netpath.settings import in_name
from wicketgate.netpath.snapshot import Firewall, Snapshot
from wicketgate.netpath.spelling import table_name

_NOTHING = '{"nftables": []}'
_MOST_NAMED = 3
_MOST_ENDS = 3
_KERNELS = (0, 32766, 32767)  # priorities of the rules that a new namespace has
# What else decides a packet's way, at the kernel's own value. rp_filter, src_valid_mark and forwarding are tried at all.
_STILL = ("accept_local", "route_localnet")
_TRIED = {"rp_filter": ("0", "1", "2"), "src_valid_mark": ("0", "1"), "forwarding": ("0", "1")}


@dataclass(frozen=True, slots=True)
class Supposed:
    """What holds for a flow under a supposition.

    Attributes:
        words: the supposition: "there are no firewall rules, whatever rp_filter is".
        diagnosis: the same cause for every value that the words leave open, or that it works.
        fixes: proved in the model under the supposition.
    """

    words: str
    diagnosis: Diagnosis
    fixes: tuple[Proved, ...] = ()


def is_told(snapshot: Snapshot) -> bool:
    """Everything that decides a packet's way was read: only then can the place be rebuilt."""
    firewall = snapshot.firewall
    if None in (firewall.nft_json, firewall.iptables_legacy, firewall.ip6tables_legacy):
        return False
    if any(map(is_hole, snapshot.rules)) or any(map(is_hole, snapshot.routes)):
        return False
    settings = all(f"net.ipv4.conf.all.{key}" in snapshot.sysctls for key in _TRIED)
    return settings and f'"{HIDDEN}"' not in (firewall.nft_json or "")


def suppose(
    snapshot: Snapshot, concerns: Sequence[Concern], others: Sequence[Concern], unknown: Sequence[Diagnosis]
) -> dict[Concern, tuple[Supposed, ...]]:
    """Look again at what the model cannot tell.

    Args:
        snapshot: the place, with what is missing from it.
        concerns: all flows that are examined.
        others: flows that no fix should break.
        unknown: what the model says of those that it cannot tell.

    Returns:
        For each flow what would become of it: one end, or several, each with the parameters that lead to it. None for a
        flow whose ends are too many to be of help, or where nothing is missing that can be supposed.
    """
    words: list[str] = []
    filled = _filled(snapshot, {each.concern.flow.destination.version for each in unknown}, words)
    tried = _missing_parameters(filled)
    if not unknown or not (words or tried):
        return {}
    values = list(product(*(_TRIED[key] for key in tried)))
    worlds = [_world(filled, tried, each) for each in values]
    walkers = Walkers(worlds[0])
    found: dict[Concern, tuple[Supposed, ...]] = {}
    provers: dict[int, Prover] = {}
    for each in unknown:
        ends = [diagnose(walkers.of(world), each.concern) for world in worlds]
        if not all(end.works or end.broken for end in ends):
            continue
        told: list[Supposed] = []
        for said, members in _told_apart(tried, values, [_end(end) for end in ends]):
            # Where the packet itself is dropped because of its answer (strict rp_filter), most is needed to mend it.
            worst = max(members, key=lambda at: (ends[at].doomed is not None, -at))
            fixes: tuple[Proved, ...] = ()
            if ends[worst].broken:
                if worst not in provers:
                    provers[worst] = Prover(worlds[worst], concerns, others)
                fixes = tuple(
                    proved
                    for proved in provers[worst].fixes(ends[worst])
                    if all(diagnose(walkers.of(proved.fix.apply(worlds[at])), each.concern).works for at in members)
                )
            told.append(Supposed("; ".join([*words, *said]), ends[members[0]], fixes))
        if told:
            found[each.concern] = tuple(told)
    return found


def _told_apart(
    tried: Sequence[str], values: Sequence[tuple[str, ...]], ends: Sequence[object]
) -> list[tuple[list[str], list[int]]]:
    """The fewest parameters that decide the end: for each end the words, and where it is met. Empty: there are too many ends."""
    if len(set(ends)) > _MOST_ENDS:
        return []
    for count in range(len(tried) + 1):
        for chosen in combinations(range(len(tried)), count):
            groups: dict[object, list[int]] = {}
            seen: dict[tuple[str, ...], object] = {}
            for at, end in enumerate(ends):
                groups.setdefault(end, []).append(at)
                if seen.setdefault(tuple(values[at][place] for place in chosen), end) != end:
                    break
            else:
                return _worded(tried, chosen, seen, groups)
    return []


def _worded(
    tried: Sequence[str],
    chosen: Sequence[int],
    seen: Mapping[tuple[str, ...], object],
    groups: Mapping[object, list[int]],
) -> list[tuple[list[str], list[int]]]:
    """The end that the fewest values lead to first; the last is everything else."""
    rest = [name for place, name in enumerate(tried) if place not in chosen]
    whatever = [f"whatever {_listed(rest)}"] if rest else []
    names = [tried[place] for place in chosen]
    order = sorted(groups, key=lambda end: sum(other == end for other in seen.values()))
    found: list[tuple[list[str], list[int]]] = []
    for end in order:
        cases = [said for said, other in seen.items() if other == end]
        if not names:
            words = []
        elif len(names) > 1 and len(cases) > 1 and end == order[-1]:
            words = [f"any other {' and '.join(names)}"]
        elif len(names) == 1:
            words = [f"{names[0]} is {' or '.join(said for (said,) in cases)}"]
        else:
            words = [
                " or ".join(
                    " and ".join(f"{name} is {one}" for name, one in zip(names, said, strict=True)) for said in cases
                )
            ]
        found.append(([*words, *whatever], groups[end]))
    return found


def _end(found: Diagnosis) -> tuple[bool, str, str]:
    cause = found.cause
    return found.works, cause.code if cause else "", cause.where if cause else found.unknown


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names[:-1])} and {names[-1]} are"


def _filled(snapshot: Snapshot, families: Collection[int], words: list[str]) -> Snapshot:
    """Without the holes that can be supposed to be empty; `words` gets each that matters to these families."""
    firewall = _whole_firewall(snapshot.firewall, families, words)
    if any(is_hole(each) and each.family in families for each in snapshot.rules):
        listed = any(each.priority not in _KERNELS for each in snapshot.rules)
        words.append(f"there are no other policy rules than the kernel's own{' and those shown' if listed else ''}")
    tables = sorted({each.table for each in snapshot.routes if is_hole(each) and each.family in families})
    for table in tables[:_MOST_NAMED]:
        known = any(each.table == table and not is_hole(each) for each in snapshot.routes)
        words.append(f"table {table_name(table)} {'holds no other routes' if known else 'is empty'}")
    if any(each.mark is None for each in snapshot.sockets) and any(each.fwmask for each in snapshot.rules):
        words.append("the listener does not mark its packets")
    return replace(
        snapshot,
        firewall=firewall,
        rules=tuple(each for each in snapshot.rules if not is_hole(each)),
        routes=tuple(each for each in snapshot.routes if not is_hole(each)),
        sockets=tuple(replace(each, mark=0) if each.mark is None else each for each in snapshot.sockets),
    )


def _whole_firewall(firewall: Firewall, families: Collection[int], words: list[str]) -> Firewall:
    legacy = {4: "iptables_legacy", 6: "ip6tables_legacy"}
    missing = [name for family, name in legacy.items() if getattr(firewall, name) is None and family in families]
    listed = any(text for text in astuple(firewall) if text and text != _NOTHING)
    if firewall.nft_json is None or missing:
        words.append(f"there are no {'other ' if listed else ''}firewall rules{' than those listed' if listed else ''}")
    gone = {name: "" for name in legacy.values() if getattr(firewall, name) is None}
    if firewall.nft_json is None:
        gone |= {"nft_json": _NOTHING, "nft_text": ""}
    elif f'"{HIDDEN}"' in firewall.nft_json:
        gone["nft_json"] = firewall.nft_json.replace(f'{{"{HIDDEN}": null}}, ', "")
        words.append("each `reject` is for both families")
    return replace(firewall, **gone)


def _missing_parameters(snapshot: Snapshot) -> tuple[str, ...]:
    """Of those that are tried, the ones that are told neither of all nor of an interface."""
    names = ("all", *(in_name(link.name) for link in snapshot.links))
    return tuple(key for key in _TRIED if not all(f"net.ipv4.conf.{name}.{key}" in snapshot.sysctls for name in names))


def _world(snapshot: Snapshot, tried: Sequence[str], values: Sequence[str]) -> Snapshot:
    """The place with these values of the parameters that are missing, the same on every interface."""
    names = ["all", *(in_name(link.name) for link in snapshot.links)]
    sysctls = dict(snapshot.sysctls)
    for key, value in (*zip(tried, values, strict=True), *((key, "0") for key in _STILL)):
        for name in names:
            sysctls.setdefault(f"net.ipv4.conf.{name}.{key}", value)
        if key == "forwarding":
            sysctls.setdefault("net.ipv6.conf.all.forwarding", value)
    return replace(snapshot, sysctls=MappingProxyType(sysctls))
