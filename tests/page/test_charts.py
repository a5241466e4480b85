"""What figures and tables do with unusual frames, without a browser."""

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.report import charts, figures, page_tables
from tests.outputs.conftest import cell_rows, sweep
from tests.page import studies


def test_lengths_of_a_context_come_in_their_order():
    samples = sweep(("restkv",), questions=8)
    lengths = np.array(["1024", "256", "512", "128"])[np.arange(len(samples)) % 4]
    samples = samples.assign(category=lengths, l2_category=["b", "a"] * (len(samples) // 2))
    study = studies.study(samples)
    figure = charts.heatmap(study.cells, study.abilities, "0.9")
    assert list(figure.layout.yaxis.ticktext) == ["128", "256", "512", "1024", "a", "b"]
    assert [trace.visible for trace in figure.data] == [False, True]
    accuracy = study.abilities.set_index(["cell_key", "ability"])["accuracy"]
    for line, ability in enumerate(figure.layout.yaxis.ticktext):
        for column, key in enumerate(figure.data[1].customdata[line]):
            assert figure.data[1].z[line][column] == pytest.approx(100 * accuracy[key, ability])


def test_a_method_that_lacks_a_setting_leaves_a_gap():
    samples = sweep(("random", "restkv"))
    samples = samples[~(samples["method"].eq("random") & samples["ratio"].eq(0.9))]
    study = studies.study(samples)
    figure = charts.heatmap(study.cells, study.abilities, "0.9")
    assert [z is None for z in figure.data[1].z[0]] == [False, False, True, False]
    assert figure.data[1].hovertext[0][2] == ""


def test_settings_of_absolute_budgets_stand_where_they_measured():
    nan = float("nan")
    parts = [cell_rows("h2o", [1, 0], index=range(2), ratio=nan, budget=n) for n in (4, 50, 101)]
    cells = stats.summarise(pd.concat(parts))
    placed = figures.placed(cells, pd.DataFrame())
    assert placed["evicted"].tolist() == pytest.approx([1 - 4 / 101, 1 - 50 / 101, 0])
    assert placed["x"].tolist() == pytest.approx(np.log2([101 / 4, 101 / 50, 1]).tolist())
    assert figures.setting(placed.iloc[0]) == "4 tokens kept"
    assert placed["difference"].isna().all()


def test_more_methods_than_colours_stay_apart():
    names = [f"m{i}" for i in range(45)]
    study = studies.study(sweep(names, ratios=(0.9,), questions=2))
    ((_, figure),) = figures.curves(study.cells, study.comparisons)
    lines = [t for t in figure.data if t.customdata]
    looks = {(t.line.color, t.line.dash, t.marker.symbol[0]) for t in lines}
    assert len(looks) == len(lines) == 45
    assert len({(t.line.color, t.marker.symbol[0]) for t in lines}) == 45
    assert figure.layout.showlegend is None  # too many to be named at their ends
    assert not figure.layout.annotations


def test_a_method_has_one_colour_and_its_variants_share_it():
    names = ["random", "restkv", "restkv_mean", "restkv_mean_x", "snapkv"]
    study = studies.study(sweep(names, questions=4))
    drawn = [*figures.curves(study.cells, study.comparisons)]
    drawn += figures.differences(study.cells, study.comparisons, 0.02)
    lines = [trace for _, figure in drawn for trace in figure.data if trace.customdata]
    colours = {trace.name: set() for trace in lines}
    dashes = {trace.name: set() for trace in lines}
    for trace in lines:
        colours[trace.name].add(trace.line.color)
        dashes[trace.name].add(trace.line.dash)
    assert set(map(len, colours.values())) == set(map(len, dashes.values())) == {1}
    own = [colours[name] for name in ("restkv", "restkv_mean", "restkv_mean_x")]
    assert own[0] == own[1] == own[2]
    assert len({*map(frozenset, colours.values())}) == 3
    assert len({*map(frozenset, (dashes[name] for name in names[1:4]))}) == 3
    assert dashes["random"] == dashes["restkv"] == dashes["snapkv"] == {"solid"}


def test_points_stand_at_their_ratio_and_names_inside_the_axes():
    study = studies.study(sweep(["random", "restkv", "snapkv", "h2o"], (0.5, 0.75), questions=4))
    ((_, figure),) = figures.curves(study.cells, study.comparisons)
    lines = [trace for trace in figure.data if trace.customdata]
    assert {tuple(trace.x) for trace in lines} == {(1.0, 2.0)}
    low, high = figure.layout.yaxis.range
    names = [note.text.split("</span>")[1].strip() for note in figure.layout.annotations]
    assert sorted(names) == ["blank image", "full cache", "h2o", "random", "restkv", "snapkv"]
    heights = sorted(note.y for note in figure.layout.annotations)
    assert low <= heights[0]
    assert heights[-1] <= high
    assert min(np.diff(heights)) >= figures.GAP * (high - low) - 1e-9


@pytest.mark.parametrize(
    ("columns", "where"),
    [({}, None), ({"task": ["a", "b"]}, ["a", "b"]),
     ({"task": ["a", "a"], "protocol": ["replay", "paper"]}, ["replay", "paper"]),
     ({"model": ["org/x", "org/y"], "task": ["a", "b"]}, ["x, a", "y, b"])],
)  # fmt: skip
def test_verdicts_say_where_by_what_differs(columns, where):
    study = studies.study(sweep(("restkv",)))
    rows = pd.concat([study.verdicts] * (2 if columns else 1), ignore_index=True).assign(**columns)
    cells = pd.concat([study.cells] * (2 if columns else 1), ignore_index=True)
    for name, values in columns.items():
        cells[name] = [values[0]] * len(study.cells) + [values[1]] * len(study.cells)
    found = page_tables.verdicts(studies.study(sweep(("restkv",)), verdicts=rows, cells=cells))
    table = found[0].table
    first = [line[0] for line in table.body]
    assert first == (where or ["90 %"])
    assert (table.header[0] == "Where") == bool(columns)
