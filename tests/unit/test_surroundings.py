# SPDX-License-Identifier: Apache-2.0
"""What a pod was told of its cluster, from its own files."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from wicketgate.kernel import surroundings
from wicketgate.kernel.surroundings import surroundings_of, told

KUBELET = (
    "search default.svc.cluster.local svc.cluster.local cluster.local",
    "nameserver 10.96.0.10",
    "options ndots:5",
)
API = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_pods_files_tell_resolver_and_api():
    """As kubelet writes them, IPv6 as well."""
    found = told(KUBELET, API)
    assert found.resolvers == (ip_address("10.96.0.10"),)
    assert found.cluster_domain
    assert found.api == (ip_address("10.96.0.1"), 443)
    six = told(("nameserver fd00::a",), {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"})
    assert (six.resolvers, six.api, six.cluster_domain) == (
        (ip_address("fd00::a"),),
        (ip_address("fd00::1"), 6443),
        False,
    )


def test_what_the_c_library_does_not_take_is_left_out():
    """A fourth resolver, comments, words that are no address, a zone."""
    lines = (
        "# nameserver 192.0.2.1",
        "nameserver",
        "nameserver dns.example",
        "nameserver fe80::1%eth0",
        *(f"nameserver 192.0.2.{n}" for n in range(5)),
    )
    assert told(lines, {}).resolvers == (ip_address("fe80::1"), ip_address("192.0.2.0"), ip_address("192.0.2.1"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("HOST", ""), ("HOST", "kubernetes.default"), ("PORT", "tcp://10.0.0.1:443"), ("PORT", "0"), ("PORT", "65536")],
)
def test_variables_that_say_nothing_are_nothing(name, value):
    """KUBERNETES_SERVICE_PORT is a number; a user's service named so may be something else."""
    assert told((), API | {f"KUBERNETES_SERVICE_{name}": value}).api is None


@pytest.mark.parametrize(
    ("pid", "namespaces", "together"),
    [
        ("self", {"self": ("m1", "n1"), "1": ("m1", "n1")}, True),  # a container's own process
        ("self", {"self": ("m1", "n2"), "1": ("m1", "n1")}, False),  # ip netns exec
        ("self", {"self": ("m2", "n2"), "1": ("m1", "n1")}, True),  # a container, seen from it on a host
        ("self", {"self": ("m1", "n1"), "1": (None, None)}, True),  # no right to look at the first process
        ("4711", {"4711": ("m2", "n2"), "self": ("m1", "n1")}, True),  # a pod, seen from its node
        ("4711", {"4711": ("m1", "n2"), "self": ("m1", "n1")}, False),  # a process that was put into a namespace
        ("4711", {"4711": ("m1", "n1"), "self": ("m1", "n1")}, True),
        ("4711", {"4711": (None, None), "self": ("m1", "n1")}, False),
    ],
)
def test_files_speak_for_a_network_namespace_only_where_both_belong_together(monkeypatch, pid, namespaces, together):
    """The host's resolv.conf says nothing about a namespace that `ip netns exec` entered."""
    seen = {who: dict(zip(("mnt", "net"), both, strict=True)) for who, both in namespaces.items()}
    monkeypatch.setattr(surroundings, "_namespaces", lambda who: seen[who])
    assert surroundings._together(pid) is together


def test_a_process_that_is_gone_tells_nothing():
    """No error: the doctor then examines the other flows."""
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    assert surroundings_of(f"pid:{gone}") == surroundings_of("/run/netns/nowhere")
