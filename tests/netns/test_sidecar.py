# SPDX-License-Identifier: Apache-2.0
"""`wicket sidecar` beside a real wg-quick, with real packets: both grades, and whatever the other container does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from netns.agents import NO_RIGHT, WICKET, AgentPod, keys, poll
from netns.pods import sysctl

FAST = ("--probe-interval", "0.2", "--drain", "0")
# Another container's /run/wireguard: not shared with ours.
HIDE_SOCKETS = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run/wireguard && exec "$@"', "sh")


class SidecarPod(AgentPod):
    """The seed's pod: wg-quick with a peer that claims everything."""

    def sidecar(self, *arguments: str, **more) -> str:
        return self.start("sidecar", *FAST, *arguments, **more)

    def quick(self, verb: str) -> None:
        self.pod.run("wg-quick", verb, str(self.conf))

    def seed(self) -> None:
        self.write(allowed="10.8.0.2/32, 0.0.0.0/0")

    def peers(self) -> list[str]:
        return self.pod.run("wg", "show", "wg0", "peers", check=False).stdout.split()

    def ifindex(self) -> int:
        return json.loads(self.pod.run("ip", "-j", "link", "show", "dev", "wg0").stdout)[0]["ifindex"]

    def unnumbered(self) -> dict[str, str]:
        """The state but for the numbers of rules: `ip rule add` numbers downwards from what is there."""
        found = self.state()
        for each in ("rules", "rules6"):
            found[each] = re.sub(r"^\d+:", "", found[each], flags=re.MULTILINE)
        # Each new tun has another link-local address, some time after it is up.
        lines = [x for x in found["routes"].splitlines() if not re.search(r"(fe80|ff00)::\S* dev wg0", x)]
        found["routes"] = "\n".join(sorted(lines))
        return found

    def red(self) -> dict:
        return poll(self.verdict, until=lambda v: bool(v) and not v["ready"], message="red")

    def check(self, name: str) -> dict:
        return next(c for c in self.verdict()["checks"] if c["name"] == name)


@pytest.fixture(params=["bridge", "vpc"])
def pod(request, tmp_path):
    with SidecarPod(request.param, tmp_path) as made:
        made.seed()
        yield made


@pytest.fixture
def bridge(tmp_path):
    with SidecarPod("bridge", tmp_path) as made:
        made.seed()
        yield made


@pytest.fixture
def keyfile():
    """A folder that uid 65534 may read."""
    folder = Path(tempfile.mkdtemp(prefix="wicket-key-"))
    folder.chmod(0o755)
    yield folder / "key"
    shutil.rmtree(folder)


@pytest.mark.slow
def test_it_follows_wg_quick_and_leaves_no_trace(pod):
    """Waits, turns green by the door, follows down, up and syncconf; a client is served; its exit disturbs nobody."""
    pod.quick("up")
    alone = pod.unnumbered()
    peers = pod.peers()
    pod.quick("down")

    pod.sidecar()
    assert "interface-missing" in pod.wait_cause("interface-missing")["causes"]
    pod.quick("up")
    pod.wait_code("200")
    verdict = pod.verdict()
    assert (verdict["evidence"], verdict["level"], verdict["backend"]) == ("door", "tunnel", "userspace")
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    assert pod.code(family=6) == "200"
    pod.client_up()
    poll(pod.client_pings, message="the client's ping")

    rules = pod.pod.run("ip", "rule").stdout
    assert rules.index(f"from {pod.net.pod4} lookup main proto 87") < rules.index("not from all fwmark")
    probe = next(k for k in pod.peers() if k not in peers)
    stripped = pod.pod.run("wg-quick", "strip", str(pod.conf)).stdout
    pod.pod.run("wg", "syncconf", "wg0", "/dev/stdin", stdin=stripped)
    poll(pod.peers, until=lambda found: probe in found, message="the probe peer is put back")
    pod.wait_code("200")
    # syncconf also cleared the mark that wg-quick gave the device; the pin keeps the client's replies out of the tunnel.
    assert pod.pod.run("wg", "show", "wg0", "fwmark").stdout.strip() == "off"
    assert pod.client_pings()
    pod.pod.run("wg", "set", "wg0", "fwmark", "51820")  # without it wg-quick does not find its own rules again

    pod.quick("down")
    pod.wait_cause("interface-missing")
    pod.quick("up")
    pod.wait_code("200")
    poll(pod.client_pings, message="the client's ping after the restart")
    shaken = pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout.splitlines()
    assert pod.stop() == 0
    after = pod.unnumbered()
    assert {k: v for k, v in after.items() if v != alone[k]} == {k: alone[k] for k in after if after[k] != alone[k]}
    assert pod.peers() == peers
    assert pod.client_pings()
    assert pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout.splitlines() == [
        line for line in shaken if pod.client_public in line
    ]
    assert pod.private not in pod.log.read_text()


