# SPDX-License-Identifier: Apache-2.0
"""`wicket probe` as a user runs it, against wireguard-go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from wicketgate.lab.host import Host
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

PORT = 51820


@dataclass
class Gate:
    """A server in a host, and the key files of its one client."""

    host: Host
    public: str
    client: str
    private_key_file: str
    preshared_key_file: str

    def command(
        self, *more: str, target: str = f"127.0.0.1:{PORT}", keys: bool = True, psk: str | None = None
    ) -> list[str]:
        given = ["--private-key-file", self.private_key_file, "--preshared-key-file", psk or self.preshared_key_file]
        probe = [sys.executable, "-m", "wicketgate", "probe", target, "--public-key", self.public]
        return [*probe, *(given if keys else []), *more]

    def probe(self, *more: str, **how) -> subprocess.CompletedProcess[str]:
        done = self.host.run(*self.command(*more, **how), check=False)
        assert "Traceback" not in done.stdout + done.stderr
        return done


def key_file(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def gate(new_host: Callable[..., Host], tmp_path: Path) -> Iterator[Gate]:
    host = new_host("gate")
    key, own, psk = PrivateKey.generate(), PrivateKey.generate(), PresharedKey.generate()
    process = host.popen("wireguard-go", "-f", "wg0", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while host.run("wg", "show", "wg0", check=False).returncode:
            assert time.monotonic() < deadline, "wireguard-go does not answer"
        configuration = (
            f"[Interface]\nPrivateKey = {key.expose_base64()}\nListenPort = {PORT}\n[Peer]\n"
            f"PublicKey = {own.public()}\nPresharedKey = {psk.expose_base64()}\nAllowedIPs = 10.9.0.2/32, fd09::2/128\n"
        )
        host.run("wg", "setconf", "wg0", "/dev/stdin", stdin=configuration)
        host.run("ip", "address", "add", "10.9.0.1/24", "dev", "wg0")
        host.run("ip", "address", "add", "fd09::1/64", "dev", "wg0", "nodad")
        host.run("ip", "link", "set", "wg0", "up")
        private = key_file(tmp_path / "private", own.expose_base64())
        yield Gate(host, str(key.public()), str(own.public()), private, key_file(tmp_path / "psk", psk.expose_base64()))
    finally:
        process.kill()
        process.wait()


def test_all_is_well(gate: Gate):
    """Handshakes and echoes are printed like ping's, over IPv4 and IPv6, with a summary and exit code 0."""
    done = gate.probe("--count", "2", "--interval", "0.05", "--ping", "10.9.0.1", "--address", "10.9.0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"handshake with {gate.public[:8]} at 127.0.0.1:{PORT}: seq=1 time=")
    assert "; echo from 10.9.0.1: " in lines[2]
    assert "2 attempts, 2 handshakes, 2 echoes, 0% failed" in lines
    assert "handshake min/median/max = " in done.stdout
    six = gate.probe("--count", "1", "--ping", "fd09::1", "--address", "fd09::2", target=f"[::1]:{PORT}")
    assert six.returncode == 0, six.stdout + six.stderr
    assert f"at [::1]:{PORT}: seq=1" in six.stdout


def test_json(gate: Gate):
    """--json is one object on stdout and nothing else."""
    done = gate.probe(
        "--count", "2", "--interval", "0.05", "--json", "--new-port", "--ping", "10.9.0.1", "--address", "10.9.0.2"
    )
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["ok"] is True
    assert answer["server"] == f"127.0.0.1:{PORT}"
    assert [a["ok"] for a in answer["attempts"]] == [True, True]
    assert answer["echo_seconds"]["min"] <= answer["echo_seconds"]["median"] <= answer["echo_seconds"]["max"]


def test_which_step_failed(gate: Gate, tmp_path: Path):
    """Each failure names its step and what it means, with exit code 1."""
    other = key_file(tmp_path / "other", PresharedKey.generate().expose_base64())
    once = ("--count", "1", "--timeout", "0.5")
    cases = {
        "refused (1 of 1): the host answers": gate.probe(*once, target=f"127.0.0.1:{PORT + 1}"),
        "wrong preshared key (1 of 1): the server answered": gate.probe(*once, psk=other),
        "silence (1 of 1): no answer: wrong server key": gate.probe(*once, keys=False),
        "no echo (1 of 1): the handshake is fine": gate.probe(*once, "--ping", "10.9.0.1", "--address", "10.9.0.3"),
        "unreachable (1 of 1): the packet cannot be sent": gate.probe(*once, target="192.0.2.1:51820"),
    }
    for said, done in cases.items():
        assert done.returncode == 1, (said, done)
        assert said in done.stdout, done.stdout
    silent = cases["silence (1 of 1): no answer: wrong server key"]
    assert "a server stays silent to unknown clients" in silent.stderr
    assert "use --private-key-file with the key of a peer" in silent.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_prints_the_summary(gate: Gate, as_json: bool):
    """Ctrl-C ends an endless run with its summary; the exit code is that of what was seen."""
    # A test run that was started in the background ignores SIGINT, and so would all that it starts.
    process = gate.host.popen(
        "env", "--default-signal=INT", *gate.command("--count", "0", "--interval", "0.05", *(["--json"] if as_json else [])),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if as_json:
            shown = ("wg", "show", "wg0", "transfer")
            deadline = time.monotonic() + 10
            while int(gate.host.run(*shown).stdout.split()[1]) < 148 * 3:
                assert time.monotonic() < deadline, "no third handshake"
        else:
            assert process.stdout is not None
            while "seq=2" not in process.stdout.readline():
                assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Traceback" not in err
    if as_json:
        assert len(json.loads(out)["attempts"]) >= 2
    else:
        assert "wireguard probe statistics ---" in out
        assert ", 0% failed" in out


def test_half_of_the_attempts_fail(gate: Gate):
    """As with ping, one answer among failures is exit code 0, and the summary counts both."""
    process = gate.host.popen(
        *gate.command("--count", "4", "--interval", "0.3", "--timeout", "0.2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while "seq=1" not in process.stdout.readline():
            assert process.poll() is None
        gate.host.run("wg", "set", "wg0", "peer", gate.client, "remove")
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "% failed" in out
    assert ", 0% failed" not in out
