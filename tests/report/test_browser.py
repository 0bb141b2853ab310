"""The report in Chromium, on a phone and on a desk, light and dark: no network, no errors, readable, reachable."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from raygenesis.report.report import report
from raygenesis.workspace.workspace import Workspace
from tests.support.browser import browser, check, check_keyboard, needs_chromium, opened
from tests.support.workspaces import make_archive, make_discovery, make_run, make_sweep, make_transfer, settings_of

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace, settings = Workspace.open(tmp_path_factory.mktemp("report") / "w"), settings_of(3)
    make_archive(workspace, failures=[{"source": "0" * 200, "reason": "not readable as NIfTI " * 9}])
    make_discovery(workspace, settings)
    make_run(workspace, settings, "a-run-with-a-name-that-is-rather-long", warnings=["nothing is learnt"])
    make_run(workspace, settings, "half", finished=False)
    make_sweep(workspace)
    make_transfer(workspace, 3)
    return report(workspace, settings)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_report(chromium: Browser, page_file: Path, width: int, scheme: str) -> None:
    with opened(chromium, page_file, width, scheme) as page:
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 26)")
        page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
        check(page, width)
        # Text in charts, as large as it is shown.
        sizes = page.evaluate("""[...document.querySelectorAll('.chart svg text')].map(text => {
          const svg = text.ownerSVGElement;
          return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width; })""")
        assert len(sizes) > 50 and min(sizes) >= 10


def test_tables_of_runs_and_targets_fit_on_a_desk_and_scroll_within_their_box_on_a_phone(
    chromium: Browser, page_file: Path
) -> None:
    cut = """[...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth)
      .map(e => e.getAttribute("aria-label"))"""
    wide = {"Runs", "Target heads-tissue"}
    for width, expected in ((1440, set()), (390, wide)):
        with opened(chromium, page_file, width, "light") as page:
            assert set(page.evaluate(cut)) & wide == expected
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_a_row_of_what_was_run_is_a_line_and_what_is_cut_off_is_shaded(
    chromium: Browser, page_file: Path
) -> None:
    with opened(chromium, page_file, 390, "light") as page:
        heights = page.evaluate("""[...document.querySelectorAll('[aria-label="Stages"] tr')].filter(
          row => row.cells.length > 2).map(row => row.getBoundingClientRect().height)""")
        assert len(heights) > 8 and max(heights) < 1.5 * min(heights)
        box = page.locator("[aria-label='Stages']")
        box.scroll_into_view_if_needed()
        area = box.bounding_box()

        def grey_at(x: float) -> float:
            strip = {"x": area["x"] + x, "y": area["y"] + 8, "width": 2, "height": 4}  # above the heads' text
            return float(np.asarray(Image.open(BytesIO(page.screenshot(clip=strip))).convert("L")).mean())

        assert grey_at(area["width"] - 2) < 200 and grey_at(1) > 250  # more lies on the right
        box.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
        assert grey_at(area["width"] - 2) > 250 and grey_at(1) < 200  # and now on the left


def test_the_report_by_keyboard(chromium: Browser, page_file: Path) -> None:
    with opened(chromium, page_file, 1440, "light") as page:
        check_keyboard(page)
        closed = page.locator("details:not([open]) > summary").first
        closed.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.parentElement.open")


def test_every_link_of_the_contents_leads_to_its_section(chromium: Browser, page_file: Path) -> None:
    with opened(chromium, page_file, 390, "light") as page:
        links = page.locator("nav a").all()
        assert len(links) == 13
        for link in links:
            link.click()
            heading = page.locator(page.evaluate("location.hash"))
            assert heading.inner_text() == link.inner_text()
            assert heading.evaluate("e => e.getBoundingClientRect().top < innerHeight")
