# SPDX-License-Identifier: Apache-2.0
"""`wicket doctor`: which rule breaks a flow, and a fix that was tried before it is shown."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from ipaddress import ip_address
from typing import Annotated

from cyclopts import Parameter

from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object, to_text
from wicketgate.errors import InputError
from wicketgate.kernel.namespace import enter, uapi_dir_of
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.netpath.codec import from_json
from wicketgate.netpath.concerns import STRANGERS_PORT, Concern, Kind, arrives_by, stranger_to
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.snapshot import IPAddress, Snapshot

_BRACKETED = re.compile(r"\[([^\]]*)\](?::(\d{1,5}))?")
_PROTOCOLS = ("tcp", "udp", "icmp")


def doctor(
    *,
    netns: str | None = None,
    bundle: str | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say which rule breaks a flow here, and what mends it.

    Without --from and --to the flows that matter are found from the state itself: load balancer and kubelet to each
    TCP listener on an uplink, a client to the WireGuard port, a tunnel client to the outside. Nothing is changed and
    nothing is sent: the ways are computed, and so is every fix that is shown. Run it as root, or the firewall and
    other users' devices cannot be read.

    Exit codes: 0 every flow works; 1 a flow is broken; 2 bad input; 3 the state could not be read, or no flow is known
    to be broken and one cannot be told.

    For example:

      wicket doctor --netns pid:4711
      wicket doctor --to 10.0.0.2:9000/tcp
      wicket snapshot > pod.json; wicket doctor --bundle pod.json --json

    Args:
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        bundle: a file that `wicket snapshot` wrote, maybe elsewhere; `-` is standard input.
        from_: who sends, ADDRESS or ADDRESS:PORT; IPv6 with a port as [ADDRESS]:PORT. Without it: somebody elsewhere.
        to: who shall get it, ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp.
        json_: print one JSON object.
    """
    if bundle is not None and netns is not None:
        raise InputError("--bundle and --netns: read both; allowed: one of them")
    if from_ is not None and to is None:
        raise InputError(f"--from {from_} without --to; --to ADDRESS:PORT/PROTO names the other end")
    ends = _ends(from_, to) if to is not None else None
    snapshot = _read_bundle(bundle) if bundle is not None else _look(netns)
    asked = [_concern(snapshot, ends)] if ends is not None else []
    examination = examine(snapshot, asked)
    if json_:
        print(json.dumps(to_object(examination), indent=2))
    else:
        sys.stdout.write(to_text(examination))
    return examination.exit_code


def _look(netns: str | None) -> Snapshot:
    uapi_dir = UAPI_DIR
    if netns is not None:
        uapi_dir = uapi_dir_of(netns) or UAPI_DIR
        enter(netns)  # the main thread, for good: this process looks and ends
    return asyncio.run(take_snapshot(uapi_dir=uapi_dir))


def _read_bundle(path: str) -> Snapshot:
    try:
        if path == "-":
            return from_json(sys.stdin.read())
        with open(path, encoding="utf-8") as file:
            return from_json(file.read())
    except InputError as error:
        raise InputError(f"--bundle {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--bundle {path}: no UTF-8 text at octet {error.start}; expected what `wicket snapshot` prints"
        ) from error
    except OSError as error:
        raise InputError(f"--bundle {path}: {error.strerror}; expected a file that `wicket snapshot` wrote") from error


Ends = tuple[IPAddress | None, int, IPAddress, int, str]


def _ends(from_: str | None, to: str) -> Ends:
    place, _, protocol = to.rpartition("/")
    if protocol not in _PROTOCOLS or not place:
        raise InputError(
            f"--to {to}: allowed: ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp, as 10.0.0.2:9000/tcp"
        )
    destination, port = _endpoint("--to", place)
    if protocol == "icmp" and port:
        raise InputError(f"--to {to}: read port {port}; icmp has none, allowed: ADDRESS/icmp")
    if protocol != "icmp" and not port:
        raise InputError(
            f"--to {to}: read no port; allowed: ADDRESS:PORT/{protocol}, IPv6 as [ADDRESS]:PORT/{protocol}"
        )
    source, source_port = _endpoint("--from", from_) if from_ is not None else (None, 0)
    if source is not None and source.version != destination.version:
        raise InputError(
            f"--from {from_} and --to {to}: read IPv{source.version} and IPv{destination.version}; both must be of one family"
        )
    return source, source_port, destination, port, protocol


def _endpoint(flag: str, text: str) -> tuple[IPAddress, int]:
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        host, port = bracketed[1], bracketed[2] or "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, "0"
    try:
        address = ip_address(host)
    except ValueError as error:
        raise InputError(f"{flag} {text}: read address {host!r}; allowed: an IPv4 or IPv6 address, no name") from error
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{flag} {text}: read port {port!r}; allowed: 1 to 65535")
    return address, int(port)


def _concern(snapshot: Snapshot, ends: Ends) -> Concern:
    source, source_port, destination, port, protocol = ends
    sender = source if source is not None else stranger_to(destination)
    sport = 0 if protocol == "icmp" else source_port or STRANGERS_PORT
    iif = arrives_by(snapshot, sender, destination)
    here = iif is None
    if here and not sender.is_unspecified and not any(each.ip == sender for each in snapshot.addresses):
        raise InputError(
            f"--from {sender}: no interface is known by which it would come in; this place has no uplink of that family"
        )
    return Concern(Kind.ASKED, Flow(sender, destination, protocol, sport, port, iif=iif, uid=0 if here else None))
