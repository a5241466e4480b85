"""One headless Chromium for the tests of the page, and pages that may not fail or ask for more."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harness import stats
from harness.report import page as report
from harness.report.study import Study
from harness.stats.plan import Plan
from tests.outputs.conftest import sweep
from tests.page import studies

ROOT = Path(__file__).parents[2]
FIGURES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    id: plot.id, data: plot.data, layout: plot.layout,
    heading: [...document.querySelectorAll('h2,h3,h4')].filter(
        h => h.compareDocumentPosition(plot) & Node.DOCUMENT_POSITION_FOLLOWING).pop().innerText,
    title: (plot.closest('figure').querySelector('figcaption b') || {}).innerText || ''}))"""
TABLES = """() => [...document.querySelectorAll('table')].map(table => ({
    caption: table.caption.textContent,
    rows: [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()))}))"""


@dataclass
class Opened:
    """A page in the browser with everything that went wrong on it."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait(self, expression: str) -> None:
        """Until the expression is true. Playwright's own waiting is a script the page forbids."""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def check(self) -> None:
        """Nothing failed, nothing spoke up, nothing was asked for but the page."""
        self.page.wait_for_timeout(50)
        assert self.problems == []
        assert len(self.requests) == 1

    def outline(self) -> list[int]:
        """Levels of the headings; none may be left out on the way down."""
        found = self.page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4,h5')].map(h => +h.tagName[1])"
        )
        assert all(after <= before + 1 for before, after in pairwise(found))
        return found

    def figures(self, heading: str) -> list[dict[str, Any]]:
        """The figures below a heading, as plotly holds them."""
        return [found for found in self.page.evaluate(FIGURES) if found["heading"] == heading]

    def table(self, caption: str) -> list[list[str]]:
        """Cells of the one table whose caption begins so, header first."""
        (found,) = (t for t in self.page.evaluate(TABLES) if t["caption"].startswith(caption))
        return found["rows"]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Package and not session: while playwright is there, no other test can run an event loop."""
    command = [ROOT / "scripts" / "browser.sh", sys.executable]
    found = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"FIND": "1"}, check=False
    )
    if found.returncode:
        pytest.fail(found.stderr, pytrace=False)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found.stdout.strip(), args=["--no-sandbox"] if root else []
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a file; `Opened.check` runs on the way out."""
    opened: list[Opened] = []

    def show(path: Path, width: int = 1280, **options: Any) -> Opened:
        opened.append(_open(browser, path, width, **options))
        return opened[-1]

    yield show
    for page in opened:
        page.check()
        page.page.context.close()


def _open(browser: Browser, path: Path, width: int, **options: Any) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    now = Opened(context.new_page())
    now.page.on("console", lambda message: now.problems.append(message.text))
    now.page.on("pageerror", lambda error: now.problems.append(str(error)))
    now.page.on("dialog", lambda box: (now.problems.append(box.message), box.dismiss()))
    now.page.route("**/*", lambda route: _only(route, path, now))
    now.page.goto(path.as_uri(), timeout=120_000)  # a busy machine takes its time with plotly
    now.wait(
        "[...document.querySelectorAll('.plotly-graph-div')]"
        ".every(div => div.querySelector('.main-svg'))"
    )
    return now


def _only(route: Any, path: Path, now: Opened) -> None:
    now.requests.append(route.request.url)
    if route.request.url == path.as_uri():
        route.continue_()
    else:
        route.abort()


def written(folder: Path, study: Study, **options: Any) -> Path:
    """The page of a study as a file."""
    path = folder / "report.html"
    report.write(study, path, **{"headline": studies.HEADLINE, **options})
    return path


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study with everything in it, and its page."""
    folder = tmp_path_factory.mktemp("demo")
    samples = sweep(
        (*studies.METHODS, "h2o", "tova", "lacache"),
        ratios=(0.5, 0.7, 0.9, 0.95),
        adaptive_active=0.25,
    )
    standings = stats.standings(stats.described(samples), Plan(resamples=99))
    known = {"claims": studies.claims(), "weights": studies.weights(), "standings": standings}
    study = studies.traced(folder, samples, **known)
    return study, written(folder, study, limits=("Only drawings were asked about.",))


@pytest.fixture(scope="package")
def demo_page(browser: Browser, demo: tuple[Study, Path]) -> Iterator[Opened]:
    """The page of `demo`, opened once: reading a page with plotly in it takes seconds."""
    opened = _open(browser, demo[1], 1280, color_scheme="light")
    yield opened
    opened.check()
    opened.page.context.close()
