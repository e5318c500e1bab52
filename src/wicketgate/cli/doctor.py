# SPDX-License-Identifier: Apache-2.0
"""`wicket doctor`: which rule breaks a flow, and a fix that was tried before it is shown."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import Parameter

from wicketgate.cli.flow_arguments import concern_of, ends_of
from wicketgate.cli.place import look
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_object, to_text
from wicketgate.errors import InputError


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
    if from_ is not None and to is None:
        raise InputError(f"--from {from_} without --to; --to ADDRESS:PORT/PROTO names the other end")
    ends = ends_of(from_, to) if to is not None else None
    snapshot = look(netns, bundle)
    asked = [concern_of(snapshot, ends)] if ends is not None else []
    examination = examine(snapshot, asked)
    if json_:
        print(json.dumps(to_object(examination), indent=2))
    else:
        sys.stdout.write(to_text(examination))
    return examination.exit_code
