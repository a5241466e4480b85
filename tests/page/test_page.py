"""The page in a browser: it needs nothing, fits, follows the reader's wishes and can be printed."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.report import page as report
from tests.outputs.conftest import sweep
from tests.page import studies
from tests.page.conftest import ROOT, written


def test_page_needs_nothing(demo_page):
    demo_page.check()
    page = demo_page.page
    links = page.evaluate(
        "[...document.querySelectorAll('[src],[href]')].map("
        "e => e.getAttribute('src') || e.getAttribute('href'))"
    )
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert policy.startswith("default-src 'none';")
    scripts = policy.split("script-src ")[1].split()
    assert len(scripts) == page.locator("script").count()
    assert all(script.startswith("'sha256-") for script in scripts)


def test_page_fits_a_phone(open_page, demo):
    page = open_page(demo[1], 360, has_touch=True, color_scheme="dark").page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    tall = page.locator(".scroll.tall").first
    assert tall.evaluate("e => e.scrollWidth > e.clientWidth")
    plots = page.evaluate(
        "[...document.querySelectorAll('.pair > .plot .main-svg')].map(e => e.clientWidth)"
    )
    assert plots
    assert max(plots) <= 340


def test_policy_stops_every_other_script(browser, tmp_path, demo):
    """The digests are of what stands there: one more script does not run."""
    path = tmp_path / "more.html"
    more = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title='ran'\">"
    path.write_text(demo[1].read_text().replace("</main>", f"</main>{more}"))
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri(), timeout=120_000)
    page.wait_for_timeout(100)
    assert page.title() == "demo"
    assert sum("Content Security Policy" in text for text in refused) >= 2
    page.close()


def test_colours_follow_the_scheme(demo_page):
    seen, page = {}, demo_page.page
    for view in ("dark", "light"):
        page.emulate_media(color_scheme=view)
        seen[view] = {
            "page": _style(page, "body", "background-color"),
            "text": _style(page, "body", "color"),
            "axis": _style(page, ".xtick text", "fill"),
            "legend": _style(page, ".legendtext", "fill"),
            "line": _style(page, ".scatterlayer .js-line[style*='213, 94, 0']", "stroke"),
            "badge": _style(page, ".badge", "background-color"),
        }
        assert seen[view]["axis"] == seen[view]["text"]
    assert not set(seen["light"].items()) & set(seen["dark"].items())
    assert seen["dark"]["page"] == "rgb(20, 23, 26)"


def _style(page, selector, name):
    return page.evaluate(
        "([s, n]) => getComputedStyle(document.querySelector(s)).getPropertyValue(n)",
        [selector, name],
    )


@pytest.mark.slow
def test_figures_fit_beside_one_another_as_they_were_drawn(open_page, demo):
    """Without a resize: a figure is drawn before the one beside it is on the page."""
    page = open_page(demo[1], width=1200).page
    wide = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(plot =>"
        " [plot.querySelector('.main-svg').getBoundingClientRect().width,"
        "  plot.closest('figure').clientWidth, plot.closest('.pair') !== null])"
    )
    assert sum(paired for *_, paired in wide) > 2
    assert [svg for svg, room, paired in wide if paired and svg > room + 1] == []


def test_names_stand_at_the_ends_of_lines_in_both_views(demo_page):
    page = demo_page.page
    closer = page.locator(".updatemenu-button", has_text="around the margin")
    plot = page.locator(".js-plotly-plot", has=closer).first
    named = "e => e.data.filter(t => t.customdata).map(t => t.name).sort()"
    for view in ("all", "around the margin"):
        plot.locator(".updatemenu-button", has_text=view).click()
        shown = plot.locator(".annotation-text").all_text_contents()
        assert sorted(text.split("\xa0")[-1].split()[-1] for text in shown) == plot.evaluate(named)
        middles = [b["y"] for b in map(box, plot.locator(".annotation-text").all())]
        assert min(b - a for a, b in itertools.pairwise(sorted(middles))) > 10


def box(found):
    return found.bounding_box()


def test_hover_tells_all_of_a_cell(demo_page, demo):
    page, study = demo_page.page, demo[0]
    page.evaluate(
        "Plotly.Fx.hover('figure-1', [{curveNumber: document.getElementById('figure-1').data"
        ".findIndex(t => t.name == 'random'), pointNumber: 2}])"
    )
    text = page.locator("#figure-1 .hoverlayer .hovertext").text_content()
    cell = study.comparisons[study.comparisons["method"].eq("random")].iloc[2]
    for part in ("random", "ratio 0.9", f"{100 * cell['accuracy']:.1f} %", "from the full cache"):
        assert part in text


def test_buttons_choose_setting_and_view(demo_page):
    page = demo_page.page
    heatmap = page.locator(".js-plotly-plot:has(.heatmaplayer)")
    visible = "e => e.data.map(t => t.visible)"
    assert heatmap.evaluate(visible) == [False, False, True, False]
    for name, want in (("0.5", 0), ("0.9", 2)):
        heatmap.locator(".updatemenu-button", has_text=re.compile(f"^{name}$")).click()
        assert heatmap.evaluate(visible) == [place == want for place in range(4)]
    closer = page.locator(".updatemenu-button", has_text="around the margin")
    plot = page.locator(".js-plotly-plot", has=closer).first
    assert plot.evaluate("e => e.layout.yaxis.range") == [-10, 5]  # shown first
    plot.locator(".updatemenu-button", has_text="all").click()
    low, high = plot.evaluate("e => e.layout.yaxis.range")
    assert low < -20
    assert high > 0


@pytest.mark.parametrize("width", [pytest.param(800, marks=pytest.mark.slow), 1280])
def test_the_embedded_page_prints_on_seven_pages_a_protocol(open_page, tmp_path, width):
    """The published page in today's style, whatever the window it was drawn in."""
    published = (ROOT / "results" / "embedded" / "report.html").read_text(encoding="utf-8")
    css = (ROOT / "harness" / "report" / "page.css").read_text(encoding="utf-8")
    styled = re.sub(r"(?<=<style>\n).*?(?=^@media[^\n]*\n\.js-)", lambda _: css + "\n", published,
                    count=1, flags=re.DOTALL | re.MULTILINE)  # fmt: skip
    assert css in styled
    path = tmp_path / "report.html"
    path.write_text(styled, encoding="utf-8")
    page = open_page(path, width).page
    assert 6 < page.pdf(prefer_css_page_size=True).count(b"/Type /Page\n") <= 14
    page.emulate_media(media="print")
    kept = page.evaluate("[...document.querySelectorAll('h2,h3')].map(h => "
                         "getComputedStyle(h).breakAfter)")  # fmt: skip
    assert set(kept) == {"avoid"}
    beside = page.evaluate(
        "[...document.querySelectorAll('.pair > .plot')].map(plot => ["
        "plot.querySelector('.main-svg').getBoundingClientRect().width, plot.clientWidth])"
    )
    assert len(beside) == 8
    assert all(drawn <= room + 1 for drawn, room in beside)


