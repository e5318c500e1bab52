# SPDX-License-Identifier: Apache-2.0
"""The manifests of deploy/: what AWS and Kubernetes would refuse, or take and then fail by, is found here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unit.manifests import load_all
from wicketgate.cli import sidecar as sidecar_command
from wicketgate.config.settings import GatewaySettings, SidecarSettings
from wicketgate.config.wgquick import parse
from wicketgate.wireguard.keys import PrivateKey

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("gateway.yaml", "sidecar.yaml")
PREFIX = "service.beta.kubernetes.io/aws-load-balancer-"


def objects(name: str) -> dict[str, dict]:
    """Kind -> object; one of each."""
    found = {each["kind"]: each for each in load_all(DEPLOY / name)}
    assert len(found) == len(load_all(DEPLOY / name))
    return found


def pod_of(name: str) -> dict:
    return objects(name)["Deployment"]["spec"]["template"]["spec"]


def container_of(name: str) -> dict:
    """Ours."""
    (found,) = [each for each in pod_of(name)["containers"] if "wicketgate" in each["image"]]
    return found


def settings_of(name: str) -> GatewaySettings | SidecarSettings:
    """What the container's arguments come to, read by the commands' own code."""
    arguments = container_of(name)["args"]
    flags = dict(each[2:].replace("-", "_", 1).split("=", 1) for each in arguments if each.startswith("--"))
    words = tuple(each for each in arguments if not each.startswith("--"))
    if words[0] == "up":
        assert words[1:] == ("/etc/wireguard/wg0.conf",)
        return GatewaySettings.load(flags, {})
    return SidecarSettings.load({**flags, "tcp_port": sidecar_command._echo_port(words)}, {})


def annotations(name: str) -> dict[str, str]:
    found = objects(name)["Service"]["metadata"]["annotations"]
    assert all(key.startswith(PREFIX) for key in found)
    assert all(isinstance(value, str) for value in found.values()), "the API server takes text only"
    return {key.removeprefix(PREFIX): value for key, value in found.items()}


@pytest.mark.parametrize("name", FILES)
def test_our_reader_reads_what_kubectl_reads(name):
    """Kubectl's reader, strict about field names, comes to the same objects."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    done = subprocess.run(
        ["kubectl", "annotate", "--local", "-f", DEPLOY / name, "-o", "json", "read-by=kubectl"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decoder, text, theirs = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        each, end = decoder.raw_decode(text)
        each["metadata"]["annotations"].pop("read-by")
        if not each["metadata"]["annotations"]:
            del each["metadata"]["annotations"]
        theirs.append(each)
        text = text[end:].strip()
    for mine, other in zip(load_all(DEPLOY / name), theirs, strict=True):
        assert contained(mine, other) == ""


def contained(mine: object, other: object, where: str = "") -> str:
    """The path of the first difference; fields that kubectl fills in are none."""
    if isinstance(mine, dict):
        assert isinstance(other, dict)
        return next((d for key in mine if (d := contained(mine[key], other.get(key), f"{where}.{key}"))), "")
    if isinstance(mine, list):
        if not isinstance(other, list) or len(mine) != len(other):
            return f"{where}: {mine!r} {other!r}"
        return next(
            (d for i, (a, b) in enumerate(zip(mine, other, strict=True)) if (d := contained(a, b, f"{where}[{i}]"))), ""
        )
    return "" if mine == other else f"{where}: {mine!r} {other!r}"


@pytest.mark.parametrize("name", FILES)
def test_health_check_settings_are_in_the_ranges_of_aws(name):
    """Ranges of the ELBv2 API: interval 5-300 s, timeout 2-120 s and below it, thresholds 2-10, codes 200-599."""
    found = annotations(name)
    assert found["healthcheck-protocol"] in {"tcp", "http", "https"}
    assert 1 <= int(found["healthcheck-port"]) <= 65535
    interval = int(found.get("healthcheck-interval", "10"))  # the controller's defaults
    assert 5 <= interval <= 300
    assert 2 <= int(found.get("healthcheck-timeout", "10")) <= 120
    if "healthcheck-timeout" in found:
        assert int(found["healthcheck-timeout"]) < interval
    for which in ("healthy", "unhealthy"):
        assert 2 <= int(found.get(f"healthcheck-{which}-threshold", "3")) <= 10
    if found["healthcheck-protocol"] == "http":
        assert found["healthcheck-path"] == "/healthz"
        assert found["healthcheck-success-codes"] == "200"
    else:
        assert "healthcheck-path" not in found
        assert "healthcheck-success-codes" not in found
    assert found["nlb-target-type"] == "ip"
    assert found["scheme"] in {"internal", "internet-facing"}


@pytest.mark.parametrize("name", FILES)
def test_target_group_attributes_suit_udp(name):
    """Names that exist, values in range, and none of those that a UDP target group refuses."""
    text = annotations(name).get("target-group-attributes", "")
    found = dict(each.split("=") for each in text.split(",") if each)
    allowed = {
        "deregistration_delay.timeout_seconds": lambda value: 0 <= int(value) <= 3600,
        "deregistration_delay.connection_termination.enabled": lambda value: value in {"true", "false"},
        "preserve_client_ip.enabled": lambda value: value == "true",
        "stickiness.enabled": lambda value: value in {"true", "false"},
    }
    for key, value in found.items():
        assert key in allowed, key
        assert allowed[key](value), f"{key}={value}"


@pytest.mark.parametrize("name", FILES)
def test_ports_agree(name):
    """The balancer's port is where health is served; the Service's ports are the containers'; nothing is sent elsewhere."""
    settings, found, service = settings_of(name), annotations(name), objects(name)["Service"]["spec"]
    served = settings.health_port if found["healthcheck-protocol"] == "http" else settings.tcp_port
    assert int(found["healthcheck-port"]) == served
    ports = {(port["containerPort"], port["protocol"]) for each in pod_of(name)["containers"] for port in each["ports"]}
    assert (served, "TCP") in ports
    for port in service["ports"]:
        assert (port["targetPort"], port["protocol"]) in ports
    assert len({port["port"] for port in service["ports"]}) == len(service["ports"]), "one number, one protocol"
    device = parse(wg_file(name), path="wg0.conf").interface.listen_port
    assert (device, "UDP") in {(port["targetPort"], port["protocol"]) for port in service["ports"]}
    assert service["selector"].items() <= objects(name)["Deployment"]["spec"]["template"]["metadata"]["labels"].items()


def wg_file(name: str) -> str:
    """The Secret's file, with keys in the place of the words that ask for some."""
    text = objects(name)["Secret"]["stringData"]["wg0.conf"]
    return re.sub(r"REPLACE-WITH-[A-Z-]+", lambda _: str(PrivateKey.generate().public()), text)


@pytest.mark.parametrize("name", FILES)
def test_the_drain_fits(name):
    """The balancer sees the failure before the drain ends, and the kubelet waits for its end."""
    found, settings = annotations(name), settings_of(name)
    seen = int(found.get("healthcheck-interval", "10")) * int(found.get("healthcheck-unhealthy-threshold", "3"))
    assert pod_of(name)["terminationGracePeriodSeconds"] >= settings.drain + 10
    if name == "gateway.yaml":
        assert settings.drain >= 2 * seen
        delay = re.search(r"deregistration_delay.timeout_seconds=(\d+)", found["target-group-attributes"])
        assert delay
        assert int(delay[1]) <= settings.drain


@pytest.mark.parametrize("name", FILES)
def test_our_container_has_one_right(name):
    """Everything dropped, NET_ADMIN added, nothing else; read-only root; the namespace's level lets it in."""
    context = container_of(name)["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsUser"] == 0
    assert "privileged" not in context
    assert objects(name)["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert "hostNetwork" not in pod_of(name)


def test_the_gateways_probes_ask_the_right_questions():
    """Liveness never looks at the tunnel, readiness does, and the balancer's own question is not the kubelet's."""
    container = container_of("gateway.yaml")
    paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {container[kind]["httpGet"]["port"] for kind in paths} == {"health"}
    assert named["health"] == settings_of("gateway.yaml").health_port
    mounts, volumes = container["volumeMounts"], pod_of("gateway.yaml")["volumes"]
    assert {each["name"] for each in mounts} == {each["name"] for each in volumes}
    assert {each["mountPath"] for each in mounts} == {"/etc/wireguard", "/run/wireguard"}
    secret = next(each["secret"] for each in volumes if each["name"] == "wg0")
    assert secret == {"secretName": objects("gateway.yaml")["Secret"]["metadata"]["name"], "defaultMode": 0o400}


def test_the_sidecar_takes_the_echos_place_with_its_arguments():
    """Only the image of the healthcheck container is new, and its rights; the TCP port is the echo's."""
    container = container_of("sidecar.yaml")
    assert container["name"] == "healthcheck"
    assert container["args"] == ["9000", "hello"]
    assert settings_of("sidecar.yaml").tcp_port == 9000
    assert "<-- was: istio/tcp-echo-server" in (DEPLOY / "sidecar.yaml").read_text()
