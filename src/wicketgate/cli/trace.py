# SPDX-License-Identifier: Apache-2.0
"""`wicket trace`: one packet's way, and its answer's, step by step."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from wicketgate.cli.flow_arguments import Ends, concern_of, ends_of
from wicketgate.cli.place import enter_place, look, look_here, read_bundle
from wicketgate.cli.printable import printable
from wicketgate.doctor.examine import complete
from wicketgate.doctor.firewall import filter_of
from wicketgate.doctor.trace_report import exit_code, trace_object, trace_text
from wicketgate.errors import InputError
from wicketgate.netpath.concerns import Concern, with_senders_endpoints
from wicketgate.netpath.diagnose import Diagnosis, diagnose
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.snapshot import Snapshot
from wicketgate.netpath.walk import Walker

_HIGHEST = 0xFFFFFFFF
_LONGEST = 86400


def trace(
    to: str,
    /,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    iif: str | None = None,
    mark: str = "0",
    uid: int | None = None,
    netns: str | None = None,
    bundle: str | None = None,
    live: Annotated[bool, Parameter(negative="")] = False,
    wait: str | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Walk one packet through rules, routes, settings, firewall and sockets, and its answer back. Nothing is sent without --live.

    Every step is a line: where in the kernel, the rule or route or setting as its own tool lists it, and what it did to
    the packet. What decided is marked. Run it as root, or the firewall cannot be read.

    With --live the very packet is sent into its interface, or by a socket of this host, or with --wait a real one is waited for, and the kernel's own
    trace stands beside the computed way; the first difference is marked. With --live and --bundle the way is computed from
    the file, and the packet sent here.

    Exit codes: 0 the flow works; 1 it is broken, or the kernel does otherwise than computed; 2 bad input; 3 the state could not be read, the model
    cannot tell, or --live could not be done.

    For example:

      wicket trace 10.0.0.2:9000/tcp
      wicket trace 203.0.113.80:443/tcp --from 10.8.0.2
      wicket trace 1.1.1.1/icmp --from 0.0.0.0 --mark 0xca6c
      wicket trace 10.0.0.2:9000/tcp --live
      wicket trace 10.0.0.2:9000/tcp --live --wait 60
      wicket trace [2001:db8::2]:51820/udp --iif eth0 --bundle pod.json --json

    Args:
        to: who shall get it, ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp.
        from_: who sends, ADDRESS or ADDRESS:PORT; IPv6 with a port as [ADDRESS]:PORT. Without it: somebody elsewhere.
            0.0.0.0 or ::, or an address of this host: this host sends it.
        iif: the interface it comes in by; without it, the one that the sender's address tells.
        mark: fwmark of the packet as it comes in, or of the sending socket: a number, also 0x...
        uid: user of the sending socket, where this host sends; default 0.
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        bundle: a file instead of a place: what `wicket snapshot` wrote, or outputs of ip, nft, iptables-save, wg, ss and sysctl
            as they were pasted somewhere; `-` is standard input.
        live: send the packet, and show what the kernel does with it beside what was computed. A stranger's is turned round at
            the interface and neither it nor its answer leaves this host; what this host sends itself really leaves.
        wait: with --live, send nothing and wait so many seconds for a packet from --from, or from anybody.
        json_: print one JSON object.
    """
    ends = ends_of(from_, to, "TO")
    number = _mark(mark)
    if live or wait is not None:
        seconds = _seconds(wait, live=live)
        uapi_dir = enter_place(netns)
        return _live(
            ends,
            seconds,
            lambda: read_bundle(bundle) if bundle is not None else look_here(uapi_dir),
            iif=iif,
            mark=number,
            uid=uid,
            json_=json_,
        )
    snapshot = complete(look(netns, bundle))
    concern = concern_of(snapshot, ends, iif=iif, mark=number, uid=uid)
    snapshot = with_senders_endpoints(snapshot, [concern])
    routing = Routing(snapshot)
    found = diagnose(Walker(snapshot, filter_of(snapshot, routing), routing=routing), concern)
    if json_:
        print(json.dumps(trace_object(found), indent=2))
    else:
        sys.stdout.write(printable(trace_text(found)))
    return exit_code(found)


def _live(
    ends: Ends,
    wait: float | None,
    read: Callable[[], Snapshot],
    *,
    iif: str | None,
    mark: int,
    uid: int | None,
    json_: bool,
) -> int:
    from wicketgate.doctor.live_report import live_object, live_text  # noqa: PLC0415
    from wicketgate.doctor.live_trace import watch_live  # noqa: PLC0415
    from wicketgate.kernel.live_watch import LiveWatch  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C takes away, so does a kill
    with LiveWatch() as watch:
        state = complete(read())  # after what a killed one left is gone, before anything of ours is there
        concern = concern_of(state, ends, iif=iif, mark=mark, uid=uid)
        if concern.flow.iif is None and not ends[1]:
            concern = replace(
                concern, flow=replace(concern.flow, source_port=0)
            )  # the kernel gives the socket a free one

        def computed(flow: Concern) -> Diagnosis:
            snapshot = with_senders_endpoints(state, [flow])
            routing = Routing(snapshot)
            return diagnose(Walker(snapshot, filter_of(snapshot, routing), routing=routing), flow)

        found = watch_live(watch, concern, computed, wait=wait, anybody=ends[0] is None, any_port=not ends[1])
    if json_:
        print(json.dumps(live_object(found), indent=2))
    else:
        sys.stdout.write(printable(live_text(found)))
    return found.exit_code


def _seconds(text: str | None, *, live: bool) -> float | None:
    if text is None:
        return None
    if not live:
        raise InputError(f"--wait {text} without --live; it waits for the packet that --live shows")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise InputError(f"--wait {text}: allowed: seconds, more than 0 and up to {_LONGEST}")
    return seconds


def _mark(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= _HIGHEST:
        raise InputError(f"--mark {text}: allowed: 0 to 0xffffffff, as 51820 or 0xca6c")
    return number
