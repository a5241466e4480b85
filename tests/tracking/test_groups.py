"""What one group of a study is called, and when it counts as another."""

from dataclasses import replace

import pandas as pd
import pytest

from harness import stats, tracking
from harness.tracking import groups, session
from tests.outputs.conftest import write
from tests.tracking import studies


@pytest.fixture
def first(study):
    return next(groups.groups(study))


def test_frames_of_a_group_are_its_own(study):
    parts = list(groups.groups(study))
    for name in groups.OWN:
        whole = [getattr(part, name) for part in parts]
        assert sum(map(len, whole)) == len(getattr(study, name)) > 0
        for frame in whole:
            assert len(frame[stats.GROUP].drop_duplicates()) == 1
    assert [len(part.means) for part in parts] == [len(study.means), 0, 0]


def test_the_same_answers_are_the_same_run_whatever_they_took(first):
    slower = replace(
        first,
        cells=first.cells.assign(score_s=9.0),
        samples=first.samples.assign(score_s=9.0).sample(frac=1, random_state=0).sort_index(),
    )
    assert groups.identity(slower, "s") == groups.identity(first, "s")
    assert groups.identity(first, "s") == groups.identity(next(groups.groups(studies.study())), "s")


@pytest.mark.parametrize("name", ["samples", "cells", "comparisons", "ablation", "verdicts"])
def test_more_or_other_content_is_another_run(first, name):
    frame = getattr(first, name)
    assert groups.identity(replace(first, **{name: frame.iloc[1:]}), "s") != groups.identity(
        first, "s"
    )


def test_an_answer_and_the_name_of_the_sweep_are_content(study, first):
    samples = first.samples.copy()
    samples.loc[0, "text"] = "something else"
    ids = {groups.identity(replace(first, samples=samples), "s"), groups.identity(first, "s"),
           groups.identity(first, "t")}  # fmt: skip
    assert len(ids) == 3
    assert tracking.identities(study, "s")[0] in ids


@pytest.mark.slow
def test_pictures_are_found_under_the_names_of_the_report(study, tmp_path):
    few = studies.own(study.samples, ("other", "replay"))
    few = few[few["method"].isin(["full", "restkv"])]
    grid = {"category": ["64", "128"] * (len(few) // 2), "l2_category": [*"012"] * (len(few) // 3)}
    samples = pd.concat(
        [
            few.assign(task="first", group="minis"),
            few.assign(task="a b", model="folder/m"),
            few.assign(task="a_b", model="folder/m"),
            few.assign(task="needle", model="m.1", **grid),
        ],
        ignore_index=True,
    )
    written = write(samples, tmp_path, {})
    cells = stats.summarise(samples)
    whole = replace(study, samples=samples, cells=cells, means=stats.means(cells))
    found = list(groups.pictures(whole, tmp_path))
    stems = [{name: path.stem for name, path in one.items()} for one in found]
    assert stems == [
        {"curve": "curve-tiny-first-replay", "curve_mean": "curve-mean"},
        {"curve": "curve-m-a_b-replay"},
        {"curve": "curve-m-a_b-replay~2"},
        {"curve": "curve-m.1-needle-replay", "heatmap": "heatmap-m.1-needle-replay"},
    ]
    drawn = {path for path in written.values() if path.suffix == ".png"}
    assert {path for one in found for path in one.values()} == drawn


def test_the_only_group_has_the_only_curve(study, tmp_path):
    samples = studies.own(study.samples, ("other", "replay"))
    write(samples, tmp_path, {})
    cells = stats.summarise(samples)
    alone = replace(study, samples=samples, cells=cells, means=stats.means(cells))
    assert list(groups.pictures(alone, tmp_path)) == [{"curve": tmp_path / "curve.png"}]


def test_tags_and_names_fit_what_wandb_takes(tmp_path):
    with (
        session.environment(tmp_path, offline=True),
        session.run(tmp_path, "offline", name="n" * 300, tags=["", "t" * 99, "a", "a"]) as run,
    ):
        assert run.tags == ("t" * 64, "a")
        assert run.name == "n" * 128
