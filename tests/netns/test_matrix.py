# SPDX-License-Identifier: Apache-2.0
"""The table of docs/matrix.md is what the kernel does now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import matrix  # noqa: E402

pytestmark = pytest.mark.timeout(240)


@pytest.mark.slow
def test_the_page_says_what_the_kernel_does_and_the_model_computes():
    """Every fix, every rp_filter and src_valid_mark, both CNI shapes, with real connections; and the model's say of each."""
    lines, wrong = matrix.rerun()
    assert lines == matrix.committed((ROOT / "docs" / "matrix.md").read_text())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("shape", matrix.SHAPES)
def test_the_rule_that_we_add_is_the_cure_everywhere(shape):
    """Nothing answers under wg-quick's rules alone, everything with a source rule: what `wicket` pins."""
    fixes = tuple(f for f in matrix.FIXES if f.name in ("none", "`ip rule add from POD_IP lookup main`"))
    found = matrix.column(shape, fixes)
    assert [{cell.kernel for cell in cells} for cells in found.values()] == [{False}, {True}]
    assert all(cell.agrees for cells in found.values() for cell in cells), found
