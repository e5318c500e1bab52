# SPDX-License-Identifier: Apache-2.0
"""The rest of the catalogue on the kernel: the fault is real, it is named, the fix as it is shown mends it, its undo brings it back."""

from __future__ import annotations

import socket

import pytest

from netns.doctor_pods import PORT, connects, doctor, flow_to, listener, paste, wg_quick
from netns.pods import PodNet, sysctl

PEER = "10.8.0.2/32"


@pytest.fixture(scope="module")
def pod():
    """A pod behind a bridge with a listener."""
    with PodNet.create("bridge", "fixes") as net, listener(net):
        assert connects(net)
        yield net


@pytest.fixture(scope="module")
def tunnelled(tmp_path_factory):
    """The same with wg-quick's rules and a server's WireGuard of one client."""
    with PodNet.create("bridge", "fixes") as net, listener(net):
        wg_quick(net, tmp_path_factory.mktemp("wg"), "0.0.0.0/0")
        yield net


def mended(net: PodNet, flow, fix) -> None:
    """The fix lets the client in; its undo shuts it out again."""
    assert not connects(net, timeout=0.3)
    paste(net, fix["commands"])
    try:
        assert connects(net)
        assert flow_to(doctor(net)[1])["works"]
    finally:
        paste(net, [undo for undo in fix["undo"] if "handle N" not in undo])


def test_a_lost_mark_is_kept_by_the_setting(tunnelled):
    """A rule marks what comes in by eth0 with the mark that wg-quick leaves out; the listener's answers have none."""
    text = "table inet marks {\n chain c {\n  type filter hook prerouting priority mangle;\n  iifname eth0 meta mark set 0xca6c\n }\n}\n"
    tunnelled.pod.run("nft", "-f", "-", stdin=text)
    try:
        flow = flow_to(doctor(tunnelled)[1])
        assert flow["cause"]["code"] == "mark-lost"
        rules = tunnelled.pod.run("ip", "-4", "rule").stdout.replace("\t", " ")
        assert flow["cause"]["where"] in rules
        fix = next(each for each in flow["fixes"] if each["id"] == "accept-mark")
        assert fix["proved_by"] == ["model", "twin"]
        mended(tunnelled, flow, fix)
    finally:
        tunnelled.pod.run("nft", "delete", "table", "inet", "marks")


def refused_by_rp_filter(net: PodNet) -> int:
    """How many packets the pod's source check has dropped (TcpExtIPReversePathFilter)."""
    names, values = (line.split() for line in net.pod.run("grep", "^TcpExt:", "/proc/net/netstat").stdout.splitlines())
    return int(values[names.index("IPReversePathFilter")])


def test_strict_rp_filter_on_the_clients_own_packets(tunnelled):
    """WireGuard marks its answers, and the check does not: a source rule comes before loosening it, and the kernel agrees."""
    sysctl(tunnelled.pod, "net.ipv4.conf.eth0.rp_filter", "1")
    try:
        flow = flow_to(doctor(tunnelled)[1], port=51820)
        assert flow["cause"]["code"] == "rp-filter", flow
        assert [fix["id"] for fix in flow["fixes"]] == ["source-rule", "loose-rp-filter"]
        assert flow["fixes"][0]["proved_by"] == ["model", "twin"]
        with tunnelled.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:

            def dropped() -> bool:
                before = refused_by_rp_filter(tunnelled)
                sock.sendto(b"knock", (str(tunnelled.pod_address(4)), 51820))
                tunnelled.client.run(
                    "ping", "-c1", "-W0.2", str(tunnelled.pod_address(4)), check=False
                )  # comes behind it
                return refused_by_rp_filter(tunnelled) > before

            assert dropped()
            paste(tunnelled, flow["fixes"][0]["commands"])
            try:
                assert not dropped()
                assert flow_to(doctor(tunnelled)[1], port=51820)["works"]
            finally:
                paste(tunnelled, flow["fixes"][0]["undo"])
            assert dropped()
    finally:
        sysctl(tunnelled.pod, "net.ipv4.conf.eth0.rp_filter", "0")


