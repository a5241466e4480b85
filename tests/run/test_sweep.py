import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.records import provenance
from harness.records.atomic import STAGE
from harness.records.store import Store
from harness.run import collect
from harness.scoring.samples import COLUMNS
from harness.settings.grid import BLANK_IMAGE
from tests.run.conftest import Program, store_of
from tests.run.fakes import FakeEngine

ROOT = Path(__file__).resolve().parents[2]
ROWS = 27  # 9 questions of 2, 3 and 4 rotations
CELLS = 2 + 2


def samples(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "run" / "samples.parquet")


def count(folder: Path) -> int:
    """Answers in the store, read without disturbing it; 0 while it is being made."""
    import sqlite3

    if not any((folder / "answers").glob("*.sqlite")):
        return 0
    path = store_of(folder)

    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        return int(db.execute("SELECT count(*) FROM responses").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        db.close()


@pytest.mark.usefixtures("whole_report")
def test_a_run_leaves_its_tables_and_nothing_outside_its_folder(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert call(*overrides) == 0
    frame = samples(tmp_path)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == CELLS * ROWS
    assert not frame.duplicated(["cell_key", "row"]).any()
    full = frame[frame["method"] == "full"]
    assert full["ratio"].eq(0).all()
    assert frame["budget"].isna().all()
    assert frame.loc[frame["control"] == BLANK_IMAGE, "method"].eq("blank_image").all()
    assert set(frame["model"]) == {"tiny_vlm"}
    assert frame["correct"].mean() > 0.2
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "plan.json", "samples.parquet", "cells.parquet"} <= names
    assert {"abilities.parquet", "summary.md", "curve.png"} <= names
    assert list(elsewhere.iterdir()) == []
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["ratios"] == [0.9]
    out, err = capsys.readouterr()
    assert str(tmp_path / "run" / "curve.png") in out
    assert "row/s" in err
    plain = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, [*plain, *err.replace("\r", "\n").splitlines()])) <= 100


