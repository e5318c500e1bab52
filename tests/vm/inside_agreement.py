# SPDX-License-Identifier: Apache-2.0
"""Inside the machine: the model against an older kernel, in random cases of every kind of bench/agreement.py; counts as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

import agreement  # noqa: E402

SEED = 615
SHARES = {"routing": 150, "packets": 100, "tunnels": 24, "netfilter": 240}  # a few a second, emulated


def main() -> None:
    for module in ("tun", "nf_conntrack"):
        subprocess.run(["modprobe", module], check=True)
    result = agreement.Result()
    for name, cases in SHARES.items():
        print(name, flush=True)
        getattr(agreement, name)(result, cases, SEED)
    counted = {name: result.rows[f"all {name}"] for name in SHARES}
    told = {
        "release": os.uname().release,
        "counts": {name: [row.cases, row.unknown, row.wrong] for name, row in counted.items()},
        "problems": result.problems[:5],
        "no_tap": result.no_tap,
    }
    Path(sys.argv[1]).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
