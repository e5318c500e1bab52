# SPDX-License-Identifier: Apache-2.0
"""`wicket up` and bad luck: bad files, missing programs, a network that comes and goes, firewalls, a slow device.

Each is a clear error or a repaired state, and no damage to what was there before.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from netns.agents import NET_ADMIN_ONLY, WICKET, AgentPod, keys, poll
from netns.pods import sysctl
from wicketgate.lab.host import wire


@pytest.fixture
def pod(tmp_path):
    with AgentPod("bridge", tmp_path) as made:
        yield made


@pytest.fixture
def vpc(tmp_path):
    with AgentPod("vpc", tmp_path) as made:
        yield made


def started(pod: AgentPod, *arguments: str, wrap: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`wicket up` with its first line not waited for."""
    return pod.pod.popen(
        *wrap, *NET_ADMIN_ONLY, WICKET, "up", *arguments, "--probe-interval", "0.2", "--drain", "0",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def device_process(pod: AgentPod) -> int:
    return next(p for p in pod.pod.pids() if "wireguard-go" in Path(f"/proc/{p}/comm").read_text())


def without(*programs: str) -> tuple[str, ...]:
    """A machine that lacks programs: something that cannot be run lies over them."""
    over = " && ".join(f"mount --bind /dev/null $(command -v {p})" for p in programs)
    return ("unshare", "--mount", "sh", "-c", f'{over} && exec "$@"', "sh")


def test_broken_and_hostile_files_are_refused_with_file_and_line(pod):
    """Exit code 2, every problem with its line, no traceback, no key, and the pod is as it was."""
    before = pod.state()
    secret, _ = keys()
    files = {
        "many.conf": f"[Interface]\nPrivateKey = {secret}x\nListenPort = 99999\nAdress = 10.0.0.1/24\n[Peer]\nAllowedIPs = 10.0.0.0/33\n",
        "binary.conf": bytes(range(256)) * 64,
        "utf16.conf": "[Interface]\n".encode("utf-16"),
        "nokey.conf": "[Interface]\nAddress = 10.0.0.1/24\n",
        "long.conf": "[Interface]\nPrivateKey = " + "A" * 300_000,
        "a-name-that-is-too-long.conf": "[Interface]\n",
    }
    for name, content in files.items():
        (pod.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    os.mkfifo(pod.folder / "pipe.conf")
    (pod.folder / "folder.conf").mkdir()
    running = {n: started(pod, str(pod.folder / n)) for n in (*files, "pipe.conf", "folder.conf", "missing.conf")}
    said = {}
    for name, process in running.items():
        _, said[name] = process.communicate(timeout=60)
        assert process.returncode == 2, (name, said[name])
        assert "Traceback" not in said[name]
        assert name in said[name]
        assert len(said[name]) < 10_000, name
    for line in (2, 3, 4, 6):
        assert f"many.conf:{line}" in said["many.conf"], said["many.conf"]
    assert secret not in said["many.conf"]
    assert "PrivateKey" in said["nokey.conf"]
    assert pod.state() == before


def test_missing_programs_are_named_and_nothing_is_left(pod):
    """No WireGuard at all: both ways are named. No nft: exit code 3, and the tunnel that was half up is gone."""
    pod.write()
    before = pod.state()
    if pod.pod.run("ip", "link", "add", "wgx", "type", "wireguard", check=False).returncode == 0:
        pod.pod.run("ip", "link", "del", "wgx")
    else:
        process = started(pod, str(pod.conf), wrap=without("wireguard-go"))
        _, said = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "modprobe wireguard" in said
        assert "apt-get install wireguard-go" in said
        assert pod.state() == before
    process = started(pod, str(pod.conf), wrap=without("nft"))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert "apt-get install nftables" in said
    assert "Traceback" not in said
    assert pod.state() == before


def test_without_ipv6_it_serves_ipv4(vpc):
    """net.ipv6.conf.all.disable_ipv6=1: green, and nothing of IPv6 is asked for."""
    pod = vpc
    sysctl(pod.pod, "net.ipv6.conf.all.disable_ipv6", "1")
    line = pod.up()
    assert "[" not in line
    pod.wait_code("200")
    names = {c["name"] for c in pod.verdict()["checks"]}
    assert "handshake-ipv4" in names
    assert not [n for n in names if "ipv6" in n]
    pod.client_up()
    poll(pod.client_pings)
    assert pod.stop() == 0


def test_the_uplink_loses_its_route_its_address_and_itself(pod):
    """Red with the cause, then green again by itself: pins, health ports and doors follow the uplink."""
    before = pod.pod.run("ip", "rule").stdout
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    run = pod.pod.run
    run("ip", "route", "del", "default")
    # Without a way back nobody outside hears of it, but for the pod's own subnet.
    poll(pod.log.read_text, until=lambda t: "reply-unroutable" in t, message="the missing route is said")
    run("ip", "route", "add", "default", "via", "10.44.0.1")
    pod.wait_code("200")

    pod.net.pod4 = type(pod.net.pod4)("10.44.0.7")
    run("ip", "addr", "del", "10.44.0.2/24", "dev", "eth0")
    run("ip", "addr", "add", "10.44.0.7/24", "dev", "eth0")
    run("ip", "route", "replace", "default", "via", "10.44.0.1")
    pod.wait_code("200")
    poll(
        lambda: run("ip", "rule").stdout,
        until=lambda t: "from 10.44.0.7 lookup main proto 87" in t and "10.44.0.2" not in t,
    )

    run("ip", "link", "del", "eth0")
    poll(lambda: "wicketgate-door" not in run("nft", "list", "tables").stdout, message="the door goes with its uplink")
    wire(pod.pod, "eth0", pod.net.node, "pod")
    pod.net.node.run("ip", "addr", "add", "10.44.0.1/24", "dev", "pod")
    run("ip", "addr", "add", "10.44.0.7/24", "dev", "eth0")
    run("ip", "route", "add", "default", "via", "10.44.0.1")
    pod.wait_code("200")
    assert pod.verdict()["evidence"] == "door"
    assert pod.stop() == 0
    assert run("ip", "rule").stdout == before
    assert "wicketgate" not in run("nft", "list", "ruleset").stdout


@pytest.mark.slow
def test_firewalls_a_slow_device_and_floods(pod):
    """Each is red with a cause that fits, and green again when it is over; nothing of it takes the agent down."""
    pod.up("--level", "egress")
    pod.wait_code("200")
    run = pod.pod.run

    run(
        "nft",
        "-f",
        "-",
        stdin='table inet foe { chain i { type filter hook input priority 0; iifname "eth0" udp dport 51820 drop; }; }',
    )
    pod.wait_cause("input-drop")
    run("nft", "delete", "table", "inet", "foe")
    pod.wait_code("200")

    drop = ("INPUT", "-i", "eth0", "-p", "udp", "--dport", "51820", "-j", "DROP")
    run("iptables-legacy", "-A", *drop)
    pod.wait_cause("input-drop")
    run("iptables-legacy", "-D", *drop)
    pod.wait_code("200")

    run(
        "nft",
        "-f",
        "-",
        stdin='table inet foe { chain f { type filter hook forward priority 0; iifname "wg0" drop; }; }',
    )
    pod.wait_cause("forward-drop", "egress-unreachable")
    run("nft", "delete", "table", "inet", "foe")
    pod.wait_code("200")

    slow = device_process(pod)
    os.kill(slow, signal.SIGSTOP)
    pod.wait_code("503")
    os.kill(slow, signal.SIGCONT)
    pod.wait_code("200")

    # More changes than any socket buffer holds, and one of them is ours to put right.
    routes = [f"10.{200 + n // 256 % 50}.{n % 256}.0/24 dev eth0 table 4711" for n in range(8000)]
    for verb in ("add", "del", "add"):
        run("ip", "-batch", "-", stdin="\n".join(f"route {verb} {r}" for r in routes), timeout=60)
        run("ip", "rule", "del", "from", str(pod.net.pod4), check=False)
    poll(
        lambda: run("ip", "rule").stdout, until=lambda t: f"from {pod.net.pod4} lookup main proto 87" in t, deadline=60
    )
    run("ip", "route", "flush", "table", "4711")
    pod.wait_code("200")

    # Half-open connections and garbage, by an outside host.
    noise = [
        pod.client.popen("sh", "-c", f"(printf '{what}'; sleep 30) | nc {pod.net.pod4} 8080 >/dev/null 2>&1")
        for what in (
            "GET / HT",
            "\\\\377\\\\376\\\\000garbage\\\\r\\\\n",
            "",
            "GET /healthz HTTP/1.1\\\\r\\\\nX: " + "a" * 200,
        )
        for _ in range(5)
    ]
    for _ in range(5):
        assert pod.code() == "200"
    for each in noise:
        each.kill()
        each.wait()
    assert pod.stop() == 0


def test_two_agents_in_one_pod_do_not_get_in_each_others_way(pod):
    """Two tunnels, two agents: both green; one leaves, the other's pins and rules stay; then nothing is left."""
    pod.write(allowed="0.0.0.0/0")
    before = pod.state()
    pod.up("--role", "exit", "--level", "tunnel")  # rules of its own, which the other must not take for litter
    second = pod.folder / "wg1.conf"
    private, _ = keys()
    second.write_text(f"[Interface]\nPrivateKey = {private}\nListenPort = 51821\nAddress = 10.9.0.1/24\n")
    second.chmod(0o600)
    other = started(pod, str(second), "--health-port", "8081", "--tcp-port", "9001")
    pod.wait_code("200")
    pod.wait_code("200", port=8081)
    rules = pod.pod.run("ip", "rule").stdout
    assert "lookup 51820 proto 87" in rules
    assert rules.count(f"from {pod.net.pod4} lookup main proto 87") == 1
    assert pod.stop() == 0
    rules = pod.pod.run("ip", "rule").stdout
    assert rules.count("proto 87") == 1
    assert f"from {pod.net.pod4} lookup main proto 87" in rules
    assert pod.code(port=8081) == "200"
    text = pod.log.read_text()
    assert "undoing" not in text
    other.send_signal(signal.SIGTERM)
    _, said = other.communicate(timeout=30)
    assert other.returncode == 0, said
    assert "somebody changed" not in said
    assert pod.state() == before


def test_a_signal_during_a_slow_hook_rolls_back_at_once(pod):
    """SIGTERM while PreUp sleeps: it ends soon, the hook ends with it, and nothing is left."""
    pod.write(interface="PreUp = touch %s; sleep 300; true" % (pod.folder / "begun"))
    before = pod.state()
    process = started(pod, str(pod.conf))
    poll((pod.folder / "begun").exists, deadline=60, message="the hook begins")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert pod.state() == before
    assert not [p for p in pod.pod.pids() if b"sleep" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_save_config_keeps_comments_and_the_roamed_endpoint(pod):
    """On the way down the running state goes into the file: where the client is now; mode 0600; no probe peer."""
    pod.write(interface="# kept\nSaveConfig = true", extra="Endpoint = 203.0.113.77:1\n")
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    assert pod.stop() == 0
    text = pod.conf.read_text()
    assert "# kept" in text
    assert "# client" in text
    assert f"Endpoint = {pod.net.client4}:" in text
    assert "203.0.113.77" not in text
    assert text.count("[Peer]") == 1
    assert "2001:db8:7769" not in text
    assert stat.S_IMODE(pod.conf.stat().st_mode) == 0o600


def test_tables_and_marks_follow_the_file(pod):
    """Table = 123, FwMark, then Table = off, by reload: routes move, the mark is the device's, nothing is left behind."""
    pod.write(interface="Table = 123\nFwMark = 0x1234", allowed="10.8.0.2/32, 10.77.0.0/16")
    pod.up()
    pod.wait_code("200")
    run = pod.pod.run
    assert "10.77.0.0/16 dev wg0 proto 87" in run("ip", "route", "show", "table", "123").stdout
    assert "10.77" not in run("ip", "route").stdout
    assert run("wg", "show", "wg0", "fwmark").stdout.strip() == "0x1234"
    pod.write(interface="Table = off", allowed="10.8.0.2/32, 10.77.0.0/16")
    poll(lambda: run("ip", "route", "show", "table", "all").stdout, until=lambda t: "10.77" not in t)
    poll(lambda: run("wg", "show", "wg0", "fwmark").stdout, until=lambda t: t.strip() == "off")
    pod.write(allowed="10.8.0.2/32, 10.77.0.0/16")
    poll(lambda: run("ip", "route").stdout, until=lambda t: "10.77.0.0/16 dev wg0 proto 87" in t)
    pod.wait_code("200")


def test_an_exit_gateway_stands_and_falls_with_its_exit_peer(pod):
    """Role exit: the default goes through the tunnel, health answers by the uplink; red when the exit peer dies."""
    outside = "10.99.0.1"
    private, public = keys()
    pod.conf.write_text(
        f"[Interface]\nPrivateKey = {pod.private}\nListenPort = 51820\nAddress = 10.9.0.2/24\n"
        f"[Peer]\nPublicKey = {public}\nAllowedIPs = 0.0.0.0/0\nEndpoint = exit.example:51999\n"
    )
    hosts = pod.folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{pod.net.client4} exit.example\n")
    pod.pod.run("mount", "--bind", str(hosts), "/etc/hosts")
    exit_host = pod.client
    process = exit_host.popen("wireguard-go", "-f", "wgx", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    poll(lambda: exit_host.run("wg", "show", "wgx", check=False).returncode == 0)
    exit_host.run(
        "wg", "set", "wgx", "private-key", "/dev/stdin", "listen-port", "51999",
        "peer", pod.public, "allowed-ips", "10.9.0.2/32", stdin=private,
    )  # fmt: skip
    exit_host.run("ip", "addr", "add", "10.9.0.1/24", "dev", "wgx")
    exit_host.run("ip", "addr", "add", outside, "dev", "lo")
    exit_host.run("ip", "link", "set", "wgx", "up")
    before = pod.state()
    pod.up("--role", "exit", "--egress", outside)
    pod.wait_code("200")
    verdict = pod.verdict()
    assert verdict["level"] == "egress"
    assert {"exit", "outside", "handshake-ipv4"} <= {c["name"] for c in verdict["checks"]}
    assert "dev wg0" in pod.pod.run("ip", "route", "get", "203.0.113.1").stdout
    assert pod.pod.run("ping", "-c1", "-W2", outside, check=False).returncode == 0
    process.kill()
    process.wait()
    pod.wait_cause("egress-unreachable")
    assert pod.stop() == 0
    assert pod.state() == before


@pytest.mark.slow
def test_a_named_endpoint_is_looked_up_again(pod):
    """A name that did not resolve at the start, or has moved, is found once the peer has been silent for a while."""
    _, public = keys()
    pod.write(extra=f"\n[Peer]\nPublicKey = {public}\nAllowedIPs = 10.8.0.9/32\nEndpoint = late.example:51999\n")
    hosts = pod.folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    pod.pod.run("mount", "--bind", str(hosts), "/etc/hosts")
    pod.up()
    pod.wait_code("200")
    for address in ("198.51.100.33", "198.51.100.44"):
        hosts.write_text(f"127.0.0.1 localhost\n{address} late.example\n")
        poll(
            lambda: pod.pod.run("wg", "show", "wg0", "endpoints").stdout,
            until=lambda t, address=address: f"{address}:51999" in t,
            deadline=60,
        )


def test_without_a_door_the_evidence_is_weaker_and_says_so(pod):
    """--door never: evidence `model`; with strategy off and a tunnel's default route it names reply-into-tunnel."""
    pod.up("--door", "never", "--strategy", "off")
    pod.wait_code("200")
    verdict = pod.verdict()
    assert verdict["evidence"] == "model"
    assert "over lo" in next(c["evidence"] for c in verdict["checks"] if c["name"] == "handshake-ipv4")
    assert "proto 87" not in pod.pod.run("ip", "rule").stdout
    assert "wicketgate-door" not in pod.pod.run("nft", "list", "tables").stdout
    pod.pod.run("ip", "route", "add", "default", "dev", "wg0", "table", "51820")
    pod.pod.run("ip", "rule", "add", "not", "fwmark", "51820", "table", "51820")
    pod.pod.run("ip", "rule", "add", "table", "main", "suppress_prefixlength", "0")
    pod.wait_cause("reply-into-tunnel")
    pod.pod.run("ip", "rule", "del", "table", "51820")
    pod.wait_code("200")
    assert pod.stop() == 0
