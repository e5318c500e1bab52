# SPDX-License-Identifier: Apache-2.0
"""What the machine reads all the time, in one file system image that it keeps in its memory.

Every page of a program that is read over the emulated 9p costs a round trip and is not kept: there `wicket --version`
takes 50 s. From memory it takes three. Whatever is not in the image is still found, slowly: the copies are laid over
the directories they come from.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("wicketgate", "pytest")
TOOLS = (
    "awk", "bash", "busybox", "cat", "cmp", "curl", "cut", "dash", "env", "false", "flock", "grep", "ip", "kmod", "ls", "mkdir", "mktemp", "mount", "nc",
    "nft", "nsenter", "ping", "readlink", "rm", "rmdir", "sed", "setpriv", "sleep", "sort", "stat", "sysctl", "tc", "touch", "tee", "tr", "true", "umount",
    "uname", "unshare", "wg", "wg-quick", "wireguard-go",
)  # fmt: skip
# Parts of Python's library that nothing here imports.
_UNUSED = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "ensurepip",
        "site-packages",
        "distutils",
        "pydoc_data",
    }
)


def roots() -> tuple[Path, ...]:
    """The directories that the copies are laid over: programs, Python, the project; none inside another."""
    wanted = {Path("/usr"), Path(sys.base_prefix).resolve(), ROOT}
    return tuple(sorted(r for r in wanted if not any(o != r and r.is_relative_to(o) for o in wanted)))


def write(image: Path) -> None:
    """Make the image.

    Raises:
        subprocess.CalledProcessError: mke2fs failed.
    """
    with tempfile.TemporaryDirectory(dir=image.parent) as staging:
        blocks = 0
        for path in {p for p in _files() if any(p.is_relative_to(r) for r in roots())}:
            copy = Path(f"{staging}{path}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            blocks += 2 + path.stat().st_size // 4096
        # Compiling is what emulation is worst at; what is compiled already is left as it is.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-s", staging, "-p", "/", staging],
            check=False,
            capture_output=True,
        )
        for root in roots():
            Path(f"{staging}{root}").mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [shutil.which("mke2fs") or "/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-b", "4096", "-d", staging, image, str(blocks * 11 // 10 + 4096)],
            check=True,
            capture_output=True,
        )  # fmt: skip


def use(image: str) -> str:
    """The shell lines that have the machine use it."""
    lines = [
        "modprobe loop",
        "modprobe ext4",
        "mkdir /run/near",
        f"busybox dd if='{image}' of=/run/near.image bs=480k 2>/dev/null",
        "mount -o loop,ro /run/near.image /run/near",
    ]
    for number, root in enumerate(roots()):
        upper = f"/run/near.upper/{number}"
        lines += [
            f"mkdir -p '{upper}/up' '{upper}/work'",
            f"mount -t overlay -o 'lowerdir=/run/near{root}:{root},upperdir={upper}/up,workdir={upper}/work' near{number} '{root}'",
        ]
    return "\n".join(lines) + "\n"


def _files() -> Iterator[Path]:
    programs = [Path(sys.executable).resolve(), *_programs()]
    yield from programs
    library = Path(sysconfig.get_path("stdlib")).resolve()
    extensions = sorted((library / "lib-dynload").glob("*.so"))
    yield from _tree(library, _UNUSED)
    for part in ("src", "tests"):
        yield from _tree(ROOT / part)
    yield from (Path(sys.prefix) / "bin" / "wicket", Path(sys.prefix) / "pyvenv.cfg")
    packaged = sorted({path for name in _closure(PACKAGES) for path in _installed(name)})
    yield from packaged
    yield from Path(sysconfig.get_path("purelib")).glob("*.pth")
    yield from _libraries([*programs, *extensions, *(p for p in packaged if p.suffix == ".so")])


def _programs() -> Iterator[Path]:
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is not None:
            yield Path(found).resolve()


def _tree(top: Path, without: frozenset[str] = frozenset()) -> Iterator[Path]:
    for folder, names, files in os.walk(top):
        names[:] = [n for n in names if n not in without]
        for name in files:
            path = Path(folder) / name
            if path.suffix not in (".a", ".o") and ".opt-" not in name and path.is_file():
                yield path


def _closure(names: tuple[str, ...]) -> set[str]:
    """The installed packages that these need."""
    todo, found = list(names), set[str]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        todo += [re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    return found


def _installed(name: str) -> Iterator[Path]:
    for file in distribution(name).files or ():
        path = Path(str(file.locate()))
        if path.is_file() and "/bin/" not in str(file):
            yield Path(os.path.normpath(path))
            cached = path.parent / "__pycache__"
            yield from (p for p in cached.glob(f"{path.stem}.cpython-*[0-9].pyc") if path.suffix == ".py")


def _libraries(programs: list[Path]) -> Iterator[Path]:
    """The shared libraries of programs, as the loader finds them here."""
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    for name in sorted(set(re.findall(r"(/\S+\.so[\w.]*)", listed))):
        path = Path(name)
        if path.is_file():
            yield path.resolve()
