"""Where there is nothing to show the page says so, and nothing breaks."""

import pandas as pd
import pytest

from harness import stats
from harness.report.study import Study
from harness.stats.plan import Plan
from tests.outputs.conftest import cell_rows, sweep
from tests.page import studies
from tests.page.conftest import written

NOTHING = pd.DataFrame()
SAID = {
    "verdict": "No setting of restkv evicts more than 50.0 % here",
    "difference": "There is nothing to compare with",
    "paired": "No compressed cell was compared",
    "abilities": "The questions of this task have no kinds",
    "ablation": "No two variants of one method",
    "window": "No method here has an adaptive window",
    "weight": "The segments of the prompts were not recorded",
    "maps": "This run recorded no traces",
    "flips": "No answer changed",
    "claims": "No claim was put to the test",
    "limits": "No limits were noted",
}


def bare(samples: pd.DataFrame) -> Study:
    """A study of the samples whose other frames are all empty."""
    return Study(
        name="bare", question="Does it?", plan=Plan(), samples=samples,
        cells=stats.summarise(samples), abilities=stats.abilities(samples), means=NOTHING,
        comparisons=NOTHING, ablation=NOTHING, verdicts=NOTHING, contrasts=NOTHING,
    )  # fmt: skip


def test_nothing_but_the_references(open_page, tmp_path):
    samples = sweep(()).drop(columns=["category", "l2_category", "question"])
    opened = open_page(written(tmp_path, bare(samples)))
    page = opened.page
    text = page.locator("main").inner_text()
    for sentence in SAID.values():
        assert sentence in text
    (figure,) = opened.figures("Score against eviction")
    assert {t["name"] for t in figure["data"] if "name" in t} == {"full cache", "blank image"}
    opened.outline()


@pytest.mark.slow
def test_every_lack_alone(open_page, tmp_path):
    """One page, a task for each thing that a run can lack."""
    whole = sweep(("random", "restkv"), questions=6)
    whole["score"] = whole["correct"].astype(float)
    role = stats.roles(whole)
    nan = float("nan")
    budgets = [
        cell_rows("h2o", [1, 0, 1], index=range(3), ratio=nan, budget=n, score=0.5)
        for n in (4, 16, 64)
    ]
    lacks = {
        "no full cache": whole[role.ne("full")],
        "no blank image": whole[role.ne("blank")],
        "one method": whole[whole["method"].isin(["full", "restkv"])],
        "one cell": whole[role.eq("method")].query("method == 'restkv' and ratio == 0.9"),
        "vacuous": whole.assign(exposed_tokens=0),
        "secret": whole.assign(score=nan),
        "text only": whole.assign(image_tokens=0, kept_image=0.0),
        "budgets": pd.concat([*budgets, cell_rows("full", [1] * 3, index=range(3), score=1.0)]),
        "all wrong": whole.assign(correct=False, score=0.0, parsed=None, text=""),
    }
    samples = pd.concat([rows.assign(task=name) for name, rows in lacks.items()], ignore_index=True)
    study = studies.study(samples)
    opened = open_page(written(tmp_path, study))
    parts = {
        part.locator("h2").text_content(): part
        for part in opened.page.locator("section.part").all()
    }
    parts = {name.removeprefix("tiny on ").split(",")[0]: part for name, part in parts.items()}
    assert list(parts) == list(lacks)
    text = {name: part.inner_text() for name, part in parts.items()}
    assert SAID["difference"] in text["no full cache"]
    assert SAID["flips"] in text["no full cache"]
    assert SAID["difference"] in text["secret"]
    assert "4 cells repeat the full cache" in text["vacuous"]
    assert "(vacuous)" in text["vacuous"]
    assert "full cache" in text["no blank image"]
    assert "64 tokens kept" in parts["budgets"].locator(".plot").first.evaluate(
        "e => e.querySelector('.js-plotly-plot').data.map(t => t.hovertext).join()"
    )
    drawn = {
        name: [
            trace
            for data in part.locator(".js-plotly-plot").evaluate_all("es => es.map(e => e.data)")
            for trace in data
        ]
        for name, part in parts.items()
    }
    legends = {
        name: {t["name"] for t in traces if t.get("mode", "").startswith("lines")}
        for name, traces in drawn.items()
    }
    assert "full cache" not in legends["no full cache"]
    assert [trace["mode"] for trace in drawn["secret"]] == ["markers", "markers"]  # the ablation's
    assert "No score is known here" in text["secret"]
    assert "blank image" not in legends["no blank image"]
    assert legends["one method"] == {"full cache", "restkv"}
    hollow = {
        name: {s.endswith("-open") for t in traces if "customdata" in t and "marker" in t
               for s in t["marker"]["symbol"]}
        for name, traces in drawn.items()
    }  # fmt: skip
    assert hollow.pop("vacuous") == {True}
    assert set.union(*hollow.values()) == {False}
