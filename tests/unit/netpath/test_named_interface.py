# SPDX-License-Identifier: Apache-2.0
"""Programs whose answers name the interface, or the source, that they were asked by: what no listing tells is not guessed.

Each was a disagreement of door and model in a random state.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from unit.netpath.test_walk import SEED_POD, WG_PORT
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.round_trip import round_trip
from wicketgate.netpath.snapshot import Address, NextHop, Route, Rule, WireGuardState
from wicketgate.netpath.verdict import Verdict

POD6, STRANGER6 = ip_address("fd00::2"), ip_address("2001:db8::9")
DEFAULTS6 = (Rule(6, 0, table=255, protocol=2), Rule(6, 32766, table=254, protocol=2))
ASKED = Flow(STRANGER6, POD6, "udp", 40000, WG_PORT, iif="eth0")


def pod(backend: str, *rules: Rule, routes: tuple[Route, ...] = ()):
    """IPv6 and a default route by eth0, WireGuard in the kernel or in a program, and these rules."""
    return replace(
        SEED_POD,
        addresses=(*SEED_POD.addresses, Address("eth0", 2, ip_interface("fd00::2/64"))),
        routes=(
            *SEED_POD.routes,
            Route(ip_network("fd00::2/128"), table=255, type="local", nexthops=(NextHop("eth0"),), protocol=2),
            Route(ip_network("fd00::/64"), nexthops=(NextHop("eth0"),), protocol=2, metric=256),
            Route(ip_network("::/0"), nexthops=(NextHop("eth0", ip_address("fd00::1")),), protocol=3, metric=1024),
            *routes,
        ),
        rules=(*SEED_POD.rules, DEFAULTS6[0], *rules, DEFAULTS6[1]),
        wireguard=(WireGuardState("wg0", backend, "A" * 43 + "=", WG_PORT, 0, ()),),
    )


BUT_ETH0 = Rule(6, 100, action="unreachable", oif="eth0", invert=True)
HOLE = Rule(6, 100, table=7, src=ip_network("fd00::2/128"))
HOLE_ROUTE = Route(ip_network("::/0"), table=7, type="blackhole", metric=1024, protocol=3)


def test_the_plain_pod_answers():
    """Without a rule that looks at either, there is nothing to doubt."""
    for backend in ("kernel", "userspace"):
        _, reply = round_trip(pod(backend), ASKED)
        assert reply is not None
        assert reply.works, reply.reason


@pytest.mark.parametrize(("backend", "verdict"), [("userspace", Verdict.UNKNOWN), ("kernel", Verdict.DROPPED)])
def test_a_rule_that_lets_only_one_interface_out(backend, verdict):
    """`not oif eth0 unreachable` (IPv6): wireguard-go's answer names eth0 and gets out, the kernel's own does not."""
    _, reply = round_trip(pod(backend, BUT_ETH0), ASKED)
    assert reply is not None
    assert reply.verdict is verdict
    assert ("names the interface" in reply.reason) is (backend == "userspace")


@pytest.mark.parametrize(("backend", "verdict"), [("userspace", Verdict.UNKNOWN), ("kernel", Verdict.DROPPED)])
def test_a_rule_that_shuts_only_that_interface(backend, verdict):
    """`oif eth0 unreachable` (IPv6) is the other way round: only an answer that names eth0 meets it."""
    _, reply = round_trip(pod(backend, replace(BUT_ETH0, invert=False)), ASKED)
    assert reply is not None
    assert reply.verdict is (verdict if backend == "userspace" else Verdict.FORWARDED)


@pytest.mark.parametrize(("backend", "verdict"), [("userspace", Verdict.UNKNOWN), ("kernel", Verdict.DROPPED)])
def test_a_blackhole_for_the_source_that_is_named(backend, verdict):
    """EINVAL: wireguard-go takes its source for a stale one and sends again without, which no rule by source meets."""
    _, reply = round_trip(pod(backend, HOLE, routes=(HOLE_ROUTE,)), ASKED)
    assert reply is not None
    assert reply.verdict is verdict
    assert ("without naming its source" in reply.reason) is (backend == "userspace")
