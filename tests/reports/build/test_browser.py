"""The page in a real browser: at four widths, in light and dark, printed, by keyboard, by axe.

The stand-in's page, the published one, and the report in runs/ if there is one, whose screenshots stay in
runs/screens for a person to look at.
"""

import os
import shutil
from pathlib import Path

import pytest

from reports.build.__main__ import ROOT

WIDTHS = (1400, 1100, 800, 390)
REPORT = ROOT / "runs/warp_report.html"
PUBLISHED = ROOT / "reports/warp_report.html"
AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules/axe-core/axe.min.js"))
CUT = """() => [...document.querySelectorAll('main *, header *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !e.closest('.scroll, math, pre, svg');
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["stand-in", "published", "report"])
def address(request: pytest.FixtureRequest, built: Path) -> str:
    if request.param == "stand-in":
        return (built / "runs/warp_report.html").as_uri()
    if request.param == "published":
        return PUBLISHED.as_uri()
    if not REPORT.is_file():
        pytest.skip("`make report` has not been run here")
    return REPORT.as_uri()


def opened(chromium, address: str, width: int, scheme: str = "light"):
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.goto(address)
    return page


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_at_any_width(chromium, address: str, width: int) -> None:
    for scheme in ("light", "dark"):
        page = opened(chromium, address, width, scheme)
        if address == REPORT.as_uri():
            folder = REPORT.parent / "screens"
            page.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
        page.context.close()


def test_axe_finds_no_violation(chromium, address: str) -> None:
    if not AXE.is_file():
        pytest.skip(f"there is no axe-core at {AXE}: `npm install axe-core`, or set AXE_CORE")
    for width, scheme in ((1400, "light"), (1400, "dark"), (390, "light")):
        page = opened(chromium, address, width, scheme)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
        page.context.close()


def test_the_contents_are_closed_on_a_phone_and_open_beside_the_text(chromium, address) -> None:
    for width, open_ in ((390, False), (1400, True)):
        page = opened(chromium, address, width)
        contents = page.locator("nav > ul")
        assert contents.is_visible() == open_
        if not open_:
            page.locator("nav label").click()
            assert contents.is_visible()
        page.context.close()


def test_a_figure_is_enlarged_and_a_mark_tells_its_value_without_a_script(
    chromium, address: str
) -> None:
    page = opened(chromium, address, 1400)
    link = page.get_by_text("Увеличить", exact=True).first
    figure = page.locator(f"{link.get_attribute('href')}")
    small = figure.bounding_box()["width"]
    link.click()
    assert figure.bounding_box()["width"] > small
    figure.get_by_text("Закрыть").click()
    assert figure.bounding_box()["width"] == small
    marks = page.locator(".told")
    if marks.count():
        text = marks.first.locator("text")
        assert text.evaluate("each => getComputedStyle(each).visibility") == "hidden"
        marks.first.focus()
        assert text.evaluate("each => getComputedStyle(each).visibility") == "visible"
    page.context.close()


def test_the_first_screen_has_both_figures(chromium) -> None:
    for report in filter(Path.is_file, (PUBLISHED, REPORT)):
        page = opened(chromium, report.as_uri(), 1400)
        for label in ("claims", "plane"):
            box = page.locator(f"#figure-overview-{label} .panels").bounding_box()
            assert box["y"] + box["height"] <= 900, (report, label)
        page.context.close()
