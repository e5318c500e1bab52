# SPDX-License-Identifier: Apache-2.0
"""The doctor's page in a real browser: on a phone, at a desk, in the dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from doctor_pod import wg_quicked
from wicketgate.doctor.examine import examine
from wicketgate.doctor.page import to_html

pytestmark = pytest.mark.browser

# Each text's colour against the first background behind it that is not transparent: WCAG 2.2, 1.4.3 (AA: 4.5).
CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const seen = [];
  for (const each of document.querySelectorAll("h1,h2,h3,p,li,pre,code,summary,span,strong,svg text")) {
    if (!each.textContent.trim() || each.closest("details:not([open])") && each.tagName != "SUMMARY") continue;
    let behind = each;
    if (each.tagName == "text") behind = each.parentNode.querySelector("rect") || each;
    let paper = each.tagName == "text" && behind != each ? rgb(getComputedStyle(behind).fill) : null;
    for (let at = each; !paper; at = at.parentNode) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) paper = found;
    }
    const ink = rgb(each.tagName == "text" ? getComputedStyle(each).fill : getComputedStyle(each).color);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    seen.push([(a + 0.05) / (b + 0.05), each.textContent.trim().slice(0, 40)]);
  }
  return seen.sort((x, y) => x[0] - y[0]);
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(examine(wg_quicked()), taken_at=0.0), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = which("chromium")
    assert program is not None, "chromium is missing; scripts/setup all installs it"
    with sync_playwright() as playwright:
        # The page is our own; as root chromium has no sandbox.
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, file: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, in a window of the test's size and colours; the console stays quiet and nothing is fetched."""
    how: dict[str, Any] = getattr(request, "param", {"width": 360, "colours": "light"})
    made = browser.new_page(viewport={"width": how["width"], "height": 800}, color_scheme=how["colours"])
    said, asked = [], []
    made.on("console", lambda message: said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("request", lambda wanted: asked.append(wanted.url))
    made.goto(file.as_uri())
    yield made
    assert said == []
    assert asked == [file.as_uri()]
    made.close()


SIZES = [{"width": width, "colours": colours} for width in (360, 1280) for colours in ("light", "dark")]


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_it_fits_and_can_be_read(page: Page) -> None:
    """No sideways scroll, also with everything unfolded; every text has contrast enough."""
    for fold in page.query_selector_all("details"):
        fold.evaluate("each => each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    worst = page.evaluate(CONTRAST)
    assert len(worst) > 30
    assert worst[0][0] >= 4.5, worst[:3]


@pytest.mark.parametrize("page", [{"width": 360, "colours": "dark"}], indirect=True)
def test_the_dark_is_dark(page: Page) -> None:
    """Where the reader's system is dark the paper is."""
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 64


def test_the_guilty_rule_is_marked_without_colour(page: Page) -> None:
    """A thicker line, a cross and a spoken word, in view of a phone's first screens."""
    guilty = page.locator("svg g.guilty").first
    assert "\u2717" in guilty.locator("text.stage").text_content()
    line, others = (
        page.locator(f"svg g.{kind} rect").first.evaluate("each => parseFloat(getComputedStyle(each).strokeWidth)")
        for kind in ("guilty", "box:not(.guilty)")
    )
    assert line > others
    assert "to blame" in page.locator("svg desc").first.text_content()
    assert page.locator("svg").first.bounding_box()["width"] > 280


def test_commands_are_copied_as_they_are_typed(page: Page) -> None:
    """Wrapping on a narrow screen puts no line break into what is pasted."""
    commands = page.locator("pre.commands").first
    assert commands.evaluate(
        "each => { getSelection().selectAllChildren(each); return getSelection().toString() }"
    ) == ("ip -4 rule add from 10.0.0.2 lookup main pref 100")
