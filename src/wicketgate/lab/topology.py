# SPDX-License-Identifier: Apache-2.0
r"""The lab: a client, the internet, a load balancer, two nodes and their pods, each a network namespace.

    client                internet               nlb (load balancer, and the VPC's router)
    198.51.100.10 ------- .1      203.0.113.1 -- eth0 203.0.113.2, VIP 203.0.113.80
    3fff:100::10          web page on :80        vpc0 10.0.0.1/24 (bridge); checkers 10.0.1.10 and 10.0.2.10
                                                   |                    |
                                                 node1 10.0.0.11      node2 10.0.0.12
                                                   |    |               |
                                                 pod1  pod3 ...       pod2 ...
                                          bridge: 10.244.1.11/24 ...  10.244.2.12/24
                                          vpc:    10.0.16.11/32  ...  10.0.16.12/32

Pod N lives on node1 when N is odd, on node2 when even, and its address ends in 10+N. Everything has an IPv6 twin
(3fff::/20, RFC 9637, stands for the public side; unique local addresses for the private one). The load balancer keeps
the client's address, so a pod's answer must return through it by routing: pod, node, nlb, internet, client.
Nothing of this is visible in the machine's own network namespace; several labs may use the same addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Self

from wicketgate.errors import InputError, StateError
from wicketgate.lab import state
from wicketgate.lab.host import Host, wire
from wicketgate.lab.interrupt import uninterrupted
from wicketgate.lab.shapes import Cni, Gateways, PodAddress, attach, prepare_node
from wicketgate.lab.state import HostRecord, LabRecord, ProcessId, ProcessRecord

CLIENT = IPv4Interface("198.51.100.10/24")
CLIENT6 = IPv6Interface("3fff:100::10/64")
INTERNET_TO_CLIENT = IPv4Interface("198.51.100.1/24")
INTERNET_TO_CLIENT6 = IPv6Interface("3fff:100::1/64")
INTERNET = IPv4Interface("203.0.113.1/24")
INTERNET6 = IPv6Interface("3fff:113::1/64")
NLB_PUBLIC = IPv4Interface("203.0.113.2/24")
NLB_PUBLIC6 = IPv6Interface("3fff:113::2/64")
VIP = IPv4Address("203.0.113.80")
VIP6 = IPv6Address("3fff:113::80")
NLB_VPC = IPv4Interface("10.0.0.1/24")
NLB_VPC6 = IPv6Interface("fd00:10::1/64")
CHECKERS = (IPv4Address("10.0.1.10"), IPv4Address("10.0.2.10"))  # one balancer node in each of two zones
CHECKERS6 = (IPv6Address("fd00:10:0:1::10"), IPv6Address("fd00:10:0:2::10"))
MOST_GATEWAYS = 40


@dataclass(frozen=True, slots=True)
class Node:
    """A node: its primary addresses, and the gateway of its pods in the bridge shape."""

    name: str
    v4: IPv4Interface
    v6: IPv6Interface
    pods4: IPv4Interface
    pods6: IPv6Interface


NODES = tuple(
    Node(
        f"node{n}",
        IPv4Interface(f"10.0.0.{10 + n}/24"),
        IPv6Interface(f"fd00:10::{10 + n}/64"),
        IPv4Interface(f"10.244.{n}.1/24"),
        IPv6Interface(f"fd00:244:{n}::1/64"),
    )
    for n in (1, 2)
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a lab is to be; pure."""

    name: str
    cni: Cni
    gateways: int = 1

    def __post_init__(self) -> None:
        state.check_name(self.name)
        if not 1 <= self.gateways <= MOST_GATEWAYS:
            raise InputError(f"--gateways {self.gateways}: 1 to {MOST_GATEWAYS} are possible")

    def pod(self, number: int) -> PodAddress:
        """The addresses of pod `number`, counted from 1."""
        last = 10 + number
        if self.cni is Cni.BRIDGE:
            node = self.node_of(number)
            return PodAddress(
                number,
                IPv4Interface((node.pods4.ip + last - 1, 24)),
                IPv6Interface((node.pods6.ip + last - 1, 64)),
            )
        return PodAddress(number, IPv4Interface(f"10.0.16.{last}/32"), IPv6Interface(f"fd00:10:0:16::{last}/128"))

    def node_of(self, number: int) -> Node:
        """The node that pod `number` lives on."""
        return NODES[(number - 1) % len(NODES)]

    def pod_names(self) -> tuple[str, ...]:
        """pod1, pod2 ..."""
        return tuple(f"pod{number}" for number in range(1, self.gateways + 1))


