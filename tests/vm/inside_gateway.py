# SPDX-License-Identifier: Apache-2.0
"""Inside the machine: the whole product with the kernel's own WireGuard at both ends; what became of it as JSON.

One pod lives through all of `wicket up`, step by step, a second one through `wicket sidecar`: to start an agent is the
most expensive thing here. No module is loaded by hand: the kernel fetches each as the agent first asks for it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from netns import agents  # noqa: E402
from netns.agents import NET_ADMIN_ONLY, WICKET, AgentPod, keys, poll  # noqa: E402

# Emulated, and beside other tests: only a hang is a fault here.
agents.DEADLINE = 120.0
agents.poll.__kwdefaults__["deadline"] = agents.DEADLINE
INTERVAL = ("--probe-interval", "4")  # seconds; a round of probes takes one or two here
BEYOND = "10.99.0.1"
OTHERS = 500


class KernelPod(AgentPod):
    """A pod whose client has a kernel device as well."""

    def client_up(self, *, allowed: str = f"10.8.0.0/24,{BEYOND}/32,fd08::/64") -> None:
        run = self.client.run
        run("ip", "link", "add", "wgc", "type", "wireguard")
        run(
            "wg", "set", "wgc", "private-key", "/dev/stdin", "peer", self.public, "allowed-ips", allowed,
            "endpoint", f"{self.net.pod4}:51820", stdin=self.client_private,
        )  # fmt: skip
        run("ip", "addr", "add", "10.8.0.2/24", "dev", "wgc")
        run("ip", "addr", "add", "fd08::2/64", "dev", "wgc", "nodad")
        run("ip", "link", "set", "wgc", "up")
        run("ip", "route", "add", f"{BEYOND}/32", "dev", "wgc")

    def client_pings(self, address: str = "10.8.0.1") -> bool:
        return self.client.run("ping", "-c1", "-W3", address, check=False).returncode == 0

    def configure(self, *peers: tuple[str, str], more: str = "") -> None:
        """The gateway's file: the client, and others by key and address."""
        self.write(
            interface=f"Address = fd08::1/64\n{more}",
            allowed="10.8.0.2/32, fd08::2/128",
            extra="".join(f"\n[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}\n" for key, allowed in peers),
        )

    def gateway(self, *arguments: str) -> str:
        line = self.start("up", str(self.conf), *INTERVAL, "--drain", "0", "--userspace", "never", *arguments)
        assert line.startswith("wg0: health at http://"), (line, self.log.read_text()[-4000:])
        return line

    def wg(self, what: str) -> str:
        return self.pod.run("wg", "show", "wg0", what).stdout

    def of_client(self, what: str) -> str:
        """What `wg show wg0 WHAT` says of the client."""
        return next((line for line in self.wg(what).splitlines() if self.client_public in line), "")

    def peers(self) -> set[str]:
        return set(self.wg("peers").split())

    def state(self) -> dict[str, str]:
        """Also what a kernel device has, and all by one shell: a program takes half a second to start here."""
        commands = {
            # Without priorities: wg-quick's depend on what was there before.
            "rules": "{ ip rule; ip -6 rule; } | cut -f2- | sort",
            # The kernel gives a forwarding interface anycast addresses; what is left of forwarding is told below.
            "routes": "ip -4 route show table all; ip -6 route show table all | grep -v ^anycast | sed 's/ expires .*//'",
            "links": "cd /sys/class/net; for each in *; do echo $each $(cat $each/ifalias $each/mtu); done",
            "nft": "nft list ruleset",
            "qdiscs": "tc qdisc",
            "forwarding": "cat /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/all/forwarding",
            "sockets": "ls /run/wireguard",
            # A client that came meanwhile has an endpoint; that is the device's own knowledge.
            "wireguard": "wg showconf wg0 2>/dev/null | sed /^Endpoint/d",
        }
        told = self.pod.run("sh", "-c", "\n".join(f"echo == {n}; {c}" for n, c in commands.items())).stdout
        parts = (part.partition("\n") for part in told.split("== ")[1:])
        return {name: text for name, _, text in parts}

    def is_again(self, before: dict[str, str], *, but: tuple[str, ...] = ()) -> None:
        """The pod is as it was."""
        now = self.state()
        changed = {n: (before[n], now[n]) for n in before if n not in but and now[n] != before[n]}
        assert not changed, changed

    def lossless(self, work: Callable[[], None]) -> None:
        """While something is done the client's session goes on: no ping is lost, and no counter starts anew.

        (Its latest handshake may change: either side makes one every two minutes.)
        """
        endpoint, sent = self.of_client("endpoints"), int(self.of_client("transfer").split()[2])
        pinging = self.client.popen("ping", "-i", "0.5", "-W", "9", "10.8.0.1", stdout=subprocess.PIPE, text=True)
        try:
            work()
        finally:
            pinging.send_signal(signal.SIGINT)
            told, _ = pinging.communicate(timeout=60)
        assert " 0% packet loss" in told, told
        assert self.of_client("endpoints") == endpoint
        assert int(self.of_client("transfer").split()[2]) > sent


