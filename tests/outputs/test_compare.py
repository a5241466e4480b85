"""Several runs side by side: every figure is that of the runs, or paired over their rows."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import stats
from harness.report import build, compare, files
from harness.run.compare import main
from harness.stats.paired import paired
from tests.answer.conftest import study_samples

LOST = {("random", 0.9): 200, ("restkv", 0.9): 0, ("restkv_neither", 0.9): 0}
OTHER = LOST | {("restkv", 0.9): 60}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Copies of run folders, each made once: making one takes longer than most tests here."""
    written = cache(lambda *made: _written(tmp_path_factory.mktemp("run") / "run", *made))

    def copy(folder: Path, lost: dict, data: str = "d", **columns: str) -> Path:
        made = written(folder.name, tuple(lost.items()), data, tuple(columns.items()))
        shutil.copytree(made, folder)
        return folder

    return copy


def _written(folder: Path, name: str, lost: tuple, data: str, columns: tuple) -> Path:
    """A finished run folder of one model, task and protocol."""
    samples = study_samples(dict(lost)).assign(**dict(columns))
    manifest = {"name": name, "plan": {"resamples": 199}, "registered": True,
                "data": {samples["task"].iloc[0]: data}}  # fmt: skip
    files.write(build.study(samples, manifest), folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def run(finished, quick_report: None):
    return finished


@pytest.fixture
def two(tmp_path: Path, run) -> list[Path]:
    return [run(tmp_path / "a", LOST), run(tmp_path / "b", OTHER, model="org/large")]


def parts(folders: list[Path]) -> list[compare.Part]:
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    return compare.parts(
        [(build.read(f), m["data"]) for f, m in zip(folders, manifests, strict=True)]
    )


def test_losses_are_paired_by_question(two):
    found = compare.between(parts(two))
    assert list(found["method"]) == ["random", "restkv", "restkv_neither"]
    samples = [pd.read_parquet(folder / "samples.parquet") for folder in two]
    for _, row in found.iterrows():
        scores = [
            frame[frame["method"].eq(name)].set_index("row")["correct"].astype(float)
            for frame in samples
            for name in (row["method"], "full")
        ]
        loss = (scores[0] - scores[1]) - (scores[2] - scores[3])
        question = samples[0].drop_duplicates("row").set_index("row")["question_id"]
        want = paired(loss.to_numpy(), question[loss.index].to_numpy(), 2.0)
        assert row["difference"] == pytest.approx(want.difference)
        assert (row["low"], row["high"]) == pytest.approx(want.interval())
        assert row["n_questions"] == 300
    restkv = found.set_index("method").loc["restkv"]
    assert restkv["difference"] == pytest.approx(60 / 300)
    assert restkv["low"] > 0


@pytest.mark.parametrize("columns", [{"task": "second"}, {}])
def test_other_questions_are_never_paired(tmp_path, run, columns):
    data = "other" if not columns else "d"
    folders = [run(tmp_path / "a", LOST), run(tmp_path / "b", OTHER, data, **columns)]
    found = compare.between(parts(folders))
    assert found.empty
    assert {*stats.LOSS_COLUMNS, "one", "other"} == {*found.columns}


@pytest.mark.slow
def test_parts_are_named_by_what_differs(tmp_path, run):
    names = {"a": {}, "b": {"protocol": "context"}, "c": {"protocol": "context"}}
    found = parts([run(tmp_path / name, LOST, **more) for name, more in names.items()])
    assert [part.label for part in found] == ["replay", "context (b)", "context (c)"]


def test_the_command_writes_page_text_tables_and_says_what_differs(two, capsys):
    assert main([*map(str, two), "--wandb", "offline"]) == 0
    out = capsys.readouterr().out
    assert "a: Does ReST-KV's spatial-temporal smoothing keep mini accuracy" in out
    assert "b: " in out
    assert "1 of 1 verdicts differ" in out
    folder = two[0].parent / "compare-a-b"
    made = {path.name for path in folder.iterdir()}
    assert made == {"losses.parquet", "between.parquet", "verdicts.parquet", "compare.md",
                    "compare.html", "wandb", ".lock"}  # fmt: skip
    text = (folder / "compare.md").read_text()
    assert "| restkv | 90 % | kept | lost | differ |" in text
    page = (folder / "compare.html").read_text()
    assert page.count('<div id="figure-') == 4  # two panels of methods for each part
    assert "default-src 'none'" in page
    losses = pd.read_parquet(folder / "losses.parquet")
    studies = {one.label: one.study for one in parts(two)}
    for name, part in losses.groupby("part"):
        want = studies[name].comparisons.set_index("method")["difference"]
        assert np.allclose(part.set_index("method")["difference"], want)
    (logged,) = (folder / "wandb").glob("offline-run-*")
    assert list(logged.glob("*.wandb"))


def test_two_folders_of_one_name_stay_apart(tmp_path, run, capsys):
    folders = [run(tmp_path / "r1" / "x", LOST), run(tmp_path / "r2" / "x", OTHER)]
    two = parts(folders)
    assert [part.label for part in two] == ["tiny (x) #1", "tiny (x) #2"]
    found = compare.between(two).set_index("method")
    assert found.loc["restkv", "difference"] == pytest.approx(0.2)
    assert main([*map(str, folders), "--wandb", "disabled"]) == 0
    (made,) = (tmp_path / "r1").glob("compare-x-x-*")
    assert "| restkv | 90 % | kept | lost | differ |" in (made / "compare.md").read_text()
    again = [str(folders[0]), str(tmp_path / "r2" / ".." / "r1" / "x")]
    assert main(again) == 2
    assert "two runs or more" in capsys.readouterr().err


def test_verdicts_of_other_tasks_are_no_difference(tmp_path, quick_report, capsys):
    folders = []
    for name in ("a", "b"):
        samples = [study_samples(LOST), study_samples(OTHER).assign(task="second")]
        manifest = {"name": name, "plan": {"resamples": 199}, "registered": True, "data": {}}
        files.write(build.study(pd.concat(samples, ignore_index=True), manifest), tmp_path / name)
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        folders.append(str(tmp_path / name))
    assert main([*folders, "--wandb", "disabled"]) == 0
    assert "0 of 2 verdicts differ" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_comparison_is_the_same_bytes(two, tmp_path):
    for name in ("one", "two"):
        assert main([*map(str, two), "--wandb", "disabled", "--out", str(tmp_path / name)]) == 0
    for path in (tmp_path / "one").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a"], "two runs or more"), (["a", "a"], "two runs or more"), (["a", "none"], "not there")],
)
def test_bad_input_is_one_sentence(two, tmp_path, capsys, names, said):
    assert main([str(tmp_path / name) for name in names]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("compare-*"))


def test_a_place_that_cannot_be_written_is_named(two, capsys):
    assert main([*map(str, two), "--out", str(two[0] / "answer.md" / "x")]) == 2
    assert "name another folder with --out" in capsys.readouterr().err


def test_an_unfinished_run_is_named(two, capsys):
    (two[1] / "manifest.json").unlink()
    assert main(list(map(str, two))) == 2
    assert "holds no manifest.json" in capsys.readouterr().err


def test_foreign_names_stay_text(tmp_path, run):
    hostile = "<script>alert(1)</script>"
    folders = [run(tmp_path / "a", LOST), run(tmp_path / "b", OTHER, model=hostile)]
    assert main([*map(str, folders), "--wandb", "disabled", "--out", str(tmp_path / "out")]) == 0
    for name in ("compare.md", "compare.html"):
        assert hostile not in (tmp_path / "out" / name).read_text()