@pytest.mark.parametrize("to", ["10.44.0.77", pytest.param(f"10.44.0.2:{PORT + 1}", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "tool", ["nft", *(pytest.param(f"iptables-{k}", marks=pytest.mark.slow) for k in ("nft", "legacy"))]
)
def test_a_translation_that_takes_the_port_away(pod, tool, to):
    """To another host, or to a port where nobody listens; with an exception before the rule the listener is reached."""
    pod.pod.run("sh", "-ec", dnat(tool, "add", to))
    try:
        flow = flow_to(doctor(pod)[1])
        assert flow["cause"]["code"] == "dnat-elsewhere", flow
        assert "10.44.0" in flow["cause"]["where"]
        (fix,) = flow["fixes"]
        assert fix["proved_by"] == ["model", "twin"]
        assert fix["commands"][0].startswith("nft insert rule" if tool == "nft" else f"{tool} -t nat -I PREROUTING 1")
        mended(pod, flow, fix)
    finally:
        pod.pod.run("sh", "-ec", dnat(tool, "delete", to))


def dnat(tool: str, verb: str, to: str) -> str:
    """Make the rule, or take it away."""
    if tool == "nft":
        made = f"nft -f - <<'E'\ntable ip mesh {{\n chain c {{\n  type nat hook prerouting priority dstnat;\n  tcp dport {PORT} dnat to {to}\n }}\n}}\nE"
        return made if verb == "add" else "nft delete table ip mesh"
    rule = f"PREROUTING -p tcp -m tcp --dport {PORT} -j DNAT --to-destination {to}"
    return f"{tool} -t nat -{'A' if verb == 'add' else 'D'} {rule}"


def test_an_address_that_no_peer_has(tmp_path):
    """`wg set` as it is shown gives it to the only peer, in the device itself; the undo takes it away."""
    with PodNet.create("bridge", "fixes") as net, listener(net):
        wg_quick(net, tmp_path, PEER)
        arguments = ("--from", "10.8.0.9", "--to", f"10.8.0.1:{PORT}/tcp", "--twin", "never")
        code, report = doctor(net, *arguments)
        (flow,) = report["flows"]
        assert (code, flow["cause"]["code"]) == (1, "source-not-allowed")
        (fix,) = flow["fixes"]
        before = net.pod.run("wg", "show", "wg0", "allowed-ips").stdout
        paste(net, fix["commands"])
        assert "10.8.0.2/32 10.8.0.9/32" in net.pod.run("wg", "show", "wg0", "allowed-ips").stdout
        assert doctor(net, *arguments)[1]["flows"][0]["works"]
        paste(net, fix["undo"])
        assert net.pod.run("wg", "show", "wg0", "allowed-ips").stdout == before


def test_wireguards_own_commands_are_not_run_in_a_twin_or_from_afar(tmp_path):
    """Its socket is found by name: from another file system it may be another device's. It is said, and left."""
    with PodNet.create("bridge", "fixes") as net, listener(net):
        wg_quick(net, tmp_path, PEER)
        before = net.pod.run("wg", "show", "wg0", "allowed-ips").stdout
        arguments = ("--from", "10.8.0.9", "--to", f"10.8.0.1:{PORT}/tcp", "--apply", "--yes")
        code, report = doctor(net, *arguments)
        assert code == 1
        assert report["applied"] == []
        assert [fix["proved_by"] for fix in report["flows"][0]["fixes"]] == [["model"]]
        assert net.pod.run("wg", "show", "wg0", "allowed-ips").stdout == before


def test_an_interface_that_was_set_down(tmp_path):
    """The tunnel is down: set up again, a client of it is served."""
    with PodNet.create("bridge", "fixes") as net, listener(net):
        wg_quick(net, tmp_path, PEER)
        net.pod.run("ip", "link", "set", "dev", "wg0", "down")
        arguments = ("--from", "10.8.0.2", "--to", f"10.8.0.1:{PORT}/tcp")
        flow = doctor(net, *arguments)[1]["flows"][0]
        assert (flow["cause"]["code"], flow["cause"]["where"]) == ("interface-down", "wg0")
        fix = flow["fixes"][0]
        assert fix["commands"] == ["ip link set dev wg0 up"]
        paste(net, fix["commands"])
        after = doctor(net, *arguments)[1]["flows"][0]
        assert after["cause"] is None or after["cause"]["code"] != "interface-down"


def test_a_full_twin_of_the_pods_settings(pod):
    """What the tests of this module change is changed back: the pod works as at first."""
    sysctl(pod.pod, "net.ipv4.tcp_fwmark_accept", "0")
    assert flow_to(doctor(pod)[1])["works"]
    assert connects(pod)
