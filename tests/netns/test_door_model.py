# SPDX-License-Identifier: Apache-2.0
"""Where no door can be built the kernel is asked instead: it agrees with an outside client on routing, and is blind to firewalls."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from netns.door_stand import PORT, TCP_PORT, Stand
from netns.pods import SHAPES, sysctl
from netns.test_door_rows import ROWS, spelled
from wicketgate.clock import SystemClock
from wicketgate.errors import KernelRefused
from wicketgate.health.check import State
from wicketgate.health.explain import Explainer
from wicketgate.health.flow_model import LiveModel
from wicketgate.health.oracle import KernelOracle
from wicketgate.health.target import ProbeTarget
from wicketgate.kernel.netlink import Netlink

# Routing alone decides these; the causes are IPv4's.
ROUTING = {
    "fine": None,
    "wg-quick's rules": "rp-filter",
    "wg-quick's rules, device marks its packets": "rp-filter",
    "wg-quick's rules, replies pinned": None,
    "wg-quick's rules, the two ports pinned": None,
    "default route gone": "rp-filter",
}
# Whose answers name the interface that they are asked by: wireguard-go's do, which no listing tells.
IN_DOUBT = ("wg-quick's rules, rp_filter off", 4, "udp")
FIREWALL = ("nft drops -i eth0", "iptables-legacy drops -i eth0")


@pytest.fixture(scope="module", params=SHAPES)
def stand(request):
    with Stand.create(request.param, "model") as made:
        yield made


@pytest.mark.parametrize("name", [*ROUTING, *FIREWALL])
def test_the_kernels_answers_agree_with_a_client_on_routing(stand, name):
    """Red exactly when a client's handshake fails, with the cause; green under a firewall
    that the kernel's routing knows nothing of, which is what the evidence says.
    """
    row = ROWS[name]
    stand.rp_filter(row.rp_filter, row.svm)
    fwmark = 51820 if "device marks" in name else 0
    target = ProbeTarget("wg0", "handshake", None, PORT, fwmark=fwmark)

    async def ask():
        async with stand.door() as door, Netlink() as netlink:
            explainer = Explainer(KernelOracle(netlink), health_port=TCP_PORT)
            for family in (4, 6):
                address = stand.net.pod_address(family)
                with stand.state(spelled(row.do, stand, family), spelled(row.undo, stand, family)):
                    seen = await stand.look(door, family)
                    if ROUTING.get(name) is None and name not in FIREWALL and not seen.outside:
                        with stand.patient():
                            seen = await stand.look(door, family)
                    checks = await explainer.all(target, family, "eth0", address, 0.0)
                    why = await explainer.why(target, family, "eth0", address, 0.0)
                states = {check.name: (check.state, check.evidence) for check in checks}
                # The balancer's port is bound to the uplink by the health server; the one of this stand is not.
                green = all(check.state is State.PASS for check in checks if not check.name.startswith("balancer"))
                if name in FIREWALL:
                    assert not seen.outside
                    assert green, states
                    assert all("firewalls are not seen" in check.evidence for check in checks)
                    continue
                assert green == seen.outside, (family, seen, states)
                if family == 4:
                    assert (why.cause if why else None) == ROUTING[name], states

    try:
        stand.pod.acall(ask)
    finally:
        stand.rp_filter(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_model_agrees_with_the_door(stand, name):
    """Every state of the door's table, both protocols, both families: the model's verdict is the door's and the client's.

    What the model does not know is no agreement: one row alone leaves it in doubt.
    """
    row = ROWS[name]
    stand.rp_filter(row.rp_filter, row.svm)
    fwmark = 51820 if "device marks" in name or "device mark" in name else 0
    target = ProbeTarget("wg0", "handshake", None, PORT, fwmark=fwmark)

    async def ask():
        model = LiveModel(health_port=TCP_PORT, clock=SystemClock())
        async with stand.door() as door:
            for family in row.families:
                address = stand.net.pod_address(family)
                with stand.state(spelled(row.do, stand, family), spelled(row.undo, stand, family)):
                    opinions = await model.ask(target, family, "eth0", address)
                    for protocol, flow in (("udp", "handshake"), ("tcp", "balancer")):
                        said = opinions[flow]
                        if (name, family, protocol) == IN_DOUBT:
                            assert "as wireguard-go does" in said.words
                            continue
                        assert not said.unknown, (protocol, family, said)
                        seen = await stand.look(door, family, protocol)
                        if (said.works, said.works) != (seen.outside, seen.door):
                            await door.repair()
                            with stand.patient():
                                seen = await stand.look(door, family, protocol)
                        assert (said.works, said.works) == (seen.outside, seen.door), (protocol, family, said, seen)
        await model.close()

    try:
        stand.pod.acall(ask)
    finally:
        stand.rp_filter(1)


def test_what_the_kernel_lumps_together_is_told_apart(stand):
    """rp_filter, forwarding that is off, and a socket bound where no route is: three reasons, three errnos."""
    stranger = ip_address("203.0.113.9")

    async def refusal(oracle, *question, **how):
        with pytest.raises(KernelRefused) as told:
            await oracle.get_route(*question, **how)
        return told.value.errno

    async def ask():
        async with Netlink() as netlink:
            oracle = KernelOracle(netlink)
            client = ip_address("10.8.0.77")
            sysctl(stand.pod, "net.ipv4.ip_forward", "1")
            assert (await oracle.get_route(stranger, src=client, iif="wg0")).oif == "eth0"
            sysctl(stand.pod, "net.ipv4.ip_forward", "0")
            assert await refusal(oracle, stranger, src=client, iif="wg0") == errno.EHOSTUNREACH
            stand.rp_filter(1)
            assert await refusal(oracle, stand.net.pod4, src=client, iif="eth0") == errno.EXDEV
            stand.rp_filter(0)
            assert (await oracle.get_route(stand.net.pod4, src=client, iif="eth0")).type == "local"
            assert await refusal(oracle, stand.net.pod4, src=ip_address("127.0.0.9"), iif="eth0") == errno.EINVAL
            row = ROWS["default route gone"]
            with stand.state(spelled(row.do, stand, 4), spelled(row.undo, stand, 4)):
                assert await refusal(oracle, stranger, src=stand.net.pod4, oif="eth0") == errno.ENETUNREACH

    stand.pod.acall(ask)
