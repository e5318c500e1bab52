# SPDX-License-Identifier: Apache-2.0
"""Hundreds of routes in one change: each as asked, none of a stranger's touched, and the tables read a few times in all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network

import pytest

from wicketgate.errors import StateError
from wicketgate.kernel.changes import AddRoutes
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.kernel.plan import Plan
from wicketgate.lab.host import Host
from wicketgate.netpath.snapshot import NextHop, Route

MANY = 300


@pytest.fixture
def pod(new_host: Callable[..., Host]) -> Host:
    host = new_host("pod")
    host.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for name in ("e0", "e1"):
        host.run("ip", "link", "set", name, "up")
    host.run("ip", "-6", "route", "add", "fd10::/64", "dev", "e1")
    return host


def crowd() -> list[Route]:
    hop = (NextHop("e0"),)
    first, first6 = ip_address("10.60.0.0"), ip_address("fd60::")
    return [
        *(Route(ip_network(first + n), nexthops=hop, scope=253, protocol=ROUTE_PROTOCOL) for n in range(MANY)),
        *(Route(ip_network(first6 + n), nexthops=hop, metric=1024, protocol=ROUTE_PROTOCOL) for n in range(MANY)),
        Route(ip_network("0.0.0.0/0"), table=51820, nexthops=hop, scope=253, protocol=ROUTE_PROTOCOL),
    ]


def within(host: Host, work: Callable[[Netlink], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with Netlink() as netlink:
            await work(netlink)

    host.acall(scenario)


def listing(host: Host) -> list[str]:
    """Every route but the kernel's own, which come and go with the carrier."""
    shown = [host.run("ip", family, "route", "show", "table", "all").stdout.splitlines() for family in ("-4", "-6")]
    return sorted(line for lines in shown for line in lines if "proto kernel" not in line and "multicast" not in line)


def test_many_routes_are_made_and_taken_back(pod: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are there, tagged, with two readings a table; one that is there already is no obstacle; undo leaves none."""
    before, readings = listing(pod), []
    real = Netlink.routes

    async def counted(self, *more, **named):
        readings.append(more)
        return await real(self, *more, **named)

    monkeypatch.setattr(Netlink, "routes", counted)

    async def work(netlink: Netlink) -> None:
        plan = Plan([AddRoutes(netlink, crowd())])
        await plan.apply()
        assert len(readings) == 6, readings  # three tables, before and after
        made = "\n".join(listing(pod))
        assert made.count("dev e0 proto 87") == 2 * MANY
        assert "default dev e0 table 51820 proto 87 scope link" in made
        assert len(plan.show()) == 1
        assert f"# and {2 * MANY} more" in plan.show()[0]
        again = AddRoutes(netlink, crowd())
        await again.apply()
        await again.undo()
        assert "\n".join(listing(pod)) == made, "what was there before is not taken back"
        await plan.undo()

    within(pod, work)
    assert listing(pod) == before


def test_a_strangers_route_among_them_is_left_alone(pod: Host) -> None:
    """One place is taken by somebody else's route: the change fails, says so, and leaves nothing but the stranger's."""
    pod.run("ip", "route", "add", "10.60.0.7/32", "dev", "e1")
    before = listing(pod)

    async def work(netlink: Netlink) -> None:
        with pytest.raises(StateError, match=r"another's route is in its place.*10\.60\.0\.7"):
            await Plan([AddRoutes(netlink, crowd())]).apply()

    within(pod, work)
    assert listing(pod) == before


def test_a_refused_route_takes_the_others_with_it(pod: Host) -> None:
    """The kernel refuses one in the middle: those before it are taken back."""
    before = listing(pod)
    routes = crowd()
    routes[MANY // 2] = Route(
        ip_network("10.70.0.0/24"), nexthops=(NextHop("e0", ip_address("192.0.2.1")),), protocol=ROUTE_PROTOCOL
    )

    async def work(netlink: Netlink) -> None:
        with pytest.raises(StateError, match=r"10\.70\.0\.0/24"):
            await Plan([AddRoutes(netlink, routes)]).apply()

    within(pod, work)
    assert listing(pod) == before
