# SPDX-License-Identifier: Apache-2.0
"""nft: one transaction or nothing, nft's own words with the offending line, and never another's table."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wicketgate.errors import StateError, ToolMissing
from wicketgate.kernel import process
from wicketgate.kernel.device_changes import DeleteNftTable, ReplaceNftTable, spell_script
from wicketgate.kernel.nft import (
    NftRefused,
    nft_apply,
    nft_delete_table,
    nft_list,
    nft_list_table,
    nft_replace_table,
    nft_tables,
    parse_listing,
    replace_script,
    table_name,
)
from wicketgate.kernel.plan import Plan, PlanFailed
from wicketgate.lab.host import Host

NewHost = Callable[..., Host]
OURS = "wicketgate-wg0"
BODY = """
  set clients {
    type ipv4_addr; flags interval;
    elements = { 10.8.0.0/24, 10.9.0.0/24 }
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    # whoever comes from the tunnel leaves with our address
    ip saddr @clients oifname "eth0" counter masquerade
  }
  chain passing {
    type filter hook forward priority mangle; policy accept;
    iifname "wg0" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
  }
"""
FOREIGN = "table inet foreign {\n  chain input { type filter hook input priority 0; tcp dport 1 drop\n }\n}\n"


def test_a_table_is_replaced_and_replaced_again(new_host: NewHost) -> None:
    """Idempotent: the second time gives the same table, not a second copy of its rules; a stranger's table stays."""
    host = new_host("pod")
    host.run("nft", "-f", "-", stdin=FOREIGN)
    foreign = host.run("nft", "list", "table", "inet", "foreign").stdout

    async def scenario() -> None:
        await nft_replace_table("inet", OURS, BODY)
        once = await nft_list_table("inet", OURS)
        assert once is not None
        assert once.count("masquerade") == 1
        await nft_replace_table("inet", OURS, BODY)
        assert await nft_list_table("inet", OURS) == once
        assert await nft_tables() == (("inet", "foreign"), ("inet", OURS))
        entries = parse_listing(await nft_list())
        assert sum("rule" in entry for entry in entries) == 3
        await nft_delete_table("inet", OURS)
        await nft_delete_table("inet", OURS)
        assert await nft_list_table("inet", OURS) is None

    host.acall(scenario)
    assert host.run("nft", "list", "ruleset").stdout == foreign


def test_one_bad_rule_changes_nothing_and_is_named(new_host: NewHost) -> None:
    """The error carries the line of the script and nft's sentence about it."""
    host = new_host("pod")
    bad = BODY.replace("counter masquerade", "counter masquerode")

    async def scenario() -> None:
        await nft_replace_table("inet", OURS, BODY)
        before = await nft_list(as_json=False)
        with pytest.raises(NftRefused) as caught:
            await nft_replace_table("inet", OURS, bad)
        assert "masquerode" in caught.value.text
        assert "masquerode" in str(caught.value)
        assert "syntax error" in caught.value.reason
        script = replace_script("inet", OURS, bad).splitlines()
        assert script[caught.value.line - 1].strip() == caught.value.text
        # One that only the kernel refuses: a jump to a chain that is not there.
        with pytest.raises(NftRefused):
            await nft_replace_table("inet", OURS, "chain a {\n  jump nowhere\n}")
        assert await nft_list(as_json=False) == before

    host.acall(scenario)


def test_json_is_told_from_text(new_host: NewHost) -> None:
    """Both languages through one door; a bad JSON script is refused as whole as a bad text."""
    host = new_host("pod")
    table = {"add": {"table": {"family": "inet", "name": OURS}}}

    async def scenario() -> None:
        await nft_apply(json.dumps({"nftables": [table]}))
        assert await nft_tables() == (("inet", OURS),)
        broken = {
            "add": {
                "chain": {"family": "inet", "table": OURS, "name": "x", "type": "filter", "hook": "nowhere", "prio": 0}
            }
        }
        second = {"add": {"table": {"family": "inet", "name": "wicketgate-wg1"}}}
        with pytest.raises(NftRefused):
            await nft_apply(json.dumps({"nftables": [second, broken]}))
        assert await nft_tables() == (("inet", OURS),)

    host.acall(scenario)


def test_checking_changes_nothing(new_host: NewHost) -> None:
    """Nft -c: the answer without the deed."""

    async def scenario() -> None:
        await nft_replace_table("inet", OURS, BODY, check=True)
        assert await nft_tables() == ()
        with pytest.raises(NftRefused):
            await nft_replace_table("inet", OURS, "chain {", check=True)

    new_host("pod").acall(scenario)


def test_a_name_that_is_not_ours_never_reaches_nft() -> None:
    """A programmer's slip is caught before the kernel: neither replaced nor deleted."""
    for name in ("filter", "foreign", "", "wicketgate", "wicketgate-x; flush ruleset", "wicketgate-a b"):
        with pytest.raises(ValueError, match="nft table"):
            replace_script("inet", name, "")
        with pytest.raises(ValueError, match="nft table"):
            asyncio.run(nft_delete_table("inet", name))


