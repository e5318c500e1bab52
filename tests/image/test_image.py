# SPDX-License-Identifier: Apache-2.0
"""The container image, built here and run with the rights that deploy/ asks for, as gateway and as sidecar."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from image.containers import ContainerPod, built_image
from netns.agents import poll

pytestmark = pytest.mark.timeout(900)  # the first build makes a Debian; the others take half a minute
CAP_NET_ADMIN = 1 << 12  # linux/capability.h


@pytest.fixture(scope="session")
def image():
    with built_image() as made:
        yield made


@pytest.fixture(params=["bridge", "vpc"])
def pod(request, image, tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    with ContainerPod(request.param, tmp_path, image[0]) as made:
        made.conf = conf / "wg0.conf"
        yield made


def first_200(pod: ContainerPod) -> None:
    """Wait for green and print how long it took from the runtime's start."""
    pod.wait_code("200")
    print(f"\n{pod.net.shape}: {time.monotonic() - pod.started:.2f} s from `runc run` to the first 200")


def rights(pod: ContainerPod) -> dict[str, str]:
    """What the kernel says of the container's first process."""
    done = pod.execute("cat", "/proc/1/status")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_gateway_serves_a_client_with_one_right_and_a_read_only_root(pod):
    """`wicket up` with CAP_NET_ADMIN alone: green from outside, a client served, hooks run; after SIGTERM nothing is left."""
    pod.write(interface="PostUp = ip link show dev %i | grep -q UP || exit 9; sleep 0\n")
    before = pod.state()
    line = pod.run_image("up", "/etc/wireguard/wg0.conf", "--probe-interval", "0.2", "--drain", "0", "--log", "json")
    assert line.startswith(f"wg0: health at http://{pod.net.pod4}:8080/healthz")
    first_200(pod)
    assert pod.verdict()["evidence"] == "door"
    pod.client_up()
    poll(pod.client_pings, message="client's ping")
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    status = rights(pod)
    assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd")} == {CAP_NET_ADMIN}
    assert status["Seccomp"] == "2"  # a filter
    assert (status["NoNewPrivs"], int(status["CapInh"], 16), int(status["CapAmb"], 16)) == ("1", 0, 0)
    assert "Read-only" in pod.execute("touch", "/here").stderr
    assert "Read-only" in pod.execute("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward").stderr
    # The log is JSON, line by line, and says nothing of a cache or a file that could not be written.
    lines = [json.loads(line) for line in pod.log.read_text().splitlines()]
    assert lines
    assert not [line for line in lines if line.get("level") == "error"]
    assert pod.stop() == 0
    assert pod.state() == before


def test_the_sidecar_turns_the_broken_pod_green(pod):
    """Beside wg-quick with a /0 peer, with the arguments of the echo that stood there: green by the door, a client served, no trace after."""
    pod.write(allowed="10.8.0.2/32, 0.0.0.0/0")
    pod.pod.run("wg-quick", "up", str(pod.conf))
    before = pod.state()
    pod.run_image("9000", "hello", environment={"WICKET_PROBE_INTERVAL": "0.2", "WICKET_DRAIN": "0"})
    first_200(pod)
    verdict = pod.verdict()
    assert (verdict["evidence"], verdict["level"], verdict["backend"]) == ("door", "tunnel", "userspace")
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    pod.client_up()
    poll(pod.client_pings, message="client's ping")
    assert int(rights(pod)["CapEff"], 16) == CAP_NET_ADMIN
    assert pod.stop() == 0
    assert pod.state() == before
    assert pod.client_pings()


def test_the_sidecar_without_any_right_answers_the_balancer(pod):
    """As uid 65534 with no capability and --level port: the balancer gets 200 and TCP 9000; nothing in the pod is changed."""
    pod.write(allowed="10.8.0.2/32, 0.0.0.0/0")
    pod.pod.run("wg-quick", "up", str(pod.conf))
    before = pod.state()
    pod.run_image(
        "sidecar", "9000", "hello", "--level", "port", "--probe-interval", "0.2", "--drain", "0",
        uid=65534, capabilities=(),
    )  # fmt: skip
    first_200(pod)
    verdict = pod.verdict()
    assert (verdict["level"], verdict["evidence"]) == ("port", "port")
    assert pod.client.run("nc", "-z", "-w2", str(pod.net.pod4), "9000", check=False).returncode == 0
    pod.client_up()
    poll(pod.client_pings, message="client's ping")
    status = rights(pod)
    assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert status["Uid"].split() == ["65534"] * 4
    assert pod.state() == before
    assert pod.stop() == 0
    assert pod.state() == before


def test_the_image_holds_what_runs_and_nothing_else(image):
    """No package manager, compiler, pip, test or setuid file; every module has its bytecode; below 150 MB."""
    root, config = image
    assert config["Entrypoint"] == ["wicket"]
    assert config["User"] == "0:0"
    size, uncompiled, special = 0, [], []
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            size += info.st_size if stat.S_ISREG(info.st_mode) else 0
            if info.st_mode & (stat.S_ISUID | stat.S_ISGID):
                special.append(path)
            if name.endswith(".py") and "/python3" in folder:
                cache = os.path.join(folder, "__pycache__")
                if not any(each.startswith(f"{name[:-3]}.cpython-") for each in _listed(cache)):
                    uncompiled.append(path)
    print(f"\n{size / 1e6:.0f} MB of files")
    programs = {name for each in ("usr/bin", "usr/sbin", "usr/local/bin") for name in _listed(root / each)}
    assert {"wicket", "nft", "wireguard-go", "getent", "bash", "sh", "cat", "grep", "ip", "sleep"} <= programs
    assert not programs & {"apt", "apt-get", "dpkg", "pip", "pip3", "uv", "gcc", "cc", "perl", "wget", "su", "mount"}
    (packages,) = (root / "usr/local/lib").glob("python3.*/dist-packages")
    assert not set(_listed(packages)) & {"pip", "setuptools", "pytest", "hypothesis", "mypy", "ruff", "virtme", "bin"}
    assert not [path for path in packages.glob("wicketgate/**/*") if "test" in path.name]
    assert not special
    assert not uncompiled
    assert size < 150e6
    version = subprocess.run(["chroot", root, "wicket", "--version"], capture_output=True, text=True, check=False)
    assert version.returncode == 0, version.stderr


def _listed(folder: str | Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
