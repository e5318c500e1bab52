# SPDX-License-Identifier: Apache-2.0
"""Addresses of a lab, and the arguments that ask for one."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from wicketgate.errors import InputError
from wicketgate.lab.shapes import Cni
from wicketgate.lab.topology import NODES, Plan


@pytest.mark.parametrize("cni", list(Cni))
def test_every_pod_has_addresses_and_names_of_its_own(cni):
    """No two pods of a full lab share an address, a hardware address or an interface name on their node."""
    plan = Plan("lab", cni, 40)
    pods = [plan.pod(number) for number in range(1, 41)]
    for of in (lambda p: p.v4.ip, lambda p: p.v6.ip, lambda p: p.mac, lambda p: p.node_mac, lambda p: p.node_end):
        assert len({of(pod) for pod in pods}) == 40


def test_the_shapes_differ_as_they_do_on_real_clusters():
    """bridge: /24 of the pod's node with the gateway in it; vpc: /32 outside of it."""
    assert Plan("lab", Cni.BRIDGE, 2).pod(1).v4 == ip_interface("10.244.1.11/24")
    assert Plan("lab", Cni.BRIDGE, 2).pod(2).v4 == ip_interface("10.244.2.12/24")
    assert NODES[0].pods4.ip in Plan("lab", Cni.BRIDGE, 2).pod(1).v4.network
    assert Plan("lab", Cni.VPC, 2).pod(1).v4 == ip_interface("10.0.16.11/32")
    assert Plan("lab", Cni.VPC, 2).pod(1).v6.network.prefixlen == 128


@pytest.mark.parametrize("gateways", [-1, 0, 41, 1000])
def test_a_number_of_gateways_that_cannot_be_is_refused(gateways):
    """The error says which numbers can."""
    with pytest.raises(InputError, match="1 to 40"):
        Plan("lab", Cni.VPC, gateways)
