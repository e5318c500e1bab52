# SPDX-License-Identifier: Apache-2.0
"""How a pod is attached to its node: the two shapes that decide who sees the seed's fault.

    bridge   (kind, flannel)                        vpc   (AWS VPC CNI, Calico, Cilium)

    pod    eth0 10.244.1.11/24                      pod    eth0 10.0.16.11/32
           default via 10.244.1.1                          169.254.1.1 dev eth0 scope link, permanent neighbour
             |                                             default via 169.254.1.1
    node   cni0 10.244.1.1/24 (bridge)                       |
                                                    node   veth11, no address; 10.0.16.11/32 dev veth11 scope link

In the bridge shape the kubelet's probe comes from cni0's address, which the pod has a route to in `main` that is no
default route; in the vpc shape it comes from the node's primary address, and the answer needs the default route.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface

from wicketgate.lab.host import Host, wire

VPC_GATEWAY = "169.254.1.1"  # amazon-vpc-cni-k8s docs/cni-proposal.md
VPC_GATEWAY6 = "fe80::1"  # the same for IPv6 pods
BRIDGE = "cni0"


class Cni(StrEnum):
    """The shape of pod networking."""

    BRIDGE = "bridge"
    VPC = "vpc"


@dataclass(frozen=True, slots=True)
class PodAddress:
    """Where a pod is: its addresses with the prefix that its interface carries."""

    number: int
    v4: IPv4Interface
    v6: IPv6Interface

    @property
    def node_end(self) -> str:
        """The name of the pod's veth on its node."""
        return f"veth{self.number}"

    @property
    def mac(self) -> str:
        """Fixed, so that a pod made anew is not missed by a neighbour entry of the old one."""
        return f"02:00:00:00:01:{self.number:02x}"

    @property
    def node_mac(self) -> str:
        """The hardware address of the node's end."""
        return f"02:00:00:00:02:{self.number:02x}"


@dataclass(frozen=True, slots=True)
class Gateways:
    """The addresses of a node's cni0 in the bridge shape; no v6 when the machine has no IPv6."""

    v4: IPv4Interface
    v6: IPv6Interface | None


def prepare_node(node: Host, cni: Cni, gateways: Gateways) -> None:
    """What a node has before its first pod: in the bridge shape, cni0 with the pods' gateway address."""
    if cni is Cni.VPC:
        return
    lines = [f"link add {BRIDGE} type bridge forward_delay 0", f"link set {BRIDGE} up"]
    lines.append(f"address add {gateways.v4} dev {BRIDGE}")
    if gateways.v6 is not None:
        lines.append(f"address add {gateways.v6} dev {BRIDGE} nodad")
    node.run("ip", "-batch", "-", stdin="\n".join(lines))


def attach(pod: Host, node: Host, cni: Cni, address: PodAddress, gateways: Gateways) -> None:
    """Give a pod its eth0, its addresses and its default routes, and its node the way to it."""
    v6 = gateways.v6 is not None
    wire(node, address.node_end, pod, "eth0")
    node.run("ip", "link", "set", address.node_end, "address", address.node_mac)
    inside = [f"link set eth0 address {address.mac}", f"address add {address.v4} dev eth0"]
    outside = []
    if v6:
        inside.append(f"address add {address.v6} dev eth0 nodad")
    if cni is Cni.BRIDGE:
        outside.append(f"link set {address.node_end} master {BRIDGE}")
        inside.append(f"route add default via {gateways.v4.ip}")
        if gateways.v6 is not None:
            inside.append(f"route add default via {gateways.v6.ip} dev eth0")
    else:
        outside.append(f"route add {address.v4.ip}/32 dev {address.node_end} scope link")
        inside += [
            f"route add {VPC_GATEWAY} dev eth0 scope link",
            f"neighbour add {VPC_GATEWAY} lladdr {address.node_mac} dev eth0 nud permanent",
            f"route add default via {VPC_GATEWAY} dev eth0",
        ]
        if v6:
            # The node answers neighbour solicitation for the pod with its link-local address: no address is added here.
            outside.append(f"route add {address.v6.ip}/128 dev {address.node_end}")
            inside += [
                f"neighbour add {VPC_GATEWAY6} lladdr {address.node_mac} dev eth0 nud permanent",
                f"route add default via {VPC_GATEWAY6} dev eth0",
            ]
    node.run("ip", "-batch", "-", stdin="\n".join(outside))
    pod.run("ip", "-batch", "-", stdin="\n".join(inside))
