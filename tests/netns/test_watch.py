# SPDX-License-Identifier: Apache-2.0
"""`wicket watch` in real namespaces: a line for each change in its tool's own words, and what it broke."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from netns.doctor_pods import listener, wg_quick
from netns.pods import SHAPES, PodNet
from netns.watchers import Watch
from wicketgate.wireguard.keys import PrivateKey

STAMP = re.compile(r"\d\d:\d\d:\d\d\.\d{3} ")


@pytest.fixture
def host(new_host):
    """A host with e0 (10.0.0.1/24) and its other end e1, both up."""
    made = new_host("watch")
    made.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    made.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e1")
    for command in ("addr add 10.0.0.1/24 dev e0", "link set e0 up", "link set e1 up"):
        made.run("ip", *command.split())
    return made


def body(line: str) -> str:
    """A line without its time and who."""
    assert STAMP.match(line), line
    return re.sub(r"  \([^()]*\)$", "", line[13:])


def shown(host, *command: str, having: str) -> str:
    """The line of a tool's listing that has these words, in single blanks."""
    lines = [" ".join(line.split()) for line in host.run(*command).stdout.splitlines()]
    found = [line for line in lines if having in line]
    assert len(found) == 1, lines
    return found[0]


def test_each_kind_has_its_line_in_its_tools_words(host):
    """Links, addresses, routes, rules, both firewalls, settings, listeners: what `ip`, `nft`, `iptables-save` show."""
    with Watch("--netns", f"pid:{host.pid}", "--no-flows") as watch:
        assert watch.line(lambda _: True)[13:] == f"watching pid:{host.pid}"

        def next_line() -> str:
            return body(watch.line(lambda _: True))

        host.run("ip", "rule", "add", "not", "fwmark", "51820", "table", "51820")
        rule = shown(host, "ip", "rule", having="51820")
        assert next_line() == f"+ rule      {rule}"
        host.run("ip", "rule", "del", "not", "fwmark", "51820", "table", "51820")
        assert next_line() == f"- rule      {rule}"

        host.run("ip", "route", "add", "10.9.0.0/16", "via", "10.0.0.2", "table", "51820", "metric", "7")
        route = shown(host, "ip", "route", "show", "table", "all", having="10.9.0.0/16")
        assert next_line() == f"+ route     {route}"
        host.run("ip", "route", "replace", "10.9.0.0/16", "via", "10.0.0.3", "table", "51820", "metric", "7")
        other = shown(host, "ip", "route", "show", "table", "all", having="10.9.0.0/16")
        assert next_line() == f"~ route     {other} (was {route})"

        host.run("ip", "address", "add", "10.5.0.1/24", "dev", "e0")
        assert next_line() == "+ address   10.5.0.1/24 dev e0"
        assert next_line() == f"+ route     {shown(host, 'ip', 'route', having='10.5.0.0/24')}"
        host.run("ip", "address", "del", "10.5.0.1/24", "dev", "e0")
        gone = {next_line(), next_line()}
        assert "- address   10.5.0.1/24 dev e0" in gone
        assert any(each.startswith("- route     10.5.0.0/24 dev e0") for each in gone)

        host.run("ip", "link", "set", "e0", "mtu", "1400")
        assert next_line() == "~ link      e0 mtu 1400 (was 1500)"
        host.run("ip", "link", "add", "br0", "type", "bridge")
        assert re.fullmatch(r"\+ link      \d+: br0 mtu 1500 down type bridge", next_line())

        host.run(
            "nft", "-f", "-", stdin="table inet guard {\n chain in {\n type filter hook input priority 0;\n }\n}\n"
        )
        assert next_line() == "+ nftables  add table inet guard"
        assert next_line().startswith("+ nftables  add chain inet guard in { type filter hook input priority")
        host.run("nft", "add", "rule", "inet", "guard", "in", "tcp", "dport", "9000", "counter", "drop")
        line = watch.line(lambda _: True)
        assert body(line) == "+ nftables  add rule inet guard in tcp dport 9000 counter drop"
        assert re.search(r"  \(nft\[\d+\]\)$", line)
        host.run("nft", "insert", "rule", "inet", "guard", "in", "tcp", "dport", "22", "accept")
        assert next_line() == "+ nftables  insert rule inet guard in tcp dport 22 accept"
        host.run("nft", "flush", "chain", "inet", "guard", "in")
        assert next_line() == "- nftables  delete rule inet guard in tcp dport 22 accept"
        assert next_line() == "- nftables  delete rule inet guard in tcp dport 9000 counter drop"

        for tool in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
            host.run(tool, "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
            saved = shown(host, f"{tool}-save", having="-A INPUT")
            assert next_line() == f"+ iptables  {tool} {saved}"
            host.run(tool, "-D", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
            assert next_line() == f"- iptables  {tool} {saved.replace('-A', '-D')}"

        host.run("sysctl", "-qw", "net.ipv4.conf.e0.rp_filter=2")
        assert next_line() == f"~ sysctl    {shown(host, 'sysctl', 'net.ipv4.conf.e0.rp_filter', having='=')} (was 0)"

        code, said = watch.end()
        assert (code, said) == (0, "")
        assert re.fullmatch(r"ended: \d+ changes", watch.lines[-1][13:])


def test_a_wireguard_device_is_followed(host):
    """Userspace WireGuard: the device, a peer, its allowed-ips, in the words of `wg`; handshakes are no changes."""
    key = str(PrivateKey.generate().public())
    with Watch("--netns", f"pid:{host.pid}", "--no-flows", "--interval", "0.1") as watch:
        watch.line(lambda text: "watching" in text)
        host.popen("wireguard-go", "-f", "wg7", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        watch.line(lambda text: "+ wireguard wg7 public-key (none) listen-port" in text)
        host.run("wg", "set", "wg7", "fwmark", "51820")
        watch.line(lambda text: body(text) == "~ wireguard wg7 fwmark 0xca6c (was off)")
        host.run("wg", "set", "wg7", "peer", key, "allowed-ips", "10.8.0.2/32")
        watch.line(lambda text: body(text) == f"+ wireguard wg7 peer {key} allowed-ips 10.8.0.2/32")
        host.run("wg", "set", "wg7", "peer", key, "allowed-ips", "10.8.0.3/32")
        watch.line(lambda text: body(text) == f"~ wireguard wg7 peer {key} allowed-ips 10.8.0.3/32 (was 10.8.0.2/32)")
        host.run("wg", "set", "wg7", "peer", key, "remove")
        watch.line(lambda text: body(text) == f"- wireguard wg7 peer {key} remove")


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_wg_quick_breaks_the_load_balancer_and_the_line_says_which_rule(shape, tmp_path):
    """The seed's pod: works; after the real wg-quick broken by the very rule of `ip rule`; without that rule it works."""
    with PodNet.create(shape, "watch") as net, listener(net):
        with Watch("--netns", f"pid:{net.pod.pid}") as watch:
            name = f"load balancer -> {net.pod4}:9000/tcp"
            assert re.search(r"\d flows?: \d work", watch.line(lambda text: "watching" in text))
            watch.line(lambda text: text.endswith(f"> flow      {name}: works"))
            wg_quick(net, tmp_path, "0.0.0.0/0")
            rule = shown(net.pod, "ip", "rule", having="fwmark")
            watch.line(lambda text: text[13:].startswith(f"+ rule      {rule}"))
            watch.line(lambda text: text.endswith(f"{name}: works -> broken: reply-into-tunnel: {rule}"))
            net.pod.run("ip", "rule", "del", "pref", rule.partition(":")[0])
            watch.line(lambda text: text.endswith(f"{name}: broken -> works"))
            code, said = watch.end(signal.SIGTERM)
            assert (code, said) == (0, "")
            assert re.search(r"\d+ changes; \d+ flows changed, now \d flows?: \d work", watch.lines[-1])


def test_json_lines_carry_the_same(new_host):
    """One object a line: start with the flows, changes with numbers, flows with cause and the changes' numbers, end."""
    with PodNet.create("bridge", "watch-json") as net, listener(net):
        with Watch("--netns", f"pid:{net.pod.pid}", "--json") as watch:
            start = watch.object(lambda each: each["event"] == "start")
            assert {each["now"] for each in start["flows"]} == {"works"}
            net.pod.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP")
            change = watch.object(lambda each: each["event"] == "change")
            assert (change["what"], change["action"], change["number"], change["told"]) == (
                "iptables",
                "added",
                1,
                True,
            )
            assert change["text"] == "iptables-nft -A INPUT -p tcp -m tcp --dport 9000 -j DROP"
            assert re.fullmatch(r"iptables(-nft)?\[\d+\]", change["who"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", change["time"])
            flow = watch.object(lambda each: each["event"] == "flow" and each["name"].startswith("load balancer"))
            assert (flow["was"], flow["now"], flow["changes"]) == ("works", "broken", [1, 1])
            assert flow["cause"]["code"] == "input-drop"
            assert flow["cause"]["where"] == "-A INPUT -p tcp -m tcp --dport 9000 -j DROP"
            assert watch.end() == (0, "")
            end = watch.object(lambda each: each["event"] == "end")
            assert end["changes"] == 1
            assert "broken" in {each["now"] for each in end["flows"]}


def test_a_burst_is_judged_once_and_no_line_is_lost(host):
    """500 rules at once: a line for each, and few judgements; the flow that was asked for is judged alone."""
    with Watch("--netns", f"pid:{host.pid}", "--to", "10.0.0.1:9000/tcp", "--from", "10.0.0.2") as watch:
        watch.line(lambda text: "10.0.0.2 -> 10.0.0.1:9000/tcp: broken: no-listener: tcp port 9000" in text)
        rules = "".join(f"rule add pref {n} from 192.0.2.1 lookup 7\n" for n in range(1000, 1500))
        host.run("ip", "-batch", "-", stdin=rules)
        watch.line(lambda text: "1499: from 192.0.2.1 lookup 7" in text)
        assert [re.findall(r"\+ rule      (\d+):", text) for text in watch.lines if "+ rule" in text] == [
            [str(n)] for n in range(1000, 1500)
        ]
        with host.call(lambda: socket.create_server(("10.0.0.1", 9000))):
            watch.line(lambda text: "+ socket    tcp 10.0.0.1:9000" in text)
            watch.line(lambda text: text.endswith("10.0.0.2 -> 10.0.0.1:9000/tcp: broken -> works"))
        watch.line(lambda text: "works -> broken: no-listener" in text)


def test_without_rights_it_says_what_it_cannot_read(host):
    """No capability: routes and rules are watched, flows are unknown and not called working, and the reason is a line."""
    child = host.popen(
        "setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "wicketgate", "watch",
        stdout=-1, stderr=-1, text=True,
    )  # fmt: skip
    try:
        lines = [child.stdout.readline() for _ in range(2)]
        assert "watching this network namespace" in lines[0]
        while "not read: nft -j list ruleset: " not in lines[-1]:
            lines.append(child.stdout.readline())
            assert lines[-1], lines
        assert not [line for line in lines if line.endswith(": works\n")]
        host.run("ip", "rule", "add", "pref", "77", "lookup", "7")
        while "+ rule      77: from all lookup 7" not in lines[-1]:
            lines.append(child.stdout.readline())
            assert lines[-1], lines
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


def test_a_place_that_goes_ends_the_watch(tmp_path):
    """The process of pid:N ends, the file of a namespace is deleted: exit code 3 and a sentence."""
    path = tmp_path / "ns"
    path.touch()
    ours = os.readlink("/proc/self/ns/net")
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as process:
        try:
            deadline = time.monotonic() + 20
            while os.readlink(f"/proc/{process.pid}/ns/net") == ours:
                assert time.monotonic() < deadline
            subprocess.run(["mount", "--bind", f"/proc/{process.pid}/ns/net", str(path)], check=True)
            with Watch("--netns", f"pid:{process.pid}") as by_pid, Watch("--netns", str(path)) as by_path:
                for each in (by_pid, by_path):
                    each.line(lambda text: "watching" in text)
                process.kill()
                code, said = by_pid.wait()
                assert (code, said.startswith(f"wicket: --netns pid:{process.pid}: it has ended")) == (3, True), said
                subprocess.run(["umount", "-l", str(path)], check=True)
                path.unlink()
                code, said = by_path.wait()
                assert (code, said.startswith(f"wicket: --netns {path}: it has ended")) == (3, True), said
        finally:
            process.kill()
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--netns", "no-such-name"), 3, "/run/netns/no-such-name: No such file or directory"),
        (("--netns", "pid:x"), 2, "allowed: a positive number"),
        (("--from", "10.0.0.2"), 2, "without --to"),
        (("--to", "10.0.0.2:9000"), 2, "allowed: ADDRESS:PORT/tcp"),
        (("--to", "10.0.0.2:9000/tcp", "--no-flows"), 2, "allowed: one of them"),
        (("--interval", "0"), 2, "allowed: 0.1 to 3600 seconds"),
    ],
)
def test_bad_usage_is_a_sentence(arguments, code, says):
    """Exit code 2 or 3, what was read and what is allowed."""
    with Watch(*arguments) as watch:
        got, said = watch.wait()
        assert (got, says in said) == (code, True), said
        assert "Traceback" not in said
