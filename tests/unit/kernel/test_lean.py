# SPDX-License-Identifier: Apache-2.0
"""Lean packages: what is not used is not loaded, what is asked for is there."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_the_agent_does_not_load_what_it_does_not_use() -> None:
    """`wicket up` starts without pyroute2's databases, an HTTP client and a terminal's colours."""
    unused = ("pyroute2.ndb.main", "pyroute2.ipdb", "aiohttp", "rich.traceback", "pygments", "sqlite3")
    loaded = python(
        f"import sys, wicketgate.cli.up, wicketgate.cli.sidecar; print([m for m in {unused} if m in sys.modules])"
    )
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("before", "statement"),
    [
        ("pyroute2.netlink.rtnl", "from pyroute2 import IPRoute, NDB; NDB"),
        ("pyroute2.netlink.rtnl", "import pyroute2; pyroute2.IPRoute"),
        ("pyroute2.netlink.rtnl", "from pyroute2 import netns; netns.create"),
        ("aiohttp.web_response", "from aiohttp import ClientSession, web; web.Application()"),
        ("aiohttp.web_response", "import aiohttp.web; aiohttp.ClientSession"),
        ("json.decoder", "import json; json.dumps({})"),
    ],
)
def test_what_is_asked_for_is_there(before: str, statement: str) -> None:
    """A package's own names work as ever after a part of it was imported alone."""
    package = before.partition(".")[0]
    assert (
        python(
            f"from wicketgate.kernel.lean import lean; lean({package!r}); import {before}; {statement}; print('good')"
        )
        == "good"
    )


def test_no_name_is_invented() -> None:
    """A name that the package does not have is an AttributeError, as ever."""
    code = "from wicketgate.kernel.lean import lean; lean('pyroute2'); import pyroute2\nprint(hasattr(pyroute2, 'nonsense'))"
    assert python(code) == "False"


def test_a_package_that_is_missing_or_loaded_is_left_alone() -> None:
    """Nothing is invented for the import system, and nothing is loaded twice."""
    code = (
        "import sys, json; from wicketgate.kernel.lean import lean; was = sys.modules['json']\n"
        "lean('json'); lean('no_such_package_anywhere')\n"
        "print(sys.modules['json'] is was, 'no_such_package_anywhere' in sys.modules)"
    )
    assert python(code) == "True False"
