# SPDX-License-Identifier: Apache-2.0
"""The picture in the terminal: where the packet goes, where its answer goes, and what is to blame."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from doctor_pod import CLIENT, HEALTHY, filtered, settled, wg_quicked, with_peers
from wicketgate.doctor.drawing import WIDTH, Pen, draw, pen_for
from wicketgate.doctor.examine import examine
from wicketgate.doctor.report import to_text
from wicketgate.netpath.concerns import Concern, Kind
from wicketgate.netpath.flow import Flow

DROP = [
    {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 9000}},
    {"drop": None},
]
UNICODE = pen_for("utf-8", colour=False)


def picture(snapshot, *, pen=UNICODE, protocol="tcp", kind=Kind.BALANCER):
    found = examine(snapshot).findings
    (finding,) = (
        each
        for each in found
        if each.diagnosis.concern.kind is kind and each.diagnosis.concern.flow.protocol == protocol
    )
    return [*draw(finding.diagnosis, pen)]


def test_an_answer_that_goes_astray():
    """There on the first line; the answer turns at the socket and goes back, by the guilty stage, into the tunnel."""
    assert picture(wg_quicked()) == [
        "203.0.113.9 ─▶ eth0 ─▶ input-routing ─▶ source-check ─▶ 0.0.0.0:9000",
        "                                                             │",
        "tunnel-out ◀─ wg0 ◀─ ✗ output-routing ◀──────────────────────┘",
        "                     ╰ 32765: not from all fwmark 0xca6c lookup 51820 proto boot",
    ]


def test_a_terminal_without_such_letters():
    """The same in ASCII, in as many lines."""
    lines = picture(wg_quicked(), pen=pen_for("ascii", colour=False))
    assert "\n".join(lines).isascii()
    assert lines[0] == "203.0.113.9 -> eth0 -> input-routing -> source-check -> 0.0.0.0:9000"
    assert lines[2].startswith("tunnel-out <- wg0 <- x output-routing <----")
    assert len(lines) == 4
    assert pen_for(None, colour=False) == pen_for("no such encoding", colour=False) == Pen()


def test_a_packet_that_is_dropped():
    """The way ends where the rule stands; what the answer would have met is below it, without a turn."""
    lines = picture(filtered(HEALTHY, "input", DROP))
    assert lines[0].endswith("─▶ ✗ input")
    assert lines[1].strip().startswith("╰ table inet filter chain input")
    assert lines[1].index("╰") == lines[0].index("✗") or len(lines[1]) >= WIDTH - 5
    assert not any("┘" in line for line in lines)


def test_a_way_through_the_pod_ends_outside_and_comes_back():
    """A tunnel client's packet and its answer have the other end in the picture."""
    pod = with_peers(settled(HEALTHY, all_forwarding=1, eth0_forwarding=1, wg0_forwarding=1), CLIENT)
    lines = picture(pod, kind=Kind.EGRESS)
    assert lines[0].startswith("10.8.0.2 ─▶ wg0 ─▶ ")
    assert lines[0].endswith(" ─▶ eth0 ─▶ 203.0.113.9")
    assert lines[1].startswith("10.8.0.2 ◀─ ")
    assert lines[1].endswith(" ◀─ eth0 ◀─ 203.0.113.9")
    assert "✗" not in "".join(lines)


def test_colours_are_around_what_is_to_blame_and_nothing_else():
    """Red for the guilty stage and its rule; without them the lines are the same."""
    pen = pen_for("utf-8", colour=True)
    lines = picture(wg_quicked(), pen=pen)
    assert f"{pen.red}✗ output-routing{pen.plain}" in lines[2]
    assert [line.replace(pen.red, "").replace(pen.plain, "") for line in lines] == picture(wg_quicked())
    assert lines[0].count("\x1b") == 0


@pytest.mark.parametrize("colour", [False, True])
def test_the_report_has_it_once_for_each_cause(colour):
    """Between the cause and the steps."""
    text = to_text(examine(wg_quicked()), pen_for("utf-8", colour=colour))
    assert text.count("┘") == 1
    assert text.index("┘") < text.index("the way there") < text.index("Why:")
    assert ("\x1b[" in text) is colour


def test_a_long_way_leaves_out_what_let_it_pass():
    """However long addresses are, a line fits; both ends and the guilty stage stay."""
    pod = wg_quicked()
    asked = Flow(ip_address("10.9.0.9"), ip_address("10.0.0.2"), "tcp", 40000, 9000, iif="eth0")
    found = examine(pod, [Concern(Kind.ASKED, asked)]).findings[0].diagnosis
    stages = ("prerouting", "input", "forward", "postrouting", "rerouting", "output") * 3
    first = found.forward.steps[0]
    stretched = replace(
        found, forward=replace(found.forward, steps=tuple(replace(first, stage=stage) for stage in stages))
    )
    lines = [*draw(stretched, UNICODE)]
    assert "…" in lines[0]
    assert max(map(len, lines)) <= WIDTH + 2
    assert lines[0].startswith("10.9.0.9 ─▶ ")
