# SPDX-License-Identifier: Apache-2.0
"""The one small hierarchy of errors that a user may meet.

Text: what it is, what was read, what is allowed, the next step. The command line prints the text and exits with
`exit_code`; a traceback never reaches a user.
"""

from __future__ import annotations


class WicketError(Exception):
    """Something the user looks at is unhealthy or broken (exit code 1)."""

    exit_code = 1


class InputError(WicketError):
    """Bad usage or bad input: a flag, a file, a field (exit code 2)."""

    exit_code = 2


class StateError(WicketError):
    """The state could not be read or changed: a missing right, tool, module or namespace (exit code 3)."""

    exit_code = 3


class KernelRefused(StateError):  # noqa: N818 - it reads as the sentence it is: the kernel refused
    """The kernel refused a change or a question.

    Attributes:
        errno: the error number the kernel gave.
        what: the change in iproute2, tc or nft spelling.
    """

    def __init__(self, what: str, errno: int, message: str) -> None:
        super().__init__(f"{what}: {message} (errno {errno})")
        self.what = what
        self.errno = errno


class ToolMissing(StateError):  # noqa: N818 - as above
    """A program that is needed is not installed; the text names its package."""
