"""A headless Chromium, and what is asked of every page in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")

# WCAG 2: text against what it is written on, 4.5 to 1, or 3 to 1 where it is large. Text on pictures has an outline.
FAINT = """() => {
  const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = element => {
    for (let above = element; above; above = above.parentElement) {
      const colour = parse(getComputedStyle(above).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    throw "no ground";
  };
  const faint = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest(".boxed, script, style, title"))
      continue;
    const style = getComputedStyle(element);
    const [ink, ground] = [parse(element.closest("svg") ? style.fill : style.color), behind(element)].map(light);
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    const pixels = parseFloat(style.fontSize), large = pixels >= 24 || (pixels >= 18.66 && style.fontWeight >= 700);
    count += 1;
    if (ratio < (large ? 3 : 4.5)) faint.add(`${texts.currentNode.data.trim()} ${ratio.toFixed(2)}`);
  }
  return [count, [...faint]];
}"""
REACHABLE = "a[href], button, summary, input, select, [tabindex='0']"


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@contextmanager
def opened(chromium: Browser, path: Path, width: int, scheme: str) -> Iterator[Page]:
    """A page, of which every error and every request to the network is found at the end."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(path.as_uri())
    yield page
    page.close()
    assert said == [path.as_uri()]


def check(page: Page, width: int) -> None:
    """It fits, is said in words, is in order, and is seen and reached."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unsaid = "[...document.querySelectorAll('img, [role=img]')].filter(e => !(e.alt || e.getAttribute('aria-label')))"
    assert page.evaluate(f"{unsaid}.length") == 0
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    count, faint = page.evaluate(FAINT)
    assert count > 20 and faint == []
    unnamed = """[...document.querySelectorAll('button, input, select')].filter(
      e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"""
    assert page.evaluate(unnamed) == 0


def check_keyboard(page: Page) -> None:
    """Tab reaches all that can be used, in the page's order, and each is outlined when it is reached."""
    wanted = page.evaluate(f"""[...document.querySelectorAll("{REACHABLE}")].filter(e => e.checkVisibility())
      .map((e, n) => {{ e.dataset.stop = n; return String(n); }})""")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        stop, style, width = page.evaluate("""() => { const e = document.activeElement, s = getComputedStyle(e);
          return [e.dataset.stop, s.outlineStyle, parseFloat(s.outlineWidth)]; }""")
        assert style == "solid" and width >= 2, stop
        reached.append(stop)
    assert reached == wanted and len(wanted) > 2