Results = dict[str, str]


class Steps:
    """Runs steps one after the other and keeps what became of each."""

    def __init__(self, out: Path) -> None:
        self.results: Results = {}
        self._out = out

    def do(self, name: str, step: Callable[[], None], log: Path | None = None) -> None:
        started = time.monotonic()
        try:
            step()
        except Exception:  # noqa: BLE001 - told outside, one by one
            tail = log.read_text()[-5000:] if log is not None and log.exists() else ""
            self.results[name] = f"{traceback.format_exc()}\n--- agent's log ---\n{tail}"
        else:
            self.results[name] = "ok"
        self._out.write_text(json.dumps(self.results))
        print(f"{name}: {self.results[name][:4000]} after {time.monotonic() - started:.1f} s", flush=True)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def up_story(steps: Steps, pod: KernelPod) -> None:
    """Everything about `wicket up`."""
    pod.net.node.run("ip", "addr", "add", f"{BEYOND}/32", "dev", "lo")
    (_, other), (_, third) = keys(), keys()
    pod.configure((other, "10.8.0.3/32"))
    before = pod.state()

    def step(name: str, work: Callable[[], None]) -> None:
        steps.do(name, work, pod.log)

    def userspace_without_tun() -> None:
        assert not os.path.exists("/dev/net/tun"), "the machine is meant to have no tun module at first"
        done = pod.pod.run(
            *NET_ADMIN_ONLY, WICKET, "up", str(pod.conf), "--userspace", "always", check=False, timeout=120
        )
        assert done.returncode == 3, done
        assert "/dev/net/tun cannot be opened: No such file or directory" in done.stderr, done.stderr
        assert "10 200" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        pod.is_again(before)

    def green_by_the_door() -> None:
        pod.gateway("--level", "egress")
        pod.wait_code("200")
        verdict = pod.verdict()
        assert (verdict["backend"], verdict["evidence"]) == ("kernel", "door"), verdict
        names = {c["name"] for c in verdict["checks"]}
        wanted = {f"{what}-ipv{f}" for what in ("handshake", "tunnel", "balancer", "egress") for f in (4, 6)}
        assert wanted <= names, (wanted - names, pod.verdict_text())
        shown = json.loads(pod.pod.run("ip", "-j", "-d", "link", "show", "wg0").stdout)[0]
        assert (shown["linkinfo"]["info_kind"], shown["mtu"], shown["ifalias"]) == ("wireguard", 1420, "wicketgate")
        assert pod.wg("fwmark").strip() == "off"
        assert pod.code(family=6) == "200"
        assert pod.client.run("nc", "-z", "-w9", str(pod.net.pod4), "9000", check=False).returncode == 0

    def a_client_is_served() -> None:
        pod.client_up()
        poll(pod.client_pings, message="ping")
        poll(lambda: pod.client_pings("fd08::1"), message="IPv6 ping")
        # The node knows no way to 10.8.0.2: an answer went to the pod's own address.
        assert pod.net.node.run("ip", "route", "get", "10.8.0.2", check=False).returncode != 0
        poll(lambda: pod.client_pings(BEYOND), message="forwarded ping")
        metrics = pod.client.run("curl", "-s", "-m", "9", f"http://{pod.net.pod4}:8080/metrics").stdout
        assert 'backend="kernel"' in metrics, metrics
        assert pod.private not in metrics

    def reload_keeps_the_session() -> None:
        def reload() -> None:
            pod.configure((third, "10.8.0.4/32, 10.50.0.0/16"))
            poll(pod.peers, until=lambda p: third in p and other not in p, message="peers")
            poll(lambda: pod.pod.run("ip", "route").stdout, until=lambda t: "10.50.0.0/16 dev wg0 proto 87" in t)

        pod.lossless(reload)
        pod.wait_code("200")

    def what_others_change_is_put_right() -> None:
        run = pod.pod.run
        wrong = ("listen-port", "4444", "fwmark", "0x7", "private-key", "/dev/stdin")
        run("wg", "set", "wg0", *wrong, stdin=keys()[0])
        run("ip", "link", "set", "wg0", "mtu", "1300")
        run("ip", "link", "set", "wg0", "down")
        poll(lambda: run("ip", "link", "show", "dev", "wg0").stdout, until=lambda t: ",UP" in t and "mtu 1420" in t)
        poll(
            lambda: [pod.wg(what).strip() for what in ("listen-port", "fwmark", "public-key")],
            until=lambda t: t == ["51820", "off", pod.public],
            message="the device's own settings",
        )
        # Whoever is given an allowed-ip takes it from the peer that had it: here the probe's.
        (_, thief), mine = keys(), pod.peers() - {pod.client_public, third}
        line = next(x for x in pod.wg("allowed-ips").splitlines() if x.split()[0] in mine)
        run("wg", "set", "wg0", "peer", thief, "allowed-ips", ",".join(line.split()[1:]))
        poll(lambda: pod.wg("allowed-ips"), until=lambda t: line in t, message="allowed-ips")
        run("wg", "set", "wg0", "peer", thief, "remove")
        for key in pod.peers():
            run("wg", "set", "wg0", "peer", key, "remove")
        poll(pod.peers, until=lambda p: {pod.client_public, third} < p and len(p) == 3, message="peers")
        run("ip", "link", "del", "wg0")
        poll(lambda: run("wg", "show", "wg0", check=False).stdout, until=lambda t: pod.client_public in t)
        poll(lambda: run("ip", "route").stdout, until=lambda t: "10.50.0.0/16 dev wg0 proto 87" in t, message="route")
        pod.wait_code("200")
        poll(pod.client_pings, message="ping after all that")

    def kill_9_is_taken_over() -> None:
        poll(pod.client_pings)
        dead = pod.peers()

        def start_anew() -> None:
            pod.stop(signal.SIGKILL)
            pod.gateway("--level", "egress")
            pod.wait_code("200")

        pod.lossless(start_anew)
        assert pod.verdict()["backend"] == "kernel"
        assert len(pod.peers()) == 3
        assert len(pod.peers() & dead) == 2, "the dead agent's probe peer is gone, ours is there"
        assert len([x for x in pod.pod.run("nft", "list", "tables").stdout.splitlines() if "door" in x]) == 2

    def nothing_stays() -> None:
        assert pod.stop() == 0, pod.log.read_text()[-4000:]
        # What the killed one had turned on stays on: its successor cannot know what was there before.
        pod.is_again(before, but=("forwarding",))
        assert pod.private not in pod.log.read_text()

    step("userspace_without_tun", userspace_without_tun)
    step("green_by_the_door", green_by_the_door)
    step("a_client_is_served", a_client_is_served)
    step("reload_keeps_the_session", reload_keeps_the_session)
    step("what_others_change_is_put_right", what_others_change_is_put_right)
    step("kill_9_is_taken_over", kill_9_is_taken_over)
    step("nothing_stays", nothing_stays)


