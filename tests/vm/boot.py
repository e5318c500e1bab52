# SPDX-License-Identifier: Apache-2.0
"""Run a script in a machine with Debian's kernel, which has what the kernel here may lack: wireguard.ko above all.

virtme-ng boots the kernel of `linux-image-rt-amd64` (its -cloud flavour has no 9p) under emulation, with this
machine's files readable inside. What the script should keep it writes under the directory that is given as its first
argument: it is the only one whose files survive.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vm import near

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "bin" / "python"


@dataclass(frozen=True)
class Ran:
    """How a script ended.

    Attributes:
        code: its exit code.
        output: what it and the console printed.
    """

    code: int
    output: str


def kernel() -> Path | None:
    """The newest installed kernel that can be booted so."""
    found = sorted(Path("/boot").glob("vmlinuz-*-rt-amd64"), key=lambda path: [*map(int, _numbers(path.name))])
    return found[-1] if found else None


def _numbers(name: str) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in name).split()


def missing() -> str | None:
    """What is not installed, in a sentence for `pytest.skip`; None when a machine can be booted."""
    if platform.machine() != "x86_64":
        return f"the kernel image is one for x86_64, this is {platform.machine()}"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86 is not installed (make setup)"
    if kernel() is None:
        return "linux-image-rt-amd64 is not installed (make setup)"
    if shutil.which("busybox") is None:
        return "busybox-static is not installed (make setup); the machine's first steps are done by it"
    if shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "mke2fs is not installed (Debian's package is e2fsprogs)"
    if not (Path(sys.prefix) / "bin" / "vng").exists():
        return "virtme-ng is not installed (make setup)"
    return None


def run_in_vm(script: str, out: Path, timeout: float = 240.0) -> Ran:
    """Boot, run a shell script as root, and switch off.

    Inside, the script's directory of results is `$OUT`, the project's tree is `$ROOT`, its interpreter is `$PYTHON`.
    Everything but `$OUT` is read-only, or forgotten at the end. Nothing is up but `lo`.

    Args:
        script: for `sh -eu`.
        out: an existing directory; the script's writes there stay.
        timeout: seconds for boot and script; emulation is slow (15 s for the boot alone).

    Raises:
        TimeoutError: with what was printed so far; the machine is gone by then.
    """
    image = kernel()
    assert image is not None, missing()
    body = out / "script.sh"
    image_of_programs = out / "near.image"
    near.write(image_of_programs)
    body.write_text(
        f"#!/bin/sh\nset -eu\nexport OUT='{out}' ROOT='{ROOT}' PYTHON='{PYTHON}'\n"
        f'{near.use(str(image_of_programs))}cd "$ROOT"\n{script}\n'
    )
    body.chmod(0o755)
    command = [
        str(Path(sys.prefix) / "bin" / "vng"), "--run", str(image), "--disable-kvm", "--user", "root",
        "--memory", "1G", "--cpus", "2", f"--rwdir={out}", "--", str(body),
    ]  # fmt: skip
    # vng calls virtme-run by name. Output through a pipe: qemu opens a regular file twice and overwrites itself.
    environment = os.environ | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}"}
    machine = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=out,
        start_new_session=True,
    )
    try:
        output, _ = machine.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(machine.pid, signal.SIGKILL)
        output, _ = machine.communicate()
        raise TimeoutError(f"the machine was not done after {timeout:g} s; it printed:\n{output[-4000:]}") from None
    except BaseException:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()
        raise
    finally:
        image_of_programs.unlink()
    return Ran(machine.returncode, output)
