# SPDX-License-Identifier: Apache-2.0
"""What the endpoints tell. All of it is known already; nothing is changed by being asked."""

from __future__ import annotations

from wicketgate.health.board import Board
from wicketgate.health.cause import Cause
from wicketgate.health.http import Answer, Request
from wicketgate.health.metrics import Metrics

METRICS_SECONDS = 0.2  # a scrape younger than that is given again: thousands of peers times a flood of scrapes
_SCRAPERS = 8  # Accept headers whose scrape is kept; scrapers know two or three


class Answers:
    """The endpoints.

    Args:
        board: where the verdict is.
        metrics: what /metrics prints.
    """

    def __init__(self, board: Board, metrics: Metrics) -> None:
        self._board = board
        self._metrics = metrics
        self._scrapes: dict[str, tuple[float, bytes, str]] = {}

    def handle(self, request: Request) -> Answer:
        """Answer a request."""
        path, _, query = request.target.partition("?")
        if path.startswith("http://"):  # absolute form, RFC 9112 section 3.2.2
            path = "/" + path.removeprefix("http://").partition("/")[2]
        if path not in {"/livez", "/readyz", "/healthz", "/metrics"}:
            # Never a redirect: a balancer's default matcher takes 200-399 for healthy.
            return _text(404, "not found: /livez /readyz /healthz /metrics\n")
        if request.method not in {"GET", "HEAD"}:
            return Answer(405, b"GET or HEAD\n", allow="GET, HEAD")
        if path == "/metrics":
            return self._scrape(request.accept)
        return self._health(path, query, request.accept)

    def _health(self, path: str, query: str, accept: str) -> Answer:
        board = self._board
        verdict = board.verdict()
        causes: tuple[Cause, ...]
        if path == "/livez":
            good, causes = board.live, ()
        elif path == "/readyz":
            good, causes = verdict.ready, verdict.readiness_causes
        else:
            good, causes = verdict.serving, verdict.causes
        status = 200 if good else 503
        if "application/json" in accept:
            return Answer(status, verdict.as_json(board.now()).encode(), "application/json; charset=utf-8")
        if query.partition("&")[0].partition("=")[0] == "verbose":
            return _text(status, verdict.as_text(board.now()))
        if good:
            return _text(status, "ok\n")
        if path == "/livez":
            return _text(status, "the agent's probes do not turn\n")
        return _text(status, " ".join(causes) + "\n")

    def _scrape(self, accept: str) -> Answer:
        now = self._board.now()
        kept = self._scrapes.get(accept)
        if kept is None or not 0 <= now - kept[0] < METRICS_SECONDS:
            if len(self._scrapes) >= _SCRAPERS:
                self._scrapes.clear()
            kept = (now, *self._metrics.render(accept))
            self._scrapes[accept] = kept
        return Answer(200, kept[1], kept[2])


def _text(status: int, text: str) -> Answer:
    return Answer(status, text.encode())
