# SPDX-License-Identifier: Apache-2.0
"""The model against another kernel than the one at hand: Debian's, which is years older."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def observed(machine) -> dict:
    return machine.results("inside_agreement")


@pytest.mark.parametrize(("kind", "least"), [("routing", 150), ("packets", 100), ("tunnels", 24), ("netfilter", 240)])
def test_the_model_agrees_with_an_older_kernel(observed: dict, kind: str, least: int):
    """Random rules, routes, settings, firewalls and peers: verdict, egress and translation are that kernel's too."""
    cases, unknown, wrong = observed["counts"][kind]
    assert wrong == 0, "\n\n".join([observed["release"], *observed["problems"]])
    assert cases >= least
    assert unknown < 0.1 * cases


def test_drop_reasons_were_compared(observed: dict):
    """That kernel's tracefs tells why a packet was dropped."""
    assert observed["no_tap"] == ""
