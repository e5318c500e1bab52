# SPDX-License-Identifier: Apache-2.0
"""Reads the gateway's wg-quick file from wherever it lies."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wicketgate.config import wgquick
from wicketgate.config.wgquick import WgQuickConfig
from wicketgate.errors import InputError
from wicketgate.logs import get_logger

_log = get_logger("gateway")


def load(path: str) -> WgQuickConfig:
    """Read a wg-quick file, and say what is doubtful about it.

    Raises:
        InputError: it cannot be read, or is not one; every problem with file and line.
    """
    try:
        # O_NONBLOCK: a pipe that nobody writes to must not hold us for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"{path}: not a file; name a readable wg-quick file")
            content = file.read(wgquick.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a readable wg-quick file") from error
    config = wgquick.parse(content, path=path)
    directory = stat.S_IMODE(os.stat(Path(path).resolve().parent).st_mode)
    for warning in (wgquick.mode_warning(mode, path=path, directory_mode=directory), *config.warnings):
        if warning is not None:
            _log.warning(str(warning))
    return config