def crowd_story(steps: Steps, pod: KernelPod) -> None:
    """`wicket up` with hundreds of peers, each with a route of its own, and SaveConfig."""
    _, other = keys()
    before = pod.state()

    def many_peers() -> None:
        first = int(ipaddress.ip_address("10.60.0.0"))
        crowd = [(keys_of_nobody(n), f"{ipaddress.ip_address(first + n)}/32") for n in range(OTHERS)]
        pod.configure(*crowd, more="SaveConfig = true")
        started = time.monotonic()
        pod.gateway()
        pod.wait_code("200")
        print(f"  {OTHERS} peers: green after {time.monotonic() - started:.1f} s", flush=True)
        assert len(pod.peers()) == OTHERS + 2
        assert pod.pod.run("ip", "route").stdout.count("dev wg0 proto 87") == OTHERS
        pod.client_up()
        poll(pod.client_pings, message="ping among many")
        assert pod.process is not None
        idle, began = cpu_seconds(pod.process.pid), time.monotonic()
        time.sleep(12)  # measures, and waits for nothing
        share = (cpu_seconds(pod.process.pid) - idle) / (time.monotonic() - began)
        print(f"  {OTHERS} peers: {100 * share:.0f} % of an emulated core at a probe in 4 s", flush=True)
        started = time.monotonic()
        pod.configure(*crowd[1:], (other, "10.8.0.3/32"), more="SaveConfig = true")
        poll(pod.peers, until=lambda p: other in p and crowd[0][0] not in p and len(p) == OTHERS + 2)
        print(f"  {OTHERS} peers: reloaded after {time.monotonic() - started:.1f} s", flush=True)
        poll(pod.client_pings, message="ping after reload")
        pod.wait_code("200")
        assert pod.stop() == 0
        saved = pod.conf.read_text()
        assert saved.count("PublicKey") == OTHERS + 1, "everybody's peer and not the probe's"
        assert "AllowedIPs = 10.8.0.2/32" in saved
        assert pod.private in saved
        pod.is_again(before)

    steps.do("many_peers", many_peers, pod.log)


