# SPDX-License-Identifier: Apache-2.0
"""Claim: the way of one packet and of its answer is computed in less than a millisecond, once the state is read.

The seed's pod (wg-quick's rules, a peer that claims everything) with a firewall of a few rules. A flow to its health
port is walked there and back, again and again, beside one run of `ip route get` each time, which answers a part of one
half of the question. On a node with 2,000 services the same is walked again.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from ipaddress import ip_address

import _node
from _bench import CannotMeasure, conditions, goal, run, table
from _pod import CLIENT, POD, PORT, Pod, batch
from wicketgate.kernel.snapshot import take_snapshot
from wicketgate.lab.host import Host
from wicketgate.netpath.concerns import STRANGERS_PORT
from wicketgate.netpath.flow import Flow
from wicketgate.netpath.netfilter.ruleset import Ruleset
from wicketgate.netpath.round_trip import there_and_back
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.verdict import Verdict
from wicketgate.netpath.walk import Walker

_LIMIT = 1000.0  # microseconds
_SEED = (
    "address add 10.8.0.1/24 dev wg0",
    "link set wg0 up",
    "route add default dev wg0 table 51820",
    "rule add not fwmark 51820 table 51820",
    "rule add table main suppress_prefixlength 0",
)
_FIREWALL = """table inet pod {
 chain input { type filter hook input priority filter; policy drop;
  ct state established,related accept
  iifname "lo" accept
  tcp dport { 22, 8080, 9000 } accept
 }
 chain output { type filter hook output priority filter; policy accept;
  ct state invalid drop
 }
}
"""


def measure(quick: bool) -> None:
    """Both places, and the table."""
    rounds = 100 if quick else 1000
    services = 50 if quick else 2000
    print(conditions())
    rows: list[list[object]] = []
    seed, node = _seed(rounds), _node_with(services, rounds)
    for name, (walks, asked) in {"the seed's pod": seed, f"a node with {services} services": node}.items():
        walked = _percentiles(walks)
        process = _percentiles(asked)
        rows.append([name, round(walked[0]), round(walked[1]), round(process[0]), round(process[0] / walked[0], 1)])
    table(["one packet and its answer, us", "p50", "p99", "ip route get, p50", "ratio"], rows)
    goal(f"one warm trace of the seed's pod < {_LIMIT:g} us at p50", _percentiles(seed[0])[0] < _LIMIT)
    goal(f"one warm trace of the node < {_LIMIT:g} us at p50", _percentiles(node[0])[0] < _LIMIT)


def _seed(rounds: int) -> tuple[list[float], list[float]]:
    with Pod(ipv6=False) as pod:
        pod.device(pod.pod, "wg0")
        pod.pod.run(
            "wg", "set", "wg0", "private-key", "/dev/stdin", "fwmark", "51820", "peer", str(pod.client_key.public()),
            "allowed-ips", "0.0.0.0/0", "endpoint", f"{CLIENT}:{PORT}", stdin=pod.key.expose_base64(),
        )  # fmt: skip
        batch(pod.pod, *_SEED)
        pod.pod.run("nft", "-f", "-", stdin=_FIREWALL)
        with _node.listener(pod.pod):
            return _walks(pod.pod, POD, rounds, Verdict.MISROUTED)


def _node_with(services: int, rounds: int) -> tuple[list[float], list[float]]:
    with Host.create(f"bench-node-{os.getpid()}") as host:
        _node.wire_up(host)
        host.run("iptables-nft-restore", stdin=_node.iptables(services), timeout=60)
        with _node.listener(host):
            return _walks(host, _node.ADDRESS, rounds, Verdict.FORWARDED)


def _walks(host: Host, address: str, rounds: int, expected: Verdict) -> tuple[list[float], list[float]]:
    uapi_dir = f"/proc/{host.pid}/root/run/wireguard"
    snapshot = host.acall(lambda: take_snapshot(uapi_dir=uapi_dir))
    routing = Routing(snapshot)
    walker = Walker(snapshot, Ruleset(snapshot, routing=routing), routing=routing)
    stranger, here = ip_address("203.0.113.9"), ip_address(address)
    flow = Flow(stranger, here, "tcp", STRANGERS_PORT, _node.HEALTH_PORT, iif="eth0")
    _, reply = there_and_back(walker, flow)
    if reply is None or reply.verdict is not expected:
        raise CannotMeasure(f"the answer is {reply.verdict if reply else 'unknown'}, and should be {expected}")
    walks, asked = [], []
    for at in range(rounds):
        walks.append(_microseconds(lambda: there_and_back(walker, flow)))
        if at % 20 == 0:
            asked.append(_microseconds(lambda: host.run("ip", "route", "get", str(stranger), "from", str(here))))
    return walks, asked


def _microseconds(work: Callable[[], object]) -> float:
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) * 1e6
    finally:
        gc.enable()


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


if __name__ == "__main__":
    run(measure, __doc__)
