# SPDX-License-Identifier: Apache-2.0
"""What `wicket probe` reads, and how it says no."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from wicketgate.cli import app
from wicketgate.cli.keyfiles import read_key
from wicketgate.cli.probe_report import Attempt, Report
from wicketgate.cli.target import Target
from wicketgate.errors import InputError, StateError
from wicketgate.wireguard.failure import MEANING, ProbeFailure, Step
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

KEY = PrivateKey(bytes(range(1, 33)))
PUBLIC = str(KEY.public())


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("gw.example:51820", "gw.example", 51820),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[fe80::1%lo]:9", "fe80::1%lo", 9),
    ],
)
def test_targets(text: str, host: str, port: int):
    """Names, IPv4 and bracketed IPv6 addresses, with a zone too."""
    assert Target.parse(text) == Target(host, port)


@pytest.mark.parametrize(
    "text", ["", "gw", "gw:", ":1", "gw:0", "gw:65536", "gw:x", "::1:5", "[::1]", "[::1]5", "a:1:2"]
)
def test_bad_targets(text: str):
    """Anything else is refused with what is allowed."""
    with pytest.raises(InputError, match="allowed are"):
        Target.parse(text)


def test_addresses_are_written_as_they_are_read():
    """An endpoint is spelled so that it can be given again."""
    assert [str(e) for e in Target.parse("[::1]:51820").resolve()] == ["[::1]:51820"]
    assert [str(e) for e in Target.parse("127.0.0.1:51820").resolve()] == ["127.0.0.1:51820"]


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch):
    """No such host is bad input; a name service that does not answer is a state that cannot be read."""

    def fail(number: int):
        def getaddrinfo(*_args, **_keywords):
            raise socket.gaierror(number, "as told")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_NONAME))
    with pytest.raises(InputError, match=r"no\.example: no such host"):
        Target("no.example", 1).resolve()
    monkeypatch.setattr(socket, "getaddrinfo", fail(socket.EAI_AGAIN))
    with pytest.raises(StateError, match="does not answer"):
        Target("no.example", 1).resolve()


def test_key_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A key file is read with or without a newline; one that everybody may read gets a warning."""
    path = tmp_path / "key"
    path.write_text(KEY.expose_base64() + "\n")
    path.chmod(0o600)
    assert read_key(path, PrivateKey) == KEY
    assert capsys.readouterr().err == ""
    path.chmod(0o644)
    path.write_text(KEY.expose_base64())
    assert read_key(path, PresharedKey).expose() == KEY.expose()
    assert f"chmod 600 {path}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"secret!", b"\xff\xfe", KEY.expose_base64().encode()[:-2], b"A" * 10000])
def test_bad_key_files(tmp_path: Path, content: bytes):
    """A file without a key is named; what is in it is not."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        read_key(path, PrivateKey)
    assert str(caught.value).startswith(f"{path}: ")
    assert content.decode("latin1")[:20] not in str(caught.value) or not content


def test_no_key_file(tmp_path: Path):
    """A file that is not there, and a directory, are named."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_key(path, PrivateKey)


def test_a_key_instead_of_a_file():
    """A key that is given where a file is expected does not get into the error."""
    with pytest.raises(InputError, match="a key was given") as caught:
        read_key(Path(KEY.expose_base64()), PrivateKey)
    assert KEY.expose_base64() not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--count", "-1"], "--count: -1 was read"),
        (["--interval", "0.001"], "servers drop faster"),
        (["--interval", "nan"], "--interval"),
        (["--interval", "inf"], "--interval"),
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "nan"], "--timeout"),
        (["--ping", "10.0.0.1"], "--ping without --address"),
        (["--address", "10.0.0.1"], "--address without --ping"),
        (["--ping", "10.0.0.1", "--address", "fd00::1"], "two families"),
        (["--private-key-file", "/nonexistent/key"], "/nonexistent/key"),
    ],
)
def test_bad_arguments(more: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    """Bad arguments are exit code 2 and a sentence that names them, before anything is sent."""
    assert app.run(["probe", "127.0.0.1:9", "--public-key", PUBLIC, *more]) == 2
    assert said in capsys.readouterr().err


def test_a_private_key_in_the_wrong_place(capsys: pytest.CaptureFixture[str]):
    """What is given as a public key and is none is not repeated: it may be a secret."""
    assert app.run(["probe", "127.0.0.1:9", "--public-key", KEY.expose_base64()[:-3]]) == 2
    assert KEY.expose_base64()[:10] not in capsys.readouterr().err
    assert app.run(["probe", "127.0.0.1:9", "--public-key", "A" * 43 + "="]) == 2
    assert "small order" in capsys.readouterr().err


def test_every_step_has_words():
    """Each step of the vocabulary has a meaning and a line."""
    assert set(MEANING) == set(Step)
    for step in Step:
        line = Attempt(1, failure=ProbeFailure(step)).line("192.0.2.1:51820", "abcdefgh", None)
        assert line.startswith("no handshake with abcdefgh at 192.0.2.1:51820: seq=1 ")


def test_lines_and_summary():
    """The lines are those of the manual; min, median and max are of the attempts that succeeded."""
    report = Report("gw:51820", "192.0.2.1:51820", PUBLIC, pinged=True, unknown_client=False)
    report.attempts = [
        Attempt(1, handshake=0.0012, echo=0.0008),
        Attempt(2, handshake=0.002, under_load=True, failure=ProbeFailure(Step.NO_ECHO)),
        Attempt(3, failure=ProbeFailure(Step.SILENT)),
    ]
    assert [a.line("192.0.2.1:51820", "abcdefgh", "10.0.0.1") for a in report.attempts] == [
        "handshake with abcdefgh at 192.0.2.1:51820: seq=1 time=1.2 ms; echo from 10.0.0.1: 0.8 ms",
        "handshake with abcdefgh at 192.0.2.1:51820: seq=2 time=2.0 ms (under load: answered a cookie); no echo",
        "no handshake with abcdefgh at 192.0.2.1:51820: seq=3 silence",
    ]
    lines = list(report.summary())
    assert lines[1] == "3 attempts, 2 handshakes, 1 echo, 67% failed"
    assert "handshake min/median/max = 1.2/1.6/2.0 ms" in lines
    assert "echo min/median/max = 0.8/0.8/0.8 ms" in lines
    assert any(line.startswith("no echo (1 of 3): the handshake is fine") for line in lines)
    assert report.ok
    written = json.loads(json.dumps(report.to_json()))
    assert [a["step"] for a in written["attempts"]] == [None, "no_echo", "silent"]
    assert written["handshake_seconds"] == pytest.approx({"min": 0.0012, "median": 0.0016, "max": 0.002})
    assert written["ok"] is True


def test_an_empty_run_is_not_ok():
    """Ctrl-C before the first answer: nothing was shown to work."""
    report = Report("gw:1", "192.0.2.1:1", PUBLIC, pinged=False, unknown_client=False)
    assert not report.ok
    assert list(report.summary())[1] == "0 attempts, 0 handshakes"
    assert report.to_json()["handshake_seconds"] is None


def test_a_key_file_without_the_right(monkeypatch: pytest.MonkeyPatch):
    """A file that may not be read is a state that cannot be read."""

    def refuse(*_args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StateError, match=r"^/some/key: Permission denied$"):
        read_key(Path("/some/key"), PrivateKey)
