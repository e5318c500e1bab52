# SPDX-License-Identifier: Apache-2.0
"""Logs: JSON lines for machines, one readable line for people, always on stderr. Keys never appear in them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Meanwhile an import of the package fails, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = cast("Any", None)  # how the import system spells "not here"
    try:
        yield
    finally:
        del sys.modules[package]


# structlog loads rich and pygments, where it finds them, to colour tracebacks. No log line here carries one in colour,
# and they would make an agent's start a tenth longer.
with _hidden("rich"):
    import structlog

LogFormat = Literal["json", "console"]


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `room=name` (`logger` is a parameter of structlog itself)."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(room=name))


def _drop_secrets(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # The last line of defence: key types have a redacting repr already, so this only meets a programmer's slip.
    for field in ("private_key", "preshared_key"):
        if field in event:
            event[field] = "(hidden)"
    return event


def configure(output: LogFormat = "console", *, level: int = logging.INFO) -> None:
    """Set up logging for a command.

    Args:
        output: `json` for log systems, `console` for people.
        level: as in the standard library.
    """
    renderer: structlog.typing.Processor
    if output == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=40)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _drop_secrets,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
