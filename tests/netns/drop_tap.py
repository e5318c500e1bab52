# SPDX-License-Identifier: Apache-2.0
"""The kernel's drop reasons, for the judges: see `wicketgate.kernel.drop_tap`."""

from wicketgate.kernel.drop_tap import DropTap, why_no_tap

__all__ = ["DropTap", "why_no_tap"]
