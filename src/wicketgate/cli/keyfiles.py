# SPDX-License-Identifier: Apache-2.0
"""Key files as `wg` reads them: one key in base64. What is in them never shows."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TypeVar

from wicketgate.errors import InputError, StateError
from wicketgate.wireguard.keys import PresharedKey, PrivateKey

K = TypeVar("K", PrivateKey, PresharedKey)
_LIMIT = 4096  # bytes; a key is 44 characters, and whoever points at /dev/zero gets an answer


def read_key(path: Path, kind: type[K]) -> K:
    """Read a key file; warn on stderr when everybody may read it.

    Raises:
        InputError: no such file, or no key in it.
        StateError: the file may not be read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(_LIMIT)
    except FileNotFoundError as error:
        if _is_key(str(path)):
            raise InputError("a key was given where the name of a file with a key is expected") from None
        raise InputError(f"{path}: {error.strerror}; a file with one base64 key is expected") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{path}: {error.strerror}; a file with one base64 key is expected") from None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from None
    if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
        print(f"wicket: warning: {path} can be read by every user: chmod 600 {path}", file=sys.stderr)
    try:
        return kind.parse(raw.decode("ascii").strip())
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text; a file with one base64 key is expected") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _is_key(text: str) -> bool:
    try:
        PresharedKey.parse(text)
    except ValueError:
        return False
    return True
