# SPDX-License-Identifier: Apache-2.0
"""`wicket up` with real packets: CAP_NET_ADMIN alone, a client outside, and somebody who keeps changing things."""

from __future__ import annotations

import signal
import subprocess

import pytest

from netns.agents import NET_ADMIN_ONLY, AgentPod, keys, poll


@pytest.fixture(params=["bridge", "vpc"])
def pod(request, tmp_path):
    with AgentPod(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def bridge(tmp_path):
    with AgentPod("bridge", tmp_path) as made:
        yield made


def test_a_client_is_served_and_nothing_stays_behind(pod):
    """Green by the door, a real client pings the gateway; after SIGTERM the pod is as it was before."""
    before = pod.state()
    line = pod.up()
    assert (
        line
        == f"wg0: health at http://{pod.net.pod4}:8080/healthz http://[{pod.net.pod6}]:8080/healthz, tcp port 9000 open while that is 200"
    )
    pod.wait_code("200")
    verdict = pod.verdict()
    assert verdict["evidence"] == "door"
    assert verdict["backend"] == "userspace"
    assert {"handshake-ipv4", "tunnel-ipv4", "balancer-ipv4", "handshake-ipv6"} <= {
        c["name"] for c in verdict["checks"]
    }
    pod.client_up()
    poll(pod.client_pings, message="client's ping")
    assert pod.code(family=6) == "200"
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    assert pod.stop() == 0
    assert pod.state() == before


def test_a_server_forwards_and_translates_but_takes_no_default(pod):
    """A client reaches a network beyond the uplink, seen there with the pod's address; its /0 claim routes nothing."""
    pod.write(allowed="10.8.0.2/32, 0.0.0.0/0, ::/0")
    pod.net.node.run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
    pod.up("--level", "egress")
    pod.wait_code("200")
    assert "egress-ipv4" in {c["name"] for c in pod.verdict()["checks"]}
    pod.client_up()
    poll(lambda: pod.client_pings("10.99.0.1"), message="ping beyond")
    assert "default dev wg0" not in pod.pod.run("ip", "route", "show", "table", "all").stdout
    assert "claims 0.0.0.0/0" in pod.log.read_text()


def test_what_others_remove_is_put_back(bridge):
    """Rules, tables, addresses, link, peers, port and the device itself: each is repaired, each is counted."""
    pod = bridge
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    run = pod.pod.run

    def rules() -> str:
        return run("ip", "rule").stdout

    run("ip", "rule", "del", "from", str(pod.net.pod4))
    poll(rules, until=lambda text: f"from {pod.net.pod4} lookup main proto 87" in text)
    run("nft", "flush", "ruleset")
    poll(lambda: run("nft", "list", "ruleset").stdout, until=lambda t: "masquerade" in t and "wicketgate-door" in t)
    run("ip", "addr", "flush", "dev", "wg0", "scope", "global")
    poll(lambda: run("ip", "addr", "show", "dev", "wg0").stdout, until=lambda t: "10.8.0.1/24" in t)
    run("ip", "link", "set", "wg0", "down")
    poll(lambda: run("ip", "link", "show", "dev", "wg0").stdout, until=lambda t: ",UP" in t)
    # A client's peer alone: nothing tells of it and no probe fails, so the device is looked at now and then.
    run("wg", "set", "wg0", "peer", pod.client_public, "remove")
    poll(lambda: run("wg", "show", "wg0", "peers").stdout, until=lambda t: pod.client_public in t)
    run("wg", "set", "wg0", "peer", pod.client_public, "remove")
    for key in run("wg", "show", "wg0", "peers").stdout.split():
        run("wg", "set", "wg0", "peer", key, "remove")
    poll(
        lambda: run("wg", "show", "wg0", "peers").stdout, until=lambda t: pod.client_public in t and len(t.split()) == 2
    )
    run("wg", "set", "wg0", "listen-port", "4444")
    poll(lambda: run("wg", "show", "wg0", "listen-port").stdout.strip(), until=lambda t: t == "51820")
    pod.wait_code("200")
    run("ip", "link", "del", "wg0")
    poll(lambda: run("wg", "show", "wg0", check=False).stdout, until=lambda t: pod.client_public in t)
    pod.wait_code("200")
    pod.client_redial()
    poll(pod.client_pings)
    metrics = pod.client.run("curl", "-s", f"http://{pod.net.pod4}:8080/metrics").stdout
    for kind in ("rule", "nft", "address", "link", "device"):
        assert f'wicketgate_repairs_total{{kind="{kind}"}}' in metrics, kind
    assert pod.private not in metrics
    assert pod.private not in pod.log.read_text()


def test_rules_that_wg_quick_adds_later_do_not_come_first(bridge):
    """`ip rule add` without a priority goes before ours; the pin moves in front of it and health stays true."""
    pod = bridge
    pod.up()
    pod.wait_code("200")
    pod.pod.run("ip", "route", "add", "default", "dev", "wg0", "table", "51820")
    pod.pod.run("ip", "rule", "add", "not", "fwmark", "51820", "table", "51820")
    pod.pod.run("ip", "rule", "add", "table", "main", "suppress_prefixlength", "0")

    def priorities() -> dict[str, int]:
        lines = [line.split(":", 1) for line in pod.pod.run("ip", "rule").stdout.splitlines()]
        return {text.strip(): int(number) for number, text in lines}

    poll(
        priorities,
        until=lambda p: (
            p.get(f"from {pod.net.pod4} lookup main proto 87", 99999)
            < p["from all lookup main suppress_prefixlength 0"]
        ),
    )
    pod.wait_code("200")


def test_kill_9_is_taken_over_and_the_session_survives(bridge):
    """After kill -9 the tunnel goes on; the next start takes it over and drops nobody but the old probe and who was struck out."""
    pod = bridge
    _, struck_out = keys()
    pod.write(extra=f"\n[Peer]\nPublicKey = {struck_out}\nAllowedIPs = 10.8.0.3/32\n")
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    pod.stop(signal.SIGKILL)
    assert pod.client_pings()
    pod.write()
    handshake = pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout
    endpoint = next(
        x for x in pod.pod.run("wg", "show", "wg0", "endpoints").stdout.splitlines() if pod.client_public in x
    )
    pod.up()
    pod.wait_code("200")
    assert pod.client_pings()
    assert endpoint in pod.pod.run("wg", "show", "wg0", "endpoints").stdout
    assert (
        next(x for x in handshake.splitlines() if pod.client_public in x)
        in pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout
    )
    assert len(pod.pod.run("wg", "show", "wg0", "peers").stdout.split()) == 2
    assert len([x for x in pod.pod.run("nft", "list", "tables").stdout.splitlines() if "door" in x]) == 2
    assert pod.stop() == 0
    assert "87" not in pod.pod.run("ip", "rule").stdout
    assert pod.pod.run("nft", "list", "ruleset").stdout == ""


def test_a_take_over_that_fails_leaves_the_tunnel_serving(bridge):
    """After kill -9 somebody takes the health port: the next start says so and ends, and the client is still served."""
    pod = bridge
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    pod.stop(signal.SIGKILL)
    holder = pod.pod.popen("nc", "-l", "-k", "-p", "8080", stdout=subprocess.DEVNULL)
    poll(lambda: ":1F90" in pod.pod.run("cat", "/proc/self/net/tcp").stdout)
    pod.up()
    assert pod.process is not None
    assert pod.process.wait(timeout=20) == 3
    assert pod.client_pings()
    holder.kill()
    holder.wait()
    pod.up()
    pod.wait_code("200")
    assert pod.client_pings()


def test_reload_applies_the_difference_and_a_bad_file_changes_nothing(bridge):
    """A peer comes, another goes, the third keeps its session; a broken file is refused with its line."""
    pod = bridge
    _, other = keys()
    _, third = keys()
    pod.write(extra=f"\n[Peer]\nPublicKey = {other}\nAllowedIPs = 10.8.0.3/32\n")
    pod.up()
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    before = pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout
    pod.write(extra=f"\n[Peer]\nPublicKey = {third}\nAllowedIPs = 10.8.0.4/32, 10.50.0.0/16\n")
    poll(lambda: pod.pod.run("wg", "show", "wg0", "peers").stdout, until=lambda t: third in t and other not in t)
    poll(lambda: pod.pod.run("ip", "route").stdout, until=lambda t: "10.50.0.0/16 dev wg0 proto 87" in t)
    line = next(x for x in before.splitlines() if pod.client_public in x)
    assert line in pod.pod.run("wg", "show", "wg0", "latest-handshakes").stdout
    assert pod.client_pings()
    pod.conf.write_text("[Interface]\nPrivateKey = nonsense\n")
    assert pod.process is not None
    pod.process.send_signal(signal.SIGHUP)
    poll(lambda: pod.log.read_text(), until=lambda t: "is not taken" in t and f"{pod.conf}:2" in t)
    assert third in pod.pod.run("wg", "show", "wg0", "peers").stdout
    pod.wait_code("200")


def test_hooks_run_in_order_and_a_failing_one_leaves_nothing(bridge):
    """PreUp to PostDown with %i replaced; a PostUp that fails rolls everything back and names itself."""
    pod = bridge
    trace = pod.folder / "trace"
    pod.write(
        interface="".join(
            f"{kind} = echo {kind} %i $(ip -br link show dev %i 2>/dev/null | wc -l) >> {trace}\n"
            for kind in ("PreUp", "PostUp", "PreDown", "PostDown")
        )
    )
    pod.up()
    pod.wait_code("200")
    assert pod.stop() == 0
    assert trace.read_text().splitlines() == ["PreUp wg0 0", "PostUp wg0 1", "PreDown wg0 1", "PostDown wg0 0"]
    before = pod.state()
    pod.write(interface="PostUp = echo broken >&2; exit 7\n")
    pod.up()
    assert pod.process is not None
    assert pod.process.wait(timeout=20) == 3
    assert "PostUp = echo broken >&2; exit 7: exit code 7: broken" in pod.log.read_text()
    assert pod.state() == before


def test_the_second_agent_is_refused(bridge):
    """One tunnel has one agent: the second says so and touches nothing; the first goes on."""
    pod = bridge
    pod.up()
    pod.wait_code("200")
    done = pod.pod.run(*NET_ADMIN_ONLY, _wicket(), "up", str(pod.conf), "--health-port", "8081", check=False)
    assert done.returncode == 3
    assert "another wicket is in charge of wg0" in done.stderr
    assert pod.code() == "200"


def _wicket() -> str:
    from netns.agents import WICKET

    return WICKET


def test_the_agent_needs_only_cap_net_admin_and_writes_nowhere(bridge):
    """With /proc/sys and the whole root file system read-only, and CAP_NET_ADMIN alone, a client is served."""
    pod = bridge
    pod.write()
    pod.pod.run("sysctl", "-qw", "net.ipv4.conf.all.forwarding=0")
    read_only = (
        "unshare", "--mount", "sh", "-c",
        "mount --bind / / && mount -o remount,bind,ro / && mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
        ' && mount -t tmpfs tmpfs /run/wireguard && ! touch /root/x 2>/dev/null && ! sh -c "echo 1 > /proc/sys/net/ipv4/ip_forward" 2>/dev/null'
        ' && exec "$@"', "sh",
    )  # fmt: skip
    pod.net.node.run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
    pod.start("up", str(pod.conf), "--probe-interval", "0.2", "--drain", "0", "--level", "egress", wrap=read_only)
    pod.wait_code("200")
    pod.client_up()
    poll(lambda: pod.client_pings("10.99.0.1"), message="forwarded ping")
    assert pod.stop() == 0


def test_drain_fails_health_first_and_goes_on_serving(bridge):
    """After SIGTERM /healthz is 503 and the TCP port refuses, /readyz stays 200 and the client's pings go on."""
    pod = bridge
    pod.write()
    pod.start("up", str(pod.conf), "--probe-interval", "0.2", "--drain", "60")
    pod.wait_code("200")
    pod.client_up()
    poll(pod.client_pings)
    assert pod.process is not None
    pod.process.send_signal(signal.SIGTERM)
    pod.wait_code("503")
    assert pod.verdict()["draining"] is True
    assert pod.code("/readyz") == "200"
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 1
    assert pod.client_pings()
    assert pod.stop() == 0  # the second SIGTERM leaves at once


def test_without_the_right_it_says_so(bridge):
    """No CAP_NET_ADMIN: exit code 3, one sentence, nothing touched."""
    pod = bridge
    pod.write()
    before = pod.state()
    done = pod.pod.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", _wicket(), "up", str(pod.conf), check=False)
    assert done.returncode == 3
    assert "CAP_NET_ADMIN" in done.stderr
    assert "Traceback" not in done.stderr
    assert pod.state() == before


def test_a_name_that_belongs_to_something_else_is_left_alone(bridge):
    """An interface of another kind with our name: an error that names it, and the interface is as it was."""
    pod = bridge
    pod.write()
    pod.pod.run("ip", "link", "add", "wg0", "type", "bridge")
    done = pod.pod.run(*NET_ADMIN_ONLY, _wicket(), "up", str(pod.conf), check=False)
    assert done.returncode == 3
    assert "wg0" in done.stderr
    assert "bridge" in done.stderr
    assert "wg0" in pod.pod.run("ip", "-br", "link").stdout


def test_a_foreign_wireguard_device_is_not_taken_over(bridge):
    """wg-quick's own wg0 with another key is somebody else's: the gateway refuses and points at the sidecar."""
    pod = bridge
    pod.write()
    pod.pod.run("sh", "-c", "wireguard-go wg0 >/dev/null 2>&1")
    foreign, _ = keys()
    pod.pod.run("wg", "set", "wg0", "private-key", "/dev/stdin", stdin=foreign)
    done = pod.pod.run(*NET_ADMIN_ONLY, _wicket(), "up", str(pod.conf), check=False)
    assert done.returncode == 3
    assert "wicket sidecar" in done.stderr
    assert pod.pod.run("wg", "show", "wg0", "private-key").stdout.strip() == foreign


def test_a_busy_health_port_is_named_with_its_holder(bridge):
    """Port 8080 taken: exit code 3 with port and holder, and nothing of the attempt is left."""
    pod = bridge
    pod.write()
    holder = pod.pod.popen("nc", "-l", "-k", "-p", "8080", stdout=subprocess.DEVNULL)
    poll(
        lambda: (
            "8080" in pod.pod.run("cat", "/proc/self/net/tcp").stdout
            or ":1F90" in pod.pod.run("cat", "/proc/self/net/tcp").stdout
        )
    )
    before = pod.state()
    pod.up()
    assert pod.process is not None
    assert pod.process.wait(timeout=20) == 3
    assert "8080" in pod.log.read_text()
    assert pod.state() == before
    holder.kill()
    holder.wait()
