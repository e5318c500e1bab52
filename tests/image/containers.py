# SPDX-License-Identifier: Apache-2.0
"""The image as a cluster runs it: runc, one capability or none, a read-only root, in the network of a pod.

    with ContainerPod("bridge", tmp_path, rootfs) as pod:
        pod.write()
        pod.run_image("up", "/etc/wireguard/wg0.conf")
        pod.wait_code("200")

The pod and its outside client are those of netns.agents. What a kubelet would ask of its runtime is written out in
`ContainerPod._config`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from conftest import unique
from netns.agents import AgentPod
from netns.pods import Shape

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wicketgate"
ENVIRONMENT = ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
# As runc and containerd have them by default.
MASKED = ["acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi"]
READ_ONLY = ["bus", "fs", "irq", "sys", "sysrq-trigger"]


def _buildah(*arguments: str, timeout: float = 120) -> str:
    done = subprocess.run(
        ["buildah", *_storage(), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout.strip()


def _storage() -> list[str]:
    # Outside the repository, and kept: the base image is imported once.
    return ["--root", str(CACHE / "test-storage"), "--runroot", str(CACHE / "test-storage-run")]


@contextmanager
def built_image():
    """Build the image as the README says, mount it, and yield its root folder and its configuration."""
    for program in ("buildah", "runc", "debootstrap"):
        assert shutil.which(program), f"{program} is missing: scripts/setup all installs what the image lane needs"
    tag = f"localhost/wicketgate:test-{os.getpid()}"
    done = subprocess.run(
        [REPOSITORY / "scripts/build-image", "--base", "debootstrap", "--tag", tag, *_storage()],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"scripts/build-image --base debootstrap: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    )
    container = ""
    try:
        container = _buildah("from", tag)
        root = Path(_buildah("mount", container))
        config = json.loads(_buildah("inspect", "--type", "image", tag))["OCIv1"]["config"]
        yield root, config
    finally:
        if container:
            _buildah("umount", container)
            _buildah("rm", container)
        _buildah("rmi", tag)


def runtime_default(capabilities: set[str]) -> dict[str, Any]:
    """What `seccompProfile: RuntimeDefault` is: the profile of Debian's containers-common, which buildah brings.

    Its format is that of container engines: each entry says for which architecture and rights it holds.
    """
    profile = json.loads(Path("/usr/share/containers/seccomp.json").read_text())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    calls = []
    for entry in profile["syscalls"]:
        wanted, unwanted = entry.get("includes") or {}, entry.get("excludes") or {}
        if not set(wanted.get("caps", ())) <= capabilities or set(unwanted.get("caps", ())) & capabilities:
            continue
        if machine in unwanted.get("arches", ()) or machine not in wanted.get("arches", [machine]):
            continue
        fields = {name: entry[name] for name in ("names", "action", "args", "errnoRet") if entry.get(name) is not None}
        calls.append(fields)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [{"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}[machine]],
        "syscalls": calls,
    }


class ContainerPod(AgentPod):
    """A pod in which the image runs as one of the containers."""

    def __init__(self, shape: Shape, folder: Path, rootfs: Path) -> None:
        super().__init__(shape, folder)
        self.rootfs = rootfs
        self.container = unique("wicket-test-")
        self._bundle = folder / "bundle"
        self._bundle.mkdir()
        self._runc = ("runc", "--root", str(folder / "runc"))
        self.started = 0.0  # monotonic seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            subprocess.run([*self._runc, "delete", "--force", self.container], capture_output=True, check=False)
        finally:
            super().__exit__(kind, error, trace)
        groups = [path for path in Path("/sys/fs/cgroup").glob(f"**/{self.container}") if path.is_dir()]
        assert not groups, f"left behind: {groups}"

    def run_image(
        self,
        *arguments: str,
        uid: int = 0,
        capabilities: tuple[str, ...] = ("CAP_NET_ADMIN",),
        environment: dict[str, str] | None = None,
    ) -> str:
        """Start the image's entry point with these arguments; return the first line it prints."""
        (self._bundle / "config.json").write_text(
            json.dumps(self._config(arguments, uid, list(capabilities), environment))
        )
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            # In the pod's mount namespace, so that /run/wireguard of the pod can be handed on as an emptyDir is.
            self.process = self.pod.popen(
                *self._runc, "run", "--bundle", str(self._bundle), self.container,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"runc or the image failed:\n{self.log.read_text()[-3000:]}"
        return line

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`kubectl exec`: a command in the running container, with its rights."""
        return self.pod.run(*self._runc, "exec", self.container, *command, check=False)

    def _config(
        self, arguments: tuple[str, ...], uid: int, capabilities: list[str], environment: dict[str, str] | None
    ) -> dict[str, Any]:
        tun = os.stat("/dev/net/tun").st_rdev
        major, minor = os.major(tun), os.minor(tun)
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": uid},
                "args": ["wicket", *arguments],
                "env": [*ENVIRONMENT, *(f"{name}={value}" for name, value in (environment or {}).items())],
                "cwd": "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.rootfs), "readonly": True},
            "hostname": "pod",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "ro"]},
                # the emptyDir, and the Secret
                {
                    "destination": "/run/wireguard",
                    "type": "bind",
                    "source": "/run/wireguard",
                    "options": ["bind", "rw"],
                },
                {
                    "destination": "/etc/wireguard",
                    "type": "bind",
                    "source": str(self.conf.parent),
                    "options": ["bind", "ro"],
                },
            ],
            "linux": {
                "cgroupsPath": f"/{self.container}",
                "namespaces": [
                    *({"type": kind} for kind in ("pid", "mount", "ipc", "uts")),
                    {"type": "network", "path": f"/proc/{self.pod.pid}/ns/net"},
                ],
                # A hostPath volume of type CharDevice; the kernel of a test machine often has no WireGuard.
                "devices": [{"path": "/dev/net/tun", "type": "c", "major": major, "minor": minor, "fileMode": 0o666}],
                "resources": {
                    "devices": [
                        {"allow": False, "access": "rwm"},
                        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rw"},
                    ]
                },
                "seccomp": runtime_default(set(capabilities)),
                "maskedPaths": [f"/proc/{name}" for name in MASKED] + ["/sys/firmware"],
                "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
            },
        }
