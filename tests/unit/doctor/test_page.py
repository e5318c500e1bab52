# SPDX-License-Identifier: Apache-2.0
"""The doctor's page: everything that the text tells is in it, and nothing of the place becomes markup."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from doctor_pod import EMPTY, HEALTHY, wg_quicked
from wicketgate.doctor.examine import examine
from wicketgate.doctor.page import PageFile, to_html
from wicketgate.errors import InputError
from wicketgate.netpath.snapshot import Firewall, Unread

EVIL = "<script>alert(1)</script><img src=http://192.0.2.1/x onerror=alert(2)>"
VOID = {"meta", "rect", "path"}


class Read(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def hostile():
    """A pod in which somebody named things to be shown to an administrator."""
    rule = {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 3, "comment": EVIL, "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 9000}}, {"drop": None},
    ]}}  # fmt: skip
    listing = [
        {"table": {"family": "inet", "name": "t", "handle": 1}},
        {"chain": {"family": "inet", "table": "t", "name": "c", "handle": 2, "type": "filter", "hook": "input", "prio": 0,
                   "policy": "accept"}},
        rule,
    ]  # fmt: skip
    text = (
        "table inet t {\n\tchain c {\n\t\ttype filter hook input priority filter; policy accept;\n"
        f'\t\ttcp dport 9000 drop comment "{EVIL}"\n\t}}\n}}\n'
    )
    firewall = replace(EMPTY, nft_json=json.dumps({"nftables": listing}), nft_text=text)
    return replace(HEALTHY, firewall=firewall)


def test_the_page_has_the_whole_report():
    """Verdict, code, rule, explanation, every fix with commands and undo, advice, each step; the rule stands in the picture."""
    found = examine(wg_quicked())
    page = Read(to_html(found, taken_at=0.0))
    assert page.open == []
    (broken,) = found.broken
    cause = broken.diagnosis.cause
    for fix in broken.fixes:
        for words in (fix.fix.words, *fix.fix.commands, *fix.fix.undo):
            assert words in page.text
    for step in broken.diagnosis.steps:
        assert step.object in page.text
    for words in (cause.code, cause.where, cause.explanation, *broken.wrong_advice, "1970-01-01 00:00:00 UTC"):
        assert words in page.text
    assert sum(attributes.get("class") == "box guilty" for _, attributes in page.tags) == 1
    assert sum(tag == "svg" for tag, _ in page.tags) == len(found.findings)


def test_what_was_not_read_is_supposed_apart():
    """The flow cannot be told; below stands what would hold, with its own picture, rule and fixes."""
    snapshot = replace(wg_quicked(), firewall=Firewall(), unread=(Unread("nft -j list ruleset", "not in the paste"),))
    examination = examine(snapshot)
    page = Read(to_html(examination, taken_at=0.0))
    assert "cannot be told" in page.text
    supposed = [one for each in examination.findings for one in each.supposed]
    assert supposed
    assert f"If {supposed[0].words}" in page.text
    assert "32765: not from all fwmark 0xca6c lookup 51820" in page.text
    assert "ip -4 rule add from 10.0.0.2 lookup main pref 100" in page.text
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert not page.open


def test_what_works_is_folded():
    """A healthy pod: no fault's colour, each way below a summary."""
    page = Read(to_html(examine(HEALTHY), taken_at=0.0))
    assert all("broken" not in (attributes.get("class") or "") for _, attributes in page.tags)
    assert "flows work" in page.text


def test_a_hostile_place_stays_text():
    """A rule's comment with a script in it is shown as it is, and no tag, handler or address comes of it."""
    found = examine(hostile())
    assert [each.diagnosis.cause.code for each in found.broken][:1] == ["input-drop"]
    page = Read(to_html(found, taken_at=0.0))
    assert page.open == []
    assert EVIL in page.text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "a"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in names)


def test_a_page_appears_whole_or_not_at_all(tmp_path):
    """Mode 0600; what was there stays until the new page is complete; nothing else is left behind."""
    path = tmp_path / "report.html"
    path.write_text("before")
    file = PageFile(str(path))
    assert path.read_text() == "before"
    file.discard()
    assert path.read_text() == "before"
    file = PageFile(str(path))
    file.write("after")
    file.discard()
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("where", ["missing/report.html", "."])
def test_a_place_that_takes_no_file_is_named(tmp_path, where):
    """Before anything is read."""
    with pytest.raises(InputError, match="--html"):
        PageFile(str(tmp_path / where))
