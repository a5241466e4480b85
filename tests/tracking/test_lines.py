"""The lines of a run against the frames they are drawn from."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.tracking import groups, keys, lines
from tests.tracking import studies
from tests.tracking.studies import PLACES, own

NAMES = {"v1.5+x": "v1_5_x", "v1.5_x": "v1_5_x_2"}


def expected(study, place, axis: str) -> list[dict[str, float]]:
    """The steps by hand, from whole frames."""
    cells, comparisons = own(study.cells, place), own(study.comparisons, place)
    role = stats.roles(cells)
    accuracy = dict(zip(role, cells["accuracy"], strict=True))
    level = {"full_cache": accuracy["full"], "blank_image": accuracy["blank"]}
    end = "" if axis == "ratio" else "_by_budget"
    steps = []
    for value in sorted(cells.loc[role.eq("method"), axis].unique()):
        step = {axis: value} | {f"reference{end}/{k}": v for k, v in level.items()}
        for _, cell in cells[role.eq("method") & cells[axis].eq(value)].iterrows():
            name = NAMES.get(cell["method"], cell["method"])
            if cell["vacuous"]:
                step[f"vacuous{end}/{name}"] = cell["accuracy"]
                continue
            row = comparisons[comparisons["cell_key"].eq(cell["cell_key"])].iloc[0]
            for column in ("", "_low", "_high"):
                step[f"accuracy{column}{end}/{name}"] = cell[f"accuracy{column}"]
                step[f"difference{column}{end}/{name}"] = row[f"difference{column}"]
        steps.append({key: number for key, number in step.items() if pd.notna(number)})
    return steps


@pytest.mark.parametrize(("place", "axis"), [(0, "ratio"), (1, "budget"), (2, "ratio")])
def test_points_equal_the_frames(logged, place, axis):
    got = [
        {key: value for key, value in step.items() if not key.startswith("ablation")}
        for step in logged.runs[place].lines()
    ]
    want = expected(logged.study, PLACES[place], axis)
    assert [step[axis] for step in got] == {
        0: [0.5, 0.9, 0.975], 1: [16, 64, 101], 2: [0.5],
    }[place]  # fmt: skip
    assert got == [pytest.approx(step, rel=1e-12) for step in want]


def test_vacuous_cells_have_no_other_line(logged):
    first, *rest = logged.runs[0].lines()
    about = {key for key in first if key.endswith("/random")}
    assert about == {"vacuous/random"}
    assert all("accuracy/random" in step and "vacuous/random" not in step for step in rest)
    (only,) = logged.runs[2].lines()
    assert {key.split("/")[0] for key in only} == {"ratio", "vacuous", "reference"}
    assert len(only) == 1 + len(studies.METHODS) + 2


def test_what_is_not_known_is_no_point(logged):
    at = {step["ratio"]: step for step in logged.runs[0].lines()}
    assert "difference_low/snapkv" not in at[0.9]
    assert "difference_low/snapkv" in at[0.975]


def test_ablation_shows_each_contrast_once_and_no_interaction(logged):
    study = logged.study
    at = {step["ratio"]: step for step in logged.runs[0].lines()}
    rows = own(study.ablation, PLACES[0])
    rows = rows[rows["ratio"].eq(0.9)].reset_index(drop=True)
    want = {}
    for number, name in {
        1: "ema_vs_mean", 2: "avg_vs_none", 3: "adaptive_vs_none",  # 4 was inert
        5: "relative_vs_none", 6: "relative_vs_adaptive", 8: "ema_adaptive_vs_mean_none",
    }.items():  # fmt: skip
        want[f"ablation/{name}"] = rows.loc[number, "difference"]
        want[f"ablation_low/{name}"] = rows.loc[number, "low"]
        want[f"ablation_high/{name}"] = rows.loc[number, "high"]
    got = {key: value for key, value in at[0.9].items() if key.startswith("ablation")}
    assert got == pytest.approx(want)
    assert not any(key.startswith("ablation") for key in at[0.5])  # beside a vacuous cell
    assert "ablation_by_budget/ema_vs_mean" in logged.runs[1].lines()[0]


def test_every_line_has_its_horizontal_axis(logged):
    for run, axis in zip(logged.runs, ("ratio", "budget", "ratio"), strict=True):
        defined = {m.glob_name or m.name: m for m in run.of("metric")}
        logged_keys = {key for step in run.lines() for key in step} - {axis}
        assert logged_keys
        for key in logged_keys:
            rule = defined[f"{key.split('/')[0]}/*"]
            assert rule.step_metric == axis
            assert rule.summary.none != key.startswith("reference")
        assert defined[axis].summary.none
        other = ({"ratio", "budget"} - {axis}).pop()
        assert other not in defined


def test_a_study_of_cells_alone_has_accuracies(study):
    empty = pd.DataFrame()
    alone = replace(study, comparisons=empty, ablation=empty, verdicts=empty, contrasts=empty)
    (first, *_) = groups.groups(alone)
    kinds = {key.split("/")[0] for step in lines.steps(first) for key in step}
    assert kinds == {"ratio", *keys.ACCURACY, "vacuous", "reference"}
    assert groups.scalars(first) == {}
    assert groups.notes(first).count("\n") == 2


def test_secret_answers_leave_no_lines(study):
    cells = study.cells.assign(accuracy=np.nan, accuracy_low=np.nan, accuracy_high=np.nan)
    empty = pd.DataFrame()
    secret = replace(study, cells=cells, comparisons=empty, ablation=empty)
    (first, *_) = groups.groups(secret)
    assert list(lines.steps(first)) == [{"ratio": 0.5}, {"ratio": 0.9}, {"ratio": 0.975}]


def test_names_are_plain_and_apart():
    assert keys.names(["a.b", "a+b", "restkv", "a_b"]) == {
        "a.b": "a_b", "a+b": "a_b_2", "restkv": "restkv", "a_b": "a_b_3",
    }  # fmt: skip
    assert keys.metric("accuracy", "x") == "accuracy/x"
    assert keys.metric("accuracy", "x", "budget") == "accuracy_by_budget/x"
    assert studies.METHODS[-2:] == tuple(NAMES)
