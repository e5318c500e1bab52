# SPDX-License-Identifier: Apache-2.0
"""The log of this room, under the name by which `events` asks for it."""

from __future__ import annotations

from wicketgate.logs import get_logger as journal

__all__ = ["journal"]