def test_print_hides_controls_and_leaves_closed_what_is_folded(demo_page):
    page = demo_page.page
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") > 3
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 900})
    assert not page.locator("details.fold:not([open]) tbody tr").first.is_visible()
    for selector in ("nav", ".updatemenu-container"):
        assert not page.locator(selector).first.is_visible()
    demo_page.wait(  # for the figures to take the new width
        "[...document.querySelectorAll('.plot .main-svg, table, .map')].every("
        "e => e.getBoundingClientRect().right <= document.documentElement.clientWidth + 1)"
    )
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_page_can_be_read_without_sight(demo_page):
    page = demo_page.page
    assert page.get_attribute("html", "lang") == "en"
    levels = demo_page.outline()
    assert levels[0] == 1
    assert levels.count(1) == 1
    for bad in ("img:not([alt])", "th:not([scope])", "table:not(:has(caption))",
                ".map svg:not([role=img][aria-label])",
                ".plot > :not(figcaption):not([aria-label])",
                "[role=region]:not([tabindex])"):  # fmt: skip
        assert page.locator(bad).count() == 0, bad
    ids = page.evaluate("[...document.querySelectorAll('main [id]')].map(e => e.id)")
    own = [name for name in ids if name.startswith(("figure", "picture", "curves", "part"))]
    assert len(own) == len(set(own))
    signs = {b.text_content() for b in page.locator(".badge").all()}
    assert signs == {
        "✓ supported", "✓ kept", "\N{MULTIPLICATION SIGN} lost", "\N{MULTIPLICATION SIGN} costs",
        "= no difference", "? cannot tell",
    }  # fmt: skip


@pytest.mark.slow
def test_tasks_get_a_section_each(open_page, tmp_path):
    samples = [sweep(("random", "restkv")).assign(task=name) for name in ("one", "two")]
    study = studies.traced(tmp_path, pd.concat(samples, ignore_index=True))
    opened = open_page(written(tmp_path, study), width=360)
    page = opened.page
    links = page.locator("nav a").all()
    assert [link.text_content() for link in links][:2] == [
        f"tiny on {name}, protocol replay" for name in ("one", "two")
    ]
    for link in links:
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("section.part").count() == 2
    opened.outline()


@pytest.mark.slow
def test_bytes_depend_on_the_study_alone(tmp_path):
    code = """
import hashlib, pathlib, sys
from harness.report import page
from tests.page import studies
given = {"claims": studies.claims(), "weights": studies.weights()}
study = studies.traced(pathlib.Path(sys.argv[1]), **given)
text = page.render(study, studies.HEADLINE)
print(hashlib.sha256(text.encode()).hexdigest())
"""
    study = studies.traced(tmp_path, claims=studies.claims(), weights=studies.weights())
    here = report.render(study, studies.HEADLINE)
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_file_does_not_grow_with_the_rows(tmp_path):
    small, large = (
        len(report.render(studies.study(sweep(studies.METHODS, questions=q)), studies.HEADLINE))
        for q in (40, 800)
    )
    assert large < 1.01 * small


def test_write_replaces_the_file_whole(tmp_path, demo):
    path = Path(tmp_path / "report.html")
    path.write_text("earlier")
    study = demo[0]
    with pytest.raises(OSError, match="nowhere"):
        report.write(study, tmp_path / "nowhere" / "report.html", studies.HEADLINE)
    report.write(study, path, studies.HEADLINE)
    assert path.read_bytes().startswith(b"<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]
