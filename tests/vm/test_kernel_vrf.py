# SPDX-License-Identifier: Apache-2.0
"""Beside a VRF the model is the kernel's; within one it says that it does not know."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def observed(machine) -> dict:
    return machine.results("inside_vrf")


def test_the_rule_is_spelled_as_ip_does(observed: dict):
    """The first VRF brings a rule at 1000 in each family."""
    assert [line.replace("\t", " ") for line in observed["listed"]] == observed["rules"]
    assert sum("l3mdev-table" in line for line in observed["rules"]) == 2


@pytest.mark.parametrize("family", [4, 6])
def test_beside_it_every_way_is_the_kernels(observed: dict, family: int):
    """Device, gateway and source address, also where the source is borrowed: no address of the VRF is."""
    seen = 0
    for name, said in observed.items():
        if (
            "rule" in name
            or name == "listed"
            or (":" in name) is not (family == 6)
            or "oif e1" in name
            or "red" in name
        ):
            continue
        assert said["unknown"] == "", (name, said)
        assert said["model"] == said["kernel"], name
        seen += 1
    assert seen >= 6


def test_a_sender_in_it_asks_its_table(observed: dict):
    """A socket that is bound to the VRF or to a port of it: the rule `l3mdev` sends it to the VRF's table, as the kernel does."""
    within = {
        name: said for name, said in observed.items() if any(f"oif {each}" in name for each in ("e1", "e3", "red"))
    }
    assert len(within) == 36
    for name, said in within.items():
        assert said["unknown"] == "", (name, said)
        assert said["model"] == said["kernel"], name
    assert {said["model"].get("dev") for said in within.values()} >= {"e1", "e3"}
