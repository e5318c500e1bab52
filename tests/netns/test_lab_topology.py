# SPDX-License-Identifier: Apache-2.0
"""The lab's hosts and wires, and that they come and go without a trace."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import unique
from wicketgate.cli import app
from wicketgate.errors import InputError, StateError
from wicketgate.lab import state
from wicketgate.lab.pod import Container, Rights, program
from wicketgate.lab.shapes import Cni
from wicketgate.lab.topology import CHECKERS, CHECKERS6, CLIENT, CLIENT6, INTERNET, INTERNET6, VIP, VIP6, Lab, Plan

WICKET = [sys.executable, "-m", "wicketgate", "lab"]


@pytest.fixture(autouse=True)
def labs(tmp_path, monkeypatch):
    """Records of the test's own; whatever stands at its end is ended."""
    monkeypatch.setenv("WICKET_LAB_DIR", str(tmp_path / "labs"))
    yield
    for name in state.names():
        state.sweep(name)


def new(cni=Cni.BRIDGE, gateways=1, **options):
    return Lab.up(Plan(unique("l"), cni, gateways), **options)


def cli(*arguments):
    """One command, in this process where it can be: starting an interpreter costs more than most of them do."""
    if arguments[0] == "exec":
        return subprocess.run([*WICKET, *arguments], capture_output=True, text=True, timeout=60, check=False)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = app.run(["lab", *arguments])
        except SystemExit as stop:  # cyclopts has printed what was wrong
            code = InputError.exit_code if stop.code else 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def holders(name):
    return dict(state.holders(name))


def until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def root_network():
    """Everything of the machine's own namespace that a lab could have touched."""
    commands = ["ip -o link", "ip -o addr"]
    commands += [f"ip -{family} {what}" for family in (4, 6) for what in ("rule", "route show table all")]
    text = [
        subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout
        for command in [*commands, "nft list ruleset", "ip netns list", "cat /proc/sys/net/ipv4/conf/*/rp_filter"]
    ]
    # Addresses of the machine may have lifetimes that count down.
    return [" ".join(line.split("valid_lft")[0].split()) for block in text for line in block.splitlines()]


@pytest.mark.parametrize("cni", list(Cni))
def test_everybody_reaches_whom_they_must_in_both_families(cni):
    """Client, load balancer, nodes and pods on both nodes reach each other as on a real network."""
    with new(cni, 2) as lab:
        pod1, pod2 = lab.plan.pod(1), lab.plan.pod(2)
        wanted = [
            ("client", VIP, VIP6),
            ("client", INTERNET.ip, INTERNET6.ip),
            ("client", pod1.v4.ip, pod1.v6.ip),
            ("nlb", pod1.v4.ip, pod1.v6.ip),
            ("nlb", pod2.v4.ip, pod2.v6.ip),
            ("node1", pod1.v4.ip, pod1.v6.ip),
            ("node2", pod1.v4.ip, pod1.v6.ip),
            ("pod1", pod2.v4.ip, pod2.v6.ip),
            ("pod2", CLIENT.ip, CLIENT6.ip),
            ("pod1", INTERNET.ip, INTERNET6.ip),
            *(("pod2", a, b) for a, b in zip(CHECKERS, CHECKERS6, strict=True)),
        ]
        for host, v4, v6 in wanted:
            for address in (v4, v6) if lab.v6 else (v4,):
                lab[host].run("ping", "-n", "-c1", "-W5", str(address))


@pytest.mark.parametrize("cni", list(Cni))
def test_a_pod_sees_the_clients_address_and_answers_by_way_of_the_balancer(cni):
    """No host on the way translates, and the pod's way back to the client goes through nlb."""
    with new(cni) as lab:
        address = str(lab.plan.pod(1).v4.ip)
        with lab["pod1"].call(lambda: socket.create_server((address, 7))) as server:
            connection = lab["client"].call(lambda: socket.create_connection((address, 7), 5))
            with connection, server.accept()[0] as accepted:
                assert accepted.getpeername()[0] == str(CLIENT.ip)
        # With forwarding off at the balancer, and only there, nothing comes back.
        lab["nlb"].run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
        assert lab["pod1"].run("ping", "-n", "-c1", "-W1", str(CLIENT.ip), check=False).returncode != 0


