# SPDX-License-Identifier: Apache-2.0
"""Every cell of docs/matrix.md by a packet sent from inside: it fares as a client's does, and as computed."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import matrix
from wicketgate.doctor.firewall import filter_of
from wicketgate.doctor.live_report import live_headline
from wicketgate.doctor.live_trace import watch_live
from wicketgate.kernel.live_watch import LiveWatch
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.concerns import STRANGERS_PORT, Concern, Kind
from wicketgate.netpath.diagnose import diagnose
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.walk import Walker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def live(pod, port: int):
    """The live trace of the client's connection, without the client."""
    snapshot = pod.pod.acall(take_snapshot)
    flow = Flow(ip_address(matrix.CLIENT), ip_address(matrix.POD), "tcp", STRANGERS_PORT, port, iif="eth0")
    walker = Walker(snapshot, filter_of(snapshot))

    def look():
        with LiveWatch() as watch:
            return watch_live(watch, Concern(Kind.BALANCER, flow), lambda concern: diagnose(walker, concern))

    return pod.pod.call(look)


@pytest.mark.parametrize("shape", matrix.SHAPES)
def test_every_cell(shape):
    """Ten cures, six settings: the door's word is the client's, and no point of the way differs from the computed one."""
    wrong = []
    with matrix.seed(shape) as pod:
        for fix in matrix.FIXES:
            for command in fix.commands:
                pod.pod.run(*command.split())
            for rp, svm in matrix.SETTINGS:
                matrix.set_filters(pod, rp, svm)
                client, seen = matrix.connects(pod, fix.port), live(pod, fix.port)
                if seen.difference is not None or seen.works is not client:
                    wrong.append(
                        f"{fix.name}, rp{rp} svm{svm}: client {client}, door {seen.works}: {live_headline(seen)}"
                    )
            for command in fix.undo:
                pod.pod.run(*command.split())
    assert not wrong, "\n".join(wrong)