def test_kill_9_and_a_device_made_anew(bridge):
    """The next start removes what kill -9 left; another ifindex is another device; a dead wireguard-go is red."""
    pod = bridge
    pod.quick("up")
    alone, peers = pod.unnumbered(), pod.peers()
    pod.sidecar()
    pod.wait_code("200")
    pod.stop(signal.SIGKILL)
    left = next(k for k in pod.peers() if k not in peers)
    assert pod.unnumbered() != alone
    pod.sidecar()
    pod.wait_code("200")
    assert left not in pod.peers()
    assert len(pod.peers()) == len(peers) + 1
    assert len([x for x in pod.pod.run("nft", "list", "tables").stdout.splitlines() if "door" in x]) == 2

    first = pod.ifindex()
    for each in pod.pod.pids():
        if "wireguard-go" in Path(f"/proc/{each}/comm").read_text():
            os.kill(each, signal.SIGKILL)
    pod.wait_cause("interface-missing")
    # Made by hand this time: no fwmark, no rules. wg-quick's rules of before are still there and lead nowhere.
    pod.pod.run("sh", "-c", "rm -f /run/wireguard/wg0.sock; wireguard-go wg0 >/dev/null 2>&1")
    pod.pod.run("ip", "addr", "add", "10.8.0.1/24", "dev", "wg0")
    stripped = pod.pod.run("wg-quick", "strip", str(pod.conf)).stdout
    pod.pod.run("wg", "setconf", "wg0", "/dev/stdin", stdin=stripped)
    assert pod.ifindex() != first
    pod.wait_cause("interface-down")
    pod.pod.run("ip", "link", "set", "wg0", "up")
    pod.wait_code("200")
    assert pod.stop() == 0
    assert pod.peers() == peers
    assert "proto 87" not in pod.pod.run("ip", "rule").stdout
    assert "wicketgate" not in pod.pod.run("nft", "list", "ruleset").stdout


def test_a_device_that_cannot_be_reached_is_unknown_and_red(bridge):
    """/run/wireguard of the other container is not shared: it says so, proves nothing, and is red; `port` is weaker."""
    pod = bridge
    pod.quick("up")
    pod.sidecar(wrap=HIDE_SOCKETS)
    poll(pod.verdict, until=lambda v: any(c["name"] == "device" for c in v.get("checks", ())))
    verdict = pod.red()
    device = next(c for c in verdict["checks"] if c["name"] == "device")
    assert device["state"] == "unknown"
    assert "/run/wireguard/wg0.sock" in device["evidence"]
    assert "state-unreadable" in verdict["causes"]
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 1
    assert pod.stop() == 0
    pod.sidecar("--level", "port", wrap=HIDE_SOCKETS)
    pod.wait_code("200")
    assert pod.verdict()["evidence"] == "port"
    assert pod.stop() == 0


def test_another_port_than_expected_and_strategy_off(bridge):
    """--listen-port names the port of the Service: another one is port-mismatch. Strategy off adds no rule at all."""
    pod = bridge
    pod.quick("up")
    pod.sidecar("--listen-port", "51821")
    pod.wait_cause("port-mismatch")
    assert "51821" in pod.check("port")["evidence"]
    pod.pod.run("wg", "set", "wg0", "listen-port", "51821")
    pod.wait_code("200")
    assert pod.stop() == 0
    pod.sidecar("--strategy", "off")
    pod.wait_code("200")
    assert "proto 87" not in pod.pod.run("ip", "rule").stdout
    assert pod.verdict()["evidence"] == "door"
    assert pod.stop() == 0


