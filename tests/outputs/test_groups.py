"""Graded scores, several tasks with the means of their groups, heatmaps, secret answers."""

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.report import honesty, tables

INDEX = range(6)


def graded(make_cell, scores, **columns):
    rows = make_cell("snapkv", [s >= 1 for s in scores], index=range(len(scores)), ratio=0.5)
    return rows.assign(score=scores, **columns)


def tasks(make_sweep, **columns):
    """Two tasks of one group, with other answers, and one by itself."""
    parts = [
        make_sweep(seed=1).assign(task="one", group="both", metric="qa_f1"),
        make_sweep(seed=2, questions=8).assign(task="two", group="both", metric="rouge"),
        make_sweep(seed=3).assign(task="alone", group=pd.NA, metric="accuracy"),
    ]
    frame = pd.concat(parts, ignore_index=True).assign(**columns)
    frame["cell_key"] = frame["task"] + frame["cell_key"]
    return frame


def by_place(frame):
    """The kinds of its rows are a length and a depth."""
    places = frame["row"].to_numpy()
    kinds = np.where(places % 2, "256", "1024"), (places % 3 * 50).astype(str)
    return frame.assign(category=kinds[0], l2_category=kinds[1])


def test_the_mean_of_graded_scores_is_the_figure_of_a_cell(make_cell):
    scores = [0.25, 1.0, 0.5, 0.0, 0.75, 0.5]
    cell = stats.summarise(graded(make_cell, scores, metric="qa_f1")).iloc[0]
    assert cell["accuracy"] == pytest.approx(0.5)
    assert cell["metric"] == "qa_f1"
    assert cell["accuracy_low"] < 0.5 < cell["accuracy_high"]


def test_graded_scores_close_together_have_a_short_interval(make_cell):
    """Against Student's interval of a mean, which Wilson's comes to in the middle of [0, 1]."""
    rng = np.random.default_rng(0)
    scores = 0.5 + 0.02 * rng.standard_normal(200)
    low, high = stats.accuracy_interval(pd.Series(scores), pd.Series(range(200)))
    half = 1.972 * scores.std(ddof=1) / np.sqrt(200)
    assert high - low == pytest.approx(2 * half, rel=0.02)
    whole = pd.Series([True, False] * 100)
    assert np.subtract(*stats.accuracy_interval(whole, pd.Series(range(200)))) < -0.1


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_equal_scores_count_their_questions(value):
    low, high = stats.accuracy_interval(pd.Series([value] * 8), pd.Series([1, 1, 2, 2, 3, 3, 4, 4]))
    assert low <= value <= high
    assert high - low > 0.3  # four questions say little


def test_means_by_hand(make_sweep):
    cells = stats.summarise(tasks(make_sweep))
    means = stats.means(cells)
    assert set(means["task"]) == {"both"}
    assert len(means) == 2 + 3 * 2
    mean = means[means["method"].eq("restkv") & means["ratio"].eq(0.9)].iloc[0]
    parts = cells[cells["method"].eq("restkv") & cells["ratio"].eq(0.9) & cells["group"].notna()]
    assert mean["accuracy"] == pytest.approx(parts["accuracy"].sum() / 2)
    assert mean["n_tasks"] == 2
    assert mean["n_rows"] == 36 + 24
    assert mean["metric"] == "mean score"
    halves = (parts["accuracy_high"] - parts["accuracy_low"]) / 2
    spread = np.hypot(*halves) / 2
    assert mean["accuracy_high"] - mean["accuracy"] == pytest.approx(
        min(spread, 1 - mean["accuracy"])
    )


def test_a_vacuous_task_makes_its_mean_vacuous(make_sweep):
    frame = tasks(make_sweep)
    frame.loc[frame["task"].eq("two"), "exposed_tokens"] = 0
    means = stats.means(stats.summarise(frame))
    assert means.loc[stats.roles(means).eq("method"), "vacuous"].all()


def test_tasks_without_a_group_have_no_mean(make_sweep):
    assert stats.means(stats.summarise(make_sweep())).empty


def test_a_run_of_several_tasks_shows_them_at_a_glance(make_sweep, tmp_path, write_report):
    paths = write_report(tasks(make_sweep), tmp_path, {})
    text = paths["summary"].read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| **mean"))]
    assert [line.split("|")[1].strip() for line in lines[:3]] == ["one", "two", "**mean of both**"]
    assert lines[2].split("|")[3].strip() == str(36 * 1 + 24)
    assert text.index("| **mean of both**") < text.index("| alone |")
    assert paths["means"].is_file()
    assert (tmp_path / "curve-mean.png").is_file()
    assert "curve-mean.png" in text
    write_report(make_sweep(), tmp_path, {})
    assert not (tmp_path / "means.parquet").exists()  # of an earlier report of this folder
    assert not (tmp_path / "curve-mean.png").exists()


