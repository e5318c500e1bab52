# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that no linter knows."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for top in ("src", "tests", "bench") for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_names_its_licence(path: Path):
    """Every Python file starts with the SPDX line."""
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