class Lab:
    """A lab that runs: its hosts and what was started in them. Use it as a context manager, or `down()` it.

    Attributes:
        plan: what it was made from.
        record: what later commands know of it; saved after every change.
        v6: the machine has IPv6.
    """

    def __init__(self, plan: Plan, *, keep: bool = False) -> None:
        self.plan = plan
        self.keep = keep
        self.v6 = os.path.exists("/proc/sys/net/ipv6")
        self.record = LabRecord(
            name=plan.name,
            cni=plan.cni.value,
            gateways=plan.gateways,
            owner=None if keep else ProcessId.of(os.getpid()),
            addresses=_addresses(plan),
        )
        self._hosts: dict[str, Host] = {}

    @classmethod
    def up(cls, plan: Plan, *, keep: bool = False, progress: Callable[[str], None] = lambda _line: None) -> Self:
        """Make all hosts and join them.

        Args:
            plan: what is to be.
            keep: the lab stays when this process ends; otherwise it goes with it, even after kill -9.
            progress: told what was done, a line each.

        Raises:
            InputError: a lab of this name is up.
            StateError: the machine does not let us.
        """
        standing = state.load(plan.name)
        if standing is not None:
            if any(each.holder.alive() for each in standing.hosts) and not standing.orphaned():
                raise InputError(
                    f"lab {plan.name} is up already; `wicket lab down --name {plan.name}` ends it, --name makes another beside it"
                )
            state.sweep(plan.name)
        lab = cls(plan, keep=keep)
        try:
            lab.record.save()
            lab.record.directory()
            lab._build(progress)
        except BaseException:  # also Ctrl-C: nothing half-made stays
            lab.down()
            raise
        return lab

    @classmethod
    def open(cls, name: str) -> Self:
        """A lab that another command brought up.

        Raises:
            InputError: there is none of this name.
        """
        record = state.load(name)
        if record is None:
            others = state.names()
            known = f"there are: {', '.join(others)}" if others else "none is up; `wicket lab up` makes one"
            raise InputError(f"no lab {name!r}; {known}")
        lab = cls(Plan(record.name, Cni(record.cni), record.gateways), keep=True)
        lab.record = record
        for each in record.hosts:
            if each.holder.alive():
                lab._hosts[each.name] = Host(f"{name}-{each.name}", each.holder.pid)
        return lab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def __getitem__(self, name: str) -> Host:
        """The host of this name; InputError when the lab has none, StateError when it has ended."""
        if name not in self._hosts:
            self.record.pid_of(name)  # says which of the two it is
        return self._hosts[name]

    @property
    def hosts(self) -> dict[str, Host]:
        """All hosts, by their names in the lab."""
        return dict(self._hosts)

    def directory(self) -> Path:
        """Where logs, configuration files and sockets of this lab are."""
        return self.record.directory()

    def down(self) -> list[str]:
        """End everything that the lab started, and forget it. Safe to call twice, and at any point of `up`."""
        with uninterrupted():
            ended = sorted(self._hosts)
            for host in self._hosts.values():
                host.close()
            self._hosts.clear()
            # What Ctrl-C kept us from writing down is found by its command line.
            return sorted({*ended, *state.sweep(self.plan.name)})

    def remember(self, host: str, what: str, pid: int, log: Path | None = None) -> None:
        """Write down a process that was started in a host."""
        process = ProcessId.of(pid)
        if process is not None:
            self.record.processes.append(ProcessRecord(host, what, process, "" if log is None else str(log)))
            self.record.save()

    def forget_ended(self) -> None:
        """Strike from the record what has ended."""
        self.record.processes = [each for each in self.record.processes if each.id.alive()]
        self.record.save()

    def replace_pod(self, number: int) -> Host:
        """End pod `number` with all that runs in it, and make it anew with the same addresses."""
        name = f"pod{number}"
        old = self._hosts.pop(name, None)
        if old is not None:
            old.close()
        node = self[self.plan.node_of(number).name]
        # The pair went with the pod's namespace; the kernel may still be at it.
        with suppress(StateError):
            node.run("ip", "link", "delete", self.plan.pod(number).node_end)
        self.record.hosts = [each for each in self.record.hosts if each.name != name]
        self.record.processes = [each for each in self.record.processes if each.host != name]
        return self._add_pod(number)

    def _create(self, name: str, *, forwards: bool) -> Host:
        host = Host.create(f"{self.plan.name}-{name}", keep=self.keep)
        self._hosts[name] = host
        holder = ProcessId.of(host.pid)
        if holder is None:
            raise StateError(f"host {name} ended while it was made")
        self.record.hosts.append(HostRecord(name, holder))
        self.record.save()
        host.run("sh", "-euc", _sysctls(forwards=forwards, v6=self.v6))
        return host

    def _build(self, progress: Callable[[str], None]) -> None:
        client = self._create("client", forwards=False)
        internet = self._create("internet", forwards=True)
        nlb = self._create("nlb", forwards=True)
        nodes = [self._create(node.name, forwards=True) for node in NODES]
        wire(client, "eth0", internet, "eth0")
        wire(internet, "eth1", nlb, "eth0")
        self._ip(client, [f"address add {CLIENT} dev eth0", f"route add default via {INTERNET_TO_CLIENT.ip}"])
        self._ip6(client, [f"address add {CLIENT6} dev eth0 nodad", f"route add default via {INTERNET_TO_CLIENT6.ip}"])
        # The internet knows the way back to the VPC: what leaves a pod untranslated gets its answer as well.
        self._ip(
            internet,
            [
                f"address add {INTERNET_TO_CLIENT} dev eth0",
                f"address add {INTERNET} dev eth1",
                f"route add 10.0.0.0/8 via {NLB_PUBLIC.ip}",
            ],
        )
        self._ip6(
            internet,
            [
                f"address add {INTERNET_TO_CLIENT6} dev eth0 nodad",
                f"address add {INTERNET6} dev eth1 nodad",
                f"route add fd00::/8 via {NLB_PUBLIC6.ip}",
            ],
        )
        self._ip(
            nlb,
            [
                f"address add {NLB_PUBLIC} dev eth0",
                f"address add {VIP}/32 dev eth0",
                f"route add default via {INTERNET.ip}",
                "link add vpc0 type bridge forward_delay 0",
                "link set vpc0 up",
                f"address add {NLB_VPC} dev vpc0",
                *(f"address add {checker}/32 dev vpc0" for checker in CHECKERS),
            ],
        )
        self._ip6(
            nlb,
            [
                f"address add {NLB_PUBLIC6} dev eth0 nodad",
                f"address add {VIP6}/128 dev eth0 nodad",
                f"route add default via {INTERNET6.ip}",
                f"address add {NLB_VPC6} dev vpc0 nodad",
                *(f"address add {checker}/128 dev vpc0 nodad" for checker in CHECKERS6),
            ],
        )
        progress("client, internet and nlb are joined")
        bridge = self.plan.cni is Cni.BRIDGE
        for node, host in zip(NODES, nodes, strict=True):
            wire(host, "eth0", nlb, node.name)
            self._ip(nlb, [f"link set {node.name} master vpc0"])
            self._ip(host, [f"address add {node.v4} dev eth0", f"route add default via {NLB_VPC.ip}"])
            self._ip6(host, [f"address add {node.v6} dev eth0 nodad", f"route add default via {NLB_VPC6.ip}"])
            prepare_node(host, self.plan.cni, self._gateways(node))
            if bridge:
                self._ip(nlb, [f"route add {node.pods4.network} via {node.v4.ip}"])
                self._ip6(nlb, [f"route add {node.pods6.network} via {node.v6.ip}"])
        progress("node1 and node2 are joined to the VPC")
        for number in range(1, self.plan.gateways + 1):
            self._add_pod(number)
        progress(f"{', '.join(self.plan.pod_names())} attached in the {self.plan.cni} shape")

    def _add_pod(self, number: int) -> Host:
        address = self.plan.pod(number)
        node = self.plan.node_of(number)
        pod = self._create(f"pod{number}", forwards=False)
        attach(pod, self[node.name], self.plan.cni, address, self._gateways(node))
        if self.plan.cni is Cni.VPC:
            # In AWS the VPC itself knows which node's interface carries the address.
            self._ip(self["nlb"], [f"route replace {address.v4.ip}/32 via {node.v4.ip}"])
            self._ip6(self["nlb"], [f"route replace {address.v6.ip}/128 via {node.v6.ip}"])
        return pod

    def _gateways(self, node: Node) -> Gateways:
        return Gateways(node.pods4, node.pods6 if self.v6 else None)

    def _ip(self, host: Host, lines: list[str]) -> None:
        host.run("ip", "-batch", "-", stdin="\n".join(lines))

    def _ip6(self, host: Host, lines: list[str]) -> None:
        if self.v6:
            host.run("ip", "-6", "-batch", "-", stdin="\n".join(lines))


