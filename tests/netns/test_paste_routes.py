# SPDX-License-Identifier: Apache-2.0
"""`route -n` and `netstat -rn`, which images without iproute2 have: the routes of table main, as the kernel has them."""

from __future__ import annotations

import pytest

from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.netpath.paste.bundle import read_paste
from wicketgate.netpath.snapshot import RT_TABLE_MAIN, Snapshot

WORLD = """\
link set lo up
link add e0 type veth peer name p0
link set p0 up
link set e0 up
addr add 10.0.0.2/24 dev e0
route add default via 10.0.0.1
route add 10.5.0.0/16 via 10.0.0.9 metric 7
route add 10.5.4.0/30 dev e0
route add blackhole 10.7.0.1
route add prohibit 10.8.0.0/16
"""


def told(snapshot: Snapshot) -> set[tuple[object, ...]]:
    """What such a listing shows of a route."""
    return {
        (
            route.dst,
            route.nexthops[0].oif if route.type == "unicast" else "",
            route.nexthops[0].via if route.nexthops else None,
            route.metric,
        )
        for route in snapshot.routes
        if (route.family, route.table) == (4, RT_TABLE_MAIN)
    }


@pytest.mark.slow  # busybox is of the slow lane's packages
@pytest.mark.parametrize("command", ["route -n", "netstat -rn"])
def test_the_old_listings_are_table_main(new_host, command):
    """Each route with its way; one that refuses is in doubt, for how it does so is not shown."""
    host = new_host("routes")
    host.run("ip", "-batch", "-", stdin=WORLD)
    truth = host.acall(lambda: take_snapshot(firewall=False))
    text = "".join(
        f"# {each}\n{host.run(*each.split()).stdout}" for each in ("ip addr", "ip rule", f"busybox {command}")
    )
    read = read_paste(text, now=0.0)
    assert read is not None
    metrics = "route" in command
    assert {(*each[:3], each[3] if metrics else 0) for each in told(read.snapshot)} == {
        (*each[:3], each[3] if metrics else 0) for each in told(truth)
    }
    four = [route for route in read.snapshot.routes if (route.family, route.table) == (4, RT_TABLE_MAIN)]
    doubtful = {str(route.dst) for route in four if route.unknown}
    assert doubtful == {"10.8.0.0/16"}
    whole = read_paste(text + "# ip route\n" + host.run("ip", "route").stdout, now=0.0)
    assert whole is not None
    better = [route for route in whole.snapshot.routes if (route.family, route.table) == (4, RT_TABLE_MAIN)]
    assert [(str(route.dst), route.unknown) for route in better if route.unknown] == [], "the better listing counts"