def under_both(frame):
    late = frame.assign(protocol="context", cell_key="late-" + frame["cell_key"])
    return pd.concat([frame, late], ignore_index=True)


def section(text, title):
    return text.split(f"{title}\n")[1].split("\n## ")[0].split("\n### ")[0]


@pytest.mark.slow
def test_every_protocol_has_its_own_rows_and_pictures(make_sweep, tmp_path, write_report):
    frame = under_both(tasks(make_sweep))
    text = write_report(frame, tmp_path, {})["summary"].read_text()
    rows = [line.split("|")[1:3] for line in section(text, "## All tasks").splitlines()]
    named = [tuple(map(str.strip, row)) for row in rows if row]
    assert named[0] == ("task", "protocol")
    for name in ("one", "two", "alone", "**mean of both**"):
        assert [row[1] for row in named if row[0] == name] == ["replay", "context"]
    for protocol in ("replay", "context"):
        title = f"### Mean of both: tiny, protocol {protocol} (2 tasks, 60 rows)"
        assert f"](curve-mean-tiny-both-{protocol}.png)" in section(text, title)


@pytest.mark.slow
@pytest.mark.usefixtures("whole_report")
def test_means_on_the_page_name_their_protocol(make_sweep, tmp_path, write_report):
    page = write_report(under_both(tasks(make_sweep)), tmp_path, {})["report"].read_text()
    for protocol in ("replay", "context"):
        assert f"<b>mean of the 2 tasks of both, protocol {protocol}: methods</b>" in page


@pytest.mark.usefixtures("whole_report")
def test_every_protocol_has_its_own_grid(make_sweep, tmp_path, write_report):
    text = write_report(under_both(by_place(make_sweep())), tmp_path, {})["summary"].read_text()
    for protocol in ("replay", "context"):
        own = text.split(f"## tiny on mini, protocol {protocol}\n")[1].split("\n## ")[0]
        assert own.count("](heatmap-") == 1
        assert f"](heatmap-tiny-mini-{protocol}.png)" in own


def test_the_terminal_shows_a_group_by_its_mean(make_sweep):
    cells = stats.summarise(tasks(make_sweep))
    shown = tables.console_table(cells, stats.means(cells))
    assert "mean of the 2 tasks of both" in shown
    assert "· alone ·" in shown
    assert "· one ·" not in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.usefixtures("whole_report")
def test_rows_of_a_length_and_a_depth_are_drawn_as_a_grid(make_sweep, tmp_path, write_report):
    frame = make_sweep()
    paths = write_report(by_place(frame), tmp_path, {})
    (name,) = [name for name in paths if name.startswith("heatmap")]
    assert f"]({name}.png)" in paths["summary"].read_text()
    assert not [n for n in write_report(frame, tmp_path, {}) if n.startswith("heatmap")]
    assert not list(tmp_path.glob("heatmap*"))


def test_secret_answers_claim_nothing(make_sweep, tmp_path, write_report):
    frame = make_sweep().assign(score=np.nan, correct=False)
    cells = stats.summarise(frame)
    assert cells[["accuracy", "accuracy_low", "circular_accuracy"]].isna().all(axis=None)
    text = write_report(frame, tmp_path, {})["summary"].read_text()
    assert "secret, so no accuracy is claimed" in text
    assert "| random | - " in text


def said(frame):
    return " ".join(honesty.sentences(frame, stats.summarise(frame), {}))


def test_prompts_that_lost_their_middle_are_counted(make_sweep):
    frame = make_sweep()
    assert "lost tokens in the middle" not in said(frame)
    cut = frame.assign(truncated_tokens=np.where(frame["row"] < 9, 300, 0))
    assert "25.0 % of the prompts" in said(cut)
    assert "300 on average" in said(cut)


def test_a_model_that_cannot_do_the_task_is_told(make_sweep):
    frame = make_sweep()
    full = stats.roles(frame).eq("full")
    frame.loc[full, "correct"] = False
    assert "there is next to nothing for eviction to lose" in said(frame)


def test_a_text_task_is_not_asked_for_a_blank_image(make_sweep):
    frame = make_sweep()
    text = frame[frame["control"] == "none"].assign(image_tokens=0, kept_image=0.0)
    assert "blank image" not in said(text)
    assert "The blank image was not run" in said(frame[frame["control"] == "none"])


def test_means_need_no_times(make_sweep):
    """Published tables leave times out."""
    cells = stats.summarise(tasks(make_sweep)).drop(columns=stats.TIMINGS)
    assert len(stats.means(cells)) > 0
    assert not {*stats.TIMINGS} & {*stats.means(cells).columns}
