"""Published scores stand beside own cells of the same model, task, method and setting."""

from pathlib import Path

import pandas as pd
import pytest

from harness import __main__ as program
from harness import stats
from harness.report import answer, build, files, page, plots, published
from harness.report.headline import headline
from harness.report.study import Study
from tests.answer.conftest import study_samples
from tests.answer.test_answer import study

#: Of 300 questions the full cache has 270.
LOST = {("snapkv", 0.9): 30, ("snapkv", 0.7): 9, ("random", 0.9): 200, ("h2o", 0.9): 45}
MODEL = "/models/Qwen2-VL-7B-Instruct"


@pytest.fixture(scope="module")
def samples() -> pd.DataFrame:
    return study_samples(LOST).assign(model=MODEL, task="docvqa_val", protocol="paper")


@pytest.fixture(scope="module")
def whole(samples) -> Study:
    return study(samples)


def test_cells_stand_beside_what_was_published_of_them(whole):
    found = published.beside(whole.cells, pd.DataFrame())
    assert list(found.columns) == published.COLUMNS
    assert found[["method", "ratio", "published", "accuracy"]].round(6).values.tolist() == [
        ["full", 0.0, 0.95, 0.9],
        ["snapkv", 0.9, 0.92, 0.8],
        ["h2o", 0.9, 0.79, 0.75],
    ]
    assert found["difference"].round(6).tolist() == [-0.05, -0.12, -0.04]


@pytest.mark.parametrize(
    "other",
    [{"model": "qwen2_vl_2b"}, {"task": "docvqa_test"}, {"task": "mmbench_en_dev"}],
)
def test_nothing_stands_beside_another_model_or_task(samples, other):
    assert published.beside(stats.summarise(samples.assign(**other)), pd.DataFrame()).empty


def test_budgets_are_compared_with_budgets(samples):
    own = samples.assign(budget=samples["ratio"].map({0.9: 128, 0.7: 100}), ratio=float("nan"))
    own.loc[samples["method"].isin(["full", "blank_image"]), "ratio"] = 0.0
    found = published.beside(stats.summarise(own), pd.DataFrame())
    assert list(found["method"]) == ["full", "snapkv"]
    assert found.iloc[1][["budget", "published"]].tolist() == pytest.approx([128, 0.801])


def test_report_and_page_and_picture_show_them(samples, whole):
    said = answer.text(whole)
    assert "Qwen2-VL-7B-Instruct on docvqa" in said
    assert "| snapkv | 90 % | EffiVLM-Bench | 92.0 | 80.0" in said
    assert "published scores beside these" in page.render(whole, headline(whole))
    figure = plots.figure(whole.cells)
    stars = [
        line.get_ydata()[0]
        for axis in figure.axes
        for line in axis.lines
        if line.get_marker() == "*"
    ]
    assert sorted(stars) == pytest.approx([79.0, 92.0])
    assert "published" in figure.get_supxlabel()
    plain = plots.figure(stats.summarise(samples.assign(task="other")))
    assert not any(line.get_marker() == "*" for axis in plain.axes for line in axis.lines)


def test_under_replay_it_says_what_differs(samples, whole):
    (rows,) = published.of(study(samples.assign(protocol="replay")))
    assert any("Published under paper" in note and "under replay" in note for note in rows.notes)
    (same,) = published.of(whole)
    assert not any("Published under" in note for note in same.notes)


@pytest.mark.usefixtures("quick_report")
def test_the_command_prints_them(samples, tmp_path: Path, monkeypatch, capsys):
    manifest = {"plan": {"resamples": 199}}
    for name, part in {"run": samples, "other": samples.assign(task="mine")}.items():
        folder = tmp_path / name
        files.write(build.study(part, manifest), folder)
        (folder / build.MANIFEST).write_text('{"plan": {"resamples": 199}}')

    def called(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["evictbench", "published", *words])
        return program.main()

    assert called(str(tmp_path / "run")) == 0
    assert "snapkv      90 %     EffiVLM-Bench" in capsys.readouterr().out
    assert called(str(tmp_path / "other")) == 2
    assert "no model, task, method and setting" in capsys.readouterr().err
    assert called(str(tmp_path / "absent")) == 2
    assert called() == 0
    assert "ReST-KV" in capsys.readouterr().out


def test_every_score_is_a_share_of_a_method_that_exists():
    import methods
    from harness.settings import labels

    for one in published.scores():
        assert 0 < one.score < 1
        assert (one.ratio is None) != (one.budget is None) or one.method == "full"
        assert labels.resolve(one.method)[0] in methods.names()
        assert {name.lower() for name in one.models} == set(one.models)