def test_without_any_right_it_cures_and_does_not_pretend(pod):
    """Uid 65534: red by default with a reason; `--level port` green and says so; `9000 hello` is understood."""
    pod.quick("up")
    before = pod.state()
    pod.sidecar(prefix=NO_RIGHT)
    poll(pod.verdict, until=lambda v: any(c["name"] == "handshake" for c in v.get("checks", ())))
    verdict = pod.red()
    assert "state-unreadable" in verdict["causes"]
    handshake = next(c for c in verdict["checks"] if c["name"] == "handshake")
    assert "nothing can be proved" in handshake["evidence"]
    assert "CAP_NET_ADMIN" in pod.log.read_text()
    assert pod.stop() == 0

    pod.sidecar("--level", "port", "9000", "hello", prefix=NO_RIGHT)
    pod.wait_code("200")
    verdict = pod.verdict()
    assert (verdict["evidence"], verdict["level"]) == ("port", "port")
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    pod.quick("down")
    pod.wait_cause("interface-missing")
    pod.quick("up")
    pod.wait_code("200")
    # Nothing but a source rule helps a bound socket under strict rp_filter: it is seen and said.
    sysctl(pod.pod, "net.ipv4.conf.eth0.rp_filter", "1")
    poll(pod.log.read_text, until=lambda text: "rp-filter" in text, message="rp-filter is said in the log")
    if pod.net.shape == "bridge":
        host = str(pod.net.pod4)
        answer = pod.net.node.run("curl", "-s", "-m", "2", f"http://{host}:8080/healthz?verbose", check=False).stdout
        assert "rp-filter" in answer
    sysctl(pod.pod, "net.ipv4.conf.eth0.rp_filter", "0")
    pod.wait_code("200")
    assert pod.stop() == 0
    assert pod.state()["nft"] == before["nft"]
    assert "proto 87" not in pod.state()["rules"]


def test_without_any_right_a_peer_of_its_own_proves_a_handshake(bridge, keyfile):
    """--private-key-file of a peer that the user added: a real handshake over lo, named as the weaker evidence."""
    pod = bridge
    pod.quick("up")
    private, public = keys()
    keyfile.write_text(private + "\n")
    keyfile.chmod(0o444)
    own = ("--private-key-file", str(keyfile), "--public-key", pod.public, "--level", "handshake")
    pod.sidecar(*own, prefix=NO_RIGHT)
    pod.wait_cause("handshake-silent")
    pod.pod.run("wg", "set", "wg0", "peer", public, "allowed-ips", "10.8.0.77/32")
    pod.wait_code("200")
    verdict = pod.verdict()
    assert (verdict["evidence"], verdict["level"]) == ("model", "handshake")
    assert "over lo" in pod.check("handshake-ipv4")["evidence"]
    pod.pod.run("wg", "set", "wg0", "peer", public, "remove")
    pod.wait_cause("handshake-silent")
    assert pod.stop() == 0
    assert private not in pod.log.read_text()


def test_bad_flags_are_refused_before_anything_happens(bridge):
    """Exit code 2, one sentence, no traceback."""
    pod = bridge
    before = pod.state()
    bad = {
        ("9000", "hello", "world"): "at most a port and a word",
        ("--public-key", pod.public): "go together",
        ("--private-key-file", "/nowhere", "--public-key", pod.public): "/nowhere",
        ("--interface", "a/b"): "--interface",
        ("--level", "best"): "--level",
        ("--tcp-port", "8080"): "8080",
        ("nonsense",): "nonsense",
    }
    running = {
        arguments: pod.pod.popen(WICKET, "sidecar", *arguments, stderr=subprocess.PIPE, text=True) for arguments in bad
    }
    for arguments, process in running.items():
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, (arguments, said)
        assert bad[arguments] in said, (arguments, said)
        assert "Traceback" not in said
    assert pod.state() == before
