# SPDX-License-Identifier: Apache-2.0
"""docs/causes: a page for each code, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wicketgate.health.cause import Cause

CAUSES = Path(__file__).parents[2] / "docs" / "causes"
SOURCE = Path(__file__).parents[2] / "src" / "wicketgate"


def test_every_code_has_its_page_and_no_page_is_without_code():
    """The folder holds the index and one page a code."""
    assert {page.stem for page in CAUSES.iterdir()} == {code.value for code in Cause} | {"index"}


@pytest.mark.parametrize("code", Cause)
def test_a_page_says_what_it_is_how_it_looks_and_how_to_mend_it(code):
    """Title and first sentence are the program's; then signs in a table, and the cure by hand."""
    text = (CAUSES / f"{code}.md").read_text()
    assert text.startswith(f"# {code}\n\n{code.sentence}\n\n")
    happens, looks, mend = re.split(r"^## (?:How it looks|How to mend it by hand)\n", text, flags=re.MULTILINE)
    assert len(happens.split("\n\n")[2]) > 80
    assert len(re.findall(r"^\| .* \| .* \|$", looks, re.MULTILINE)) >= 3  # its head and two signs
    assert mend.strip()


def test_the_index_has_every_code_with_its_sentence():
    """In the order of the vocabulary."""
    rows = re.findall(r"^\| \[(.*?)\]\((.*?)\.md\) \| (.*) \|$", (CAUSES / "index.md").read_text(), re.MULTILINE)
    assert rows == [(code.value, code.value, code.sentence) for code in Cause]


def test_what_the_model_says_is_in_the_vocabulary():
    """Each code that the walk or the diagnosis gives is one of the causes, but for `no-route`, which diagnose() translates."""
    said = set()
    for name in ("walk", "journey", "round_trip", "sockets", "source_check", "diagnose"):
        text = (SOURCE / "netpath" / f"{name}.py").read_text()
        said |= set(
            re.findall(
                r'(?:code=|Blocked\(\s*|Nobody\(|Cause\(|lost\(journey, |code = |return )"([a-z]+(?:-[a-z]+)+)"', text
            )
        )
    assert len(said) > 15
    assert said - {"no-route"} <= {code.value for code in Cause}