def keys_of_nobody(number: int) -> str:
    """A public key; `wg genkey` would take a quarter of a second each."""
    import base64

    # X25519 takes any 32 bytes; the top bit is masked.
    return base64.b64encode((number + 9).to_bytes(32, "little")).decode()


def sidecar_story(steps: Steps, pod: KernelPod) -> None:
    """`wicket sidecar` beside the real wg-quick, which takes everything into the tunnel for a peer's sake."""
    _, exit_peer = keys()
    # Without FwMark in the file `wg syncconf` clears the device's mark, and `wg-quick down` forgets its rules.
    pod.configure((exit_peer, "0.0.0.0/0, ::/0"), more="FwMark = 0xca6c")
    conf = str(pod.conf)
    before: dict[str, str] = {}

    def step(name: str, work: Callable[[], None]) -> None:
        steps.do(name, work, pod.log)

    def wg_quick(verb: str) -> None:
        pod.pod.run("wg-quick", verb, conf, timeout=120)

    def sidecar_green() -> None:
        wg_quick("up")
        assert "not from all fwmark 0xca6c lookup 51820" in pod.pod.run("ip", "rule").stdout
        before.update(pod.state())
        line = pod.start("sidecar", *INTERVAL, "--drain", "0")
        assert line.startswith("wg0: health at http://"), (line, pod.log.read_text()[-4000:])
        pod.wait_code("200")
        verdict = pod.verdict()
        assert (verdict["backend"], verdict["evidence"]) == ("kernel", "door"), verdict
        assert pod.code(family=6) == "200"
        pod.client_up()
        poll(pod.client_pings, message="ping")
        poll(lambda: pod.client_pings("fd08::1"), message="IPv6 ping")

    def syncconf_takes_the_probe_and_it_is_put_back() -> None:
        session = pod.of_client("latest-handshakes")
        mine = pod.peers() - {exit_peer, pod.client_public}
        assert len(mine) == 1
        pod.pod.run("bash", "-c", f"wg syncconf wg0 <(wg-quick strip {conf})", timeout=60)
        assert not pod.peers() & mine or pod.log.read_text().count("it is put back"), pod.peers()
        poll(pod.peers, until=lambda p: mine < p, message="probe peer")
        pod.wait_code("200")
        assert pod.client_pings()
        assert pod.of_client("latest-handshakes") == session

    def a_restart_is_followed() -> None:
        wg_quick("down")
        pod.wait_cause("interface-missing")
        wg_quick("up")
        pod.wait_code("200")
        poll(pod.client_pings, message="ping after restart")

    def sidecar_leaves_no_trace() -> None:
        assert pod.stop() == 0, pod.log.read_text()[-4000:]
        pod.is_again(before)
        assert pod.client_pings()

    step("sidecar_green", sidecar_green)
    step("syncconf_takes_the_probe_and_it_is_put_back", syncconf_takes_the_probe_and_it_is_put_back)
    step("a_restart_is_followed", a_restart_is_followed)
    step("sidecar_leaves_no_trace", sidecar_leaves_no_trace)


STORIES = (("bridge", up_story), ("vpc", sidecar_story), ("bridge", crowd_story))


def main(out: str, *only: str) -> None:
    """Run the stories, or those that are named."""
    steps = Steps(Path(out))
    for shape, story in STORIES:
        if only and story.__name__ not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            with KernelPod(shape, Path(folder)) as pod:
                print(f"a pod of shape {shape} after {time.monotonic() - started:.1f} s", flush=True)
                steps.do(story.__name__, lambda story=story, pod=pod: story(steps, pod))


if __name__ == "__main__":
    main(*sys.argv[1:])
