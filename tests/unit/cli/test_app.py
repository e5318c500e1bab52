# SPDX-License-Identifier: Apache-2.0
"""`wicket` itself: exit codes, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import wicketgate
from wicketgate.cli import app
from wicketgate.errors import InputError, StateError, WicketError


def wicket(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wicketgate", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["--help"], 0), (["probe", "--help"], 0), (["nonsense"], 2), (["probe"], 2), (["--x"], 2),
     (["probe", "127.0.0.1:9", "--public-key", "x", "--count", "many"], 2)],
)  # fmt: skip
def test_exit_codes(arguments: list[str], code: int):
    """Help and version are good, every slip on the command line is 2, and nothing ends in a traceback."""
    done = wicket(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert bool(done.stderr) == (code == 2)


def test_version():
    """It is the package's."""
    assert wicket("--version").stdout.strip() == wicketgate.__version__


def test_help_imports_no_command():
    """`wicket --help` lists the commands without importing any: it stays fast however many there will be."""
    code = (
        "import sys; from wicketgate.cli import app\n"
        "try: app.run(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'httptools', 'pyroute2', 'cryptography', 'pydantic', 'asyncio.tasks', 'wicketgate.cli.probe'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "probe" in done.stdout
    loaded = done.stderr.strip()
    assert not any(name in loaded for name in ("httptools", "pyroute2", "cryptography", "pydantic", "cli.probe")), (
        loaded
    )


def test_probe_help_is_whole():
    """The help of a command has its examples and its JSON."""
    shown = wicket("probe", "--help").stdout
    for part in ("For example:", "--ping 10.0.0.1 --address", '"handshake_seconds"', "Ctrl-C", "--private-key-file"):
        assert part in shown


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (WicketError("it is broken"), 1, "wicket: it is broken\n"),
        (InputError("f:3: no"), 2, "wicket: f:3: no\n"),
        (StateError("no right"), 3, "wicket: no right\n"),
        (PermissionError(13, "Permission denied", "/x"), 3, "wicket: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("oh"), 3, "wicket: internal error: ZeroDivisionError: oh"),
    ],
)
def test_errors_become_sentences(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Whatever a command raises ends as a sentence and its exit code."""
    module = types.ModuleType("wicketgate.cli.probe")

    def probe() -> None:
        raise error

    module.probe = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wicketgate.cli.probe", module)
    monkeypatch.setattr(app, "find_spec", lambda _name: object())
    assert app.run(["probe"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_command_that_is_not_built_yet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A command without its module is not offered, and the others work."""
    monkeypatch.setattr(app, "find_spec", lambda name: object() if name.endswith(".probe") else None)
    with pytest.raises(SystemExit):
        app.run(["up"])
    assert app.run(["probe", "127.0.0.1:9", "--public-key", "x"]) == 2
    assert "--public-key" in capsys.readouterr().err