def test_the_bridge_shape_is_the_one_of_kind_and_flannel():
    """podIP/24, default by .1, and the kubelet's probe comes from that .1."""
    with new(Cni.BRIDGE) as lab:
        routes = lab["pod1"].run("ip", "-4", "route").stdout
        assert "default via 10.244.1.1 dev eth0" in routes
        assert "10.244.1.0/24 dev eth0" in routes
        assert probe_source(lab) == "10.244.1.1"


def test_the_vpc_shape_is_the_one_of_amazon_vpc_cni():
    """podIP/32, default by 169.254.1.1 with a permanent neighbour, no address on the node's end; the kubelet's probe
    comes from the node's primary address.
    """
    with new(Cni.VPC) as lab:
        routes = lab["pod1"].run("ip", "-4", "route").stdout.splitlines()
        assert [route.strip() for route in routes] == [
            "default via 169.254.1.1 dev eth0",
            "169.254.1.1 dev eth0 scope link",
        ]
        assert "PERMANENT" in lab["pod1"].run("ip", "neighbour", "show", "169.254.1.1").stdout
        end = lab.plan.pod(1).node_end
        assert lab["node1"].run("ip", "-4", "addr", "show", "dev", end).stdout == ""
        assert "10.0.16.11 dev veth1 scope link" in lab["node1"].run("ip", "-4", "route").stdout
        assert probe_source(lab) == "10.0.0.11"


def probe_source(lab):
    """Whom the pod sees when its node connects."""
    address = str(lab.plan.pod(1).v4.ip)
    with lab["pod1"].call(lambda: socket.create_server((address, 7))) as server:
        connection = lab["node1"].call(lambda: socket.create_connection((address, 7), 5))
        with connection, server.accept()[0] as accepted:
            return accepted.getpeername()[0]


def test_the_machines_own_network_is_untouched():
    """Links, addresses, rules, routes, firewall and named namespaces are the same before, during and after."""
    before = root_network()
    with new(Cni.VPC, 2):
        assert root_network() == before
    assert root_network() == before


def test_two_labs_live_side_by_side_with_the_same_addresses():
    """The one's pod is not the other's, and ending one leaves the other alone."""
    with new() as one:
        with new() as two:
            two["pod1"].run("ip", "link", "set", "eth0", "down")
            one["client"].run("ping", "-n", "-c1", "-W5", str(one.plan.pod(1).v4.ip))
            gone = two["client"].run("ping", "-n", "-c1", "-W1", str(two.plan.pod(1).v4.ip), check=False)
            assert gone.returncode != 0
        one["client"].run("ping", "-n", "-c1", "-W5", str(one.plan.pod(1).v4.ip))


def test_a_name_is_taken_once():
    """A second lab of the same name is refused, and the first one lives on."""
    with new() as lab:
        with pytest.raises(InputError, match="is up already"):
            Lab.up(lab.plan)
        lab["client"].run("true")


@pytest.mark.parametrize("cni", list(Cni))
def test_a_pod_made_anew_is_reached_at_once(cni):
    """No stale neighbour, route or interface name stands in the way, and the old pod's processes are gone."""
    with new(cni) as lab:
        echo = Container.start(lab, "pod1", "echo", program("echo", "9000", "hello"))
        lab.replace_pod(1)
        assert echo.wait(5) == -signal.SIGKILL
        for host in ("client", "node1"):
            lab[host].run("ping", "-n", "-c1", "-W5", str(lab.plan.pod(1).v4.ip))
        assert [each.what for each in lab.record.processes] == []