@pytest.mark.usefixtures("no_report")
def test_a_second_run_computes_nothing_and_loads_no_model(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch
) -> None:
    assert call(*overrides) == 0
    first, calls = samples(tmp_path), len(engine.calls)
    assert calls == 2 * ROWS  # once for all cells, once for the grey image

    def refuse(*loading: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(collect, "load_engine", refuse)
    assert call(*overrides) == 0
    pd.testing.assert_frame_equal(samples(tmp_path), first)


@pytest.mark.usefixtures("no_report")
def test_a_new_method_computes_its_own_cells_beside_the_full_cache(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides) == 0
    first = samples(tmp_path)
    engine.calls.clear()
    assert call(*overrides, "method=[random,restkv,tova]") == 0
    assert len(engine.calls) == ROWS
    assert {tuple(c.label for c in cells) for cells in engine.calls} == {("full", "tova")}
    second = samples(tmp_path)
    old = second[second["method"] != "tova"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, first)
    assert len(second) == len(first) + ROWS


@pytest.mark.usefixtures("no_report")
def test_a_larger_limit_goes_on_from_a_smaller_one(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides, "limit=3") == 0
    few = set(samples(tmp_path)["row"])
    engine.calls.clear()
    assert call(*overrides, "limit=5") == 0
    more = set(samples(tmp_path)["row"])
    assert few < more
    assert len(engine.calls) == 2 * len(more - few)
    assert samples(tmp_path)["question_id"].nunique() == 5


@pytest.mark.usefixtures("no_report")
def test_other_weights_share_no_answers(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"2")
    assert call(*overrides, "limit=1") == 0
    keys = set(samples(tmp_path)["cell_key"])
    assert call(*overrides, "limit=1", f"model.pretrained={other}") == 2  # the folder is taken
    assert call(*overrides, "limit=1", f"model.pretrained={other}", "run.name=other") == 0
    assert not keys & set(pd.read_parquet(tmp_path / "other" / "samples.parquet")["cell_key"])
    assert len(list((tmp_path / "answers").glob("*.sqlite"))) == 2


@pytest.mark.usefixtures("no_report")
def test_the_control_sees_a_uniform_image_of_the_same_size(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides, "limit=2") == 0
    pairs = list(zip(engine.images[::2], engine.images[1::2], strict=True))
    assert pairs
    for shown, blank in pairs:
        assert shown.size == blank.size
        assert blank.getextrema() == ((128, 128),) * 3
        assert shown.getextrema() != blank.getextrema()
    assert [[c.control for c in cells] for cells in engine.calls[1::2]] == [
        [BLANK_IMAGE] for _ in pairs
    ]


def test_budgets_take_the_place_of_ratios(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    assert call(*overrides, "limit=1", "ratios=null", "budgets=[8,16]") == 0
    frame = samples(tmp_path)
    cells = frame[frame["method"] == "restkv"]
    assert sorted(set(cells["budget"])) == [8, 16]
    assert cells["ratio"].isna().all()


@pytest.mark.usefixtures("no_report")
def test_a_multirun_has_a_folder_a_job_and_goes_on_after_a_bad_one(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    chosen = [o for o in overrides if not o.startswith(("run.name", "method", "ratios"))]
    code = call("-m", *chosen, "limit=1", "seed=0,-1", "method=[random],[snapkv]")
    assert code == 2
    assert capsys.readouterr().err.count("seed=-1 is negative") == 2
    folders = sorted(p.parent.name for p in tmp_path.glob("*/samples.parquet"))
    for folder, method in zip(folders, ("random", "snapkv"), strict=True):
        assert folder.startswith(f"tiny_vlm-mmbench_mini-replay-seed0-{method}-")
        frame = pd.read_parquet(tmp_path / folder / "samples.parquet")
        assert set(frame["method"]) == {"full", "blank_image", method}


@pytest.mark.usefixtures("no_report")
def test_interrupting_leaves_a_store_that_goes_on(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    ask = engine.answer

    def interrupted(*args: object) -> object:
        if len(engine.calls) == 9:
            raise KeyboardInterrupt
        return ask(*args)

    monkeypatch.setattr(engine, "answer", interrupted)
    assert call(*overrides) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(engine, "answer", ask)
    engine.calls.clear()
    assert call(*overrides) == 0
    assert len(engine.calls) == 2 * (ROWS - 4)  # a row is stored when both of its calls are done


def test_killed_at_any_moment_the_tables_come_out_the_same(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    calm, here = tmp_path / "calm", tmp_path / "here"
    assert call(*overrides, f"run.dir={calm}") == 0
    killed = [*overrides, f"run.dir={here}"]
    for moment in (10 * CELLS,):
        process = _start(killed)
        while count(here) < moment:
            assert process.poll() is None
            time.sleep(0.02)  # looking takes time as well
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        left = count(here)
        assert moment <= left < CELLS * ROWS
        assert left % CELLS == 0
    assert not (here / "run" / "samples.parquet").exists()
    engine.calls.clear()
    assert call(*killed) == 0
    assert len(engine.calls) == 2 * (ROWS - left // CELLS)
    pd.testing.assert_frame_equal(samples(here), samples(calm))
    cells = [pd.read_parquet(place / "run" / "cells.parquet") for place in (calm, here)]
    pd.testing.assert_frame_equal(*cells)


def test_what_a_killed_run_left_half_written_goes(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path
) -> None:
    stage = tmp_path / "run" / f"{STAGE}abc"
    images = tmp_path / "run" / "images"
    for folder in (stage, images):
        folder.mkdir(parents=True)
    parts = [tmp_path / "run" / ".plan.json.7.part", images / ".t-1.png.7.part"]
    for path in (stage / "samples.parquet", *parts):
        path.write_text("half")
    assert call(*overrides, "limit=1") == 0
    left = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert left == [".lock"]


@pytest.mark.slow
def test_two_runs_at_once_share_the_work_and_both_finish(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    other = [*overrides, "run.name=other", "method=[random,restkv,tova]"]
    process = _start(other, pause="0.1")
    while not count(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)  # looking takes time as well
    assert call(*overrides) == 0
    assert process.wait(60) == 0
    mine = len(engine.calls) // 2
    assert 0 < mine < ROWS  # each row was computed by one of the two, but for the cells of tova
    assert count(tmp_path) == (CELLS + 1) * ROWS
    assert len(samples(tmp_path)) == CELLS * ROWS
    others = pd.read_parquet(tmp_path / "other" / "samples.parquet")
    assert len(others) == (CELLS + 1) * ROWS
    shared = others[others["method"] != "tova"].reset_index(drop=True)
    pd.testing.assert_frame_equal(samples(tmp_path), shared)


def _start(overrides: list[str], pause: str = "0.02") -> "subprocess.Popen[bytes]":
    driver = [sys.executable, str(ROOT / "tests" / "run" / "driver.py"), pause]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*driver, *overrides], env=environment, stdout=quiet, stderr=quiet)


def test_answers_of_other_software_stay_and_are_pointed_out(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(provenance, "version", lambda package: "0.0.1")
    assert call(*overrides, "limit=1") == 0
    monkeypatch.undo()
    monkeypatch.setattr(collect, "load_engine", lambda *loading: engine)
    assert call(*overrides, "limit=3") == 0
    summary = (tmp_path / "run" / "summary.md").read_text()
    told = next(line for line in summary.splitlines() if "computed otherwise" in line)
    assert "torch 0.0.1" in told
    assert f"{len(samples(tmp_path)) - (samples(tmp_path)['origin'].value_counts().max())}" in told
    with Store(store_of(tmp_path)) as store:
        origins = store.origins()
    hosts = {origins[origin]["host"] for origin in samples(tmp_path)["origin"]}
    assert hosts == {platform.node()}


def test_the_summary_names_what_each_label_changes(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(engine, "told", lambda: ["Decoding goes on without CUDA graphs."])
    chosen = ["limit=1", "method=[snapkv,restkv]", "methods.restkv.alpha=0.5"]
    assert call(*overrides, *chosen) == 0
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "| methods.restkv | restkv with alpha=0.5 |" in summary
    assert "| methods.snapkv |" in summary
    assert "snapkv with" not in summary
    # What the engine says of the answers is told once, not a row.
    assert capsys.readouterr().out.count("without CUDA graphs") == 1


@pytest.mark.parametrize(
    "name", ["summary.md", pytest.param("curve.png", marks=pytest.mark.slow), "libraries.log"]
)
def test_results_that_cannot_be_written_end_in_one_sentence(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys, name: str
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    assert call(*overrides, "limit=1") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert str(tmp_path / "run" / name) in told


def test_a_spoilt_run_folder_is_refused_and_left_alone(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    place = tmp_path / "run"
    place.write_bytes(b"mine" * 500)
    assert call(*overrides) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(place) in told
    assert place.read_bytes() == b"mine" * 500
    assert engine.calls == []


@pytest.mark.usefixtures("no_report")
def test_a_spoilt_store_is_refused_left_alone_and_repaired_on_request(
    call: Program, engine: FakeEngine, overrides: list[str], tmp_path: Path, capsys
) -> None:
    assert call(*overrides) == 0
    expected, place = samples(tmp_path), store_of(tmp_path)
    content = bytearray(place.read_bytes())
    content[-3 * 4096 : -2 * 4096] = bytes(4096)
    place.write_bytes(content)
    engine.calls.clear()
    capsys.readouterr()
    assert call(*overrides) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(place) in told
    assert "store.repair=true" in told
    assert place.read_bytes() == content
    assert engine.calls == []
    assert call(*overrides, "store.repair=true") == 0
    assert "entries were dropped" in capsys.readouterr().out
    assert 0 < len(engine.calls) <= 2 * ROWS
    pd.testing.assert_frame_equal(samples(tmp_path), expected)
