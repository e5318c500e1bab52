# SPDX-License-Identifier: Apache-2.0
"""The logger of the health ports."""

from __future__ import annotations

from typing import cast

import structlog


def health_logger() -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `room=health`."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(room="health"))
