# SPDX-License-Identifier: Apache-2.0
"""What `wicket lab up` puts into a fresh lab: gateways with the same keys, a load balancer, a client that has dialled in."""

from __future__ import annotations

from collections.abc import Callable

from wicketgate.errors import StateError
from wicketgate.lab import wgquick
from wicketgate.lab.balancer import HTTP_CHECK, Balancer
from wicketgate.lab.client import WireGuardClient
from wicketgate.lab.nlb.target import State
from wicketgate.lab.pod import Container, Rights, program, wicket
from wicketgate.lab.topology import INTERNET, VIP, Lab
from wicketgate.wireguard.keys import PrivateKey

CLIENT4 = "10.8.0.2"
CLIENT6 = "fd00:8::2"
READY_TIMEOUT = 20.0  # s for each gateway; many of them start at once


def furnish(lab: Lab, progress: Callable[[str], None]) -> None:
    """Start everything and see that the client is served.

    Raises:
        WicketError: something did not start, or the client got no handshake; with the last words of what failed.
    """
    key, client_key = PrivateKey.generate(), PrivateKey.generate()
    pods = tuple(range(1, lab.plan.gateways + 1))
    page = Container.start(lab, "internet", "web", program("web", str(INTERNET.ip), "80", "internet"))
    page.wait_for("listening")
    addresses = [f"{CLIENT4}/32", *([f"{CLIENT6}/128"] if lab.v6 else [])]
    agents = {}
    for pod in pods:
        peer = wgquick.Peer("client", client_key.public(), tuple(addresses))
        path = wgquick.write(lab, f"pod{pod}", wgquick.render(key, [peer], v6=lab.v6))
        agents[pod] = Container.start(lab, f"pod{pod}", "wicket up", wicket("up", str(path)), rights=Rights.NET_ADMIN)
    balancer = Balancer(lab)
    balancer.start(HTTP_CHECK, pods)
    progress("a web page on internet, a gateway in every pod, a load balancer on nlb")
    for pod, agent in agents.items():
        status = balancer.verdict(pod, READY_TIMEOUT, hope=agent.running)
        if status.state is not State.HEALTHY:
            why = f"{status.state}: {status.description}; {agent.what} last said: {agent.last_words()}"
            raise StateError(f"pod{pod} did not become healthy: {why}")
    progress(f"{len(pods)} of {len(pods)} targets healthy")
    client = WireGuardClient(
        lab["client"],
        key.public(),
        f"{VIP}:{wgquick.LISTEN_PORT}",
        addresses,
        ["10.8.0.0/24", f"{INTERNET.ip}/32", *(["fd00:8::/64"] if lab.v6 else [])],
        client_key,
        keepalive=25,  # s; below the load balancer's 120 s for an idle UDP flow
    )
    client.up()
    client.handshake(wgquick.TUNNEL4)
    progress(f"client has dialled in by way of {VIP}: ping {wgquick.TUNNEL4}, curl http://{INTERNET.ip}/")
