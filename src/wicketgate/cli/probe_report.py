# SPDX-License-Identifier: Apache-2.0
"""What `wicket probe` found, in words and as JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wicketgate.wireguard.failure import ProbeFailure, Step


@dataclass(slots=True)
class Attempt:
    """One handshake, and the echo after it.

    Attributes:
        handshake: seconds, None when there was none.
        echo: seconds, None when there was none or none was asked for.
        failure: the step that failed, if one did.
    """

    seq: int
    handshake: float | None = None
    under_load: bool = False
    echo: float | None = None
    failure: ProbeFailure | None = None

    def line(self, server: str, key: str, echo_from: str | None) -> str:
        """As ping prints it."""
        if self.handshake is None:
            said = f"no handshake with {key} at {server}: seq={self.seq}"
        else:
            said = f"handshake with {key} at {server}: seq={self.seq} time={_ms(self.handshake)}"
            if self.under_load:
                said += " (under load: answered a cookie)"
        if self.echo is not None:
            said += f"; echo from {echo_from}: {_ms(self.echo)}"
        if self.failure is not None:
            said += f"{'' if self.handshake is None else ';'} {_WORDS[self.failure.step]}"
        return said

    def to_json(self) -> dict[str, object]:
        """See `wicket probe --help`."""
        return {
            "seq": self.seq,
            "ok": self.failure is None,
            "handshake_seconds": self.handshake,
            "under_load": self.under_load,
            "echo_seconds": self.echo,
            "step": None if self.failure is None else self.failure.step.value,
            "meaning": None if self.failure is None else self.failure.meaning,
        }


_WORDS = {
    Step.REFUSED: "refused",
    Step.UNREACHABLE: "unreachable",
    Step.SILENT: "silence",
    Step.UNDER_LOAD: "under load, not finished in time",
    Step.WRONG_PSK: "wrong preshared key",
    Step.MALFORMED: "malformed answer",
    Step.NO_ECHO: "no echo",
    Step.TCP_REFUSED: "TCP refused",
    Step.TCP_SILENT: "TCP silent",
}


@dataclass(slots=True)
class Report:
    """All attempts at one server.

    Attributes:
        target: as the user wrote it.
        server: the address and port that was used.
        pinged: whether an echo was asked for.
        unknown_client: the client's key was made for this run, so no server knows it.
    """

    target: str
    server: str
    public_key: str
    pinged: bool
    unknown_client: bool
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """At least one attempt was answered in full, as ping judges."""
        return any(attempt.failure is None for attempt in self.attempts)

    def summary(self) -> Iterator[str]:
        """The lines at the end."""
        handshakes = [a.handshake for a in self.attempts if a.handshake is not None]
        echoes = [a.echo for a in self.attempts if a.echo is not None]
        total = len(self.attempts)
        failed = sum(a.failure is not None for a in self.attempts)
        yield f"--- {self.server} wireguard probe statistics ---"
        share = f", {100 * failed / total:.0f}% failed" if total else ""
        counted = f"{_plural(total, 'attempt')}, {_plural(len(handshakes), 'handshake')}"
        yield counted + (f", {_plural(len(echoes), 'echo', 'echoes')}" if self.pinged else "") + share
        for name, values in (("handshake", handshakes), ("echo", echoes)):
            if values:
                least, middle, most = min(values), statistics.median(values), max(values)
                yield f"{name} min/median/max = {least * 1e3:.1f}/{middle * 1e3:.1f}/{most * 1e3:.1f} ms"
        steps = Counter(a.failure.step for a in self.attempts if a.failure is not None)
        last = {a.failure.step: a.failure for a in self.attempts if a.failure is not None}
        for step, times in steps.most_common():
            yield f"{_WORDS[step]} ({times} of {total}): {last[step].meaning}"
        if Step.SILENT in steps and self.unknown_client:
            yield (
                "the client key was made for this run, so silence is all that a healthy server would give: "
                "use --private-key-file with the key of a peer that the server knows"
            )

    def to_json(self) -> dict[str, object]:
        """See `wicket probe --help`."""
        return {
            "target": self.target,
            "server": self.server,
            "public_key": self.public_key,
            "ok": self.ok,
            "unknown_client": self.unknown_client,
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "handshake_seconds": _spread([a.handshake for a in self.attempts if a.handshake is not None]),
            "echo_seconds": _spread([a.echo for a in self.attempts if a.echo is not None]),
        }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _plural(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
