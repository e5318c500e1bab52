# SPDX-License-Identifier: Apache-2.0
"""`wicket watch` as people run it, and its lines as they come."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Self

PATIENCE = 30.0  # seconds; this machine may be busy


class Watch:
    """A running `wicket watch`: `with Watch("--netns", "pid:4711") as watch: watch.line(lambda text: "eth0" in text)`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wicketgate", "watch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.lines: list[str] = []
        self._taken = 0
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def line(self, wanted: Callable[[str], bool]) -> str:
        """The next line that fits, among those that were not taken yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while self._taken < len(self.lines):
                self._taken += 1
                if wanted(self.lines[self._taken - 1]):
                    return self.lines[self._taken - 1]
            assert time.monotonic() < deadline, "no such line; there were:\n" + "\n".join(self.lines)
            if not self._read(0.5) and self.process.poll() is not None and not self._read(0):
                raise AssertionError(f"it ended ({self.process.returncode}); there were:\n" + "\n".join(self.lines))

    def object(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The same of JSON lines."""
        return dict(json.loads(self.line(lambda text: wanted(json.loads(text)))))

    def _read(self, wait: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], wait)[0]:
            return False
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += [each.decode() for each in whole]
        return bool(data)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """End it: exit code, and what it said on stderr."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Its end: exit code, and what it said on stderr."""
        code = self.process.wait(PATIENCE)
        while self._read(0):
            pass
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()