@pytest.mark.parametrize(
    ("rights", "uid", "capabilities"),
    [(Rights.NET_ADMIN, 0, 1 << 12), (Rights.NONE, 65534, 0)],
)
def test_containers_have_the_rights_of_their_kind_and_read_only_mounts(rights, uid, capabilities):
    """Effective and bounding capabilities, uid, no_new_privs; /proc/sys and / cannot be written, the program runs."""
    code = (
        "import wicketgate, os; print(os.getuid());"
        "print(*[l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))], sep='', end='');"
        "r = [os.access(p, os.W_OK) for p in ('/', '/proc/sys/net/ipv4/ip_forward')]; print(r)\n"
        "try: open('/proc/sys/net/ipv4/conf/all/rp_filter', 'w').write('0')\n"
        "except OSError as e: print(e.errno)"
    )
    with new() as lab:
        container = Container.start(lab, "pod1", "show", [sys.executable, "-c", code], rights=rights)
        assert container.wait(20) == 0, container.output()
        lines = container.output().split("\n")
        assert lines[0] == str(uid)
        assert {int(line.split()[1], 16) for line in lines[1:4] if line.startswith("Cap")} == {capabilities}
        assert "NoNewPrivs:\t1" in lines
        assert "[False, False]" in lines
        assert lines[-2] in {"30", "13"}  # EROFS; EACCES for who may not even try