def _sysctls(*, forwards: bool, v6: bool) -> str:
    """What a namespace would otherwise take over from the machine (net.core.devconf_inherit_init_net), set to known values.

    Pods do not forward of themselves: a gateway has to see to that. rp_filter is off as on a fresh kernel.
    """
    on = int(forwards)
    lines = [
        "cd /proc/sys/net",
        f"echo {on} > ipv4/ip_forward",
        "for each in all default; do echo 0 > ipv4/conf/$each/rp_filter; echo 0 > ipv4/conf/$each/src_valid_mark; done",
        # Checks and handshakes come often; the kernel's limit on its own ICMP answers would hide some.
        "echo 0 > ipv4/icmp_ratelimit",
    ]
    if v6:
        lines += [
            # Addresses are usable at once: nobody else is on these wires.
            "for each in all default; do echo 0 > ipv6/conf/$each/accept_dad; echo 0 > ipv6/conf/$each/disable_ipv6; done",
            f"echo {on} > ipv6/conf/all/forwarding",
            f"echo {on} > ipv6/conf/default/forwarding",
        ]
    return "\n".join(lines)


def _addresses(plan: Plan) -> dict[str, str]:
    found = {
        "client": str(CLIENT.ip),
        "internet": str(INTERNET.ip),
        "nlb": str(NLB_VPC.ip),
        "vip": str(VIP),
        "vip6": str(VIP6),
    }
    for node in NODES:
        found[node.name] = str(node.v4.ip)
    for number, name in enumerate(plan.pod_names(), 1):
        found[name] = str(plan.pod(number).v4.ip)
    return found
