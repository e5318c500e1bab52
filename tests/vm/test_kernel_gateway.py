# SPDX-License-Identifier: Apache-2.0
"""`wicket up` and `wicket sidecar` with the kernel's own WireGuard, at both ends of the tunnel."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(1500)

PROMISES = {
    "userspace_without_tun": "`--userspace always` without /dev/net/tun: exit code 3, what is missing and how to give it; nothing is touched.",
    "green_by_the_door": "`--userspace never`, CAP_NET_ADMIN alone: the kernel's device, green by the door in both families, TCP through it too.",
    "a_client_is_served": "A kernel client pings the gateway in both families, and what is behind it with the pod's address.",
    "reload_keeps_the_session": "A peer comes and another goes: not one ping of the third is lost, no counter starts anew.",
    "what_others_change_is_put_right": "Port, mark, key, MTU, a stolen allowed-ip, peers and the device itself are repaired.",
    "kill_9_is_taken_over": "After kill -9 the next start takes the device over: not one ping lost, the dead probe peer gone.",
    "nothing_stays": "After SIGTERM the pod is as it was before.",
    "sidecar_green": "Beside the real wg-quick with an exit peer: green by the door, a client served.",
    "syncconf_takes_the_probe_and_it_is_put_back": "`wg syncconf` drops the probe peer; it comes back, the client stays.",
    "a_restart_is_followed": "`wg-quick down` is red for what it is, `up` is green again.",
    "sidecar_leaves_no_trace": "After SIGTERM wg-quick's tunnel is as wg-quick made it, and goes on.",
    "many_peers": "500 peers: green, reloaded by difference, written back by SaveConfig without the probe's, gone at the end.",
}


@pytest.mark.parametrize("name", PROMISES)
def test_the_product_on_the_kernels_wireguard(name: str, machine) -> None:
    """See PROMISES."""
    results = machine.results("inside_gateway")
    assert results.get(name) == "ok", f"{PROMISES[name]}\n{results.get(name, 'it was not reached')}"


def test_every_step_is_a_promise(machine) -> None:
    """Each step that ran in the machine is told here, and every story came to its end."""
    assert {n for n in machine.results("inside_gateway") if not n.endswith("_story")} == set(PROMISES)
