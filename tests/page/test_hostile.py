"""Foreign text stays text, wherever it stands on the page."""

import dataclasses
import json

import pandas as pd

from harness import stats
from tests.outputs.conftest import sweep
from tests.page import studies
from tests.page.conftest import written

RLO = "\u202e"
BAD = (
    "<b>%{y}</b>&lt;<a href='javascript:alert(3)'>l</a><br><script>alert(1)</script></script>"
    f"<!--<img src=x onerror=alert(2)>{{{{7*7}}}}{{% raw %}}\x00\x1b[31m{RLO}'\"`$x$"
)
SEEN = BAD.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace(RLO, "\\u202e")
HALF, HALF_SEEN = "\ud800", "\\ud800"  # half a character, which no frame can hold
LONG = f"{BAD} ".ljust(20_000, "w")  # no place to break a line either
LONGER = LONG + "x" * 77


def hostile(folder):
    """Every text that comes from data or from a model is hostile."""
    samples = sweep(("random", f"restkv {BAD}"), questions=6)
    samples = samples.assign(
        category=BAD, question=LONGER, answer=BAD, model=f"m/{BAD}", task=BAD, protocol=BAD,
        text=[BAD if right else LONG for right in samples["correct"]],
    )  # fmt: skip
    study = studies.traced(folder, samples)
    parts = [["USER", BAD], ["<image>"] * 64, [LONG[:400], "?"]]
    segments = [[BAD, 2], ["image", 64], ["question", 2]]
    prompts = study.prompts.assign(
        tokens=json.dumps([token for part in parts for token in part]),
        segments=json.dumps(segments), image="../report.html",
    )  # fmt: skip
    kept = study.kept.assign(shares=[shares[:67] for shares in study.kept["shares"]])
    effects = studies.ablation(
        study.cells.assign(method=study.cells["method"].replace({f"restkv {BAD}": "restkv"})),
        studies.np.random.default_rng(0),
    )
    plan = dataclasses.replace(study.plan, method=f"restkv {BAD}")
    compared = study.comparisons.assign(
        family=study.comparisons["ratio"].eq(0.9), metric=f"accuracy {BAD}"
    )
    return dataclasses.replace(
        study, name=BAD, question=BAD + HALF, plan=plan, prompts=prompts, kept=kept,
        comparisons=compared, cells=study.cells.assign(metric=BAD),
        ablation=effects.assign(effect=BAD, given=BAD),
        verdicts=studies.verdicts(compared).assign(reason=BAD, verdict=BAD, smoothing_reason=LONG),
        contrasts=studies.contrasts(compared).assign(label=BAD, reason=LONG, effect=BAD),
        claims=studies.claims().assign(claim=BAD, verdict=BAD, command=LONG), caveat=LONG,
        told=(BAD,), provenance={BAD: {BAD: [BAD, HALF]}},
    )  # fmt: skip


def test_foreign_text_stays_text(open_page, tmp_path):
    study = hostile(tmp_path)
    fell = studies.weights((f"restkv {BAD}",)).assign(segment=BAD).head(2)
    study = dataclasses.replace(study, weights=fell.assign(**study.cells.iloc[0][stats.GROUP]))
    path = written(tmp_path, study, headline=(BAD + HALF, LONG), limits=(BAD + HALF,))
    opened = open_page(path, width=360)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.title() == SEEN
    assert page.locator("h1").text_content() == SEEN + HALF_SEEN
    assert page.locator(".lead").text_content() == SEEN + HALF_SEEN
    for selector in ("main script:not(.plot script)", "[onerror]", "a[href^=javascript]", "iframe"):
        assert page.locator(selector).count() == 0, selector
    assert page.evaluate("[...document.images].every(e => e.src.startsWith('data:'))")
    body = page.locator("main").text_content()
    assert RLO not in body
    assert "{{7*7}}{% raw %}" in body
    answers = [e.text_content() for e in page.locator(".flip dd").all()]
    assert SEEN in answers
    answer = page.locator(".flip dd .whole").first.text_content()
    assert answer == LONG.replace(BAD, SEEN)
    question = page.locator(".flip .question .whole").first.text_content()
    assert question == f"{answer[:-1]}… (77 more characters)"
    _plotly_shows_it(opened)


def _plotly_shows_it(opened):
    """Labels, legends and hover texts are drawn as they are written, without their markup."""
    page = opened.page
    assert page.locator(".js-plotly-plot a, .js-plotly-plot image[href^=http]").count() == 0
    for selector, start in (
        (" .annotation-text", f"■ restkv {SEEN}"[:19] + "…"),
        (" .xtick text", f"restkv {SEEN}"[:23] + "…"),
        (":has(.heatmaplayer) .ytick text", SEEN[:10]),  # the abilities
        (":has(.barlayer) .ytick text", f"restkv {SEEN}"[:29] + "…"),
    ):
        texts = [e.text_content() for e in page.locator(f".js-plotly-plot{selector}").all()]
        assert any(text.startswith(start) for text in texts), (selector, start, texts)
    page.evaluate(
        "() => { const plot = document.getElementById('figure-1');"
        "const line = plot.data.findIndex(t => t.name && t.name.includes('restkv'));"
        "Plotly.Fx.hover(plot, [{curveNumber: line, pointNumber: 0}]) }"
    )
    hover = page.locator("#figure-1 .hoverlayer .hovertext").text_content()
    assert hover.startswith(f"restkv {SEEN}"[:59] + "…")


def test_answers_can_be_markup_of_the_template(tmp_path):
    samples = sweep(("random",), questions=4)
    samples["text"] = samples["text"].where(samples["correct"], "{{ study.name }} {% endif %}")
    text = written(tmp_path, studies.study(samples)).read_text()
    assert "{{ study.name }} {% endif %}" in text


def test_hostile_study_is_hostile(tmp_path):
    """The study above really carries the text into every frame."""
    study = hostile(tmp_path)
    for frame in (study.cells, study.abilities, study.comparisons, study.ablation, study.verdicts):
        assert isinstance(frame, pd.DataFrame)
        assert frame[stats.GROUP].eq(BAD).any(axis=None)
