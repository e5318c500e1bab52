# SPDX-License-Identifier: Apache-2.0
"""`wicket trace` and the flows that people type."""

from __future__ import annotations

import json

import pytest

from doctor_pod import HEALTHY, wg_quicked
from wicketgate.cli import app
from wicketgate.netpath.codec import to_json


@pytest.fixture
def bundle(tmp_path):
    """A file with the pod as wg-quick leaves it."""
    path = tmp_path / "pod.json"
    path.write_text(to_json(wg_quicked()))
    return str(path)


def run(capsys, *arguments: str):
    """Exit code, stdout, stderr."""
    try:
        code = app.run(["trace", *arguments])
    except SystemExit as stop:
        code = 2 if stop.code else 0
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_step_that_decides_is_marked(capsys, bundle):
    """Each rule that was asked is a line, in the order asked; the guilty one is marked; the exit code is 1."""
    code, out, _ = run(capsys, "10.0.0.2:9000/tcp", "--bundle", bundle)
    assert code == 1
    marked = [line for line in out.splitlines() if line.startswith(">>")]
    assert len(marked) == 1
    assert "32765: not from all fwmark 0xca6c lookup 51820" in marked[0]
    assert "the way back" in out
    assert out.splitlines()[-2].startswith("It is broken: reply-into-tunnel: 32765: ")


def test_json_has_both_ways(capsys, bundle):
    """The object names verdict, cause, egress and every step of forward and reply."""
    code, out, _ = run(capsys, "10.0.0.2:9000/tcp", "--from", "198.51.100.7:50000", "--bundle", bundle, "--json")
    told = json.loads(out)
    assert (code, told["works"], told["cause"]["code"]) == (1, False, "reply-into-tunnel")
    assert told["flow"] == {
        "from": "198.51.100.7:50000",
        "to": "10.0.0.2:9000",
        "proto": "tcp",
        "iif": "eth0",
        "mark": 0,
    }
    assert told["forward"]["verdict"] == "delivered"
    assert (told["reply"]["verdict"], told["reply"]["egress"]) == ("misrouted", "wg0")
    stages = [step["stage"] for step in told["reply"]["steps"]]
    assert stages.index("output-routing") < stages.index("tunnel-out")


def test_a_mark_leads_another_way(capsys, bundle):
    """What this host sends with wg-quick's mark leaves by eth0, without it by the tunnel."""
    for mark, egress in (("0xca6c", "eth0"), ("0", "wg0")):
        _, out, _ = run(
            capsys, "203.0.113.9:443/tcp", "--from", "0.0.0.0", "--mark", mark, "--bundle", bundle, "--json"
        )
        assert json.loads(out)["forward"]["egress"] == egress


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["10.0.0.2"], "TO 10.0.0.2: allowed: ADDRESS:PORT/tcp"),
        (["10.0.0.2/tcp"], "read no port"),
        (["10.0.0.2:9000/sctp"], "allowed: ADDRESS:PORT/tcp"),
        (["10.0.0.2:99999/tcp"], "read port '99999'; allowed: 1 to 65535"),
        (["[fd00::1]:80/tcp", "--from", "10.0.0.9"], "both must be of one family"),
        (["10.0.0.2:9000/tcp", "--iif", "eth7"], "--iif eth7: there is no such interface; allowed: lo"),
        (["10.0.0.2:9000/tcp", "--mark", "x"], "--mark x: allowed: 0 to 0xffffffff"),
        (["10.0.0.2:9000/tcp", "--mark", "0x100000000"], "--mark 0x100000000: allowed"),
        (["10.0.0.2:9000/tcp", "--netns", "pid:1"], "--bundle and --netns"),
    ],
)
def test_bad_input_is_named(capsys, bundle, arguments, words):
    """What was read and what is allowed, and exit code 2."""
    code, out, err = run(capsys, *arguments, "--bundle", bundle)
    assert (code, out) == (2, "")
    assert words in err


def test_a_state_that_lacks_what_matters_is_no_verdict(capsys, tmp_path):
    """Without the rules no way can be computed: exit code 3, and the reason."""
    text = json.loads(to_json(HEALTHY))
    text["unread"] = [{"what": "rules", "why": "Operation not permitted"}]
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(text))
    code, _, err = run(capsys, "10.0.0.2:9000/tcp", "--bundle", str(path))
    assert code == 3
    assert "rules: Operation not permitted" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wait", "5"], "--wait 5 without --live"),
        (["--live", "--wait", "soon"], "--wait soon: allowed: seconds, more than 0"),
        (["--live", "--wait", "0"], "--wait 0: allowed: seconds, more than 0"),
        (["--live", "--wait", "nan"], "--wait nan: allowed: seconds, more than 0"),
    ],
)
def test_bad_waits(capsys, arguments, words):
    """Exit code 2 before anything is sent, with what is allowed."""
    code, out, err = run(capsys, "10.0.0.2:9000/tcp", *arguments)
    assert (code, out) == (2, "")
    assert words in err
