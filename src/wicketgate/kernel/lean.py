# SPDX-License-Identifier: Apache-2.0
"""Packages without their front rooms: submodules are imported, a package's `__init__` only when somebody needs it.

`import pyroute2` loads everything it has (NDB and its SQL schemas, IPDB, 802.11, 9P ...). An agent that uses none of
that would start slower and carry megabytes for nothing (bench/start_to_green.py, bench/idle_cost.py).
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def lean(package: str) -> None:
    """Let `import package.part` load that part alone.

    Whoever asks the package for a name of its own (`from pyroute2 import NDB`) still gets it: `__init__` runs then.
    Does nothing when the package is loaded already, or is not there; the import that follows tells.

    Args:
        package: a top-level package whose parts do not depend on what its `__init__` does.
    """
    if package in sys.modules:
        return
    spec = find_spec(package)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    loader = spec.loader

    def get(name: str) -> Any:
        if name == "__version__":
            return version(package)
        # `from package import part` asks for the attribute first and imports the part when there is none.
        if name.startswith("__") or find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _complete(module, loader)
        return getattr(module, name)

    module.__dict__["__getattr__"] = get
    sys.modules[package] = module


def _complete(module: ModuleType, loader: Any) -> None:
    del module.__dict__["__getattr__"]
    loader.exec_module(module)
