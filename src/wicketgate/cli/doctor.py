# SPDX-License-Identifier: Apache-2.0
"""`wicket doctor`: which rule breaks a flow, and a fix that was tried before it is shown."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter

from wicketgate.cli.ask import ask
from wicketgate.cli.flow_arguments import concern_of, ends_of
from wicketgate.cli.place import look, look_here
from wicketgate.cli.printable import printable
from wicketgate.doctor.drawing import Pen, pen_for
from wicketgate.doctor.examine import Examination, Finding, Judge, examine
from wicketgate.doctor.prove import Proved
from wicketgate.doctor.report import headline, to_object, to_text
from wicketgate.errors import InputError
from wicketgate.kernel.namespace import uapi_dir_of
from wicketgate.kernel.wg_common import UAPI_DIR
from wicketgate.netpath.concerns import Concern
from wicketgate.netpath.snapshot import Snapshot


def doctor(
    *,
    netns: str | None = None,
    bundle: str | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    twin: Literal["auto", "never"] = "auto",
    door: Literal["auto", "always", "never"] = "auto",
    apply: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    html: str | None = None,
) -> int:
    """Say which rule breaks a flow here, and what mends it.

    Without --from and --to the flows that matter are found from the state itself: load balancer and kubelet to each
    TCP listener on an uplink, a client to the WireGuard port, a tunnel client to the outside. In the place itself nothing
    is sent without --apply or --door always, and without --apply nothing is changed: the ways are computed, and every fix that is shown was tried on the
    computed place and, where namespaces can be made, with real packets in a twin, a throw-away namespace rebuilt from what
    was read. Run it as root, or the firewall and other users' devices cannot be read.

    Exit codes: 0 every flow works; 1 a flow is broken; 2 bad input; 3 the state could not be read, or no flow is known
    to be broken and one cannot be told.

    For example:

      wicket doctor --netns pid:4711
      wicket doctor --to 10.0.0.2:9000/tcp
      wicket doctor --apply
      wicket doctor --html report.html
      wicket snapshot > pod.json; wicket doctor --bundle pod.json --json
      (ip addr; ip rule; ip route show table all) | wicket doctor --bundle -

    Args:
        netns: look into this network namespace: a name of `ip netns`, a path, or `pid:N`.
        bundle: a file instead of a place: what `wicket snapshot` wrote, or outputs of ip, nft, iptables-save, wg, ss and sysctl
            as they were pasted somewhere; `-` is standard input.
        from_: who sends, ADDRESS or ADDRESS:PORT; IPv6 with a port as [ADDRESS]:PORT. Without it: somebody elsewhere.
        to: who shall get it, ADDRESS:PORT/tcp, ADDRESS:PORT/udp or ADDRESS/icmp.
        twin: auto tries fixes, and what cannot be computed, in a twin where one can be built; never does without.
        door: always sends each flow's very packet in the place itself, as a stranger sends it, and says what became of it;
            it and its answer do not leave this host. auto does so with --apply alone, before and after each fix.
        apply: put the best fix of each broken flow in force: asks first, reads the place again, and takes back what did
            not help or broke another flow.
        yes: with --apply, do not ask.
        json_: print one JSON object.
        html: write the report as one self-contained page to this file, mode 0600; `-` prints it instead of the text.
    """
    _check_apply(apply=apply, yes=yes, json_=json_, bundle=bundle)
    if html == "-" and (json_ or apply):
        raise InputError("--html - with --json or --apply: both would be printed; allowed: --html FILE")
    if door == "always" and bundle is not None:
        raise InputError("--door always with --bundle: a file is no place to send a packet in; allowed: auto, never")
    if from_ is not None and to is None:
        raise InputError(f"--from {from_} without --to; --to ADDRESS:PORT/PROTO names the other end")
    ends = ends_of(from_, to) if to is not None else None
    with _page(html) as page:
        snapshot = look(netns, bundle)
        asked = [concern_of(snapshot, ends)] if ends is not None else []
        judge = _Twin() if twin == "auto" else None
        examination = examine(snapshot, asked, judge)
        if door == "always":
            from wicketgate.doctor.door_proof import DoorProof  # noqa: PLC0415

            _end_gently()
            examination = DoorProof().review(examination)
        page(examination, snapshot)
    if apply and examination.broken:
        if not json_:
            _write(examination)
        return _apply(examination, snapshot, asked, netns, judge, door=door != "never", yes=yes, json_=json_)
    if json_:
        print(json.dumps(to_object(examination), indent=2))
    elif html != "-":
        _write(examination)
    return examination.exit_code


def _write(examination: Examination) -> None:
    pen = _pen()
    sys.stdout.write(printable(to_text(examination, pen), coloured=bool(pen.red)))


def _pen() -> Pen:
    """Colours at a terminal, unless NO_COLOR is set (no-color.org); lines where the encoding has them."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return pen_for(sys.stdout.encoding, colour=colour)


