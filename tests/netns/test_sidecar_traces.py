# SPDX-License-Identifier: Apache-2.0
"""What others made because the sidecar was there goes with it."""

from __future__ import annotations

from netns.agents import AgentPod
from wicketgate.gateway.keeper import TAG


def test_routes_that_wg_quick_made_for_the_probes_peer_go_with_it(tmp_path):
    """`wg-quick up` routes every allowed-ip that the device has; met in the middle, it has the probe's as well."""
    with AgentPod("bridge", tmp_path) as pod:
        pod.write(allowed="10.8.0.2/32, 0.0.0.0/0")
        run = pod.pod.run
        run("wg-quick", "up", str(pod.conf))
        pod.start("sidecar", "--probe-interval", "0.2", "--drain", "0")
        pod.wait_code("200")
        theirs = "2001:db8:1::/64"
        for network in (str(TAG), theirs):
            run("ip", "-6", "route", "add", network, "dev", "wg0")  # as in its add_route
        assert pod.stop() == 0
        left = run("ip", "-6", "route", "show", "dev", "wg0").stdout
        assert str(TAG.network_address) not in left
        assert theirs in left
