# SPDX-License-Identifier: Apache-2.0
"""Questions to the kernel's routing and what the answers mean, with an oracle of our own."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest

from wicketgate.errors import KernelRefused
from wicketgate.health.cause import Cause
from wicketgate.health.check import State
from wicketgate.health.explain import STRANGER, Explainer
from wicketgate.health.target import ProbeTarget, TunnelPath
from wicketgate.kernel.lookup import RouteAnswer

POD = ip_address("10.0.0.5")
PATH = TunnelPath(ip_address("10.8.0.254"), ip_address("10.8.0.1"))
TARGET = ProbeTarget("wg0", "egress", None, 51820, fwmark=0xCA6C, paths=(PATH,), egress_paths=(PATH,))


def goes(oif: str, type_: str = "unicast", table: int = 254) -> RouteAnswer:
    return RouteAnswer(oif, table, None, None, type_, None)


class Oracle:
    """A pod where all is well, but for what a test says."""

    def __init__(self, **changes) -> None:
        self.answers = {
            "arrive": goes("lo", "local"),
            "udp": goes("eth0"),
            "tcp": goes("eth0"),
            "forward": goes("eth0"),
        }
        self.answers |= changes
        self.asked = []

    async def get_route(self, dst, **question):
        self.asked.append((dst, question))
        if dst == POD:
            answer = self.answers["arrive"]
        elif question.get("iif") == "wg0":
            answer = self.answers["forward"]
        else:
            answer = self.answers["udp" if question["ipproto"] == 17 else "tcp"]
        if isinstance(answer, int):
            raise KernelRefused("ip route get", answer, "no")
        return answer


async def why(target=TARGET, conntrack=lambda: None, **changes):
    return await Explainer(Oracle(**changes), health_port=8080, conntrack=conntrack).why(target, 4, "eth0", POD, 5.0)


async def test_nothing_is_made_up_where_all_is_well():
    """No cause; and the questions carried what real packets carry: mark, ports, the bound device."""
    assert await why() is None
    oracle = Oracle()
    checks = await Explainer(oracle, health_port=8080, conntrack=lambda: None).all(TARGET, 4, "eth0", POD, 5.0)
    assert all(c.state is State.PASS and c.at == 5.0 for c in checks)
    replies = [q for dst, q in oracle.asked if dst == STRANGER[4] and q.get("src") == POD]
    assert {(q["ipproto"], q["sport"], q["mark"], q["oif"]) for q in replies} == {
        (17, 51820, 0xCA6C, None),
        (6, 8080, 0, "eth0"),
    }


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"arrive": errno.EXDEV}, Cause.RP_FILTER),
        ({"arrive": errno.EINVAL}, Cause.MARTIAN_SOURCE),
        ({"arrive": goes("eth1")}, Cause.ADDRESS_MISSING),
        ({"udp": goes("wg0", table=51820)}, Cause.REPLY_INTO_TUNNEL),
        ({"udp": goes("eth1")}, Cause.REPLY_WRONG_UPLINK),
        ({"udp": errno.ENETUNREACH}, Cause.REPLY_UNROUTABLE),
        ({"udp": errno.EINVAL}, Cause.BLACKHOLE_ROUTE),
        ({"udp": errno.EACCES}, Cause.BLACKHOLE_ROUTE),
        ({"tcp": errno.ENETUNREACH}, Cause.REPLY_UNROUTABLE),
        ({"forward": errno.EHOSTUNREACH}, Cause.FORWARDING_OFF),
        ({"forward": errno.ENETUNREACH}, Cause.EGRESS_UNREACHABLE),
        ({"forward": goes("wg0")}, Cause.REPLY_INTO_TUNNEL),
    ],
)
async def test_each_wrong_answer_has_its_cause(changes, cause):
    """The table of DESIGN section 6, as far as routing goes."""
    found = await why(**changes)
    assert found is not None
    assert found.cause is cause


async def test_forwarding_is_no_cause_where_it_is_not_promised():
    """At level tunnel a pod that does not forward serves what it promises."""
    assert await why(replace(TARGET, level="tunnel"), forward=errno.EHOSTUNREACH) is None
    assert await why(replace(TARGET, level="handshake"), forward=errno.ENETUNREACH) is None


@pytest.mark.parametrize(
    ("usage", "full"),
    [((100, 100), True), ((99, 100), True), ((97, 100), False), (None, False), ((1000, 262144), False)],
)
async def test_a_full_connection_table_is_named_first(usage, full):
    """With the numbers, whatever routing says."""
    found = await why(conntrack=lambda: usage, udp=errno.ENETUNREACH)
    assert found is not None
    assert (found.cause is Cause.CONNTRACK_FULL) is full
    if full:
        assert f"{usage[0]} of {usage[1]}" in found.evidence
