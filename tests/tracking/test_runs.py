"""Offline runs read back from their files: what a later sync will find."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness import tracking
from harness.tracking import keys, shown
from tests.tracking import studies
from tests.tracking.conftest import KEY, SWEEP
from tests.tracking.studies import PLACES, own


@pytest.fixture(params=range(3), ids=["ratios", "budgets", "vacuous"])
def place(request) -> int:
    return request.param


def test_each_group_is_a_run_of_the_sweep(logged):
    heads = [run.head() for run in logged.runs]
    assert [head.display_name for head in heads] == [f"tiny {t} {p}" for t, p in PLACES]
    assert {(h.project, h.run_group, h.job_type) for h in heads} == {("evictbench", SWEEP, "sweep")}
    assert [list(head.tags) for head in heads] == [
        ["tiny", "mini", "replay"],
        ["tiny", "other", "replay"],
        ["tiny", "mini", "paper", "vacuous"],
    ]
    ids = [head.run_id for head in heads]
    assert ids == tracking.identities(logged.study, SWEEP)
    assert len(set(ids)) == 3
    assert [e.exit_code for run in logged.runs for e in run.of("exit")] == [0, 0, 0]


def test_configuration_is_the_job(logged, place):
    head = logged.runs[place].head()
    config = {item.key: json.loads(item.value_json) for item in head.config.update}
    del config["_wandb"]
    assert config == {
        "ratios": [0.5, 0.9],
        "model": {"name": "tiny", "path": "/weights"},
        "limit": None,
    }


def test_notes_and_summary_tell_the_verdicts(logged):
    first, second, third = logged.runs
    assert first.head().notes.split("\n") == [
        "Does it keep its accuracy?",
        "A model made for tests.",
        "told once",
        "restkv at 0.5: cannot tell. It loses nothing at 0.5.",
        "restkv at 0.9: supported. It loses nothing at 0.9.",
        "restkv at 0.975: supported. It loses nothing at 0.975.",
        "restkv against restkv_mean at 0.5: costs. It costs.",
        "restkv against restkv_mean at 0.9: costs. It costs.",
        "restkv against restkv_mean at 0.975: costs. It costs.",
    ]
    assert first.summary()["verdict"] == "0.5 cannot tell, 0.9 supported, 0.975 supported"
    assert second.summary()["verdict"] == "n=16 supported, n=64 supported, n=101 supported"
    assert third.summary()["smoothing"] == "0.5 not supported"
    assert "mini" not in second.head().notes


def test_summary_has_the_numbers_of_each_verdict(logged):
    summary = logged.runs[0].summary()
    (row,) = (
        own(logged.study.comparisons, PLACES[0])
        .query("method == 'restkv' and ratio == 0.975")
        .to_dict("records")
    )
    told = {k: v for k, v in summary.items() if k.startswith("verdict_at/ratio_0_975/")}
    assert {key.rsplit("/", 1)[1]: value for key, value in told.items()} == pytest.approx(
        {
            "evicted": row["evicted"],
            "verdict": "supported",
            "reason": "It loses nothing at 0.975.",
            "smoothing": "not supported",
            "smoothing_reason": "It does not help.",
            "upper": row["upper"],
            "p_noninferior_holm": row["p_noninferior_holm"],
            "detectable": row["detectable"],
        }
    )
    assert summary["reference/full_cache"] == logged.study.cells["accuracy"].iloc[0]
    assert not any(key.startswith(("accuracy", "difference", "ratio")) for key in summary)
    assert "verdict_at/budget_16/reason" in logged.runs[1].summary()


@pytest.mark.parametrize("name", keys.FRAMES)
def test_tables_equal_the_frames(logged, place, name):
    frame = getattr(logged.study, name)
    chosen = own(frame, ("minis", "replay") if name == "means" else PLACES[place])
    if name == "means" and place > 0:
        chosen = frame.head(0)
    if chosen.empty:
        assert name not in logged.runs[place].logged()
        return
    table = logged.runs[place].table(name)
    assert table.columns.tolist() == frame.columns.tolist()
    assert len(table) == len(chosen)
    for column in frame:
        for got, want in zip(table[column], chosen[column], strict=True):
            if pd.isna(want) or want in (np.inf, -np.inf):
                assert got is None
            elif isinstance(want, float):
                assert got == pytest.approx(want, rel=1e-15)
            else:
                assert (got, type(got)) == (
                    want,
                    getattr(want, "item", lambda w=want: w)().__class__,
                )


def test_sample_table_is_bounded_and_illustrated(logged):
    table = logged.runs[0].table("samples")
    assert table.columns.tolist() == shown.SAMPLE_COLUMNS
    lines = ["full", "blank_image", *studies.METHODS]
    assert len(table) == shown.QUESTIONS * len(lines) < 60 * len(lines)
    assert table["method"].tolist() == lines * shown.QUESTIONS
    assert set(table["ratio"]) == {0.0, 0.9}
    rows = table["row"].unique().tolist()
    assert {row % 3 for row in rows} == {0}  # the first of three rotations
    gaps = set(np.diff(rows))
    assert (rows[0], rows[-1], gaps) == (0, 177, {3, 6})
    key = ["row", "method", "ratio"]
    samples = own(logged.study.samples, PLACES[0]).set_index(key)
    want = samples.loc[list(zip(*(table[k] for k in key), strict=True))]
    for column in ("question", "answer", "text", "parsed", "correct", "exposed_tokens"):
        assert table[column].tolist() == want[column].tolist()
    assert {studies.HOSTILE[row] for row in rows if row in studies.HOSTILE} <= set(table["text"])


@pytest.mark.parametrize("name", ["samples", "flips"])
def test_pictures_stand_beside_their_rows(logged, name):
    table, files = logged.runs[0].table(name), logged.runs[0].artifact(name)
    assert table.loc[table["row"] == 0, "image"].isna().all()
    rest = table[table["row"] > 0]
    assert len(rest)
    for _, line in rest.iterrows():
        with Image.open(files[line["image"]["path"]]) as picture:
            assert (picture.mode, picture.size) == ("RGB", (8, 6))
            assert picture.getpixel((0, 0)) == (line["row"], len("mini"), 0)


def test_flips_table_equals_the_frame(logged):
    (study, *_) = tracking.groups.groups(logged.study)
    frame, table = shown.flips(study), logged.runs[0].table("flips")
    assert table.columns.tolist() == frame.columns.tolist()
    for column in set(frame) - {"image"}:
        got, want = table[column], frame[column].astype(object)
        assert got.where(got.notna(), None).tolist() == want.where(want.notna(), None).tolist()
    assert "flips" not in logged.runs[2].logged()  # vacuous answers are those of the full cache


def test_each_picture_is_in_the_run_of_its_group(logged):
    found = [set(run.logged()) & {*keys.PICTURES} for run in logged.runs]
    assert found == [{"curve", "curve_mean"}, set(), set()]
    for name, file in (("curve", "curve-tiny-mini-replay.png"), ("curve_mean", "curve-mean.png")):
        path = logged.runs[0].folder / "files" / logged.runs[0].logged()[name]["path"]
        assert path.read_bytes() == (logged.folder / file).read_bytes()


def test_each_row_asks_for_its_picture_once_a_table(logged):
    asked = pd.DataFrame(logged.answer["asked"], columns=["task", "row"])
    counts = asked[asked["row"] > 3].value_counts()  # the others are in two runs
    assert set(counts) == {1, 2}
    assert set(asked["task"]) == {"mini", "other"}


def test_everything_a_sync_needs_is_inside_the_run_folder(logged):
    assert logged.outside == []
    home = logged.folder / "wandb"
    for run in logged.runs:
        assert run.folder.parent == home
        for name in set(run.logged()) & {*keys.TABLES}:
            staged = run.artifact(name).values()
            assert all(path.is_relative_to(home) and path.is_file() for path in staged)


def test_it_is_quiet_offline_and_keeps_secrets(logged):
    assert (logged.process.stdout, logged.process.stderr) == ("", "")
    assert not logged.contacted
    assert logged.answer["same"]
    assert logged.answer["known"] == [None]
    for path in logged.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_every_table_is_in_the_summary_where_panels_look_for_it(logged):
    summary = logged.runs[0].summary()
    assert {name for name in keys.TABLES if summary[name]["_type"] == "table-file"} == {
        *keys.TABLES
    }
