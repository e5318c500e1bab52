# SPDX-License-Identifier: Apache-2.0
"""`wicket trace`: one packet's way, and its answer's, step by step."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import Parameter

from wicketgate.cli.flow_arguments import concern_of, ends_of
from wicketgate.cli.place import look
from wicketgate.doctor.examine import complete
from wicketgate.doctor.firewall import filter_of
from wicketgate.doctor.trace_report import exit_code, trace_object, trace_text
from wicketgate.errors import InputError
from wicketgate.netpath.concerns import with_senders_endpoints
from wicketgate.netpath.diagnose import diagnose
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.walk import Walker

_HIGHEST = 0xFFFFFFFF


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
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Walk one packet through rules, routes, settings, firewall and sockets, and its answer back. Nothing is sent.

    Every step is a line: where in the kernel, the rule or route or setting as its own tool lists it, and what it did to
    the packet. What decided is marked. Run it as root, or the firewall cannot be read.

    Exit codes: 0 the flow works; 1 it is broken; 2 bad input; 3 the state could not be read, or the model cannot tell.

    For example:

      wicket trace 10.0.0.2:9000/tcp
      wicket trace 203.0.113.80:443/tcp --from 10.8.0.2
      wicket trace 1.1.1.1/icmp --from 0.0.0.0 --mark 0xca6c
      wicket trace [2001:db8::2]:51820/udp --iif eth0 --bundle pod.json --json

    Args:
        to: who shall get it, ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp.
        from_: who sends, ADDRESS or ADDRESS:PORT; IPv6 with a port as [ADDRESS]:PORT. Without it: somebody elsewhere.
            0.0.0.0 or ::, or an address of this host: this host sends it.
        iif: the interface it comes in by; without it, the one that the sender's address tells.
        mark: fwmark of the packet as it comes in, or of the sending socket: a number, also 0x...
        uid: user of the sending socket, where this host sends; default 0.
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        bundle: a file that `wicket snapshot` wrote, maybe elsewhere; `-` is standard input.
        json_: print one JSON object.
    """
    ends = ends_of(from_, to, "TO")
    number = _mark(mark)
    snapshot = complete(look(netns, bundle))
    concern = concern_of(snapshot, ends, iif=iif, mark=number, uid=uid)
    snapshot = with_senders_endpoints(snapshot, [concern])
    routing = Routing(snapshot)
    found = diagnose(Walker(snapshot, filter_of(snapshot, routing), routing=routing), concern)
    if json_:
        print(json.dumps(trace_object(found), indent=2))
    else:
        sys.stdout.write(trace_text(found))
    return exit_code(found)


def _mark(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= _HIGHEST:
        raise InputError(f"--mark {text}: allowed: 0 to 0xffffffff, as 51820 or 0xca6c")
    return number
