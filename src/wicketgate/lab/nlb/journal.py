# SPDX-License-Identifier: Apache-2.0
"""The load balancer's log lines."""

from __future__ import annotations

from typing import cast

import structlog


def journal() -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `room=lab.nlb`.

    `structlog.get_logger` takes its first values by keyword, where `logger` is the name of one of its own parameters
    and cannot be given: hence another field.
    """
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(room="lab.nlb"))
