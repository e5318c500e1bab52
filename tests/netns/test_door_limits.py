# SPDX-License-Identifier: Apache-2.0
"""What a killed agent leaves is cleaned up; CAP_NET_ADMIN alone is enough; where no door can be built, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netns.door_traces import SRC, door, echoes, in_pod, looks, net, pod, refused
from wicketgate.errors import KernelRefused, ToolMissing
from wicketgate.health.door import Door
from wicketgate.kernel import process
from wicketgate.kernel.tc import TrafficControl

__all__ = ["net", "pod"]  # fixtures

HOLD = """
import asyncio, sys
from ipaddress import ip_address
from wicketgate.health.door import Door
from wicketgate.kernel.netlink import Netlink
async def main():
    async with Netlink() as netlink:
        door = Door(netlink, uplink="eth0", addresses=[ip_address(a) for a in sys.argv[2:]], tag=sys.argv[1])
        await door.open()
        print("open", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def kill_with_open_door(net, tag: str) -> None:
    """A process that opened a door and was killed by SIGKILL."""
    holder = net.pod.popen(
        sys.executable,
        "-c",
        HOLD,
        tag,
        str(net.pod4),
        str(net.pod6),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SRC},
    )
    with holder.stdout:
        assert holder.stdout.readline() == b"open\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=10)


def test_what_a_killed_agent_left_is_cleaned_by_the_next(net, pod):
    """After kill -9 the door still hangs there; the next start of the same tunnel takes it away, another's it leaves."""
    before = looks(pod)
    kill_with_open_door(net, "wg0")
    kill_with_open_door(net, "wg1")
    assert "wicketgate-door-wg0.eth0" in looks(pod)

    async def use(netlink):
        async with door(netlink) as made:
            assert await echoes(made)
        left = looks(pod)
        assert "wicketgate-door-wg0.eth0" not in left
        assert "wicketgate-door-wg1.eth0" in left
        assert await Door.clean_leftovers(netlink, "wg0") == 0
        assert await Door.clean_leftovers(netlink, "wg1") > 0

    in_pod(pod, use)
    assert looks(pod) == before


ALONE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from netns.door_traces import *
with open("/proc/self/status") as file:
    print([line.split()[1] for line in file if line.startswith(("CapEff", "CapBnd"))])
try:
    open("/proc/sys/net/ipv4/ip_forward", "w").write("1")
except OSError as error:
    print("read-only", error.errno)
async def main():
    async with Netlink() as netlink, door(netlink) as made:
        server = await asyncio.start_server(lambda r, w: w.close(), str(made.pod(4)), 0)
        port = server.sockets[0].getsockname()[1]
        print(await echoes(made, 4), await echoes(made, 6), (await made.tcp_check(4, port, 1)).outcome, await made.verify())
asyncio.run(main())
"""


def test_cap_net_admin_alone_is_enough(pod):
    """Uid 0 with CAP_NET_ADMIN and nothing else, /proc/sys read-only: the door opens, serves, and goes without a trace."""
    before = looks(pod)
    caps = "-all,+net_admin"
    inner = f'setpriv --bounding-set {caps} --inh-caps {caps} {sys.executable} -c "$CODE" {Path(__file__).parents[1]}'
    script = f"mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec {inner}"
    done = subprocess.run(
        pod.argv("unshare", "--mount", "sh", "-c", script),
        env=os.environ | {"PYTHONPATH": SRC, "CODE": ALONE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "['0000000000001000', '0000000000001000']",
        "read-only 30",
        "True True answered True",
    ], done.stderr
    assert looks(pod) == before


def test_no_door_without_the_right(pod):
    """Without CAP_NET_ADMIN the reason is said, and nothing is left."""
    code = ALONE.replace("async def main", "async def unused").replace(
        "asyncio.run(main())",
        (
            "async def closed():\n    async with Netlink() as netlink:\n        print(await refused(netlink))\nasyncio.run(closed())"
        ),
    )
    inner = [
        "setpriv",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parents[1]),
    ]
    done = subprocess.run(
        pod.argv(*inner), env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, timeout=60, check=False
    )
    assert "no door at eth0" in done.stdout, done.stderr
    assert "not permitted" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "what", ["nft is missing", "mirred is missing", "mirred is missing for IPv6", "old kernel", "no such interface"]
)
def test_a_door_that_cannot_be_built_leaves_nothing(pod, monkeypatch, what):
    """No nft, no mirred (also when the first filter was taken), an old kernel, no interface: a reason, and no trace."""
    before = looks(pod)
    options = {}
    if what == "nft is missing":

        def missing(name):
            raise ToolMissing(f"{name} is not installed here")

        monkeypatch.setattr(process, "find_tool", missing)
        expected = "nft is not installed"
    elif what.startswith("mirred"):
        real = TrafficControl.add

        async def refuse(self, index, name, redirects, *, clsact):
            if what.endswith("IPv6"):
                await real(self, index, name, redirects[:3], clsact=clsact)
            raise KernelRefused("tc filter add", 2, "Failed to load TC action module")

        monkeypatch.setattr(TrafficControl, "add", refuse)
        expected = "Failed to load TC action module"
    elif what == "old kernel":
        options, expected = {"kernel_release": "5.15.0-1-amd64"}, "older than 5.16"
    else:
        options, expected = {"uplink": "eth7"}, "no interface eth7"
    reason = in_pod(pod, lambda netlink: refused(netlink, **options))
    assert expected in reason
    monkeypatch.undo()
    assert looks(pod) == before
