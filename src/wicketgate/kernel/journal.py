# SPDX-License-Identifier: Apache-2.0
"""The log of this room."""

from __future__ import annotations

from typing import cast

import structlog


def journal(room: str) -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `room=`: `logger` is a parameter of structlog's own and cannot be a first value."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(room=room))