class TestCommands:
    """`wicket lab up | status | exec | down` as a person types them."""

    def test_a_lab_stays_until_it_is_taken_down(self):
        """up, then three commands of their own, then nothing is left."""
        name = unique("l")
        assert cli("up", "--cni", "vpc", "--bare", "--name", name).returncode == 0
        status = json.loads(cli("status", "--json", "--name", name).stdout)
        assert status["cni"] == "vpc"
        assert {each["name"] for each in status["hosts"]} == {"client", "internet", "nlb", "node1", "node2", "pod1"}
        assert all(each["alive"] for each in status["hosts"])
        inside = cli("exec", "--name", name, "pod1", "--", "ip", "-4", "-o", "addr", "show", "dev", "eth0")
        assert "10.0.16.11/32" in inside.stdout
        assert cli("exec", "--name", name, "pod1", "--", "sh", "-c", "exit 7").returncode == 7
        down = cli("down", "--name", name)
        assert (down.returncode, "pod1" in down.stdout) == (0, True)
        assert holders(name) == {}
        assert state.names() == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["status"], "no lab"),
            (["exec", "client", "--", "true"], "no lab"),
            (["up", "--gateways", "0"], "1 to 40"),
            (["up", "--name", "../x"], "--name"),
            (["up", "--cni", "calico"], "bridge"),
            (["run", "nosuch"], "there are: seed, drain, reload"),
        ],
    )
    def test_bad_usage_is_told_and_makes_nothing(self, arguments, words):
        """Exit code 2, one sentence, no host."""
        done = cli(*arguments)
        assert done.returncode == 2
        assert words in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        assert state.names() == []

    def test_down_of_nothing_is_no_error(self):
        """It says that there was nothing."""
        done = cli("down", "--name", unique("l"))
        assert (done.returncode, "nothing to end" in done.stdout) == (0, True)

    @pytest.mark.parametrize(
        ("number", "after"), [(signal.SIGINT, 1), (signal.SIGINT, 4), (signal.SIGTERM, 2), (signal.SIGHUP, 6)]
    )
    def test_an_interrupted_up_leaves_nothing(self, number, after):
        """Whenever it is interrupted: after its first host, in the middle, at the end."""
        name = unique("l")
        process = subprocess.Popen([*WICKET, "up", "--bare", "--name", name], stderr=subprocess.DEVNULL)
        until(lambda: len(holders(name)) >= after or process.poll() is not None)
        process.send_signal(number)
        code = process.wait(20)
        if code == 0:  # it was done before the signal came; then the lab stands, whole
            assert len(holders(name)) == 6
            return
        assert code == 130
        assert holders(name) == {}
        assert state.names() == []

    def test_down_cleans_what_a_killed_up_left(self):
        """Kill -9 in the middle of `up`: the holders stay, without a whole record, and `down` ends them."""
        name = unique("l")
        process = subprocess.Popen([*WICKET, "up", "--bare", "--name", name], stderr=subprocess.DEVNULL)
        until(lambda: len(holders(name)) >= 3 or process.poll() is not None)
        process.kill()
        process.wait()
        state.record_path(name).unlink(missing_ok=True)  # the worst case: nothing was written down
        assert holders(name)
        assert cli("down", "--name", name).returncode == 0
        until(lambda: holders(name) == {})

    def test_down_ends_the_processes_of_a_host_whose_holder_was_killed(self):
        """A holder that was killed takes nothing with it; the record knows what ran there."""
        lab = new(keep=True)
        echo = Container.start(lab, "pod1", "echo", program("echo", "9000", "hello"))
        echo.wait_for("listening")
        os.kill(lab["pod1"].pid, signal.SIGKILL)
        with pytest.raises(StateError, match="lab down"):
            until(lambda: not Path(f"/proc/{lab.record.hosts[-1].holder.pid}/ns/net").exists())
            Lab.open(lab.plan.name)["pod1"]
        assert cli("down", "--name", lab.plan.name).returncode == 0
        assert echo.wait(5) == -signal.SIGKILL

    def test_a_killed_run_takes_its_lab_with_it_and_down_removes_its_record(self):
        """Kill -9 of `run`: every namespace goes by itself; the record that stays is an orphan and is swept."""
        process = subprocess.Popen([*WICKET, "run", "seed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        name = f"seed-{process.pid}"
        until(lambda: len(holders(name)) == 6, 30)
        pids = [each.pid for each in holders(name).values()]
        process.kill()
        process.wait()
        until(lambda: not any(os.path.exists(f"/proc/{pid}/ns/net") for pid in pids))
        assert name in state.names()
        assert name in cli("down", "--name", unique("l")).stdout
        assert state.names() == []

    def test_an_interrupted_run_leaves_nothing(self):
        """Ctrl-C in the middle of a scenario: exit code 130, no host, no record, no wireguard-go."""
        process = subprocess.Popen(
            [*WICKET, "run", "seed"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        name = f"seed-{process.pid}"
        for line in process.stdout:
            if "wg-quick up wg0" in line:
                break
        pids = [each.pid for each in holders(name).values()]
        inside = [pid for each in holders(name).values() for pid in in_namespace_of(each.pid)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        process.stdout.close()
        assert holders(name) == {}
        until(lambda: not any(os.path.exists(f"/proc/{pid}/ns/net") for pid in [*pids, *inside]))
        assert state.names() == []


def in_namespace_of(pid):
    own = os.readlink(f"/proc/{pid}/ns/net")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/net") == own:
                    yield int(entry.name)


def ordinary_user():
    """The beginning of a command line that runs python as nobody, where an interpreter can be reached by everybody."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    paths = [path for path in sys.path if path and os.path.isdir(path)]
    ours = [path for path in paths if "site-packages" in path or path.endswith("/src")]
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [*drop, "env", f"PYTHONPATH={':'.join(ours)}", "PYTHONDONTWRITEBYTECODE=1", python]
        tried = subprocess.run([*command, "-c", "import wicketgate.cli.lab"], cwd="/", capture_output=True, check=False)
        if tried.returncode == 0:
            return command
    return None


def test_an_ordinary_user_has_a_lab_where_user_namespaces_are_allowed(tmp_path_factory):
    """up, exec and down in three commands; the second and the third join the user namespace of the first."""
    command = ordinary_user()
    if command is None:
        pytest.skip("no interpreter that everybody can reach")
    if subprocess.run([*command[:4], "unshare", "-Urn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    name = unique("l")
    folder = Path(f"/tmp/{name}")
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    try:
        environment = {**os.environ, "WICKET_LAB_DIR": str(folder), "HOME": "/"}

        def as_user(*arguments):
            return subprocess.run(
                [*command, "-m", "wicketgate", "lab", *arguments],
                cwd="/", env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip

        done = as_user("up", "--bare", "--cni", "vpc", "--name", name)
        assert done.returncode == 0, done.stderr
        pinged = as_user("exec", "--name", name, "client", "--", "ping", "-n", "-c1", "-W5", "10.0.16.11")
        assert pinged.returncode == 0, pinged.stderr
        down = as_user("down", "--name", name)
        assert "pod1" in down.stdout, down.stderr
        assert list(folder.iterdir()) == []
    finally:
        as_user("down", "--name", name)
        folder.rmdir()