@pytest.mark.parametrize("ifname", ["wg0", "wg.100", "a-b_c", "wg=+0", "9", "-", "fwd"])
def test_every_name_that_wg_quick_takes_has_a_table(ifname: str, new_host: NewHost) -> None:
    """[a-zA-Z0-9_=+.-]{1,15}; nft takes fewer."""
    name = table_name(ifname)

    async def scenario() -> None:
        await nft_replace_table("inet", name, BODY)
        assert await nft_tables() == (("inet", name),)
        await nft_delete_table("inet", name)

    new_host("pod").acall(scenario)


INSIDE = """
import asyncio, sys
from wicketgate.errors import StateError
from wicketgate.kernel.nft import nft_replace_table
try:
    asyncio.run(nft_replace_table("inet", "wicketgate-wg0", sys.stdin.read()))
except StateError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("capable", [True, False])
def test_capability_net_admin_is_needed_and_enough(capable: bool, new_host: NewHost) -> None:
    """With CAP_NET_ADMIN and nothing else a table with NAT and sets is made; without it the error names what is missing."""
    host = new_host("pod")
    bounding = "--bounding-set=-all,+net_admin" if capable else "--bounding-set=-all"
    done = host.run("setpriv", bounding, "--no-new-privs", sys.executable, "-c", INSIDE, stdin=BODY, check=False)
    there = OURS in host.run("nft", "list", "tables").stdout
    assert (done.returncode == 0, there) == (capable, capable), done.stderr
    if not capable:
        assert "CAP_NET_ADMIN is missing" in done.stderr


async def test_without_nft_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ToolMissing, with what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(process, "_SBIN", str(tmp_path))
    with pytest.raises(ToolMissing, match="apt-get install nftables"):
        await nft_apply("table inet x {\n}\n")


def test_the_spelled_line_does_the_same(new_host: NewHost) -> None:
    """What is logged can be typed: the one-line command gives the very same table."""
    host = new_host("pod")
    script = replace_script("inet", OURS, BODY)
    line = spell_script(script)
    assert "\n" not in line
    host.run("sh", "-c", line)
    typed = host.run("nft", "list", "table", "inet", OURS).stdout
    host.acall(lambda: nft_apply(script))
    assert host.run("nft", "list", "table", "inet", OURS).stdout == typed


def test_a_plan_puts_back_the_table_that_was_there(new_host: NewHost) -> None:
    """Undo restores the earlier table rule by rule; where there was none it leaves none."""
    host = new_host("pod")

    async def scenario() -> None:
        await nft_replace_table("inet", OURS, BODY)
        before = await nft_list_table("inet", OURS)
        new = replace_script("inet", OURS, "chain only {\n  accept\n}")
        other = replace_script("inet", "wicketgate-wg1", BODY)
        broken = replace_script("inet", "wicketgate-wg2", "chain {")
        plan = Plan(
            [
                ReplaceNftTable("inet", OURS, new),
                ReplaceNftTable("inet", "wicketgate-wg1", other),
                ReplaceNftTable("inet", "wicketgate-wg2", broken),
            ]
        )
        with pytest.raises(PlanFailed):
            await plan.apply()
        assert await nft_list_table("inet", OURS) == before
        assert await nft_tables() == (("inet", OURS),)
        removal = Plan([DeleteNftTable("inet", OURS), DeleteNftTable("inet", "wicketgate-absent")])
        await removal.apply()
        assert await nft_tables() == ()
        await removal.undo()
        assert await nft_list_table("inet", OURS) == before
        assert await nft_tables() == (("inet", OURS),)

    host.acall(scenario)


async def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    """The deadline holds, what it had said is told, and nothing of it runs on."""
    pid_file = tmp_path / "pid"
    script = f"echo waiting >&2; sleep 1000 & echo $! > {pid_file}; wait"
    with pytest.raises(StateError, match=r"no end after 0.5 s.*waiting"):
        await process.run(["sh", "-c", script], timeout=0.5)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid_file.read_text().strip()}/stat").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_cancelled_program_is_ended(tmp_path: Path) -> None:
    """Ctrl-C leaves no child, not even a zombie."""
    pid_file = tmp_path / "pid"
    task = asyncio.ensure_future(process.run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 1000"], timeout=100))
    deadline = time.monotonic() + 10
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


async def test_a_large_input_and_output_pass_whole() -> None:
    """More than any pipe holds, both ways; the exit code and both outputs come home."""
    text = "0123456789abcdef\n" * 100_000
    done = await process.run(["sh", "-c", "cat; echo word >&2; exit 7"], stdin=text)
    assert (done.code, done.stdout, done.stderr) == (7, text, "word\n")