@contextmanager
def _page(path: str | None) -> Iterator[Callable[[Examination, Snapshot], None]]:
    """Writes the page; where it cannot be written, that is said before the place is read."""
    if path is None:
        yield lambda _examination, _snapshot: None
        return
    from wicketgate.doctor.page import PageFile, to_html  # noqa: PLC0415

    if path == "-":
        yield lambda examination, snapshot: print(to_html(examination, taken_at=snapshot.taken_at), end="")
        return
    file = PageFile(path)
    try:
        yield lambda examination, snapshot: file.write(to_html(examination, taken_at=snapshot.taken_at))
    finally:
        file.discard()


class _Twin:
    """The twin's judge. Its code is loaded when a flow does not work."""

    def review(self, snapshot: Snapshot, findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
        """See `TwinJudge`."""
        if all(each.diagnosis.works for each in findings):
            return findings, ()
        from wicketgate.doctor.twin import TwinJudge  # noqa: PLC0415

        return TwinJudge().review(snapshot, findings)


def _check_apply(*, apply: bool, yes: bool, json_: bool, bundle: str | None) -> None:
    if yes and not apply:
        raise InputError("--yes without --apply; it answers what --apply asks")
    if apply and bundle is not None:
        raise InputError(
            "--apply with --bundle: a file cannot be mended; run it in the place itself, or paste the commands there"
        )
    if apply and json_ and not yes:
        raise InputError("--apply with --json would ask amid the JSON; allowed: with --yes")
    if apply and not yes and not sys.stdin.isatty():
        raise InputError(
            "--apply asks before it changes anything, and there is no terminal to ask at; --yes applies without asking"
        )


def _end_gently() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C takes back, so does a kill


def _reaches_elsewhere(proved: Proved, snapshot: Snapshot, netns: str | None) -> bool:
    """`wg set` of a userspace device speaks to a socket by the device's name: in this file system it may be another's."""
    names = {command.split()[2] for command in proved.fix.commands if command.startswith("wg set ")}
    backends = {each.ifname: each.backend for each in snapshot.wireguard}
    return netns is not None and any(backends.get(name) != "kernel" for name in names)


def _apply(
    first: Examination,
    first_look: Snapshot,
    asked: list[Concern],
    netns: str | None,
    judge: Judge | None,
    *,
    door: bool,
    yes: bool,
    json_: bool,
) -> int:
    from wicketgate.doctor.apply import Surgeon  # noqa: PLC0415
    from wicketgate.doctor.door_proof import DoorProof  # noqa: PLC0415

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr if json_ else sys.stdout, flush=True)

    uapi_dir = UAPI_DIR if netns is None else uapi_dir_of(netns) or UAPI_DIR

    def agree(finding: Finding, proved: Proved) -> bool:
        if _reaches_elsewhere(proved, first_look, netns):
            say(f"not applied, its socket is in another file system: type it there: {'; '.join(proved.fix.commands)}")
            return False
        if yes:
            return True
        print(printable(f"\nTo mend {finding.diagnosis.concern.spelled()}:"))
        for command in proved.fix.commands:
            print(printable(f"    {command}"))
        for effect in proved.side_effects:
            print(printable(f"    but: {effect}"))
        return ask("Apply this? [y/N] ").strip().lower() in ("y", "yes")

    proof = DoorProof() if door else None
    around = first_look.surroundings
    surgeon = Surgeon(lambda: replace(look_here(uapi_dir), surroundings=around), say, agree, asked, judge, proof)
    _end_gently()
    last = surgeon.operate(first)
    if proof is not None and proof.lacking:
        say(f"the model alone has judged: {proof.lacking}")
    if json_:
        told = [
            {"flow": each.concern.spelled(), "fix": each.proved.fix.id, "commands": list(each.proved.fix.commands),
             "proved_by": list(each.proved.proved_by), "kept": each.kept, "why": each.why or None}
            for each in surgeon.applied
        ]  # fmt: skip
        print(json.dumps(to_object(last) | {"applied": told}, indent=2))
    else:
        print(f"\n{printable(headline(last))}")
    return last.exit_code
